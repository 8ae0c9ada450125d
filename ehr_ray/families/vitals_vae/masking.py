"""What the encoder is shown of a grid: which cells are hidden, and how the others are filled.

B patients, H hours, V vitals.
"""

import torch
from torch import Tensor

from ehr_ray.families.vitals_vae.config import VitalsVAEConfig
from ehr_ray.family import Batch
from ehr_ray.nn.noise import combine, uniform

_CELL, _CUT, _WHERE = range(1, 4)
DAY = 24.0
_OF_A_DAY = float(torch.log1p(torch.tensor(DAY)))
VALIDATION_HIDE = 0.1
"""Share of cells hidden in validation whatever `hide` is: runs are compared by them."""


def hidden_cells(
    batch: Batch, config: VitalsVAEConfig, seed: int, *, cut: bool, share: float | None = None
) -> Tensor:
    """Return the observed cells the encoder does not see, bool [B, H, V].

    Every draw is a function of (seed, patient, cell). With `cut`, a share of the patients is hidden
    from a landmark on besides, so that an embedding at a landmark is one the model knows. `share`
    of the cells is hidden, by default `hide`.
    """
    observed = batch["observed"]
    hours = torch.arange(observed.shape[1], device=observed.device)
    key = combine(batch["subject_id"], seed)
    cell = torch.arange(observed[0].numel(), device=observed.device).view(observed.shape[1:])
    hidden = uniform(key[:, None, None], cell, _CELL) < (config.hide if share is None else share)
    cuts = [h - config.first_hour for h in config.landmarks]
    cuts = [h for h in cuts if 0 < h < len(hours)]
    if cut and cuts and config.landmark_share:
        draw, where = uniform(key, torch.arange(_CUT, _WHERE + 1, device=key.device)[:, None])
        which = (where * len(cuts)).long()
        at = sum((which == place) * cut for place, cut in enumerate(cuts))
        at = torch.where(draw < config.landmark_share, at, len(hours))
        hidden = hidden | (hours >= at[:, None])[..., None]
    return hidden & observed


def channels(value: Tensor, observed: Tensor, carry_hours: Tensor, first_hour: int) -> Tensor:
    """Return filled values, masks and time since observation, [B, 3 V, H].

    Values are z-scores: observed, else the last one within `carry_hours` [V], else the patient's
    mean, else 0, the cohort's. The time is log(1 + hours) over its size at a day.
    """
    filled, since = fill(value, observed, carry_hours, first_hour)
    since = torch.log1p(since) / _OF_A_DAY
    return torch.cat([filled, observed.to(value.dtype), since], 2).transpose(1, 2)


def fill(
    value: Tensor, observed: Tensor, carry_hours: Tensor, first_hour: int
) -> tuple[Tensor, Tensor]:
    """Return imputed values and hours since the last observation, both [B, H, V].

    The same as `events.grid.imputed` and `hours_since`, on tensors: what is filled depends on
    which cells are hidden at this step.
    """
    hours = torch.arange(value.shape[1], device=value.device)[None, :, None]
    last = torch.cummax(torch.where(observed, hours, -1), 1).values
    start = min(first_hour, 0) - 1
    since = torch.where(last >= 0, hours - last, hours - start).to(value.dtype)
    carried = (last >= 0) & (hours - last <= carry_hours)
    count = observed.sum(1, keepdim=True)
    mean = (value * observed).sum(1, keepdim=True) / count.clamp(min=1)
    return torch.where(carried, value.gather(1, last.clamp(min=0)), mean), since
