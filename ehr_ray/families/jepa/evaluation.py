"""Did a JEPA learn to predict? Measured on patients it has not seen, without any label.

The family's `targets` table has hidden rows' states beside what was predicted of them from the
patient's own context and from another patient's; its `cells` table has hidden values beside the
model's estimate, the last value before and 0, the location of train; `drift` has errors of
predicting the last hour from ever earlier ones.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ehr_ray.config.task import OUTPUTS
from ehr_ray.evaluation.metrics.bootstrap import bootstrap
from ehr_ray.evaluation.metrics.weighted import Array, divide, mean_of
from ehr_ray.evaluation.suite import SuiteInput, SuiteResult
from ehr_ray.evaluation.table import Cell, Table
from ehr_ray.events.scaling import CENTRES, UNITS, Scaling
from ehr_ray.families.jepa.config import LatentLoss
from ehr_ray.families.jepa.diagnostics import (
    CONTRASTED,
    MAX_COSINE,
    MIN_GAP,
    Predicted,
    prediction_measures,
    verdict,
)

GUESSES: Final = {"estimate": "model", "median": "", "last": "last value before"}
"""What is beside the model's; the location is the train median, or mean, as `data.scale` says."""
ROWS: Final = {
    "skill": ("skill over the mean of a position", "above 0"),
    "shuffled_gap": ("rise of the loss with another patient's context", f"above {MIN_GAP}"),
    "target_cosine": ("cosine of different patients' targets", f"below {MAX_COSINE}"),
    "target_std": ("standard deviation of targets at one position", ""),
    "target_rankme": ("RankMe of the patients' mean targets", ""),
    "target_rankme_centered": ("the same, centred", ""),
}
NO_DRIFT: Final = (
    "how predictions err hours ahead is not measured with model.latent_loss=infonce: they have a "
    "direction alone, and the last state a length"
)
LOSSES: Final[Mapping[LatentLoss, str]] = {
    "smooth_l1": "The loss, the smooth-L1 distance of a predicted state from its target, falls in "
    "a collapse too, and so may no rank.",
    "infonce": "The loss is what the model was trained by: the nats by which a predicted state "
    f"fails to tell its target from {CONTRASTED} of these patients', by their cosines.",
}
HEADING: Final = "Predicting hidden rows"
AHEAD: Final = "Predicting hours ahead"


def suite(given: SuiteInput) -> SuiteResult:
    """Measure predictions on the judged split; nothing where a task has trained the encoder."""
    tables, samples = given.judged.tables, given.judged.samples
    if "targets" not in tables or not set(samples.column_names).isdisjoint(OUTPUTS.values()):
        return SuiteResult()
    latent_loss = given.model.latent_loss
    found = prediction_measures(_predicted(tables["targets"]), latent_loss)
    if not found:
        return SuiteResult(lines=("prediction: no patient has two rows, so nothing is predicted",))
    told, reason = verdict(found)
    metrics = {
        **found,
        "learned": float(told == "learned"),
        "collapsed": float(told == "collapsed"),
    }
    metrics |= value_errors(tables["cells"]) if "cells" in tables else {}
    lines: tuple[str, ...] = (f"prediction: {told}: {reason}",)
    if "value_estimate" in metrics:
        centre = CENTRES[given.vocabulary.scaling]
        errors = (
            f"{metrics[f'value_{name}']:.3f} of the {title or centre}"
            for name, title in GUESSES.items()
        )
        lines += (f"values of hidden rows, squared error: {', '.join(errors)}",)
    if latent_loss == "infonce" and given.model.rows == "hours":
        lines += (NO_DRIFT,)
    sections = {HEADING: _table(metrics, told, given.vocabulary.scaling, latent_loss)}
    if "drift" in tables and len(tables["drift"]):
        subject = samples["subject_id"].to_numpy()[tables["drift"]["sample"].to_numpy()]
        more, sections[AHEAD] = drift_errors(
            tables["drift"], subject, given.seed, given.num_bootstrap
        )
        metrics |= more
    return SuiteResult(
        metrics={f"{given.split}/prediction/{name}": value for name, value in metrics.items()},
        sections=sections,
        lines=lines,
    )


