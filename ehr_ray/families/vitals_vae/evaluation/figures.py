"""Figures of the vitals VAE: arrays in, a matplotlib `Figure` out."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ehr_ray.evaluation.plotting import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY
from ehr_ray.evaluation.report.embedding_map import FEWEST, by_umap, evenly, principal
from ehr_ray.events.options import Vital
from ehr_ray.families.vitals_vae.evaluation.curves import Grids

CAPTIONS: Final = {
    "vitals_examples": (
        "Reconstructed curves of patients",
        "Filled points are observed values the model was given, open ones were hidden from it; the "
        "line is its curve through all hours. Patients are evenly chosen by their error.",
    ),
    "vitals_clusters": (
        "Mean course of each cluster",
        "Means of observed values in bins of hours, in each vital sign's unit; grey is noise.",
    ),
    "vitals_map": (
        "Map of the clusters",
        "Each point is a train patient on the two directions of largest variance of the latent, "
        "and by UMAP, which keeps neighbours together and no distances; grey points are in no "
        "cluster.",
    ),
}
COLOURS: Final = (BLUE, ORANGE, GREEN, PURPLE, SKY, INK, "#E69F00", "#F0E442")
SHOWN: Final = 4
BINS: Final = 24


def examples(
    grids: Grids,
    vitals: Sequence[Vital],
    centre: NDArray[Any],
    spread: NDArray[Any],
    first_hour: int,
) -> Figure:
    """Return observed points and the curve of a few patients (rows) and vital signs (columns)."""
    error = (np.square(grids.estimate - grids.value) * grids.observed).sum((1, 2))
    error /= np.maximum(grids.observed.sum((1, 2)), 1)
    order = np.argsort(error)
    rows = order[np.linspace(0.1 * len(order), 0.9 * (len(order) - 1), SHOWN).astype(int)]
    shown = range(min(3, len(vitals)))
    figure = Figure(figsize=(11, 2.1 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(shown), squeeze=False, sharex=True)
    hours = np.arange(grids.value.shape[1]) + first_hour
    for line, row in zip(axes, rows, strict=True):
        for axis, v in zip(line, shown, strict=True):
            seen = grids.observed[row, :, v] & ~grids.hidden[row, :, v]
            hidden = grids.hidden[row, :, v]
            value = grids.value[row, :, v] * spread[v] + centre[v]
            axis.plot(hours, grids.imputed[row, :, v] * spread[v] + centre[v], color=BLUE, lw=1.4)
            axis.plot(hours[seen], value[seen], ".", ms=3, color=INK)
            axis.plot(hours[hidden], value[hidden], "o", ms=4, mfc="none", color=ORANGE)
    for axis, v in zip(axes[0], shown, strict=True):
        axis.set_title(f"{vitals[v].name} ({vitals[v].unit})", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("hours after the origin", fontsize=8)
    _plain(figure)
    return figure


def cluster_means(
    grids: Grids,
    labels: NDArray[np.int64],
    vitals: Sequence[Vital],
    centre: NDArray[Any],
    spread: NDArray[Any],
    first_hour: int,
) -> Figure:
    """Return the mean of observed values by cluster and bin of hours, a panel a vital sign."""
    hours = grids.value.shape[1]
    edges = np.linspace(0, hours, min(BINS, hours) + 1).astype(int)
    middle = (edges[1:] + edges[:-1]) / 2 + first_hour
    columns = min(4, len(vitals))
    lines = -(-len(vitals) // columns)
    figure = Figure(figsize=(11, 2.4 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for index, (axis, vital) in enumerate(zip(axes, vitals, strict=False)):
        for label in np.unique(labels):
            rows = labels == label
            value = np.where(grids.observed[rows, :, index], grids.value[rows, :, index], 0.0)
            total = np.add.reduceat(value.sum(0), edges[:-1])
            count = np.add.reduceat(grids.observed[rows, :, index].sum(0), edges[:-1])
            mean = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
            name = "noise" if label < 0 else f"cluster {label + 1}"
            axis.plot(
                middle,
                mean * spread[index] + centre[index],
                color=_colour(label),
                lw=1 if label < 0 else 1.8,
                label=f"{name} ({rows.sum()})",
            )
        axis.set_title(f"{vital.name} ({vital.unit})", fontsize=9)
    for axis in axes[len(vitals) :]:
        axis.set_axis_off()
    axes[0].legend(fontsize=6, frameon=False)
    _plain(figure)
    return figure


def cluster_map(
    latent: NDArray[Any], labels: NDArray[np.int64], *, umap: int = 0, seed: int = 0
) -> Figure:
    """Return patients on the latent's first two principal components, coloured by cluster.

    With `umap` a second panel shows at most so many of them by UMAP.
    """
    second = umap > 0 and min(umap, len(latent)) >= FEWEST
    figure = Figure(figsize=(9.6 if second else 5.2, 4.2), layout="constrained")
    axes = figure.subplots(1, 1 + second, squeeze=False)[0]
    _clusters(axes[0], principal(latent)[0], labels)
    axes[0].legend(fontsize=7, frameon=False)
    if second:
        kept = evenly(len(latent), umap)
        _clusters(axes[1], by_umap(latent[kept], seed), labels[kept])
        axes[1].set_xlabel(f"UMAP of {len(kept):,} patients", fontsize=7)
    _plain(figure)
    return figure


def _clusters(axis: Axes, place: NDArray[Any], labels: NDArray[np.int64]) -> None:
    for label in np.unique(labels):
        rows = labels == label
        name = "noise" if label < 0 else f"cluster {label + 1}"
        axis.plot(*place[rows].T, "." if label < 0 else "o", ms=3, color=_colour(label), label=name)


def _colour(label: int) -> str:
    return GREY if label < 0 else COLOURS[label % len(COLOURS)]


def _plain(figure: Figure) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
