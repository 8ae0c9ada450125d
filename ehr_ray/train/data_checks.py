"""Is there anything to learn from, and to choose a checkpoint by? Asked before it is too late."""

import math
from collections.abc import Mapping
from typing import Any, Final

from ehr_ray.errors import InputError
from ehr_ray.family import AnyFamily
from ehr_ray.train.loader import Loader

FEW: Final = 0.5
"""Share of patients to learn from below which a split gets a line."""


def check_batches(family: AnyFamily, config: Any, loader: Loader, world: int) -> None:
    """Raise InputError unless each of `world` ranks has the patients that every step asks for."""
    needs_pairs = family.training.needs_pairs
    loader.check(world, needs_pairs(config) if needs_pairs else None)


def check_learnable(family: AnyFamily, config: Any, loader: Loader) -> list[str]:
    """Return lines about splits of which few patients can be learned from; [] if all is well.

    Raises InputError where a split has patients and none of them can.
    """
    learnable = family.training.learnable
    if learnable is None:
        return []
    lines = []
    for split, store in (("train", loader.train), ("tuning", loader.tuning)):
        total = len(store)
        count = int(learnable.rows(store).sum())
        if total and not count:
            raise InputError(
                f"{split} split: none of {total:,} patients has {learnable.what}; "
                f"{learnable.remedy(config)}"
            )
        if count < FEW * total:
            lines.append(
                f"{split}: only {count:,} of {total:,} patients ({count / total:.0%}) have "
                f"{learnable.what}; nothing is learned from the others"
            )
    return lines


def check_measured(
    family: AnyFamily, values: Mapping[str, float], loader: Loader, best: float | None
) -> None:
    """Raise InputError if tuning cannot tell checkpoints apart, and none is kept so far.

    A metric of nothing is NaN; a report without the metric, as without tuning, is no error.
    """
    select = family.select
    if best is None and len(loader.tuning) and math.isnan(values.get(select.metric, 0.0)):
        raise InputError(
            f"{select.metric}: is no number on {len(loader.tuning):,} tuning rows, so no "
            f"checkpoint can be chosen; {select.remedy or 'give more tuning patients'}"
        )
