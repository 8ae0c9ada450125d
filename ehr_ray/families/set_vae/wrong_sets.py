"""Sets of a stay made wrong on purpose, and the table of what a model makes of them.

B patients, M sets, N tokens. Everything is deterministic: draws are hashes of patient and set.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ehr_ray.families.set_vae.chunking import chosen, where
from ehr_ray.family import Batch
from ehr_ray.nn.noise import combine, uniform

BETA = 0.2
"""Weight of the divergence in the score; the family's evaluation knob."""
CLEAN, RESAMPLED, SHIFTED, SWAPPED, FOREIGN, SHIFTED_MEASURED, SWAPPED_MEASURED = range(7)
SHIFT = 3.0
"""Of the scale of a variable (`data.scale`)."""
_WHICH, _SOURCE, _TOKEN, _SIGN, _CODE = 31, 32, 33, 34, 35


def score_table(
    batch: Batch, clip: float | None, score: Callable[[Batch, Tensor | None], dict[str, Tensor]]
) -> Batch:
    """Return the scores of every set, and of one set of each patient made wrong in each way.

    `patient`, `set`, `minute`, `kind` and what `score` gives, [sets]: it is asked for all sets of
    the batch (None), then for wrong ones that stand for the sets of these indices.
    """
    parts = [_entries(batch, CLEAN, score(batch, None))]
    for kind, which, wrong in made_wrong(batch, clip):
        parts.append(_entries(wrong, kind, score(wrong, which)))
    return stacked(parts)


def stacked(parts: list[Batch]) -> Batch:
    """Return tables of the same columns as one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def made_wrong(batch: Batch, clip: float | None) -> Iterator[tuple[int, Tensor, Batch]]:
    """Yield each kind of error, and the sets made wrong in it with their indices in the batch."""
    which = one_set_each(batch, batch["mask"])
    sets = chosen(batch, which)
    yield RESAMPLED, which, {**sets, "value": resampled(batch, sets, clip)}
    yield SHIFTED, which, {**sets, "value": shifted(sets, clip, sets["mask"])}
    yield SWAPPED, which, {**sets, "value": swapped(sets, sets["mask"])}
    yield FOREIGN, which, {**sets, **foreign(batch, sets)}
    # A carried value must be the last one, so that a change of it is no riddle.
    which = one_set_each(batch, batch["mask"] & ~batch["carried"])
    sets = chosen(batch, which)
    measured = sets["mask"] & ~sets["carried"]
    yield SHIFTED_MEASURED, which, {**sets, "value": shifted(sets, clip, measured)}
    yield SWAPPED_MEASURED, which, {**sets, "value": swapped(sets, measured)}


def one_set_each(batch: Batch, tokens: Tensor) -> Tensor:
    """Return one set of each patient that has two of `tokens` [M, N] or more, by hash, [<= B]."""
    key = combine(batch["subject_id"][batch["patient"]], batch["set_index"], _WHICH)
    draw = uniform(key, 1).masked_fill(tokens.sum(1) < 2, 2.0)
    lowest = torch.full_like(batch["num_sets"], 2, dtype=draw.dtype)
    lowest = lowest.scatter_reduce(0, batch["patient"], draw, "amin")
    return ((draw == lowest[batch["patient"]]) & (draw < 2)).nonzero().squeeze(1)


def resampled(batch: Batch, sets: Batch, clip: float | None) -> Tensor:  # noqa: ARG001
    """Return every value replaced by the same variable's in a set of another patient, [m, N].

    A variable that only one patient of the batch has keeps its values.
    """
    mask = batch["mask"]
    pool_value = batch["value"][mask]
    pool_patient = batch["patient"].unsqueeze(1).expand_as(mask)[mask]
    order, first, counts = _by_code(batch)
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


def shifted(sets: Batch, clip: float | None, tokens: Tensor) -> Tensor:
    """Return the values with one of `tokens` [m, N] of each set moved by 3 of its scale, [m, N]."""
    token = _token_draws(sets, _TOKEN, tokens)
    sign = torch.where(uniform(_set_keys(sets), _SIGN) < 0.5, -SHIFT, SHIFT)
    moved = sets["value"] + sign.unsqueeze(1) * (token == token.amin(1, keepdim=True))
    return moved if clip is None else moved.clamp(-clip, clip)


def swapped(sets: Batch, tokens: Tensor) -> Tensor:
    """Return the values with those of two of `tokens` [m, N] of each set exchanged, [m, N]."""
    order = _token_draws(sets, _TOKEN, tokens).argsort(1)[:, :2]
    values = sets["value"].gather(1, order)
    return sets["value"].scatter(1, order, values.flip(1))


def foreign(batch: Batch, sets: Batch) -> Batch:
    """Return `code` and `value` [m, N]: a variable of each set replaced by one not of its stay.

    Which one is drawn of all variables of the batch, whatever their number; where the stay has
    them all, of those the set has not. Its value is one that another set has of it, so that only
    the combination is odd. A set that has every variable is left as it is.
    """
    order, first, counts = _by_code(batch)
    patient, key = sets["patient"], _set_keys(sets)
    in_stay = _has(batch, batch["patient"], len(batch["num_sets"]), len(counts))[patient]
    in_set = _has(sets, torch.arange(len(key), device=key.device), len(key), len(counts))
    draw = uniform(combine(key.unsqueeze(1), torch.arange(len(counts), device=key.device)), _CODE)
    # Those of the stay come after the others, and those of the set are none.
    draw = (draw + 2.0 * in_stay + 4.0 * in_set).masked_fill(counts == 0, 9.0)
    code = draw.argmin(1)
    place = (uniform(key, _SOURCE) * counts[code]).long()
    value = batch["value"][batch["mask"]][order[first[code] + place]]
    token = _token_draws(sets, _TOKEN, sets["mask"])
    chosen_token = (token == token.amin(1, keepdim=True)) & (draw.amin(1) < 4).unsqueeze(1)
    return {
        "code": torch.where(chosen_token, code.unsqueeze(1), sets["code"]),
        "value": torch.where(chosen_token, value.unsqueeze(1), sets["value"]),
    }


def _by_code(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the order of the batch's tokens by code, and where each code begins and how often."""
    code = batch["code"][batch["mask"]]
    counts = torch.bincount(code, minlength=int(batch["code"].max()) + 1)
    return torch.argsort(code, stable=True), counts.cumsum(0) - counts, counts


def _has(sets: Batch, owner: Tensor, owners: int, codes: int) -> Tensor:
    """Return which codes there are in the sets of each owner, bool [owners, codes]."""
    mask = sets["mask"]
    found = torch.zeros(owners, codes, dtype=torch.bool, device=mask.device)
    found[owner.unsqueeze(1).expand_as(mask)[mask], sets["code"][mask]] = True
    return found


def _set_keys(sets: Batch) -> Tensor:
    return combine(sets["subject_id"][sets["patient"]], sets["set_index"])


def _token_draws(sets: Batch, purpose: int, tokens: Tensor) -> Tensor:
    key = combine(_set_keys(sets).unsqueeze(1), sets["code"], purpose)
    return uniform(key, 1).masked_fill(~tokens, 2.0)


def _entries(sets: Batch, kind: int, scores: dict[str, Tensor]) -> Batch:
    """Return `patient`, `set`, `minute`, `kind` and the scores of the sets that have tokens."""
    real = sets["mask"].any(1)
    columns = {"patient": sets["patient"], "set": sets["set_index"], "minute": sets["minute"]}
    columns |= {"kind": torch.full_like(sets["patient"], kind), **scores}
    return where(real, columns)
