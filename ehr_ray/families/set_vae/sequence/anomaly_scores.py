"""How surprising each set of a stay is, and how surprising it would be if it were wrong.

B patients, M sets, N tokens, D latent. Everything is deterministic: means, no samples.
"""

import torch
from torch import Tensor

from ehr_ray.families.set_vae.chunking import chosen
from ehr_ray.families.set_vae.sequence import experts
from ehr_ray.families.set_vae.sequence.model import SeqSetVAE
from ehr_ray.families.set_vae.sequence.predict import set_errors
from ehr_ray.family import Batch
from ehr_ray.nn.noise import combine, uniform

BETA = 0.2
"""Weight of the divergence in the score; the family's evaluation knob."""
CLEAN, RESAMPLED, SHIFTED, SWAPPED = range(4)
KINDS = ("clean", "values resampled across patients", "one variable shifted", "two swapped")
SHIFT = 3.0
"""Of the scale of a variable (`data.scale`)."""
_WHICH, _SOURCE, _TOKEN, _SIGN = 31, 32, 33, 34


def anomalies(model: SeqSetVAE, batch: Batch) -> Batch:
    """Return the scores of every set, and of one set of each patient made wrong in three ways.

    `patient`, `set`, `minute`, `kind`; `kl` = KL(q || prior) of q, the product, which a step's
    objective has too; `nelbo` = reconstruction from its mean + BETA * kl. The sets before a wrong
    one are as they were, so what it is compared with is not wrong too.
    """
    beliefs = model.beliefs(batch)
    expected = beliefs.p_mu, beliefs.p_logvar, beliefs.gap
    clean = _scores(model, batch, beliefs.q_mu, beliefs.q_logvar, *expected)
    parts = [_entries(batch, CLEAN, clean)]
    which = one_set_each(batch)
    sets = chosen(batch, which)
    for kind, corrupt in ((RESAMPLED, resampled), (SHIFTED, shifted), (SWAPPED, swapped)):
        wrong = {**sets, "value": corrupt(batch, sets, model.config.clip_value)}
        posterior = model.sets.encode(wrong)
        q = (p.transpose(0, 1).flatten(1) for p in (posterior.mu, posterior.logvar))
        parts.append(
            _entries(wrong, kind, _scores(model, wrong, *q, *(e[which] for e in expected)))
        )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def one_set_each(batch: Batch) -> Tensor:
    """Return one set of each patient that has two tokens or more in it, by hash, indices [<= B]."""
    key = combine(batch["subject_id"][batch["patient"]], batch["set_index"], _WHICH)
    draw = uniform(key, 1).masked_fill(batch["mask"].sum(1) < 2, 2.0)
    lowest = torch.full_like(batch["num_sets"], 2, dtype=draw.dtype)
    lowest = lowest.scatter_reduce(0, batch["patient"], draw, "amin")
    return ((draw == lowest[batch["patient"]]) & (draw < 2)).nonzero().squeeze(1)


def resampled(batch: Batch, sets: Batch, clip: float | None) -> Tensor:  # noqa: ARG001
    """Return every value replaced by the same variable's in a set of another patient, [m, N].

    A variable that only one patient of the batch has keeps its values.
    """
    mask, value = batch["mask"], batch["value"]
    pool_code, pool_value = batch["code"][mask], value[mask]
    pool_patient = batch["patient"].unsqueeze(1).expand_as(mask)[mask]
    order = torch.argsort(pool_code, stable=True)
    counts = torch.bincount(pool_code, minlength=int(batch["code"].max()) + 1)
    first = counts.cumsum(0) - counts
    code = sets["code"]
    owner = sets["patient"].unsqueeze(1).expand_as(code)
    found = sets["value"].clone()
    left = sets["mask"].clone()
    token = combine(sets["subject_id"][owner], sets["set_index"].unsqueeze(1), code)
    for attempt in range(8):  # a draw of the patient's own is drawn again
        draw = (uniform(token, _SOURCE, attempt) * counts[code]).long()
        source = order[(first[code] + draw).clamp(max=len(order) - 1)]
        other = left & (pool_patient[source] != owner)
        found = torch.where(other, pool_value[source], found)
        left &= ~other
    return found


def shifted(batch: Batch, sets: Batch, clip: float | None) -> Tensor:  # noqa: ARG001
    """Return the values with one token of each set moved by 3 of its scale, [m, N]."""
    token = _token_draws(sets, _TOKEN)
    sign = torch.where(uniform(_set_keys(sets), _SIGN) < 0.5, -SHIFT, SHIFT)
    moved = sets["value"] + sign.unsqueeze(1) * (token == token.amin(1, keepdim=True))
    return moved if clip is None else moved.clamp(-clip, clip)


def swapped(batch: Batch, sets: Batch, clip: float | None) -> Tensor:  # noqa: ARG001
    """Return the values with those of two tokens of each set exchanged, [m, N]."""
    order = _token_draws(sets, _TOKEN).argsort(1)[:, :2]
    values = sets["value"].gather(1, order)
    return sets["value"].scatter(1, order, values.flip(1))


def _set_keys(sets: Batch) -> Tensor:
    return combine(sets["subject_id"][sets["patient"]], sets["set_index"])


def _token_draws(sets: Batch, purpose: int) -> Tensor:
    key = combine(_set_keys(sets).unsqueeze(1), sets["code"], purpose)
    return uniform(key, 1).masked_fill(~sets["mask"], 2.0)


def _scores(
    model: SeqSetVAE,
    sets: Batch,
    mu: Tensor,
    logvar: Tensor,
    p_mu: Tensor,
    p_logvar: Tensor,
    gap: Tensor,
) -> dict[str, Tensor]:
    post_mu, post_logvar = model.product(mu, logvar, p_mu, p_logvar, gap)
    kl = experts.divergence(post_mu, post_logvar, p_mu, p_logvar).sum(1)
    recon = set_errors(model, sets, post_mu)
    return {"recon": recon, "kl": kl, "nelbo": recon + BETA * kl}


def _entries(sets: Batch, kind: int, scores: dict[str, Tensor]) -> Batch:
    real = sets["mask"].any(1)
    entries = {"patient": sets["patient"], "set": sets["set_index"], "minute": sets["minute"]}
    entries |= {"kind": torch.full_like(sets["patient"], kind), **scores}
    return {name: values[real] for name, values in entries.items()}
