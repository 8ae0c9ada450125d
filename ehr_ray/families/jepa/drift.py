"""How predictions of a JEPA err the further they look ahead, beside the state that was last seen.

B patients, T rows, N entries, D width.
"""

from typing import Final

import torch
from torch.nn import functional as F

from ehr_ray.families.jepa.dense_rows import dense, rows_at
from ehr_ray.families.jepa.model import JEPA
from ehr_ray.families.jepa.time_to_event import last_state
from ehr_ray.family import Batch

LEADS: Final = (6, 12, 24, 48)
"""Hours from the last row that is seen, at least, to the row that is predicted."""


def drift(model: JEPA, batch: Batch) -> Batch:
    """Return errors of predicting each patient's last hour from what was so many hours before it.

    An entry for each patient and lead with rows that early, all [N]: `patient`, `lead` in hours,
    and the mean over D of the smooth-L1 distance from the target's normalised state of that hour to
    what was predicted (`predicted`) and to the same state of the last row seen, as the target reads
    the rows up to it (`last`, persistence). The predictor is asked for the hour itself: nothing is
    predicted from predictions. Empty where rows are admissions, and where a prediction has a
    direction alone (`infonce`).
    """
    if model.config.rows != "hours" or model.config.latent_loss == "infonce":
        return {}
    sheet = dense(batch)
    end = (sheet.mask.sum(1, keepdim=True) - 1).clamp(min=0)
    minute = sheet.minute.gather(1, end)
    goal = rows_at(model.goals(sheet), end)[:, 0]
    found = [(goal.new_zeros(0, dtype=torch.long), 0, goal.new_zeros(0), goal.new_zeros(0))]
    for lead in LEADS:
        seen_rows = sheet.mask & (sheet.minute <= minute - 60 * lead)
        if not seen_rows.any():
            continue
        seen = sheet.take(seen_rows)
        real = seen.mask.any(1)
        states = model.encode(seen)
        told = model.predictor(states, seen.minute, seen.mask, minute, real.unsqueeze(1), None)
        last = last_state(model.goals(seen), seen.mask)[:, 0]
        guessed, kept = (
            F.smooth_l1_loss(guess.float(), goal, reduction="none").mean(-1)[real]
            for guess in (told[:, 0], last)
        )
        found.append((real.nonzero()[:, 0], lead, guessed, kept))
    return {
        "patient": torch.cat([patient for patient, *_ in found]),
        "lead": torch.cat([torch.full_like(patient, lead) for patient, lead, *_ in found]),
        "predicted": torch.cat([predicted for *_, predicted, _ in found]),
        "last": torch.cat([last for *_, last in found]),
    }
