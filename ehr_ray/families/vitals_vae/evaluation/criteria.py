"""Criteria of the vitals VAE on held-out patients: what passes, by which numbers."""

from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.binary import binary_metrics
from ehr_ray.evaluation.metrics.collapse import latent_diagnostics
from ehr_ray.evaluation.suite import SplitPredictions, SuiteInput
from ehr_ray.evaluation.table import Table
from ehr_ray.evaluation.tasks.baselines import fit_linear
from ehr_ray.families.vitals_vae.evaluation import curves
from ehr_ray.families.vitals_vae.evaluation.curves import MODEL, TITLES, Errors, Grids
from ehr_ray.families.vitals_vae.quantise import MIN_PERPLEXITY, perplexity

KL_RANGE: Final = (0.1, 1.0)
"""Nats a dimension, before free bits: less is unused, more is a code without a prior."""
STD_RANGE: Final = (0.5, 1.0)
"""Standard deviation across patients of the median latent dimension."""
MIN_LOGVAR: Final = -5.0
"""Mean log-variance of posteriors: below, they are points, and the prior means nothing."""
Criterion = tuple[str, str, str, bool]
"""What is judged, what is wanted, what was found, and whether it passes."""


def grids_of(given: SuiteInput, part: SplitPredictions) -> Grids:
    """Return the grids of a split."""
    return Grids.of(part, len(given.model.vitals))


def matrix(table: pa.Table, name: str) -> NDArray[np.float32]:
    """Return a list column of equal lengths, [rows, width]."""
    flat = table[name].combine_chunks().values.to_numpy()
    return np.asarray(flat.reshape(len(table), -1), np.float32)


def judge(
    given: SuiteInput, errors: dict[str, dict[str, Errors]]
) -> tuple[Table, dict[str, float], tuple[str, ...]]:
    """Return the table of criteria, their metrics, and a line that sums them up.

    `errors` are those of `curves.measure`, by row and kind, on the judged patients.
    """
    rows: list[Criterion] = []
    metrics: dict[str, float] = {}
    if "latents" in given.judged.tables:
        rows += _latent_criteria(given)
    elif "codes" in given.judged.samples.column_names:
        row, metrics = _code_criterion(given)
        rows.append(row)
    subject = subjects_of(given.judged, grids_of(given, given.judged))
    for kind, other in (("seen", "patient_mean"), ("seen", "pca"), ("hidden", "forward_fill")):
        ours, theirs = errors[MODEL][kind], errors[other][kind]
        value, low, high = curves.difference(
            ours, theirs, subject, seed=given.seed, num_bootstrap=given.num_bootstrap
        )
        rows.append(
            (
                f"error of {kind} cells less that of the {TITLES[other]}",
                "below 0",
                f"{ours.mse():.4f} - {theirs.mse():.4f} = {value:.4f} [{low:.4f}, {high:.4f}]",
                high < 0,
            )
        )
    probes = _landmark_probes(given)
    if probes:
        rows.append(_landmark_criterion(probes))
        metrics |= {f"landmark/{n}/{key}": v for n, m in probes.items() for key, v in m.items()}
    passed = sum(row[3] for row in rows)
    metrics |= {"criteria/passed": float(passed), "criteria/number": float(len(rows))}
    metrics = {f"{given.split}/{name}": value for name, value in metrics.items()}
    table = Table(
        ("criterion", "wanted", "found", "verdict"),
        tuple((*row[:3], "pass" if row[3] else "fail") for row in rows),
        f"On {given.split} patients; intervals are 95 %, over resampled patients.",
    )
    failed = [row[0] for row in rows if not row[3]]
    line = f"criteria: {passed} of {len(rows)} passed"
    return table, metrics, (line + (f"; failed: {'; '.join(failed)}" if failed else ""),)


def subjects_of(part: SplitPredictions, grids: Grids) -> NDArray[np.int64]:
    """Return whose each grid is, [N]: what intervals resample."""
    return part.samples["subject_id"].to_numpy()[grids.sample]


