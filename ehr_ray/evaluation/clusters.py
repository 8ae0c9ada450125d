"""Do patients fall into groups? Density clustering of representations, judged without flattery.

Clusters are looked for in standardised blocks, with and without UMAP, and always judged in the
original space: UMAP makes density, so more clusters after it are no evidence. N patients.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score, silhouette_score

from ehr_ray.evaluation.metrics.bootstrap import numbered

Labels = NDArray[np.int64]
Array = NDArray[np.float64]

NOISE: Final = -1
MIN_SAMPLES: Final = 10
UMAP_WIDTH, UMAP_NEIGHBOURS = 10, 30
DTW_CLUSTERS: Final = 5
DTW_ROWS: Final = 300
"""Patients warped against each other at most: the cost is quadratic in them."""


@dataclass(frozen=True, eq=False)
class Clustering:
    """Clusters of one representation and what speaks for them."""

    labels: Labels
    """Cluster of each patient, [N]; -1 is noise."""
    silhouette: float
    """In the original space, of patients in a cluster; NaN with fewer than 2 clusters."""
    dbcv: float
    """Density-based validity (Moulavi et al. 2014) in the original space, -1 to 1."""
    stability: float
    """Mean adjusted Rand index with the clusters of bootstrap samples; NaN without any."""
    interval: tuple[float, float]
    """2.5th and 97.5th percentile of that index over the samples."""

    @property
    def number(self) -> int:
        """Clusters found."""
        return len(set(self.labels.tolist()) - {NOISE})

    @property
    def noise(self) -> float:
        """Share of patients in none."""
        return float(np.mean(self.labels == NOISE))

    def metrics(self) -> dict[str, float]:
        """Flat numbers for metrics.json."""
        return {
            "clusters": float(self.number),
            "noise_share": self.noise,
            "silhouette": self.silhouette,
            "dbcv": self.dbcv,
            "bootstrap_ari": self.stability,
            "bootstrap_ari/low": self.interval[0],
            "bootstrap_ari/high": self.interval[1],
        }


def standardised(*blocks: NDArray[Any]) -> Array:
    """Return blocks [N, W] side by side; each weighs the same, whatever its width and scale."""
    parts = []
    for block in blocks:
        block = np.asarray(block, np.float64)
        scaled = (block - block.mean(0)) / np.maximum(block.std(0), 1e-9)
        parts.append(scaled / np.sqrt(block.shape[1]))
    return np.concatenate(parts, axis=1)


def cluster(
    x: Array,
    *,
    umap: bool,
    subject: NDArray[Any] | None = None,
    seed: int = 0,
    resamples: int,
    min_share: float = 0.03,
) -> Clustering:
    """Cluster the rows of x [N, W]; a cluster holds at least `min_share` of them.

    `resamples` bootstrap samples are clustered too, each with a map of its own: of subjects with
    all of their rows, where `subject` [N] says whose each row is, or else of rows.
    """
    space = reduced(x, seed) if umap else x
    labels = density_labels(space, min_share)
    group = np.arange(len(x)) if subject is None else numbered(subject)
    agreement = _bootstrap(x, group, labels, umap, seed, resamples, min_share)
    low, high = np.quantile(agreement, (0.025, 0.975)) if resamples else (np.nan, np.nan)
    return Clustering(
        labels=labels,
        silhouette=_silhouette(x, labels),
        dbcv=_dbcv(x, labels),
        stability=float(np.mean(agreement)) if resamples else float("nan"),
        interval=(float(low), float(high)),
    )


def most_stable(found: Mapping[str, Clustering]) -> str:
    """Return the name of the clustering to show: of those with groups, the most stable one.

    A number of clusters is no merit: a map makes them where there are none.
    """

    def merit(name: str) -> tuple[bool, float, float]:
        one = found[name]
        stability = -1.0 if np.isnan(one.stability) else one.stability
        return one.number > 1, stability, -one.noise

    return max(found, key=merit)


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    """Keep torch's number of threads: numba gives OpenMP, which is torch's too, all cores."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_threads_kept()
def reduced(x: Array, seed: int, width: int = UMAP_WIDTH, *, apart: float = 0.0) -> Array:
    """Return a UMAP of x, [N, width]; fewer dimensions or neighbours where rows are few.

    `apart` is how close points may come: 0 for clusters, more for a picture.
    """
    from umap import UMAP

    neighbours = max(2, min(UMAP_NEIGHBOURS, len(x) - 1))
    width = max(2, min(width, len(x) - 2))
    model = UMAP(
        n_components=width, n_neighbors=neighbours, min_dist=apart, random_state=seed, n_jobs=1
    )
    return np.asarray(model.fit_transform(x), np.float64)


