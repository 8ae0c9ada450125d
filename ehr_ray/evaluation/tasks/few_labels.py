"""How many labels does a task need? The same comparison, learned from a share of the labels.

An encoder that was trained without labels has seen every patient of train, and so has the PCA
beside it; trees and logistic regression have the patients of a draw alone. Ten draws are averaged,
and all models learn from the same patients of each.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.bootstrap import interval_of, resamples
from ehr_ray.evaluation.metrics.weighted import statistics
from ehr_ray.evaluation.suite import SuiteResult
from ehr_ray.evaluation.table import Cell, Interval, Table
from ehr_ray.evaluation.tasks.baselines import PCA_COMPONENTS, SHORT_TITLES, title_of
from ehr_ray.evaluation.tasks.downstream import Split
from ehr_ray.evaluation.tasks.figures import CAPTIONS, by_step
from ehr_ray.evaluation.tasks.probe import fit_probe, principal_components
from ehr_ray.evaluation.tasks.trees import fit_trees
from ehr_ray.evaluation.tasks.verdicts import MODEL, interval, metric_prefix, outcome

Array = NDArray[np.float64]

DRAWS: Final = 10
RANKING: Final = ("auroc", "auprc")
DRAWN: Final = (MODEL, "untrained", "pca", "logistic_rich", "gbm_rich")
"""Models of the figure; the table has the simple features' too."""
_PCA: Final = "pca"


def few_labels_result(
    train: Split,
    judged: Split,
    split: str,
    *,
    shares: Sequence[float],
    seed: int = 0,
    num_bootstrap: int = 1000,
) -> SuiteResult:
    """Learn the task from each share of train's labelled subjects, `DRAWS` times, and measure.

    Keys are `<split>/labels/<share>/<metric>`, after `baseline/<name>/` for the others: the mean
    over draws of `auroc` and `auprc`, `<metric>/draws`, their standard deviation over draws, and
    `<metric>_difference` (model minus baseline, paired by row and draw). Intervals resample
    subjects of the judged split and draws together. Penalties and settings are chosen by folds of
    the drawn rows; tuning is not asked, whose labels would be many more than those of a draw.

    Args:
        train: of the run's own cohort, without a model's own output for the task.
        judged: the rows to measure on; with one class only nothing is measured.
        split: its name.
        shares: of the labelled subjects, above 0 and at most 1; at least two of each class are
            drawn, a smaller share within the larger.
        seed: of draws, folds, trees and resamples.
        num_bootstrap: resamples.
    """
    if min(np.unique(one.label).size for one in (train, judged)) < 2:
        return SuiteResult()
    inputs = _inputs(train, judged)
    metrics: dict[str, float] = {}
    shares, names = sorted(set(shares)), list(inputs)
    for share in shares:
        rows = [drawn_rows(train, share, np.random.default_rng([seed, k])) for k in range(DRAWS)]
        at = f"labels/{share:g}"
        metrics[f"{split}/{at}/n"] = float(np.mean([len(draw) for draw in rows]))
        metrics[f"{split}/{at}/positive"] = float(np.mean([train.label[d].sum() for d in rows]))
        scored = {
            name: [_predicted(name, x, other, train.label, draw, seed) for draw in rows]
            for name, (x, other) in inputs.items()
        }
        for name, found in _measured(judged, scored, seed, num_bootstrap).items():
            prefix = f"{metric_prefix(name, split)}/{at}"
            metrics |= {f"{prefix}/{key}": value for key, value in found.items()}
    return SuiteResult(
        metrics=metrics,
        sections={"By share of labels": _table(metrics, split, shares, names)},
        figures={"few_labels": _figure(metrics, split, shares, names)},
        captions=CAPTIONS,
        lines=_lines(metrics, split, shares, names),
    )


