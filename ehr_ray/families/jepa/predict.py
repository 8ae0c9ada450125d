"""What a trained JEPA says of a patient, and of its own predictions: deterministic.

B patients, T rows, K hidden rows, N entries, F features, D width.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ehr_ray.families.jepa.dense_rows import carried, dense, places, rows_at
from ehr_ray.families.jepa.diagnostics import Predicted, prediction_measures
from ehr_ray.families.jepa.model import JEPA
from ehr_ray.families.jepa.time_to_event import HOUR, last_state
from ehr_ray.family import Batch
from ehr_ray.nn.noise import combine, uniform

SEED = 0
"""Of the rows hidden to test predictions: the same ones every time."""
DAY = 24 * 60.0
"""Minutes of the first day, after which a record that has no prediction time is judged."""
ENTRIES = 8
"""Predictions of a patient that are looked at, at most."""
_HIDE, _ENTRY = 11, 12


def predict(model: JEPA, batch: Batch) -> Batch:
    """Return `embedding` [B, D * pools], of all of a patient's rows."""
    sheet = dense(batch)
    states = model.encode(sheet, target=model.config.embed_with == "target")
    return {"embedding": pooled(states.float(), sheet.mask, model.config.pool)}


def represent(model: JEPA, batch: Batch, seed: int | None) -> Tensor:
    """Return the embedding for a task's head; with a seed rows are hidden first."""
    return pooled(*row_states(model, batch, seed), model.config.pool)


def row_states(model: JEPA, batch: Batch, seed: int | None) -> tuple[Tensor, Tensor]:
    """Return the encoder's states [B, T, D] and which are real; with a seed rows are hidden."""
    sheet = dense(batch)
    if seed is not None and model.config.hide_rows:
        position = torch.arange(sheet.mask.shape[1], device=sheet.mask.device)
        key = combine(batch["subject_id"], seed, _HIDE).unsqueeze(1)
        draw = uniform(key, position).masked_fill(~sheet.mask, -1.0)
        # The row with the highest draw stays, so that no patient is left with nothing.
        kept = (draw >= model.config.hide_rows) | (draw == draw.amax(1, keepdim=True))
        sheet = sheet.take(kept)
    return model.encode(sheet).float(), sheet.mask


def represent_width(model: JEPA) -> int:
    """Return D * pools."""
    return model.config.size.width * len(model.config.pool)


def state_width(model: JEPA) -> int:
    """Return D."""
    return model.config.size.width


def pooled(states: Tensor, mask: Tensor, pools: Iterable[str]) -> Tensor:
    """Reduce [B, T, D] over the real rows, each pool in turn, [B, D * pools]."""
    real = mask.unsqueeze(-1)
    count = real.sum(1)
    mean = (states * real).sum(1) / count
    found = []
    for how in pools:
        if how == "mean":
            found.append(mean)
        elif how == "std":
            squared = ((states - mean.unsqueeze(1)) * real).square().sum(1) / count
            # The root's gradient at zero, of a patient with one row, is infinite.
            found.append(torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0))
        elif how == "max":
            found.append(states.masked_fill(~real, -torch.inf).amax(1))
        elif how == "min":
            found.append(states.masked_fill(~real, torch.inf).amin(1))
        else:
            row = torch.zeros_like(count) if how == "first" else count - 1
            found.append(rows_at(states, row).squeeze(1))
    return torch.cat(found, 1)


def targets(model: JEPA, batch: Batch) -> Batch:
    """Return hidden rows: `patient`, `position` [N]; `target`, `predicted`, `shuffled` [N, D].

    `shuffled` is predicted from the next patient's rows, those that this patient's context has.
    At most `ENTRIES` of each patient; none of a patient alone in its batch.
    """
    sheet = dense(batch)
    context, hidden = model.masks(batch, SEED)
    index, wanted = places(hidden)
    ahead = sheet.minute.gather(1, index)
    found = []
    for rows in (sheet, sheet.rolled()):
        seen = rows.take(context)
        states = model.encode(seen)
        told = model.predictor(states, seen.minute, seen.mask, ahead, wanted, None)
        found.append(told.float())
    told = wanted & (context & sheet.rolled().mask).any(1, keepdim=True)
    told &= len(batch["mask"]) > 1
    draw = uniform(combine(batch["subject_id"], _ENTRY).unsqueeze(1), index)
    rank = draw.masked_fill(~told, 2.0).argsort(1).argsort(1)
    told &= rank < ENTRIES
    patient, place = told.nonzero(as_tuple=True)
    return {
        "patient": patient,
        "position": index[patient, place],
        "target": rows_at(model.goals(sheet), index)[patient, place],
        "predicted": found[0][patient, place],
        "shuffled": found[1][patient, place],
    }


def cells(model: JEPA, batch: Batch) -> Batch:
    """Return values of hidden rows beside guesses: `patient`, `code`, `value`, `estimate`, `last`.

    All [N], scaled as the model sees them, so a guess of 0 is the train median. `last` is the
    latest level of an earlier row of the context, 0 without one. Code -1 is no code.
    """
    if not model.config.value_weight:
        none = batch["value"].new_zeros(0)
        whole = batch["subject_id"].new_zeros(0)
        return {"patient": whole, "code": whole, "value": none, "estimate": none, "last": none}
    sheet, out = dense(batch), model(batch, SEED)
    context, hidden = model.masks(batch, SEED)
    index, _ = places(hidden)
    level, _, known = carried(sheet, sheet.observed & context.unsqueeze(-1), None)
    patient, place, feature = out["observed"].nonzero(as_tuple=True)
    return {
        "patient": patient,
        "code": model.feature_code[feature],
        "value": out["level"][patient, place, feature],
        "estimate": out["estimate"][patient, place, feature],
        "last": rows_at(level * known, index)[patient, place, feature],
    }


def hazards(model: JEPA, batch: Batch) -> Batch:
    """Return hazards after the record, and after the rows of its first 24 hours.

    An entry each: `patient`, `day` (1: of the first 24 hours, of a record that goes on after them;
    0: of all rows) and `minute` at which the last hour that was read ends, or before that the
    record, all [N]; `hazard`, events an hour by bin and code, float32 [N, K * C]. Empty for a model
    without the head.
    """
    if not model.config.followed:
        return {}
    sheet, found = dense(batch), []
    for day, chosen in enumerate((sheet.mask, sheet.minute < DAY)):
        seen = sheet.take(chosen)
        real = seen.mask.any(1) & (batch["end"] > DAY if day else True)
        state = last_state(model.encode(seen).float(), seen.mask)[:, 0]
        minute = last_state(seen.minute.unsqueeze(-1), seen.mask)[:, 0, 0] + HOUR
        found.append(
            {
                "patient": real.nonzero()[:, 0],
                "day": torch.full((int(real.sum()),), day, device=real.device),
                "minute": torch.minimum(minute, batch["end"])[real],
                "hazard": model.time_to_event.log_hazard(state[real]).exp().flatten(1),
            }
        )
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


@torch.no_grad()
def measure(model: JEPA, batches: Iterable[Batch]) -> Mapping[str, float]:
    """Return skill, gap and the spread of the targets over some batches; {} without targets."""
    first, parts = 0, []
    for batch in batches:
        found = targets(model, batch)
        parts.append({**found, "patient": found["patient"] + first})
        first += len(batch["mask"])
    if not parts:
        return {}
    joined = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}
    return prediction_measures(Predicted(**joined), model.config.latent_loss)
