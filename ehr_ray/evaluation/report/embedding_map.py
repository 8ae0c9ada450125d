"""Maps of an embedding: patients on two principal components, and by UMAP beside them.

N patients, D width of the embedding.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ehr_ray.evaluation.plotting import ORANGE, SKY, new_axes, plain

Array = NDArray[Any]
MAX_POINTS = 4000
FEWEST = 10
"""Patients below which a UMAP is none."""
NEAR = 0.1
"""How close UMAP may put points: enough to see single ones."""
_FONT = 8.5


def principal(rows: Array) -> tuple[Array, Array]:
    """Return places [N, 2] on the first two principal components, and their shares of variance."""
    centered = np.asarray(rows, np.float64) - np.mean(rows, axis=0)
    values, vectors = np.linalg.eigh(centered.T @ centered)
    places = centered @ vectors[:, ::-1][:, :2]
    places = np.pad(places, ((0, 0), (0, max(0, 2 - places.shape[1]))))
    share = values[::-1][:2] / max(float(values.sum()), 1e-12)
    return places, np.pad(share, (0, 2 - share.size))


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """Return at most so many of `count` rows, evenly chosen."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def by_umap(rows: Array, seed: int) -> Array:
    """Return places [N, 2] by UMAP of the standardised rows."""
    from ehr_ray.evaluation.clusters import reduced, standardised  # seconds to import

    return reduced(standardised(rows), seed, 2, apart=NEAR)


def embedding_map(
    embedding: Array,
    label: NDArray[np.bool_] | None = None,
    label_name: str = "outcome",
    *,
    max_points: int = MAX_POINTS,
    umap: int = 0,
    seed: int = 0,
) -> Figure:
    """A frozen representation in two dimensions, coloured by the label.

    Args:
        embedding: float[N, D].
        label: bool[N]; None draws one colour.
        label_name: what the label means, for the legend.
        max_points: draw at most this many rows, evenly chosen; components are of all.
        umap: rows of a second panel by UMAP at most; 0 has none.
        seed: of the UMAP.
    """
    rows = np.asarray(embedding, dtype=np.float64)
    on = np.zeros(len(rows), bool) if label is None else np.asarray(label, dtype=bool)
    name = None if label is None else plain(label_name)
    second = umap > 0 and min(umap, len(rows)) >= FEWEST
    figure = Figure(figsize=(9.4 if second else 4.9, 4.4), layout="constrained")
    places, share = principal(rows)
    kept = evenly(len(rows), max_points)
    axis = new_axes(figure, 1, 1 + second, 0)
    _points(axis, places[kept], on[kept], name)
    axis.set_xlabel(f"first component ({share[0]:.0%} of the variance)", fontsize=_FONT)
    axis.set_ylabel(f"second component ({share[1]:.0%})", fontsize=_FONT)
    if second:
        kept = evenly(len(rows), umap)
        axis = new_axes(figure, 1, 2, 1)
        _points(axis, by_umap(rows[kept], seed), on[kept], name)
        axis.set_xlabel(f"UMAP of {len(kept):,} patients", fontsize=_FONT)
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def _points(axis: Axes, places: Array, on: NDArray[np.bool_], name: str | None) -> None:
    size = float(np.clip(9000 / max(len(places), 1), 5, 30))
    style: dict[str, Any] = {"s": size, "linewidths": 0}
    if (~on).any():
        text = "patients" if name is None else f"no {name} ({(~on).sum():,})"
        axis.scatter(*places[~on].T, color=SKY, alpha=0.45, label=text, **style)
    if on.any():
        text = f"{name} ({on.sum():,})"
        axis.scatter(*places[on].T, color=ORANGE, alpha=0.8, marker="^", label=text, **style)
    axis.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=_FONT, markerscale=1.5)
