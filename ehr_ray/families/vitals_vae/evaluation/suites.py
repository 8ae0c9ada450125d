"""Suites of the vitals VAE: curves beside simple ones, criteria, phenotypes, files."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.clusters import (
    NOISE,
    Clustering,
    cluster,
    most_stable,
    rates,
    standardised,
    warped,
)
from ehr_ray.evaluation.suite import SuiteInput, SuiteResult
from ehr_ray.evaluation.table import Table
from ehr_ray.events.grid import imputed, scales
from ehr_ray.events.scaling import CENTRES, UNITS
from ehr_ray.families.vitals_vae.evaluation import curves
from ehr_ray.families.vitals_vae.evaluation.criteria import grids_of, judge, matrix, subjects_of
from ehr_ray.families.vitals_vae.evaluation.curves import (
    MODEL,
    SHRUNK,
    TITLES,
    Errors,
    Grids,
    References,
    Weights,
)
from ehr_ray.families.vitals_vae.evaluation.figures import (
    CAPTIONS,
    cluster_map,
    cluster_means,
    examples,
)
from ehr_ray.families.vitals_vae.evaluation.files import write_fpca, write_latents, write_phenotypes

WINDOWS: Final = {
    "before admission": (-(10**6), 0),
    "0 to 24 h": (0, 24),
    "24 to 72 h": (24, 72),
    "72 to 168 h": (72, 168),
    "168 to 720 h": (168, 10**6),
}
CLUSTERED: Final = 1000
"""Patients clustered at most."""
RESAMPLES: Final = 50
"""Bootstrap samples of patients that show whether clusters stay."""
MAPPED_RESAMPLES: Final = 20
"""The same after UMAP, which takes 25 times as long as clustering."""
WARPED_WINDOWS: Final = ((0, 24), (24, 72))
WARPED_VITALS: Final = ("HR", "MAP")


def reconstruction(given: SuiteInput) -> SuiteResult:
    """Measure curves beside reference rows, by vital sign and window, and judge the criteria."""
    judged, references = grids_of(given, given.judged), references_of(given)
    shrinkage = None
    if "tuning" in given.fit:
        shrinkage = curves.fit_shrinkage(grids_of(given, given.fit["tuning"]), references)
    errors = curves.measure(judged, references, shrinkage=shrinkage)
    at = f"{given.split}/curves"
    metrics = {
        f"{at}/{name}/{kind}/mse": found.mse()
        for name, kinds in errors.items()
        for kind, found in kinds.items()
        if found.count.sum()
    }
    metrics |= _by_vital(given, errors, at)
    names = [vital.name for vital in given.model.vitals]
    metrics |= {
        f"{at}/fpca_explained/{name}": float(share)
        for name, share in zip(names, references.explained, strict=True)
    }
    if shrinkage is not None:
        metrics |= _shrunk(given, errors, shrinkage, at)
    criteria, judged_metrics, lines = judge(given, errors)
    sections = {
        "Criteria": criteria,
        "Reconstructed curves": _rows_table(given, errors),
        "Reconstruction by vital sign": _vital_table(given, errors),
        "Reconstruction by window": _window_table(given, judged, references),
    }
    figures = {"vitals_examples": examples(judged, *_units(given))}
    return SuiteResult(
        metrics=metrics | judged_metrics,
        sections=sections,
        figures=figures,
        captions=CAPTIONS,
        lines=lines,
    )


def clusters(given: SuiteInput) -> SuiteResult:
    """Look for phenotypes in train patients by FPCA, by the latent, and by both."""
    train = grids_of(given, given.fit.get("train", given.judged))
    train = train.take(np.arange(len(train))[:CLUSTERED])
    part = given.fit.get("train", given.judged)
    latent = matrix(part.samples, "embedding")[train.sample]
    subjects = part.samples["subject_id"].to_numpy()[train.sample]
    references = references_of(given)
    scores = references.scores(train.value, train.observed)
    blocks = {
        "fpca": standardised(scores),
        "latent": standardised(latent),
        "both": standardised(scores, latent),
    }
    found, metrics, table = _clustered(blocks, subjects, given.seed)
    sections = {"Phenotypes": table}
    warped, warped_table = _warped(given, train)
    sections["Phenotypes by time warping"] = warped_table
    shown = most_stable(found)
    if part.label is not None:
        sections["Outcome by phenotype"] = _rates_table(
            found[shown].labels, part.label[train.sample], shown
        )
    splits = {**given.fit, given.split: given.judged}
    written = write_fpca(given.target, splits, references, given)
    labels = {name: one.labels for name, one in found.items()}
    split = "train" if "train" in given.fit else given.split
    written = (*written, write_phenotypes(given.target, subjects, split, labels))
    figures = {
        "vitals_map": cluster_map(latent, found[shown].labels, umap=CLUSTERED, seed=given.seed),
        "vitals_clusters": cluster_means(train, found[shown].labels, *_units(given)),
    }
    best = found[shown]
    line = (
        f"phenotypes: {best.number} clusters, {best.noise:.0%} noise, bootstrap ARI "
        f"{best.stability:.2f} ({shown.replace('_umap', ' after UMAP')})"
    )
    return SuiteResult(
        metrics=metrics | warped,
        sections=sections,
        figures=figures,
        captions=CAPTIONS,
        lines=(line,),
        artifacts=written,
    )


def _clustered(
    blocks: Mapping[str, NDArray[Any]], subjects: NDArray[Any], seed: int
) -> tuple[dict[str, Clustering], dict[str, float], Table]:
    """Cluster patients in each block of features, as it is and after UMAP; measure and tell."""
    metrics: dict[str, float] = {}
    rows: list[tuple[str | float, ...]] = []
    found: dict[str, Clustering] = {}
    for name, x in blocks.items():
        for umap in (False, True):
            key = f"{name}_umap" if umap else name
            resamples = MAPPED_RESAMPLES if umap else RESAMPLES
            found[key] = cluster(x, umap=umap, subject=subjects, seed=seed, resamples=resamples)
            measured = found[key].metrics()
            metrics |= {f"train/phenotypes/{key}/{k}": v for k, v in measured.items()}
            stays = measured.pop("bootstrap_ari")
            low, high = (measured.pop(f"bootstrap_ari/{end}") for end in ("low", "high"))
            title = f"{_BLOCKS[name]}{' after UMAP' if umap else ''}"
            rows.append((title, *measured.values(), f"{stays:.2f} [{low:.2f}, {high:.2f}]"))
    caption = (
        f"HDBSCAN of {len(subjects)} train patients in standardised blocks; silhouette and DBCV "
        "are of the original space. More clusters after UMAP are no evidence of more groups. The "
        "bootstrap draws patients with replacement and clusters them again: the adjusted Rand "
        "index of the patients drawn, its mean and the middle 95 % of the samples. Where one "
        "clustering is shown, it is the most stable of those that have groups."
    )
    columns = ("", "clusters", "noise share", "silhouette", "DBCV", "bootstrap ARI")
    return found, metrics, Table(columns, tuple(rows), caption)


def files(given: SuiteInput) -> SuiteResult:
    """Write `vae_latents.h5`, `vae_multiscale_components.h5` and `vae_metadata.json`."""
    splits = {**given.fit, given.split: given.judged}
    written = write_latents(given.target, splits, given)
    return SuiteResult(artifacts=written, lines=(f"latents: {given.target / written[0]}",))


_BLOCKS: Final = {"fpca": "FPCA scores", "latent": "latent", "both": "FPCA scores and latent"}


def references_of(given: SuiteInput) -> References:
    """Return what curves are compared with, fitted on train where it is there."""
    train = grids_of(given, given.fit.get("train", given.judged))
    carry = np.array([vital.carry_hours for vital in given.model.vitals])
    return curves.fit_references(train, carry, given.seed)


def _units(given: SuiteInput) -> tuple[Any, NDArray[Any], NDArray[Any], int]:
    """Return the vitals, their centres and spreads, and the first hour: what axes need."""
    centre, spread = scales(given.model.vitals, given.vocabulary)
    return given.model.vitals, centre, spread, given.model.first_hour


def _error(given: SuiteInput) -> str:
    """Return what errors are, with the scale of the values, as a caption begins."""
    scaling = given.vocabulary.scaling
    return f"Mean squared error of values less the {CENTRES[scaling]}, in {UNITS[scaling]}"


def _shrunk(
    given: SuiteInput, errors: dict[str, dict[str, Errors]], shrinkage: Weights, at: str
) -> dict[str, float]:
    """Return the weights, and how the shrunk model's error differs from the patient mean's."""
    subject = subjects_of(given.judged, grids_of(given, given.judged))
    metrics = {}
    for kind, weights in shrinkage.items():
        for vital, weight in zip(given.model.vitals, weights, strict=True):
            metrics[f"{at}/{SHRUNK}/{kind}/weight/{vital.name}"] = float(weight)
        found = curves.difference(
            errors[SHRUNK][kind],
            errors["patient_mean"][kind],
            subject,
            seed=given.seed,
            num_bootstrap=given.num_bootstrap,
        )
        key = f"{at}/{SHRUNK}/{kind}/less_patient_mean"
        metrics |= dict(zip((key, f"{key}/low", f"{key}/high"), found, strict=True))
    return metrics


def _rows_table(given: SuiteInput, errors: dict[str, dict[str, Errors]]) -> Table:
    """Return the model and the reference rows with R2 over the cohort's mean."""
    rows: list[tuple[str | float, ...]] = []
    for name, kinds in errors.items():
        cells: list[str | float] = [TITLES[name]]
        for kind in ("seen", "hidden"):
            mean = errors["cohort_mean"][kind].mse()
            own = kinds[kind].mse()
            exact = name == "forward_fill" and kind == "seen"
            cells += ["-", "-"] if exact or not mean else [own, 1 - own / mean]
        rows.append(tuple(cells))
    columns = ("", "error, cells seen", "R2", "error, cells hidden", "R2")
    caption = (
        f"{_error(given)} on {given.split} patients: of observed cells every row "
        "was given, and of cells hidden from every row. R2 is over the cohort's mean. "
        "Shrunk, each vital sign goes from the patient mean towards the model by a weight in "
        "[0, 1], chosen on tuning."
    )
    return Table(columns, tuple(rows), caption)


