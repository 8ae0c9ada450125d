"""Figures of a search: trials as lines over the swept values, what mattered, where latents died."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

from ehr_ray.evaluation.plotting import BLUE, GREY, INK, ORANGE, new_axes

Array = NDArray[np.float64]

ENOUGH: Final = 8
"""Scored trials below which a forest is not asked what mattered."""
WIDE: Final = 10.0
"""A range whose ends differ by more is drawn on a logarithmic axis."""
KL: Final = "latent/kl_per_row"
CAPTIONS: Final[Mapping[str, tuple[str, str]]] = {
    "parallel": (
        "Trials over what was swept",
        "One line a trial: where it crosses an axis is its value there, the last axis is its score "
        "(better at the top). Darker is better; dashed grey trials collapsed, failed or have none.",
    ),
    "curves": (
        "Scores while training",
        "Each line is a trial at every report; lines that end early were stopped by the scheduler.",
    ),
    "importance": (
        "What mattered",
        "How much worse a random forest predicts the trials' scores when one column is shuffled, "
        "as a share of all columns. It says what made a difference within this space and these "
        "trials, not which way.",
    ),
    "collapse": (
        "Posterior collapse over beta and free bits",
        "One mark a trial: colour is the KL of its posteriors in nats a row, size the share of "
        "active units, and a cross a collapsed latent: KL below 0.1 nats a row, or fewer than four "
        "active units and 5 % of them, or means that lie on one line.",
    ),
}
ALTERNATIVES: Final[Mapping[str, str]] = {
    "parallel": "Lines of all trials over the swept values and the score; the numbers are in the "
    "table of trials.",
    "curves": "Line chart of each trial's score over its reports; final scores are in the table of "
    "trials.",
    "importance": "Bar chart of the importance of each swept path; the numbers are in the table of "
    "what mattered.",
    "collapse": "Scatter plot of trials by beta and free bits; which latents collapsed is in the "
    "table of trials.",
}
"""What each figure shows, for those who cannot see it, and where its numbers stand."""


@dataclass(frozen=True)
class Importance:
    """What a forest says of the swept paths."""

    share: Mapping[str, float]
    """Of the whole permutation importance, by path; sums to 1 unless nothing mattered."""
    rank: Mapping[str, float]
    """Spearman correlation of a path with the score, higher is better; NaN for choices of words."""
    explained: float
    """R2 of the forest on trials left out of its trees; without any above 0 read nothing."""


def importance(frame: pd.DataFrame, paths: Sequence[str], mode: str) -> Importance | None:
    """Return what made a difference; None with fewer than 8 trials that have a score."""
    scored = frame[np.isfinite(frame["score"].astype(float))]
    if len(scored) < ENOUGH or not paths:
        return None
    good = scored["score"].to_numpy(float) * (1 if mode == "max" else -1)
    x = np.column_stack([_numbers(scored[path]) for path in paths])
    forest = RandomForestRegressor(300, oob_score=True, random_state=0, n_jobs=1)
    forest.fit(x, good)
    found = permutation_importance(forest, x, good, n_repeats=10, random_state=0)
    mean = np.maximum(found.importances_mean, 0)
    share = mean / mean.sum() if mean.sum() else mean
    ranks = {
        path: float(pd.Series(_numbers(scored[path])).corr(pd.Series(good), method="spearman"))
        if _is_numeric(scored[path]) and scored[path].nunique() > 1
        else math.nan
        for path in paths
    }
    by_path = {path: float(v) for path, v in zip(paths, share, strict=True)}
    return Importance(by_path, ranks, float(forest.oob_score_))


def parallel(
    frame: pd.DataFrame, paths: Sequence[str], metric: str, mode: str, best: int | None
) -> Figure:
    """Draw every trial as a line over the swept values and its score."""
    columns = [*paths, "score"]
    figure = Figure(figsize=(max(6.0, 1.5 * len(columns)), 4.2), layout="constrained")
    axis = new_axes(figure)
    places = {name: _axis(frame[name], name == "score" and mode == "min") for name in columns}
    good = places["score"][0]
    order = pd.Series(good).rank(pct=True).to_numpy()
    for row in np.argsort(np.nan_to_num(order, nan=-1)):
        y = [places[name][0][row] for name in columns]
        unfit = bool(frame["collapsed"].iloc[row] or frame["untrained"].iloc[row])
        dead = not math.isfinite(good[row]) or unfit
        first = best is not None and int(frame["trial"].iloc[row]) == best
        colour = GREY if dead else ORANGE if first else colormaps["Blues"](0.25 + 0.7 * order[row])
        shown = [(x, v) for x, v in enumerate(y) if math.isfinite(v)]
        axis.plot(
            *zip(*shown, strict=True),
            color=colour,
            linestyle="--" if dead else "-",
            linewidth=2.6 if first else 1.2,
            marker="o",
            markersize=3,
            alpha=0.6 if dead else 0.95,
        )
    axis.set_xticks(range(len(columns)), [short(n) for n in paths] + [metric], rotation=20)
    axis.set_yticks([])
    axis.set_ylim(-0.12, 1.12)
    for x, name in enumerate(columns):
        axis.axvline(x, color=GREY, linewidth=0.6, zorder=0)
        for at, text in places[name][1]:
            axis.annotate(text, (x, at), fontsize=7, color=INK, xytext=(3, 2), **_OFFSET)
    return figure


def curves(
    found: Mapping[int, pd.DataFrame], best: int | None, metric: str = "score", mode: str = "max"
) -> Figure:
    """Draw what ranks trials over their steps; in `found`, as `score`, higher is better."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = new_axes(figure)
    for number, rows in found.items():
        if not len(rows):
            continue
        rows = rows[rows["score"] > -1e29]
        first = number == best
        axis.plot(
            rows["step"],
            rows["score"] if mode == "max" else -rows["score"],
            color=ORANGE if first else BLUE,
            linewidth=2.4 if first else 1.0,
            alpha=1.0 if first else 0.6,
            marker="o",
            markersize=3,
            label=f"trial {number}, the best" if first else None,
        )
    axis.set_xlabel("optimizer steps")
    axis.set_ylabel(f"{metric} ({'higher' if mode == 'max' else 'lower'} is better)")
    if best in found:
        axis.legend(frameon=False, fontsize=8)
    return figure


