"""HCAT's own part of an evaluation: imputations, and outcomes with censoring beside baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.survival import c_index, weighted_scores
from ehr_ray.evaluation.suite import SplitPredictions, SuiteInput, SuiteResult
from ehr_ray.evaluation.table import Table
from ehr_ray.evaluation.tasks.verdicts import MODEL, metric_prefix
from ehr_ray.events.auroc import auroc
from ehr_ray.events.options import MODALITIES, Outcome
from ehr_ray.events.outcomes import (
    UNKNOWN,
    censoring,
    censoring_weights,
    follow,
    labels_at,
)
from ehr_ray.events.patients import cohort_shards, read_patients
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.hcat.outcome_baselines import TITLES, fit_baselines, read_columns, stacked
from ehr_ray.storage import sync

Array = NDArray[np.float64]

MICROSECONDS_PER_DAY: Final = 86_400_000_000
FEWEST: Final = 10
"""Tokens without which a modality's imputation is not judged."""


def suite(given: SuiteInput) -> SuiteResult:
    """Return imputation quality, and both outcomes with censoring, beside baselines."""
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
    predictions: dict[str, dict[str, Array]] = {}
    if given.cohort is not None:
        truths = _truths(given, given.cohort)
        fitted = _fitted_baselines(given, given.cohort, truths)
        scores: dict[tuple[str, str], dict[str, float]] = {}
        for name, truth in truths.items():
            own = 1 / (1 + np.exp(-truth.logit))
            judged = {n: rows[given.split] for n, rows in fitted.get(name, {}).items()}
            scores |= {(name, n): truth.scores(p) for n, p in {MODEL: own, **judged}.items()}
        metrics |= {
            f"{metric_prefix(model, given.split)}/{outcome}/{key}": value
            for (outcome, model), one in scores.items()
            for key, value in one.items()
        }
        predictions = fitted.get(given.task or "", {})
        if scores:
            sections["Outcomes with censoring"] = _outcome_table(scores)
        if truths and "thinned" in given.judged.tables:
            thinned = _with_modalities_missing(given.judged.tables["thinned"].to_pandas(), truths)
            metrics |= {
                f"{given.split}/{outcome}/missing_{missing}/auroc": value
                for (outcome, missing), value in thinned.items()
            }
            sections["With modalities taken away"] = _missing_table(thinned)
    return SuiteResult(metrics=metrics, sections=sections, lines=lines, predictions=predictions)