def _by_vital(given: SuiteInput, errors: dict[str, dict[str, Errors]], at: str) -> dict[str, float]:
    """Return errors of each vital sign: z-scores squared, and root mean squares in its unit."""
    _, spread = scales(given.model.vitals, given.vocabulary)
    metrics = {}
    for name in (MODEL, "patient_mean", "forward_fill", "pca", "fpca"):
        for kind, found in errors[name].items():
            for vital, mse, unit in zip(given.model.vitals, found.by_vital(), spread, strict=True):
                if np.isfinite(mse):
                    metrics[f"{at}/{name}/{kind}/{vital.name}/mse"] = float(mse)
                    metrics[f"{at}/{name}/{kind}/{vital.name}/rmse_unit"] = float(
                        np.sqrt(mse) * unit
                    )
    return metrics


def _vital_table(given: SuiteInput, errors: dict[str, dict[str, Errors]]) -> Table:
    _, spread = scales(given.model.vitals, given.vocabulary)
    shown = ((MODEL, "seen"), ("pca", "seen"), (MODEL, "hidden"), ("forward_fill", "hidden"))
    columns = ["vital sign"]
    for name, kind in shown:
        columns += [f"{TITLES[name]}, {kind}", "in its unit"]
    rows = []
    for index, vital in enumerate(given.model.vitals):
        row: list[str | float] = [f"{vital.name} ({vital.unit})"]
        for name, kind in shown:
            mse = float(errors[name][kind].by_vital()[index])
            row += [mse, float(np.sqrt(mse) * spread[index])]
        rows.append(tuple(row))
    caption = f"{_error(given)}, and its root in the vital sign's unit."
    return Table(tuple(columns), tuple(rows), caption)


