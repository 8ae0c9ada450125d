"""What was to be expected of each value of a stay when it was measured.

M sets, N tokens, m sets made wrong. Everything is deterministic: means, no samples.
"""

import torch
from torch import Tensor

from ehr_ray.families.set_vae.chunking import by_size, where
from ehr_ray.families.set_vae.predict import estimates
from ehr_ray.families.set_vae.sequence.model import SeqSetVAE
from ehr_ray.families.set_vae.wrong_sets import CLEAN, made_wrong, stacked
from ehr_ray.family import Batch


def values(model: SeqSetVAE, batch: Batch) -> Batch:
    """Return a row for each measured value, and for those of the sets made wrong.

    `patient`, `set`, `kind`, `code`, `value`; `last`, the variable's value before (NaN: it had
    none); `expected`, read off the prior's mean, which has not seen the set; `carried`, of a
    carried value that was made wrong: as recorded it is the last one and says nothing.
    """
    expected, last = model.beliefs(batch).p_mu, last_values(batch)
    parts = [_rows(model, batch, CLEAN, expected, last, batch)]
    for kind, which, wrong in made_wrong(batch, model.config.clip_value):
        recorded = {name: batch[name][which, : wrong[name].shape[1]] for name in ("code", "value")}
        before = last[which, : wrong["code"].shape[1]]
        before = before.masked_fill(wrong["code"] != recorded["code"], torch.nan)
        parts.append(_rows(model, wrong, kind, expected[which], before, recorded))
    return stacked(parts)


def last_values(batch: Batch) -> Tensor:
    """Return the value that each token's variable had in the stay before its set, [M, N].

    NaN where there is none.
    """
    mask = batch["mask"]
    code, value = batch["code"][mask], batch["value"][mask]
    patient = batch["patient"].unsqueeze(1).expand_as(mask)[mask]
    found = torch.full_like(batch["value"], torch.nan)
    if len(code):
        key = patient * (code.max() + 1) + code
        order = key.argsort(stable=True)  # tokens lie in the order of their sets
        same = key[order][1:] == key[order][:-1]
        last = torch.full_like(value, torch.nan)
        last[order[1:]] = torch.where(same, value[order[:-1]], torch.nan)
        found[mask] = last
    return found


def _rows(
    model: SeqSetVAE, sets: Batch, kind: int, prior: Tensor, last: Tensor, recorded: Batch
) -> Batch:
    """Return the rows of the sets [m] whose prior's means are `prior` [m, D]."""
    pieces = by_size(sets, *model.config.chunk_limits)
    expected = estimates(model.sets, sets, model.levels_of(prior), pieces)
    wrong = (sets["value"] != recorded["value"]) | (sets["code"] != recorded["code"])
    told = sets["mask"] & (~sets["carried"] | wrong)
    columns = {
        "patient": sets["patient"].unsqueeze(1).expand_as(told),
        "set": sets["set_index"].unsqueeze(1).expand_as(told),
        "kind": torch.full_like(sets["code"], kind),
        "code": sets["code"],
        "value": sets["value"],
        "last": last,
        "expected": expected,
        "carried": sets["carried"],
    }
    return where(told, columns)