def density_labels(x: Array, min_share: float) -> Labels:
    """Return HDBSCAN's clusters of at least `min_share` of the rows, `NOISE` for the others."""
    smallest = max(5, round(min_share * len(x)))
    if len(x) <= smallest:
        return np.full(len(x), NOISE)
    model = HDBSCAN(min_cluster_size=smallest, min_samples=min(MIN_SAMPLES, smallest), copy=True)
    return np.asarray(model.fit_predict(x), np.int64)


def _silhouette(x: Array, labels: Labels) -> float:
    inside = labels != NOISE
    found = len(set(labels[inside].tolist()))
    if found < 2 or inside.sum() <= found:
        return float("nan")
    return float(silhouette_score(x[inside], labels[inside]))


def _dbcv(x: Array, labels: Labels) -> float:
    from hdbscan.validity import validity_index

    if len(set(labels.tolist()) - {NOISE}) < 2:
        return float("nan")
    with np.errstate(all="ignore"):
        return float(validity_index(x, labels))


def _bootstrap(
    x: Array,
    group: Labels,
    labels: Labels,
    umap: bool,
    seed: int,
    resamples: int,
    min_share: float,
) -> Array:
    """Return the adjusted Rand index of each bootstrap sample's clusters with those of all rows.

    A sample has as many groups of rows (subjects) as there are, drawn with replacement; the index
    is over the rows it has, about 63 % of all, and noise counts as a group. Copies of a row lie at
    distance 0 of each other, which density takes for structure: the index of fresh patients would
    be another (Hennig 2007). NaN where no cluster was found: agreeing on nothing is no stability.
    """
    if set(labels.tolist()) <= {NOISE}:
        return np.full(resamples, np.nan)
    rng, scores = np.random.default_rng(seed), np.empty(resamples)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    for number in range(resamples):
        subjects = rng.integers(len(members), size=len(members))
        drawn = np.concatenate([members[one] for one in subjects])
        rows, first = np.unique(drawn, return_index=True)
        space = reduced(x[drawn], seed + number + 1) if umap else x[drawn]
        scores[number] = adjusted_rand_score(labels[rows], density_labels(space, min_share)[first])
    return scores


@_threads_kept()
def warped(curves: NDArray[Any], seed: int = 0) -> dict[str, float]:
    """Return the silhouette of DTW k-means (Petitjean et al. 2011) of curves [N, T], and its k."""
    from tslearn.clustering import TimeSeriesKMeans
    from tslearn.clustering import silhouette_score as dtw_silhouette

    x = np.asarray(curves, np.float64)[:DTW_ROWS]
    k = min(DTW_CLUSTERS, len(x) // 4)
    if k < 2:
        return {"silhouette": float("nan"), "clusters": 0.0}
    model = TimeSeriesKMeans(k, metric="dtw", max_iter=10, random_state=seed, n_init=1)
    labels = model.fit_predict(x)
    found = len(set(labels.tolist()))
    value = dtw_silhouette(x, labels, metric="dtw") if 1 < found < len(x) else float("nan")
    return {"silhouette": float(value), "clusters": float(found)}


def rates(labels: Labels, outcome: NDArray[np.bool_]) -> Mapping[int, tuple[int, float]]:
    """Return size and outcome rate of each cluster, noise included."""
    return {
        int(k): (int(np.sum(labels == k)), float(np.mean(outcome[labels == k])))
        for k in np.unique(labels)
    }