def drawn_rows(train: Split, share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return all rows of a share of the subjects, drawn among those with and without the outcome.

    Of each at least two are drawn, as far as there are; with the same `rng` a smaller share lies
    within a larger.
    """
    subjects, group = np.unique(train.subject_id, return_inverse=True)
    positive = np.zeros(len(subjects), bool)
    np.logical_or.at(positive, group, train.label)
    kept = np.zeros(len(subjects), bool)
    for of_class in (positive, ~positive):
        members = rng.permutation(np.flatnonzero(of_class))
        kept[members[: max(2, round(share * len(members)))]] = True
    return np.flatnonzero(kept[group])


def _inputs(train: Split, judged: Split) -> dict[str, tuple[NDArray[Any], ...]]:
    """Return what each model reads of train and of the judged rows, as far as both have it."""
    given = {
        MODEL: "embedding",
        "untrained": "untrained",
        "logistic": "features",
        "logistic_rich": "rich",
        "gbm": "features",
        "gbm_rich": "rich",
    }
    found: dict[str, tuple[NDArray[Any], ...]] = {}
    for name, field in given.items():
        pair = tuple(x for x in (getattr(train, field), getattr(judged, field)) if x is not None)
        if len(pair) == 2:
            found[name] = pair
    if "logistic" in found:
        components = principal_components(found["logistic"][0], PCA_COMPONENTS)
        found[_PCA] = tuple(components(x) for x in found["logistic"])
    return found


def _predicted(
    name: str,
    x: NDArray[Any],
    judged: NDArray[Any],
    label: NDArray[np.bool_],
    rows: NDArray[np.int64],
    seed: int,
) -> Array:
    """Learn from some rows; return the score of each judged row."""
    if name.startswith("gbm"):
        trees = fit_trees(x[rows], label[rows], seed=seed)
        return np.mean([member(judged) for member in trees.members], axis=0)
    nobody = x[:0], label[:0]
    tabular = name.startswith("logistic")
    probe, _ = fit_probe(x[rows], label[rows], *nobody, tabular=tabular, seed=seed)
    return probe.predict(judged, calibrated=False)


def _measured(
    judged: Split, scored: Mapping[str, list[Array]], seed: int, num_bootstrap: int
) -> dict[str, dict[str, float]]:
    """Return the metrics of every model at one share, averaged over its draws."""
    label = np.asarray(judged.label, np.float64)
    functions = {name: [statistics(label, p) for p in draws] for name, draws in scored.items()}
    found: dict[str, dict[str, float]] = {name: {} for name in scored}
    for metric in RANKING:
        whole = {
            name: np.concatenate([f[metric](np.ones((1, len(label)))) for f in draws])
            for name, draws in functions.items()
        }
        drawn: dict[str, list[Array]] = {name: [] for name in scored}
        rng = np.random.default_rng([seed, DRAWS])
        for weights in resamples(len(label), judged.subject_id, seed, num_bootstrap):
            times = rng.multinomial(DRAWS, np.full(DRAWS, 1 / DRAWS), size=len(weights)) / DRAWS
            for name, draws in functions.items():
                values = np.stack([f[metric](weights) for f in draws], axis=1)
                drawn[name].append((times * values).sum(axis=1))
        for name, values in whole.items():
            own = interval_of(float(values.mean()), drawn[name])
            found[name] |= _flat(metric, own) | {f"{metric}/draws": float(values.std(ddof=1))}
            if name != MODEL:
                gaps = [a - b for a, b in zip(drawn[MODEL], drawn[name], strict=True)]
                gap = interval_of(float((whole[MODEL] - values).mean()), gaps)
                found[name] |= _flat(f"{metric}_difference", gap)
    return found


def _flat(key: str, found: Interval) -> dict[str, float]:
    return {key: found.value, f"{key}/low": found.low, f"{key}/high": found.high}


def _table(
    metrics: Mapping[str, float], split: str, shares: Sequence[float], names: Sequence[str]
) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for share in shares:
        at = f"labels/{share:g}"
        counted = [f"{metrics[f'{split}/{at}/{key}']:,.0f}" for key in ("n", "positive")]
        for name in sorted(names, key=lambda n: -metrics[f"{metric_prefix(n, split)}/{at}/auroc"]):
            prefix = f"{metric_prefix(name, split)}/{at}"
            gap = interval(metrics, f"{prefix}/auroc_difference")
            rows.append(
                (
                    f"{share:.3g}",
                    f"{counted[0]} ({counted[1]})",
                    title_of(name, metrics, split),
                    *(interval(metrics, f"{prefix}/{metric}") for metric in RANKING),
                    metrics[f"{prefix}/auroc/draws"],
                    "" if name == MODEL else gap,
                    outcome(gap),
                )
            )
    return Table(
        columns=(
            "Share",
            "Rows (positive)",
            "Model",
            "AUROC",
            "AUPRC",
            "SD of AUROC over draws",
            "This model's AUROC less it",
            "This model",
        ),
        rows=tuple(rows),
        caption=f"The task learned from a share of train's labelled patients: means of {DRAWS} "
        "draws, all models on the same patients, with settings chosen by folds of them alone. "
        "Encoders and principal components have seen all of train, without labels. Intervals are "
        "over patients and draws.",
    )


def _figure(
    metrics: Mapping[str, float], split: str, shares: Sequence[float], names: Sequence[str]
) -> Figure:
    curves = {
        metric: {
            name: [
                interval(metrics, f"{metric_prefix(name, split)}/labels/{share:g}/{metric}")
                for share in shares
            ]
            for name in DRAWN
            if name in names
        }
        for metric in RANKING
    }
    return by_step([f"{share:.3g}" for share in shares], "share of labels", curves)


def _lines(
    metrics: Mapping[str, float], split: str, shares: Sequence[float], names: Sequence[str]
) -> tuple[str, ...]:
    told = []
    for share in shares:
        at = f"labels/{share:g}/auroc"
        others = {
            SHORT_TITLES[name]: metrics[f"{metric_prefix(name, split)}/{at}"]
            for name in names
            if name != MODEL
        }
        best = max(others, key=lambda name: others[name], default="")
        beside = f" ({best} {others[best]:.3f})" if best else ""
        told.append(f"{share:.3g}: {metrics[f'{split}/{at}']:.3f}{beside}")
    return (f"few labels, AUROC by share (and the best of the others): {', '.join(told)}",)
