"""What belongs to HCAT's evaluation: how good imputations are, and outcomes with censoring."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from ehr_ray.evaluation.metrics.survival import c_index, weighted_scores
from ehr_ray.evaluation.suite import SuiteInput, SuiteResult
from ehr_ray.evaluation.table import Table
from ehr_ray.events.modalities import MODALITIES
from ehr_ray.events.outcomes import (
    UNKNOWN,
    Outcome,
    censoring,
    censoring_weights,
    follow,
    labels_at,
)
from ehr_ray.events.patients import cohort_shards, read_patients
from ehr_ray.events.vocabulary import Vocabulary

MICROSECONDS_PER_DAY: Final = 86_400_000_000
FEWEST: Final = 10
"""Tokens without which a modality's imputation is not judged."""


def suite(given: SuiteInput) -> SuiteResult:
    """Return imputation quality of modalities that are there, and concordance of both outcomes."""
    metrics: dict[str, float] = {}
    sections: dict[str, Table] = {}
    lines: tuple[str, ...] = ()
    if "imputations" in given.judged.tables:
        found = imputation_quality(given.judged.tables["imputations"].to_pandas())
        metrics |= {
            f"{given.split}/imputation/{m}/{k}": v
            for m, one in found.items()
            for k, v in one.items()
        }
        sections["Imputation of modalities that are there"] = _imputation_table(found)
        told = ", ".join(f"{name} {one['r2']:.2f}" for name, one in found.items())
        lines += (f"imputation of a modality from the others, R2: {told}",) if told else ()
    if given.cohort is not None:
        scores = _outcomes(given, given.cohort)
        metrics |= {
            f"{given.split}/{o}/{k}": v for o, one in scores.items() for k, v in one.items()
        }
        if scores:
            sections["Outcomes with censoring"] = _outcome_table(scores)
    return SuiteResult(metrics=metrics, sections=sections, lines=lines)


def imputation_quality(tokens: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return by modality `r2` over the train mean and how honest the uncertainty is.

    `tokens` has `modality, error, spread, logvar` (see `families/hcat/predict.py`).
    `calibration` is the mean error over the mean expected one, 1 where the uncertainty is right;
    `rank` the rank correlation of both.
    """
    found = {}
    for place, part in tokens.groupby("modality"):
        if len(part) < FEWEST:
            continue
        expected = np.exp(part["logvar"])
        rank = part["error"].corr(expected, method="spearman") if expected.std() > 0 else 0.0
        found[MODALITIES[int(place)]] = {
            "n": float(len(part)),
            "r2": float(1 - part["error"].sum() / max(part["spread"].sum(), 1e-12)),
            "calibration": float(part["error"].mean() / expected.mean()),
            "rank": float(rank),
        }
    return found


def followed_of(
    cohort: Path, split: str, vocabulary: Vocabulary, outcome: Outcome, landmark_hours: float
) -> dict[int, tuple[float, int]]:
    """Return (days, state) of every subject of a split, from its events from the landmark on."""
    found = {}
    for shard in cohort_shards(cohort, split):
        for patient in read_patients(shard, vocabulary):
            later = ~patient.static & (patient.minute >= landmark_hours * 60)
            days = (patient.time[later] - patient.origin) / MICROSECONDS_PER_DAY
            codes = [vocabulary.codes[i] for i in patient.code[later]]
            found[patient.subject_id] = follow(days, codes, outcome)
    return found


def _outcomes(given: SuiteInput, cohort: Path) -> dict[str, dict[str, float]]:
    """Return concordance and weighted scores at the horizon of the judged patients."""
    config, samples, found = given.model, given.judged.samples, {}
    for outcome in config.outcomes:
        name = f"{outcome.name}_logit"
        if name not in samples.column_names:
            continue
        known = followed_of(cohort, given.split, given.vocabulary, outcome, config.landmark_hours)
        pairs = [known.get(int(s), (np.nan, 0)) for s in samples["subject_id"].to_numpy()]
        days = np.array([d for d, _ in pairs])
        state = np.array([s for _, s in pairs], np.int8)
        if not np.isfinite(days).any():
            continue
        logit = samples[name].to_numpy().astype(np.float64)
        risk = logit if outcome.positive == "event" else -logit
        label = labels_at(days, state, outcome)
        weight = censoring_weights(days, state, outcome, censoring(days, state, outcome))
        found[outcome.name] = {
            "followed": float(np.isfinite(days).sum()),
            "known": float((label != UNKNOWN).sum()),
            "c_index": c_index(days, state, risk),
            **{f"{k}_ipcw": v for k, v in _weighted(label, logit, weight).items()},
        }
    return found


def _weighted(label: Any, logit: Any, weight: Any) -> dict[str, float]:
    known = label != UNKNOWN
    if len(np.unique(label[known])) < 2:
        return {}
    return weighted_scores(label, 1 / (1 + np.exp(-logit)), weight)


def _imputation_table(found: dict[str, dict[str, float]]) -> Table:
    return Table(
        ("modality", "patients", "R2", "error / expected", "rank correlation"),
        tuple(
            (name, f"{one['n']:.0f}", one["r2"], one["calibration"], one["rank"])
            for name, one in found.items()
        ),
        "Each modality of patients who have it, told from their others; R2 over the train mean.",
    )


def _outcome_table(scores: dict[str, dict[str, float]]) -> Table:
    keys = ("c_index", "auroc_ipcw", "auprc_ipcw", "brier_ipcw")
    return Table(
        ("outcome", "followed", "known", "C-index", "AUROC, IPCW", "AUPRC, IPCW", "Brier, IPCW"),
        tuple(
            (
                name,
                f"{one['followed']:.0f}",
                f"{one['known']:.0f}",
                *(one.get(key, float("nan")) for key in keys),
            )
            for name, one in scores.items()
        ),
        "Of the patients judged (with a task, those with its label; `--task none`: all). Patients "
        "known at the horizon stand for those lost before it; uncalibrated probabilities.",
    )
