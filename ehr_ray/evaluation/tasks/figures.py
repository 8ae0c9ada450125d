"""Figures of one task beyond the curves of a split: by hour, and by subgroup."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.figure import Figure

from ehr_ray.evaluation.plotting import INK, STYLES, new_axes, plain
from ehr_ray.evaluation.table import Interval
from ehr_ray.evaluation.tasks.baselines import SHORT_TITLES

CAPTIONS: Final[Mapping[str, tuple[str, str]]] = {
    "early_warning": (
        "How early the risk shows",
        "The same outcome predicted at each hour from what was known by then, with 95 % "
        "intervals; the trees here are one seed of one setting, so that every hour gets its own.",
    ),
    "few_labels": (
        "How many labels it needs",
        "The same outcome learned from a share of the labelled patients, mean of ten draws with "
        "95 % intervals over patients and draws.",
    ),
    "subgroups": (
        "Discrimination by subgroup",
        "AUROC with its 95 % interval in each group; the dotted line is this model on everybody. "
        "Groups too small to rank are left out.",
    ),
}
"""Title and one sentence on how to read each figure."""

_FONT: Final = 9
_MARKERS: Final = {"model": "o", "gbm": "s", "logistic": "^"}


@dataclass(frozen=True)
class Estimate:
    """One row of a forest plot: an estimate of each model."""

    title: str
    of: Mapping[str, Interval]


def by_step(
    steps: Sequence[str], title: str, found: Mapping[str, Mapping[str, list[Interval]]]
) -> Figure:
    """One panel a metric, one line a model over the steps; models are drawn side by side.

    Args:
        steps: as hours after the origin, in order.
        title: what they are.
        found: metric (`auroc`, `auprc`) to model (a key of `STYLES`) to an estimate each step.
    """
    figure = Figure(figsize=(9.4, 3.9), layout="constrained")
    x = np.arange(len(steps), dtype=float)
    for index, (metric, models) in enumerate(found.items()):
        axis = new_axes(figure, 1, len(found), index)
        shifts = np.linspace(-0.06, 0.06, len(models)) if len(models) > 1 else np.zeros(1)
        for shift, (name, estimates) in zip(shifts, models.items(), strict=True):
            color, line, width = STYLES.get(name, (INK, "-", 1.2))
            low = [e.value - e.low for e in estimates]
            high = [e.high - e.value for e in estimates]
            axis.errorbar(
                x + shift,
                [e.value for e in estimates],
                yerr=np.maximum([low, high], 0),
                color=color,
                linestyle=line,
                linewidth=width,
                elinewidth=1.2,
                marker=_MARKERS.get(name, "D"),
                markersize=5,
                label=SHORT_TITLES.get(name, name),
                zorder=3 if name == "model" else 2,
            )
        axis.set_xticks(x, steps)
        axis.set_xlim(-0.35, len(steps) - 0.65)
        axis.set_xlabel(title, fontsize=_FONT)
        axis.set_ylabel(metric.upper(), fontsize=_FONT)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=_FONT
    )
    return figure


def forest(rows: Sequence[Estimate], metric: str) -> Figure:
    """Estimates with intervals, one line a row and model; the first row is everybody."""
    figure = Figure(figsize=(9.4, 0.9 + 0.36 * len(rows)), layout="constrained")
    axis = new_axes(figure)
    names = [name for name in STYLES if any(name in row.of for row in rows)]
    shifts = dict(
        zip(names, np.linspace(-0.14, 0.14, len(names)) if len(names) > 1 else [0.0], strict=True)
    )
    for name in names:
        color = STYLES[name][0]
        at = [i for i, row in enumerate(rows) if name in row.of]
        found = [rows[i].of[name] for i in at]
        axis.errorbar(
            [e.value for e in found],
            np.array(at) + shifts[name],
            xerr=np.maximum(
                [[e.value - e.low for e in found], [e.high - e.value for e in found]], 0
            ),
            color=color,
            linestyle="none",
            marker=_MARKERS.get(name, "D"),
            markersize=6,
            elinewidth=1.6,
            label=SHORT_TITLES.get(name, name),
        )
    if "model" in rows[0].of:
        axis.axvline(
            rows[0].of["model"].value,
            color="#B6BBC4",
            linewidth=1.0,
            linestyle=(0, (1, 2)),
            zorder=1,
        )
    axis.set_yticks(range(len(rows)), [plain(row.title) for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel(metric, fontsize=_FONT)
    axis.legend(frameon=False, fontsize=_FONT, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