def imputation_quality(tokens: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return by modality `r2` over the train mean and how honest the uncertainty is.

    `tokens` has `modality, error, spread, logvar` (see `families/hcat/predict.py`).
    `calibration` is the mean error over the mean expected one, 1 where the uncertainty is right;
    `rank` the rank correlation of both.
    """
    found = {}
    place: Any  # pandas types it as any scalar
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
    cohort: Path,
    split: str,
    vocabulary: Vocabulary,
    outcomes: Sequence[Outcome],
    landmark_hours: float,
) -> list[dict[int, tuple[float, int]]]:
    """Return by outcome (days, state) of all subjects of a split, which is read once.

    They come of a subject's events from the landmark on.
    """
    found: list[dict[int, tuple[float, int]]] = [{} for _ in outcomes]
    for shard in cohort_shards(cohort, split) if outcomes else ():
        for patient in read_patients(sync.in_store(shard), vocabulary):
            later = ~patient.static & (patient.minute >= landmark_hours * 60)
            days = (patient.time[later] - patient.origin) / MICROSECONDS_PER_DAY
            codes = [vocabulary.codes[i] for i in patient.code[later]]
            for known, outcome in zip(found, outcomes, strict=True):
                known[patient.subject_id] = follow(days, codes, outcome)
    return found


@dataclass(frozen=True, eq=False)
class Truth:
    """What became of the judged rows in one outcome: all [N]."""

    outcome: Outcome
    logit: Array
    """The model's own, of the positive class."""
    days: Array
    state: NDArray[np.int8]

    @property
    def label(self) -> NDArray[np.int8]:
        """1 for the positive class, 0, -1 where unknown."""
        return labels_at(self.days, self.state, self.outcome)

    def scores(self, probability: Array) -> dict[str, float]:
        """Return concordance and weighted scores at the horizon of the positive class's risk."""
        days, state, label = self.days, self.state, self.label
        curve = censoring(days, state, self.outcome)
        weight = censoring_weights(days, state, self.outcome, curve)
        risk = probability if self.outcome.positive == "event" else -probability
        found = {
            "followed": float(np.isfinite(days).sum()),
            "known": float((label != UNKNOWN).sum()),
            "c_index": c_index(days, state, risk),
        }
        if len(np.unique(label[label != UNKNOWN])) > 1:
            weighted = weighted_scores(label, probability, weight)
            found |= {f"{k}_ipcw": v for k, v in weighted.items()}
        return found


def _truths(given: SuiteInput, cohort: Path) -> dict[str, Truth]:
    """Return what became of the judged rows, by outcome; without those nobody was followed for."""
    config, samples, found = given.model, given.judged.samples, {}
    outcomes = [o for o in config.outcomes if f"{o.name}_logit" in samples.column_names]
    followed = followed_of(cohort, given.split, given.vocabulary, outcomes, config.landmark_hours)
    for outcome, known in zip(outcomes, followed, strict=True):
        pairs = [known.get(int(s), (np.nan, 0)) for s in samples["subject_id"].to_numpy()]
        days = np.array([d for d, _ in pairs])
        state = np.array([s for _, s in pairs], np.int8)
        if np.isfinite(days).any():
            logit = samples[f"{outcome.name}_logit"].to_numpy().astype(np.float64)
            found[outcome.name] = Truth(outcome, logit, days, state)
    return found


def _fitted_baselines(
    given: SuiteInput, cohort: Path, truths: Mapping[str, Truth]
) -> dict[str, dict[str, dict[str, Array]]]:
    """Return probabilities by outcome, baseline and split: `tuning` and the judged one.

    Baselines are fitted on all of train and tuning whose label is known, of large ones on the
    sample that is fitted on. What they say of those rows comes from models that had not seen the
    row. With a task only its outcome has baselines.
    """
    names = [o.name for o in given.model.outcomes]
    wanted = [n for n in truths if given.task not in names or n == given.task]
    if not given.baselines or given.home is None or not wanted:
        return {}
    arguments = (given.model, given.vocabulary)
    home = {
        split: read_columns(
            given.home,
            split,
            *arguments,
            _subjects(given.fit[split]) if split in given.sampled else None,
        )
        for split in ("train", "tuning")
        if cohort_shards(given.home, split)
    }
    fit = stacked(list(home.values()))
    own = cohort.resolve() == given.home.resolve()
    judged = (
        home[given.split]
        if own and given.split in home.keys() - {*given.sampled}
        else read_columns(cohort, given.split, *arguments, _subjects(given.judged))
    )
    asked = {s: (home[s], given.fit.get(s), True) for s in home.keys() & {"tuning"}}
    asked[given.split] = (judged, given.judged, own)
    result: dict[str, dict[str, dict[str, Array]]] = {}
    for name in wanted:
        label = fit.label[:, names.index(name)]
        known = label != UNKNOWN
        fitted = fit_baselines(fit.columns.of(known), label[known], seed=given.seed)
        for baseline, (predict, unseen) in fitted.items():
            held = dict(zip(fit.subject_id[known].tolist(), unseen.tolist(), strict=True))
            by_split = {}
            for split, (rows, predicted, is_home) in asked.items():
                if predicted is None:
                    continue
                said = dict(zip(rows.subject_id.tolist(), predict(rows.columns), strict=True))
                said |= {s: p for s, p in held.items() if s in said} if is_home else {}
                subjects = predicted.samples["subject_id"].to_pylist()
                by_split[split] = np.array([said[s] for s in subjects])
            result.setdefault(name, {})[baseline] = by_split
    return result


def _subjects(predicted: SplitPredictions) -> set[int]:
    return {*predicted.samples["subject_id"].to_pylist()}


def _with_modalities_missing(
    rows: pd.DataFrame, truths: Mapping[str, Truth]
) -> dict[tuple[str, int], float]:
    """Return AUROC by outcome and number of modalities taken away from each patient."""
    found = {}
    missing: Any  # pandas types it as any scalar
    for name, truth in truths.items():
        for missing, part in rows.groupby("missing"):
            label = truth.label[part["sample"].to_numpy()]
            known = label != UNKNOWN
            logit = part[f"{name}_logit"].to_numpy()
            if len(np.unique(label[known])) > 1:
                found[name, int(missing)] = auroc(label[known] > 0, logit[known])
    return found


def _imputation_table(found: dict[str, dict[str, float]]) -> Table:
    return Table(
        ("modality", "patients", "R2", "error / expected", "rank correlation"),
        tuple(
            (name, f"{one['n']:.0f}", one["r2"], one["calibration"], one["rank"])
            for name, one in found.items()
        ),
        "Each modality of patients who have it, told from their others; R2 over the train mean.",
    )


def _outcome_table(scores: Mapping[tuple[str, str], dict[str, float]]) -> Table:
    keys = ("c_index", "auroc_ipcw", "auprc_ipcw", "brier_ipcw")
    heads = ("C-index", "AUROC, IPCW", "AUPRC, IPCW", "Brier, IPCW")
    return Table(
        ("outcome", "", "followed", "known", *heads),
        tuple(
            (
                outcome,
                TITLES.get(model, "this model"),
                f"{one['followed']:.0f}",
                f"{one['known']:.0f}",
                *(one.get(key, float("nan")) for key in keys),
            )
            for (outcome, model), one in scores.items()
        ),
        "Of the patients judged (with a task, those with its label; `--task none`: all). Patients "
        "known at the horizon stand for those lost before it; probabilities of the model are as "
        "its output gives them, without calibration on tuning. Baselines are fitted on all "
        "patients of train and tuning with a label, of large splits on a sample of them.",
    )


def _missing_table(found: Mapping[tuple[str, int], float]) -> Table:
    counts = sorted({missing for _, missing in found})
    outcomes = list(dict.fromkeys(outcome for outcome, _ in found))
    return Table(
        ("outcome", *(f"AUROC, {missing} less" for missing in counts)),
        tuple(
            (name, *(found.get((name, missing), float("nan")) for missing in counts))
            for name in outcomes
        ),
        "So many modalities, drawn for each patient, were taken away; one was always left.",
    )