def _window_table(given: SuiteInput, judged: Grids, references: References) -> Table:
    rows: list[tuple[str | float, ...]] = []
    first, hours = given.model.first_hour, judged.value.shape[1]
    for name, (start, stop) in WINDOWS.items():
        low, high = max(start - first, 0), min(stop - first, hours)
        if low >= high:
            continue
        errors = curves.measure(judged, references, slice(low, high))
        cells = float(errors[MODEL]["seen"].count.sum() / len(judged))
        shown = ((MODEL, "seen"), ("pca", "seen"), (MODEL, "hidden"), ("forward_fill", "hidden"))
        rows.append((name, cells, *(errors[row][kind].mse() for row, kind in shown)))
    columns = (
        "window",
        "cells a patient",
        "this model, seen",
        "PCA, seen",
        "this model, hidden",
        "last value, hidden",
    )
    return Table(columns, tuple(rows), f"{_error(given)}, by hours after admission.")


def _warped(given: SuiteInput, train: Grids) -> tuple[dict[str, float], Table]:
    """Cluster heart rate and mean pressure by time warping, early and later, as a check."""
    names = [vital.name for vital in given.model.vitals]
    carry = np.array([vital.carry_hours for vital in given.model.vitals])
    value = train.value * train.observed
    filled, _ = imputed(value, train.observed, carry, np.zeros(len(names)))
    metrics: dict[str, float] = {}
    rows: list[tuple[str | float, ...]] = []
    for name in WARPED_VITALS:
        for start, stop in WARPED_WINDOWS:
            low, high = (hour - given.model.first_hour for hour in (start, stop))
            if name not in names or low < 0 or high > filled.shape[1]:
                continue
            part = filled[:, low:high, names.index(name)]
            found = warped(part, given.seed)
            key = f"train/phenotypes/dtw/{name}_{start}_{stop}"
            metrics |= {f"{key}/{k}": v for k, v in found.items()}
            rows.append((f"{name}, {start} to {stop} h", *found.values()))
    caption = (
        "k-means under dynamic time warping of imputed curves; a silhouette near 0 is no group."
    )
    return metrics, Table(("", "silhouette", "clusters"), tuple(rows), caption)


def _rates_table(labels: NDArray[Any], outcome: NDArray[np.bool_], shown: str) -> Table:
    rows = tuple(
        ("noise" if k == NOISE else f"cluster {k + 1}", float(size), rate)
        for k, (size, rate) in rates(labels, outcome).items()
    )
    return Table(("", "patients", "outcome rate"), rows, f"Train patients, clusters of {shown}.")
