"""What was measured of each variable, without a model: the wide path beside a deep one.

B patients, M sets, N tokens, V variables. Simple statistics are strong on ICU stays; a head that
reads them beside the latents need not learn them anew (Cheng et al. 2016, "Wide & Deep Learning").
"""

import torch
from torch import Tensor

from ehr_ray.family import Batch

STATISTICS = ("present", "count", "first", "last", "mean", "min", "max", "std")
"""Of each variable's live values; `count` is log(1 + count), an absent variable's are all 0."""


def statistics(batch: Batch, variables: int) -> Tensor:
    """Return the statistics of every variable of the vocabulary, [B, V * len(STATISTICS)].

    Values are as the model sees them, in the vocabulary's units of scale, and measured ones alone:
    a carried value is not counted again.
    """
    live = batch["mask"] & ~batch["carried"]
    cells = len(batch["num_sets"]) * variables
    # What does not count falls into a cell of its own: no host waits for how many count.
    cell = batch["patient"].unsqueeze(1) * variables + batch["code"]
    cell = torch.where(live, cell, cells).flatten()
    value = batch["value"].flatten().float()

    def summed(of: Tensor) -> Tensor:
        return of.new_zeros(cells + 1).index_add(0, cell, of)

    def reduced(of: Tensor, how: str) -> Tensor:
        return of.new_zeros(cells + 1).scatter_reduce(0, cell, of, how, include_self=False)

    count = summed(torch.ones_like(value))
    total = count.clamp(min=1)

    # Sets lie in order of time: a cell's last value is the one furthest behind.
    place = torch.arange(len(value), device=value.device)
    padded = torch.cat([value, value.new_zeros(1)])  # a row to read where a cell has no value
    first, last = (
        padded[torch.where(count > 0, reduced(place, how), len(value))] for how in ("amin", "amax")
    )
    mean = summed(value) / total
    variance = summed((value - mean[cell]).square()) / total
    columns = (
        (count > 0).float(),
        count.log1p(),
        first,
        last,
        mean,
        reduced(value, "amin"),
        reduced(value, "amax"),
        variance.sqrt(),
    )
    return torch.stack(columns, 1)[:cells].view(len(batch["num_sets"]), -1)