def bars(found: Importance) -> Figure:
    """Draw the share of importance of each path."""
    figure = Figure(figsize=(5.2, 0.6 + 0.42 * len(found.share)), layout="constrained")
    axis = new_axes(figure)
    names = sorted(found.share, key=lambda name: found.share[name])
    axis.barh([short(n) for n in names], [found.share[n] for n in names], color=BLUE)
    axis.set_xlabel(f"share of importance (forest R² left out: {found.explained:.2f})")
    return figure


def collapse(frame: pd.DataFrame, paths: Sequence[str]) -> Figure | None:
    """Draw KL and collapse over beta and free bits; None where neither was swept or measured."""
    beta = next((p for p in paths if ".beta" in p and _is_numeric(frame[p])), None)
    bits = next((p for p in paths if "free_bits" in p and _is_numeric(frame[p])), None)
    if KL not in frame or not (beta or bits):
        return None
    rows = frame[np.isfinite(frame[KL].astype(float))]
    if not len(rows):
        return None
    kl, dead = rows[KL].to_numpy(float), rows["collapsed"].to_numpy(bool)
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axis = new_axes(figure)
    x_name = beta or bits
    x = rows[x_name].to_numpy(float)
    both = beta is not None and bits is not None
    y = rows[bits].to_numpy(float) if both else kl
    share = rows.get("latent/active_share", pd.Series(1.0, rows.index)).to_numpy(float)
    log = np.log10(np.maximum(kl, 1e-3))
    norm = Normalize(min(log.min(), -1.0), max(log.max(), 1.0))
    if both and len(rows) >= 4:
        _ground(axis, np.log(x) if _is_log(x) else x, x, y, log, norm)
    marks: Any = None
    for kind, marker in ((~dead, "o"), (dead, "X")):
        if not kind.any():  # its legend would show a mark without size
            continue
        marks = axis.scatter(
            x[kind],
            y[kind],
            c=log[kind],
            s=30 + 90 * share[kind],
            norm=norm,
            marker=marker,
            cmap="viridis",
            edgecolor=INK,
            linewidth=0.6,
            label="collapsed" if marker == "X" else "not collapsed",
        )
    axis.use_sticky_edges = False  # a mark at the edge of the ground is whole
    axis.margins(0.08)
    if _is_log(x):
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_locator(LogLocator(numticks=6, subs=(1.0, 3.0)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_xlabel(short(str(x_name)))
    axis.set_ylabel(short(str(bits)) if both else "KL, nats a row")
    axis.legend(frameon=False, fontsize=8)
    bar = figure.colorbar(marks, ax=axis)
    bar.set_label("log10 of KL, nats a row")
    return figure


def _ground(axis: Any, where: Array, x: Array, y: Array, value: Array, norm: Normalize) -> None:
    """Shade the plane by the nearest trials, inverse to their squared distance."""
    span = [max(float(np.ptp(v)), 1e-9) for v in (where, y)]
    grid_x, grid_y = (np.linspace(v.min(), v.max(), 60) for v in (where, y))
    gx, gy = np.meshgrid(grid_x, grid_y)
    distance = ((gx[..., None] - where) / span[0]) ** 2 + ((gy[..., None] - y) / span[1]) ** 2
    weight = 1 / (distance + 1e-3) ** 2
    shade = (weight * value).sum(-1) / weight.sum(-1)
    at = np.exp(grid_x) if _is_log(x) else grid_x
    axis.pcolormesh(at, grid_y, shade, cmap="viridis", norm=norm, alpha=0.35, shading="auto")


_OFFSET: Final[Any] = {"textcoords": "offset points"}


def _axis(values: pd.Series, flipped: bool) -> tuple[Array, list[tuple[float, str]]]:
    """Return places between 0 and 1, and the labels of an axis."""
    if not _is_numeric(values):
        words = sorted({str(v) for v in values})
        step = 1 / max(1, len(words) - 1)
        at = {word: i * step for i, word in enumerate(words)}
        return np.array([at[str(v)] for v in values]), [(p, w[:14]) for w, p in at.items()]
    raw = values.to_numpy(float)
    scale = np.log(raw) if _is_log(raw) else raw
    fine = scale[np.isfinite(scale)]
    if not len(fine):
        return np.full(len(raw), math.nan), []
    low, high = float(fine.min()), float(fine.max())
    place = (scale - low) / (high - low) if high > low else np.full(len(raw), 0.5)
    place = np.where(np.isfinite(scale), 1 - place if flipped else place, math.nan)
    ends = [math.exp(v) if _is_log(raw) else v for v in (low, high)]
    marks = [(1.0, ends[0]), (0.0, ends[1])] if flipped else [(0.0, ends[0]), (1.0, ends[1])]
    return place, [(at, f"{value:.3g}") for at, value in marks]


def _numbers(values: pd.Series) -> Array:
    if _is_numeric(values):
        return values.to_numpy(float)
    return pd.Categorical([str(v) for v in values]).codes.astype(float)


def _is_numeric(values: pd.Series) -> bool:
    kinds = {type(v) for v in values}
    return all(issubclass(k, (int, float, np.number)) and k is not bool for k in kinds)


def _is_log(values: Array) -> bool:
    fine = values[np.isfinite(values)]
    return bool(len(fine) and fine.min() > 0 and fine.max() / fine.min() > WIDE)


def short(path: str) -> str:
    """Return a dotted path without the section everybody knows."""
    return path.removeprefix("schedules.").removeprefix("model.").removeprefix("train.")
