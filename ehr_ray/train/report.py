"""What a run says of itself at each report."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from ehr_ray.family import AnyFamily
from ehr_ray.train.checkpoint import Progress
from ehr_ray.train.meters import Metrics


@dataclass(frozen=True)
class Watch:
    """What the outside is told, on rank 0 only: each step's place, each report's metrics."""

    on_step: Callable[[int, int], None] = lambda _step, _total: None
    on_report: Callable[[Metrics], None] = lambda _metrics: None
    on_lines: Callable[[list[str]], None] = lambda _lines: None


SILENT = Watch()


def warnings_of(
    family: AnyFamily, reports: pd.DataFrame, warmup_steps: int, progress: Progress
) -> list[str]:
    """Return what the family says of the reports after warm-up; [] where there is nothing.

    A run that ends within warm-up is judged by its last report.
    """
    if family.diagnose is None:
        return []
    since = min(warmup_steps, progress.step - 1) if progress.finished else warmup_steps
    later = reports[reports["step"] > since].to_dict("records")
    told = [{str(k).removeprefix("val/"): v for k, v in row.items()} for row in later]
    return family.diagnose.warn(told)
