"""Did a latent space learn anything? Collapse diagnostics of posteriors and frozen embeddings."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.spread import mean_pairwise_cosine, rankme

Array = NDArray[np.float64]

ACTIVE_VARIANCE: Final = 0.01
"""A latent dimension is active when the variance of its mean over rows is above (Burda 2016)."""
MIN_KL: Final = 0.1
"""Nats a row below which the posterior is the prior."""
MIN_ACTIVE_SHARE: Final = 0.05
MIN_ACTIVE_UNITS: Final = 4
"""So many active units are a latent that is used, however wide it was made."""
GOOD_ACTIVE_SHARE: Final = 0.5
MAX_COSINE: Final = 0.95
MIN_RANK_SHARE: Final = 0.1
MIN_RANK: Final = 1.5
MIN_INFORMED_SHARE: Final = 0.1
_EPS: Final = 1e-12


@dataclass(frozen=True)
class EmbeddingDiagnostics:
    """Spread and rank of a frozen representation float[N, D]."""

    num_rows: int
    width: int
    std: float
    """Standard deviation across rows, averaged over dimensions."""
    cosine: float
    """Mean cosine of two different rows; near 1 when all rows point one way."""
    rankme: float
    """exp(entropy of the singular values) (Garrido 2023), of the rows as they are."""
    rankme_centered: float
    """The same after the mean is removed: an offset shared by all rows does not count."""

    def metrics(self) -> dict[str, float]:
        """Flat numbers for metrics.json."""
        return {
            "std": self.std,
            "cosine": self.cosine,
            "rankme": self.rankme,
            "rankme_centered": self.rankme_centered,
        }


@dataclass(frozen=True)
class LatentDiagnostics:
    """Collapse diagnostics of Gaussian posteriors; KL to N(0, I) in nats, before free bits."""

    embedding: EmbeddingDiagnostics
    """Spread and rank of the posterior means."""
    kl_per_row: float
    """Mean over rows of the KL summed over dimensions."""
    kl_per_patient: float
    """Mean over patients of the KL summed over their rows; NaN without groups."""
    kl_from_mean: float
    """Part of `kl_per_row` paid for a mean of mu that is not 0: the same for every row."""
    kl_from_spread: float
    """Part paid for mu varying between rows: 1/2 its variance; what tells rows apart."""
    kl_from_variance: float
    """Part paid for posterior variances other than 1."""
    kl_per_dimension: Array
    """float[Z], mean over rows; sums to `kl_per_row`."""
    mean_variance: Array
    """float[Z], variance over rows of mu; `active` compares it with 0.01."""
    posterior_variance: float
    """Mean posterior variance; 1 is the prior's."""
    verdict: str
    """`healthy`, `partly collapsed` or `collapsed` (see `judge`)."""
    reason: str
    """One line that says which number decided the verdict."""

    @property
    def active(self) -> NDArray[np.bool_]:
        """Which dimensions are active units: bool[Z]."""
        return self.mean_variance > ACTIVE_VARIANCE

    def metrics(self) -> dict[str, float]:
        """Flat numbers for metrics.json; the verdict as `collapsed` 0, 0.5 or 1."""
        severity = {"healthy": 0.0, "partly collapsed": 0.5, "collapsed": 1.0}
        return {
            "kl_per_row": self.kl_per_row,
            "kl_per_patient": self.kl_per_patient,
            "kl_from_mean": self.kl_from_mean,
            "kl_from_spread": self.kl_from_spread,
            "kl_from_variance": self.kl_from_variance,
            "active_units": float(self.active.sum()),
            "active_share": float(self.active.mean()),
            "posterior_variance": self.posterior_variance,
            "collapsed": severity[self.verdict],
            **self.embedding.metrics(),
        }


