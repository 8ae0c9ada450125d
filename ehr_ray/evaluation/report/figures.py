"""Figures of the report: arrays in, a matplotlib `Figure` out; nothing is shown or written.

Colours are from the Okabe-Ito palette and every series also differs by line or marker, so the
figures survive colour blindness and grey printing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from ehr_ray.evaluation.metrics.weighted import ECE_BINS
from ehr_ray.evaluation.plotting import (
    BLUE,
    FONT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    STYLES,
    new_axes,
    plain,
    styled,
)
from ehr_ray.evaluation.tasks.baselines import SHORT_TITLES
from ehr_ray.events.auroc import auroc

Array = NDArray[np.floating]


CAPTIONS: Final[Mapping[str, tuple[str, str]]] = {
    "loss_curves": (
        "Training",
        "Each panel is one part of the loss, on train (thin) and validation (thick); schedules "
        "are drawn as a share of their largest value, which the legend gives.",
    ),
    "kl_per_dimension": (
        "Information per latent dimension",
        "One bar a latent dimension, sorted; coloured bars are active units, whose mean differs "
        "between rows, and grey bars spend nats without telling rows apart.",
    ),
    "reconstruction": (
        "Reconstruction examples",
        "Open circles are recorded values and filled markers what the model reconstructed, in "
        "the scale of the table on reconstruction; the shorter the line between them, the better.",
    ),
    "embedding_map": (
        "Map of the embedding",
        "Each point is a patient on the two directions of largest variance (and, in a second panel "
        "where evaluation.umap_patients asks for one, by UMAP, which keeps neighbours together and "
        "no distances); separation of the colours shows that the outcome is among the strongest "
        "patterns, overlap does not show that it is absent.",
    ),
    "roc_pr": (
        "Discrimination",
        "Left: a curve nearer the top left ranks patients better. Right: a curve further up "
        "finds the same share of cases with fewer false alarms; the dotted line is chance.",
    ),
    "calibration": (
        "Calibration",
        "On the diagonal, of patients given a risk of 20 % one in five has the outcome; bars "
        "below show how many patients received each risk.",
    ),
}
"""Title and one sentence on how to read each figure, by the name the report knows it under."""
ALTERNATIVES: Final[Mapping[str, str]] = {
    "loss_curves": "Line charts of each part of the loss over training, on train and validation.",
    "kl_per_dimension": "Bar chart of the KL of each latent dimension; the number of active units "
    "is in the table on collapse.",
    "reconstruction": "Recorded and reconstructed values of some patients, as pairs of markers; "
    "errors are in the table on reconstruction.",
    "embedding_map": "Scatter plot of patients by two directions of their embedding, coloured by "
    "the outcome.",
    "roc_pr": "ROC and precision-recall curves of every model; the areas under them are in the "
    "table beside the baselines.",
    "calibration": "Line chart of the observed rate over the predicted risk; Brier score and "
    "calibration error are in the table beside the baselines.",
    "early_warning": "Line charts of AUROC and AUPRC over hours after the start of the stay; the "
    "numbers are in the table by hour.",
    "subgroups": "AUROC of each subgroup with its interval; the numbers are in the tables by "
    "subgroup.",
}
"""What each figure shows, for those who cannot see it, and where its numbers stand."""

_PLACE: Final = ("step", "epoch", "seconds", "data_wait")


def loss_curves(history: pd.DataFrame) -> Figure:
    """One panel for each loss term with `train/` and `val/` lines, and one of the schedules.

    Args:
        history: a row a report; `step` and optionally `epoch`, columns `train/<term>` and
            `val/<term>`, and schedule values (any other numeric column without a slash).
    """
    x_name = "epoch" if "epoch" in history else "step"
    x = history[x_name].to_numpy(dtype=float)
    panels = _term_panels(history)
    schedules = _schedule_columns(history)
    count = len(panels) + bool(schedules)
    columns = min(3, max(count, 1))
    rows = -(-max(count, 1) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.4 * rows), layout="constrained")
    axes = [new_axes(figure, rows, columns, i) for i in range(max(count, 1))]
    for axis, (term, present) in zip(axes, panels.items(), strict=False):
        for split in present:
            train = split == "train"
            y = history[f"{split}/{term}"].to_numpy(dtype=float)
            axis.plot(
                x,
                y,
                color=SKY if train else BLUE,
                linewidth=1.1 if train else 2.0,
                label="train" if train else "validation",
                marker="o" if len(x) == 1 else None,
            )
        _title(axis, term.replace("_", " "))
        axis.legend(frameon=False, fontsize=FONT - 1)
    if schedules:
        _schedules(axes[count - 1], history, x, schedules)
    for axis in axes:
        axis.set_xlabel(x_name, fontsize=FONT)
    return figure


def kl_per_dimension(kl: Array, active: NDArray[np.bool_]) -> Figure:
    """Sorted bars of the KL of each latent dimension in nats, active units in colour.

    Args:
        kl: float[Z], mean over rows, before free bits.
        active: bool[Z], from `LatentDiagnostics.active`.
    """
    figure = Figure(figsize=(4.9, 4.4), layout="constrained")
    axis = new_axes(figure)
    order = np.argsort(-np.asarray(kl))
    height, on = np.asarray(kl)[order], np.asarray(active)[order]
    position = np.arange(height.size)
    width = 0.9 if height.size <= 150 else 1.0
    for mask, color, label in (
        (on, BLUE, f"active ({int(on.sum())} of {on.size})"),
        (~on, "#C3C7CE", "not active"),
    ):
        if mask.any():
            axis.bar(position[mask], height[mask], width, color=color, label=label)
    axis.set_xlim(-1, height.size)
    axis.set_xlabel("latent dimension, sorted by KL", fontsize=FONT)
    axis.set_ylabel("KL in nats", fontsize=FONT)
    axis.set_title(f"{height.sum():.1f} nats a row in total", loc="right", fontsize=FONT, color=INK)
    axis.legend(frameon=False, fontsize=FONT)
    return figure


def reconstruction(examples: Sequence[Mapping[str, Any]], max_tokens: int = 16) -> Figure:
    """One panel an example: recorded against reconstructed value of each variable.

    Args:
        examples: each with `title` and `tokens`, a list of mappings with `variable`, `value`,
            `reconstructed` (both z-scored) and the flags `masked` and `carried`.
        max_tokens: longer examples are cut, and say so.
    """
    columns = min(3, max(1, len(examples)))
    rows = -(-max(1, len(examples)) // columns)
    longest = max((min(len(e["tokens"]), max_tokens) for e in examples), default=1)
    figure = Figure(
        figsize=(3.4 * columns, rows * (0.9 + 0.21 * longest) + 0.35), layout="constrained"
    )
    for index, example in enumerate(examples):
        axis = new_axes(figure, rows, columns, index)
        _example(axis, example, max_tokens)
        axis.set_ylim(longest - 0.4, -0.6)
    handles = [Line2D([], [], **style) for style in (_RECORDED, _SEEN, _CARRIED, _MASKED)]
    labels = ["recorded", "reconstructed", "… carried forward", "… masked from the model"]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, **_LEGEND)
    return figure


def roc_pr(label: NDArray[np.bool_], probabilities: Mapping[str, Array]) -> Figure:
    """ROC and precision-recall curves, one line a model; the model is drawn last and widest.

    Args:
        label: bool[N] with both classes.
        probabilities: float[N] by model name (keys of `SHORT_TITLES`, or any name).
    """
    figure = Figure(figsize=(9.4, 5.0 + 0.19 * len(probabilities)), layout="constrained")
    roc, pr = new_axes(figure, 1, 2, 0), new_axes(figure, 1, 2, 1)
    y = np.asarray(label, dtype=bool)
    chance: dict[str, Any] = {"color": "#B6BBC4", "linewidth": 1.0, "linestyle": (0, (1, 2))}
    roc.plot([0, 1], [0, 1], **chance)
    pr.axhline(y.mean(), **chance)
    for name in sorted(probabilities, key=lambda n: n == "model"):
        p = probabilities[name]
        color, line, width = STYLES.get(name, (INK, "-", 1.2))
        style: dict[str, Any] = {"color": color, "linestyle": line, "linewidth": width}
        false_rate, true_rate, _ = roc_curve(y, p)
        precision, recall, _ = precision_recall_curve(y, p)
        title = SHORT_TITLES.get(name, name)
        roc.plot(false_rate, true_rate, label=f"{auroc(y, p):.3f}  {title}", **style)
        average = average_precision_score(y, p)
        pr.step(recall, precision, where="pre", label=f"{average:.3f}  {title}", **style)
    _rates(roc, "1 - specificity", "sensitivity", "AUROC")
    _rates(pr, "sensitivity (recall)", "precision", "AUPRC")
    return figure


def calibration(
    label: NDArray[np.bool_], calibrated: Array, uncalibrated: Array | None = None
) -> Figure:
    """Observed rate against predicted risk in bins of equal mass, before and after Platt.

    Args:
        label: bool[N].
        calibrated: float[N], reported probabilities.
        uncalibrated: float[N], before Platt scaling; None draws one line.
    """
    figure = Figure(figsize=(4.9, 4.4), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(4, 1))
    top, bottom = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    styled(top)
    styled(bottom)
    highest = 0.05
    drawn = [("after calibration", calibrated, BLUE, "o", "-")]
    if uncalibrated is not None:
        drawn.insert(0, ("before", uncalibrated, ORANGE, "s", "--"))
    for name, p, color, marker, line in drawn:
        mean, rate, low, high = _reliability(np.asarray(label, dtype=float), np.asarray(p))
        top.vlines(mean, low, high, color=color, alpha=0.35, linewidth=1.5)
        top.plot(mean, rate, line, color=color, marker=marker, markersize=5, label=name)
        highest = max(highest, float(high.max(initial=0)), float(mean.max(initial=0)))
    edge = min(1.0, 1.05 * highest)
    top.plot([0, edge], [0, edge], color="#B6BBC4", linewidth=1.0, linestyle=(0, (1, 2)))
    top.set_xlim(0, edge)
    top.set_ylim(0, edge)
    top.set_ylabel("observed rate", fontsize=FONT)
    top.legend(frameon=False, fontsize=FONT, loc="upper left")
    bottom.hist(np.asarray(calibrated), bins=np.linspace(0, edge, 31).tolist(), color=BLUE)
    bottom.set_xlim(0, edge)
    bottom.set_ylabel("patients", fontsize=FONT)
    bottom.set_xlabel("predicted risk", fontsize=FONT)
    return figure


_RECORDED: Final[dict[str, Any]] = {
    "marker": "o",
    "linestyle": "none",
    "markerfacecolor": "white",
    "markeredgecolor": INK,
    "markersize": 6,
}
_FILLED: Final[dict[str, Any]] = {"linestyle": "none", "markersize": 5, "markeredgewidth": 0}
_SEEN: Final = {**_FILLED, "marker": "D", "color": BLUE}
_CARRIED: Final = {**_FILLED, "marker": "s", "color": GREEN}
_MASKED: Final = {**_FILLED, "marker": "^", "color": ORANGE, "markersize": 6}
_LEGEND: Final[dict[str, Any]] = {"frameon": False, "fontsize": FONT}


def _title(axis: Axes, text: str) -> None:
    axis.set_title(text, loc="left", fontsize=FONT + 1, fontweight="bold", color=INK)


def _term_panels(history: pd.DataFrame) -> dict[str, list[str]]:
    """Splits that have each term, the objective first; terms that are never finite are left out."""
    panels: dict[str, list[str]] = {}
    for split in ("train", "val"):
        for column in history.columns:
            head, _, term = str(column).partition("/")
            values = history[column]
            if head == split and np.isfinite(values.to_numpy(dtype=float)).any():
                panels.setdefault(term, []).append(split)
    return dict(sorted(panels.items(), key=lambda item: (item[0] != "objective", item[0])))


def _schedule_columns(history: pd.DataFrame) -> list[str]:
    numeric = history.select_dtypes("number").columns
    names = [str(c) for c in numeric if "/" not in str(c) and c not in (*_PLACE, "grad_norm")]
    return [name for name in names if history[name].abs().max() > 0]


def _schedules(axis: Axes, history: pd.DataFrame, x: Array, names: Sequence[str]) -> None:
    lines = ("-", "--", "-.", ":")
    colors = (BLUE, ORANGE, GREEN, PURPLE, GREY, SKY)
    for index, name in enumerate(names):
        y = history[name].to_numpy(dtype=float)
        largest = float(np.nanmax(np.abs(y)))
        axis.plot(
            x,
            y / largest,
            linestyle=lines[index % 4],
            color=colors[index % 6],
            linewidth=1.6,
            label=f"{name} (max {largest:.3g})",
        )
    axis.set_ylim(0, 1.08)
    _title(axis, "schedules")
    axis.legend(frameon=False, fontsize=FONT - 1)


def _example(axis: Axes, example: Mapping[str, Any], max_tokens: int) -> None:
    tokens = list(example["tokens"])[:max_tokens]
    for row, token in enumerate(tokens):
        true, ours = float(token["value"]), float(token["reconstructed"])
        axis.plot([true, ours], [row, row], color="#B6BBC4", linewidth=1.4, zorder=1)
        style = _MASKED if token.get("masked") else _CARRIED if token.get("carried") else _SEEN
        axis.plot(true, row, zorder=2, **_RECORDED)
        axis.plot(ours, row, zorder=3, **style)
    axis.set_yticks(range(len(tokens)), [plain(str(token["variable"])) for token in tokens])
    axis.set_xlabel("scaled value; 0 is the centre of train", fontsize=FONT)
    hidden = len(example["tokens"]) - len(tokens)
    _title(axis, example["title"] + (f" (+{hidden} more)" if hidden else ""))


def _rates(axis: Axes, x: str, y: str, title: str) -> None:
    """Make a panel of two rates, its legend under it, where no curve runs."""
    axis.set_xlim(-0.01, 1.01)
    axis.set_ylim(-0.01, 1.01)
    axis.set_xlabel(x, fontsize=FONT)
    axis.set_ylabel(y, fontsize=FONT)
    axis.legend(
        frameon=False,
        fontsize=FONT - 1,
        loc="upper left",
        bbox_to_anchor=(0.0, -0.11),
        reverse=True,
        title=title,
        title_fontproperties={"size": FONT, "weight": "bold"},
        alignment="left",
    )


def _reliability(y: Array, p: Array) -> tuple[Array, Array, Array, Array]:
    """Mean risk, observed rate and its 95 % Wilson interval in bins of equal mass."""
    order = np.argsort(p, kind="stable")
    bins = [rows for rows in np.array_split(order, ECE_BINS) if rows.size]
    n = np.array([rows.size for rows in bins], dtype=float)
    mean = np.array([p[rows].mean() for rows in bins])
    rate = np.array([y[rows].mean() for rows in bins])
    z2 = 1.96**2
    center = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (rate * (1 - rate) + z2 / (4 * n)) / n) / (1 + z2 / n)
    return mean, rate, center - half, center + half