def _latent_criteria(given: SuiteInput) -> list[Criterion]:
    table = given.judged.tables["latents"]
    found = latent_diagnostics(matrix(table, "mu"), matrix(table, "logvar"))
    active, width = int(found.active.sum()), len(found.active)
    per_dim = found.kl_per_row / width
    spread = np.sqrt(found.mean_variance)
    over = int((found.kl_per_dimension > KL_RANGE[0]).sum())
    middle = float(np.median(spread))
    logvar = float(matrix(table, "logvar").mean())
    return [
        (
            "active units",
            f"at least {width // 2} of {width}",
            f"{active}; {over} above {KL_RANGE[0]} nats",
            active >= width // 2,
        ),
        (
            "divergence before free bits, nats a dimension",
            f"{KL_RANGE[0]} to {KL_RANGE[1]}",
            f"{per_dim:.3f} ({found.kl_per_row:.1f} a patient)",
            KL_RANGE[0] <= per_dim <= KL_RANGE[1],
        ),
        (
            "standard deviation across patients, median dimension",
            f"{STD_RANGE[0]} to {STD_RANGE[1]}",
            f"{middle:.3f} ({spread.min():.3f} to {spread.max():.3f})",
            STD_RANGE[0] <= middle <= STD_RANGE[1],
        ),
        (
            "mean log-variance of the posteriors",
            f"above {MIN_LOGVAR:g}",
            f"{logvar:.2f}",
            logvar > MIN_LOGVAR,
        ),
    ]


def _code_criterion(given: SuiteInput) -> tuple[Criterion, dict[str, float]]:
    """Judge the use of the codebook by the codes of all patients; also return it as metrics."""
    size = given.model.codebook
    value, used = perplexity(matrix(given.judged.samples, "codes").astype(int), size)
    text = f"{value:.1f}; {used} of {size} entries used"
    wanted = MIN_PERPLEXITY * size
    row = ("perplexity of the codes", f"at least {wanted:.0f}", text, value >= wanted)
    return row, {"codes/perplexity": value, "codes/used": float(used), "codes/entries": float(size)}


def _landmark_probes(given: SuiteInput) -> dict[str, dict[str, float]]:
    """Return metrics of a probe on the embedding and of one on `summaries`; {} without labels.

    Both on the same patients, from what is known at the label's prediction time.
    """
    parts = {"train": given.fit.get("train"), "tuning": given.fit.get("tuning")}
    parts["judged"] = given.judged
    if any(part is None or part.label is None for part in parts.values()):
        return {}
    simple, deep, label, subject = {}, {}, {}, {}
    for name, part in parts.items():
        assert part is not None
        assert part.label is not None
        grids = grids_of(given, part)
        simple[name] = summaries(grids)
        deep[name] = matrix(part.samples, "embedding")[grids.sample]
        label[name] = part.label[grids.sample]
        subject[name] = subjects_of(part, grids)
    if any(len(np.unique(y)) < 2 for y in label.values()):
        return {}
    found = {}
    for name, x in (("embedding", deep), ("features", simple)):
        source: Any = "features" if name == "features" else "embedding"
        scorer = fit_linear(
            name, source, x["train"], label["train"], x["tuning"], label["tuning"], seed=given.seed
        )
        found[name] = binary_metrics(
            label["judged"],
            scorer.predict(x["judged"]),
            threshold=scorer.threshold,
            subject=subject["judged"],
            seed=given.seed,
            num_bootstrap=given.num_bootstrap,
        )
    return found


def _landmark_criterion(found: dict[str, dict[str, float]]) -> Criterion:
    """Judge the embedding beside each vital's mean, smallest and largest value."""
    text = ", ".join(
        f"{name} {m['auroc']:.3f} [{m['auroc/low']:.3f}, {m['auroc/high']:.3f}]"
        for name, m in found.items()
    )
    passed = found["embedding"]["auroc"] >= found["features"]["auroc"]
    return "AUROC at the landmark, beside mean, least and largest", "not lower", text, passed


def summaries(grids: Grids) -> NDArray[np.float32]:
    """Return each vital's mean, smallest, largest and number of values, [N, 4 V]; NaN without."""
    mask = grids.observed
    count = mask.sum(1)
    none = count == 0
    mean = np.where(none, np.nan, (grids.value * mask).sum(1) / np.maximum(count, 1))
    low = np.where(none, np.nan, np.where(mask, grids.value, np.inf).min(1))
    high = np.where(none, np.nan, np.where(mask, grids.value, -np.inf).max(1))
    return np.concatenate([mean, low, high, count], axis=1).astype(np.float32)
