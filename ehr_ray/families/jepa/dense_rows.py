"""The rows of a batch as dense tensors, and the columns an encoder reads of them.

B patients, T rows, F features, C statistics of a cell (the first is its level), K chosen rows.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ehr_ray.family import Batch
from ehr_ray.nn.noise import combine, normal

_NOISE, _JITTER = 41, 42


class Size(NamedTuple):
    """How many rows are chosen: the most of any patient, and in total."""

    most: int
    total: int


@dataclass(frozen=True)
class DenseRows:
    """Rows of patients: `value` [B, T, F, C], `observed` [B, T, F], `minute` and `mask` [B, T]."""

    value: Tensor
    observed: Tensor
    minute: Tensor
    mask: Tensor
    static: Tensor
    """Values that hold for all rows, [B, F]."""
    static_seen: Tensor
    """Which of these there are, bool [B, F]."""
    real: Tensor | int | None = None
    """Places of the real rows in B * T, or their number, where the host knows it."""

    def take(self, chosen: Tensor, size: Size | None = None) -> "DenseRows":
        """Return the `chosen` rows alone, bool [B, T], moved up: [B, K, ...].

        `size` of the chosen that are real, where the host knows it already.
        """
        chosen = chosen & self.mask
        (size,) = sizes(chosen) if size is None else (size,)
        index, real = places(chosen, size)
        wide = index[:, :, None].expand(-1, -1, self.observed.shape[2])
        statistics = wide.unsqueeze(-1).expand(-1, -1, -1, self.value.shape[3])
        return DenseRows(
            self.value.gather(1, statistics),
            self.observed.gather(1, wide) & real.unsqueeze(-1),
            self.minute.gather(1, index),
            real,
            self.static,
            self.static_seen,
            size.total,
        )

    def shaken(self, key: Tensor, noise: float, jitter: float) -> "DenseRows":
        """Return the sheet with N(0, noise) on the observed levels and N(0, jitter) on the minutes.

        Draws are functions of `key` [B]; rows keep their order.
        """
        value, minute = self.value, self.minute
        if noise:
            drawn = normal(combine(key, _NOISE), self.observed[0].numel()).view(self.observed.shape)
            level = value[..., 0] + noise * drawn * self.observed
            value = torch.cat([level.unsqueeze(-1), value[..., 1:]], -1)
        if jitter:
            minute = minute + jitter * normal(combine(key, _JITTER), minute.shape[1])
        return replace(self, value=value, minute=minute)

    def rolled(self) -> "DenseRows":
        """Return the sheet with each patient's rows exchanged for the next one's."""
        parts = {name: part.roll(-1, 0) for name, part in vars(self).items() if name != "real"}
        return DenseRows(**parts)


def dense(batch: Batch) -> DenseRows:
    """Return the sheet of a batch; cells without observation are 0."""
    num_patients, num_rows = batch["mask"].shape
    num_features, num_statistics = batch["static"].shape[1], batch["value"].shape[1]
    cells = num_patients * num_rows * num_features
    value = batch["value"].new_zeros(cells, num_statistics)
    value[batch["cell"]] = batch["value"]
    observed = torch.zeros(cells, dtype=torch.bool, device=value.device)
    observed[batch["cell"]] = True
    shape = num_patients, num_rows, num_features
    return DenseRows(
        value.view(*shape, num_statistics),
        observed.view(shape),
        batch["minute"],
        batch["mask"],
        batch["static"],
        batch["static_seen"],
        batch.get("place"),
    )


def sizes(*chosen: Tensor) -> list[Size]:
    """Return the size of each choice, bool [B, T]; the host waits once for all of them."""
    counts = torch.stack([one.sum(1) for one in chosen])
    told = torch.cat([counts.amax(1), counts.sum(1)]).tolist()
    return [Size(*pair) for pair in zip(told[: len(chosen)], told[len(chosen) :], strict=True)]


def places(chosen: Tensor, size: Size | None = None) -> tuple[Tensor, Tensor]:
    """Return the indices of the True of each line of [B, T], in order, and which are real, [B, K].

    K is the most of any line, at least 1.
    """
    (size,) = sizes(chosen) if size is None else (size,)
    most = max(1, size.most)
    index = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return index, torch.arange(most, device=chosen.device) < chosen.sum(1, keepdim=True)


def rows_at(values: Tensor, index: Tensor) -> Tensor:
    """Return the rows `index` [B, K] of [B, T, X]."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def carried(sheet: DenseRows, seen: Tensor, limit: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the last level `seen` [B, T, F] of each feature, its age and whether there is one.

    All [B, T, F], each row with itself; the age in minutes. Levels older than `limit` are dropped.
    """
    place = torch.arange(seen.shape[1], device=seen.device)[None, :, None]
    last = torch.where(seen, place, -1).cummax(1).values
    index = last.clamp(min=0)
    minute = sheet.minute.unsqueeze(-1).expand(seen.shape)
    age = (minute - minute.gather(1, index)).float().clamp(min=0)
    known = (last >= 0) if limit is None else (last >= 0) & (age <= limit)
    return sheet.value[..., 0].gather(1, index), age, known


def columns(sheet: DenseRows, limit: float | None, unit: float) -> Tensor:
    """Return what an encoder reads, [B, T, F * (C + 2)].

    Of each feature its last level, how fresh that is (1 when of this row, 1/2 after `unit` minutes,
    0 without one), whether this row has it, and the cell's other statistics. A row is told by the
    rows of the sheet up to it, so what is not in the sheet cannot be seen through it.
    """
    level, age, known = carried(sheet, sheet.observed, limit)
    static, seen = sheet.static.unsqueeze(1), sheet.static_seen.unsqueeze(1)
    level = torch.where(seen, static, level * known)
    fresh = torch.where(seen, 1.0, known / (1 + age / unit))
    return torch.cat([level, fresh, sheet.observed.float(), sheet.value[..., 1:].flatten(2)], -1)