def drift_errors(
    entries: pa.Table, subject: NDArray[Any], seed: int, num_bootstrap: int
) -> tuple[dict[str, float], Table]:
    """Return metrics `drift/<hours>h/<name>` and their table; 95 % intervals are over patients.

    `subject` says whose each entry is: a patient with several prediction times has several.
    `predicted` and `last` are mean errors, `over_last` the one over the other.
    """
    metrics: dict[str, float] = {}
    rows: list[tuple[Cell, ...]] = []
    lead = entries["lead"].to_numpy()
    for hours in np.unique(lead):
        here = entries.filter(pa.array(lead == hours))
        errors = {name: here[name].to_numpy().astype(np.float64) for name in ("predicted", "last")}
        statistics = {name: partial(mean_of, x=x) for name, x in errors.items()}
        ratio = partial(_ratio, **errors)
        whose = subject[lead == hours]
        found = bootstrap(
            {**statistics, "over_last": ratio},
            len(here),
            subject=whose,
            seed=seed,
            num_bootstrap=num_bootstrap,
        )
        for name, of in found.items():
            key = f"drift/{hours}h/{name}"
            metrics |= {key: of.value, f"{key}/low": of.low, f"{key}/high": of.high}
        rows.append((f"{hours} h", f"{len(np.unique(whose)):,}", *found.values()))
    caption = (
        "Smooth-L1 errors of the state of each record's last hour, predicted from the hours up to "
        "so long before it, and of the last of their states kept as it is; a record that is not so "
        "long has no part. Below 1 in the last column the prediction is worth more than standing "
        "still. The hour is asked for at once: nothing is predicted from predictions."
    )
    columns = ("hours ahead", "patients", "prediction", "last state", "prediction over last state")
    return metrics, Table(columns, tuple(rows), caption)


def _ratio(w: Array, *, predicted: Array, last: Array) -> Array:
    return divide(w @ predicted, w @ last)


def value_errors(cells: pa.Table) -> dict[str, float]:
    """Return the mean squared errors `value_<guess>` of hidden values; {} without any."""
    value = cells["value"].to_numpy()
    if not len(value):
        return {}
    guesses = {
        "estimate": cells["estimate"].to_numpy(),
        "median": np.zeros_like(value),
        "last": cells["last"].to_numpy(),
    }
    return {f"value_{name}": float(np.mean((g - value) ** 2)) for name, g in guesses.items()}


def _predicted(table: pa.Table) -> Predicted:
    return Predicted(
        patient=table["sample"].to_numpy(),
        position=table["position"].to_numpy(),
        target=_matrix(table, "target"),
        predicted=_matrix(table, "predicted"),
        shuffled=_matrix(table, "shuffled"),
    )


def _matrix(table: pa.Table, name: str) -> NDArray[np.floating]:
    if not len(table):
        return np.zeros((0, 0), np.float32)
    values: NDArray[np.floating] = table[name].combine_chunks().flatten().to_numpy()
    return values.reshape(len(table), -1)


def _table(
    metrics: Mapping[str, float], told: str, scaling: Scaling, latent_loss: LatentLoss
) -> Table:
    rows: list[tuple[str | float, ...]] = [
        (title, metrics[name], level) for name, (title, level) in ROWS.items()
    ]
    for name, title in GUESSES.items():
        if f"value_{name}" in metrics:
            at = "" if name == "estimate" else "the model is below it"
            title = f"squared error of hidden values: {title or CENTRES[scaling]}"
            rows.append((title, metrics[f"value_{name}"], at))
    return Table(
        ("", "value", "of a model that learned"),
        tuple(rows),
        f"Verdict: {told}. {LOSSES[latent_loss]} A model has learned if it beats the "
        "mean of a position and needs the patient's context. "
        f"Values are the inverse hyperbolic sine of what lies from the {CENTRES[scaling]} in "
        f"{UNITS[scaling]}.",
    )