def latent_diagnostics(
    mu: NDArray[Any], logvar: NDArray[Any], groups: NDArray[np.integer] | None = None
) -> LatentDiagnostics:
    """Diagnose posteriors N(mu, exp(logvar)), both float[N, Z].

    Args:
        mu: posterior means, one row a set or a patient.
        logvar: log posterior variances.
        groups: int[N], the patient of each row, for KL in nats per patient.
    """
    m, lv = np.asarray(mu, dtype=np.float64), np.asarray(logvar, dtype=np.float64)
    if m.ndim != 2 or m.shape != lv.shape or not m.size:
        raise ValueError(f"mu {m.shape} and logvar {lv.shape} must be equal, [N, Z], not empty")
    offset, spread = np.square(m.mean(axis=0)), m.var(axis=0)
    shape = np.exp(lv) - 1.0 - lv
    kl_per_dimension = 0.5 * (offset + spread + shape.mean(axis=0))
    per_patient = np.nan
    if groups is not None:
        per_row = 0.5 * (np.square(m) + shape).sum(axis=1)
        _, patient = np.unique(groups, return_inverse=True)
        per_patient = float(np.bincount(patient, weights=per_row).mean())
    embedding = embedding_diagnostics(m)
    verdict, reason = judge(embedding, kl_per_dimension, spread)
    return LatentDiagnostics(
        embedding=embedding,
        kl_per_row=float(kl_per_dimension.sum()),
        kl_per_patient=per_patient,
        kl_from_mean=float(0.5 * offset.sum()),
        kl_from_spread=float(0.5 * spread.sum()),
        kl_from_variance=float(0.5 * shape.mean(axis=0).sum()),
        kl_per_dimension=kl_per_dimension,
        mean_variance=spread,
        posterior_variance=float(np.exp(lv).mean()),
        verdict=verdict,
        reason=reason,
    )


def embedding_diagnostics(x: NDArray[Any]) -> EmbeddingDiagnostics:
    """Diagnose any frozen representation float[N, D]; no N x N matrix is formed."""
    rows = np.asarray(x, dtype=np.float64)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"embedding of shape {rows.shape} must be [N, D], not empty")
    return EmbeddingDiagnostics(
        num_rows=rows.shape[0],
        width=rows.shape[1],
        std=float(rows.std(axis=0).mean()),
        cosine=mean_pairwise_cosine(rows),
        rankme=rankme(rows),
        rankme_centered=rankme(rows - rows.mean(axis=0)),
    )


def judge(
    embedding: EmbeddingDiagnostics, kl_per_dimension: Array, mean_variance: Array
) -> tuple[str, str]:
    """Verdict on a latent and the first reason for it, worst reasons first.

    `collapsed`: KL below 0.1 nats a row, or fewer than four active units and 5 % of them, or means
    that lie on one line (centred RankMe below 1.5 of more than 3 dimensions). `partly collapsed`:
    fewer than half of the units active, or mean cosine above 0.95, or centred RankMe below a tenth
    of the width, or a KL that hardly depends on the row (less than a tenth of it from the spread of
    the means while these vary less than half as much as the prior).
    """
    kl, share = float(kl_per_dimension.sum()), float((mean_variance > ACTIVE_VARIANCE).mean())
    active = f"{int((mean_variance > ACTIVE_VARIANCE).sum())} of {mean_variance.size} units active"
    rank = embedding.rankme_centered
    # A handful of rows cannot span a wide space.
    possible = min(embedding.width, embedding.num_rows - 1)
    informed = 0.5 * float(mean_variance.sum()) / max(kl, _EPS)
    if kl < MIN_KL:
        return "collapsed", f"KL is {kl:.3f} nats a row: the posterior is the prior"
    if share < MIN_ACTIVE_SHARE and share * mean_variance.size < MIN_ACTIVE_UNITS:
        return "collapsed", f"{active}: the means hardly differ between rows"
    if possible > 3 and rank < MIN_RANK:
        return "collapsed", f"the means lie on one line (centred RankMe {rank:.2f})"
    if share < GOOD_ACTIVE_SHARE:
        return "partly collapsed", f"only {active}"
    if embedding.cosine > MAX_COSINE:
        return "partly collapsed", f"all means point one way (cosine {embedding.cosine:.3f})"
    if possible > 3 and rank < MIN_RANK_SHARE * possible:
        return "partly collapsed", f"centred RankMe {rank:.1f} of {possible} possible"
    if informed < MIN_INFORMED_SHARE and float(mean_variance.mean()) < 0.5:
        text = f"only {informed:.0%} of the KL comes from means that differ between rows"
        return "partly collapsed", text
    return "healthy", f"{active}, KL {kl:.1f} nats a row, centred RankMe {rank:.1f}"
