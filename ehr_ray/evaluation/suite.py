"""Parts of an evaluation that belong to some families: functions of what inference gave.

A family names its suites, which are imported when they run, and makes the tables they read. A
suite fits what it must on train and tuning and measures on the split that is judged, as everything
in an evaluation.
"""

import importlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ehr_ray.evaluation.table import Table
from ehr_ray.events.vocabulary import Vocabulary


@dataclass(frozen=True)
class SplitPredictions:
    """What inference gave for one split."""

    samples: pa.Table
    """`subject_id`, `prediction_time`, `embedding` and what else `Family.predict` gives."""
    tables: Mapping[str, pa.Table]
    """`latents`, `tokens` and the family's own outputs, as far as they were asked for.

    `sample` is the row of `samples` an entry is of.
    """
    label: NDArray[Any] | None = None
    """One a row of `samples`; None where the cohort has no labels. Suites get binary ones alone."""


@dataclass(frozen=True, kw_only=True)
class SuiteInput:
    """What inference gave: for the run's own train and tuning, and for the split that is judged."""

    split: str
    """Name of the judged split; metrics carry it."""
    judged: SplitPredictions
    """Of the run's own cohort or of another one; of a large split a sample of the patients."""
    fit: Mapping[str, SplitPredictions]
    """`train` and `tuning` of the run's own cohort, as far as they are there; of large ones a
    sample of the patients."""
    model: Any
    """The family's own config."""
    vocabulary: Vocabulary
    target: Path
    """Folder the evaluation writes to; a suite may leave files of its own there."""
    cohort: Path | None = None
    """The cohort that is judged."""
    home: Path | None = None
    """The run's own cohort, on which everything is fitted; None where it is gone."""
    task: str | None = None
    """The label file that is judged; None: whole patients, without labels."""
    baselines: bool = True
    """Whether baselines of the suite's own are asked for too."""
    seed: int = 0
    num_bootstrap: int = 1000
    sampled: Collection[str] = ()
    """Splits of which `fit` has a sample of the patients."""


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """What a suite found."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """Flat keys of metrics.json, as in `held_out/anomaly/...`."""
    sections: Mapping[str, Table] = field(default_factory=dict)
    """Tables of the report by heading."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    captions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Title and caption of each figure."""
    predictions: Mapping[str, Mapping[str, NDArray[np.floating]]] = field(default_factory=dict)
    """Of the suite's own baselines for the task, by name and split: a probability for each row of
    the split's samples; of tuning, by models that had not seen the row."""
    lines: tuple[str, ...] = ()
    """What a person should read on the screen."""
    notes: tuple[str, ...] = ()
    """What did not go as usual: on the screen, in `results.md` and in the report."""
    artifacts: tuple[str, ...] = ()
    """Files or folders under `target` that go to MLflow besides the usual."""


def get_suite(path: str) -> Callable[[SuiteInput], SuiteResult]:
    """Import the suite that a family's record names as `module:function`."""
    module, function = path.split(":")
    suite: Callable[[SuiteInput], SuiteResult] = getattr(importlib.import_module(module), function)
    return suite


def merged(results: list[SuiteResult]) -> SuiteResult:
    """Return all results as one; of equal keys the later wins."""
    return SuiteResult(
        metrics={k: v for r in results for k, v in r.metrics.items()},
        sections={k: v for r in results for k, v in r.sections.items()},
        figures={k: v for r in results for k, v in r.figures.items()},
        captions={k: v for r in results for k, v in r.captions.items()},
        predictions={k: v for r in results for k, v in r.predictions.items()},
        lines=tuple(line for r in results for line in r.lines),
        notes=tuple(note for r in results for note in r.notes),
        artifacts=tuple(path for r in results for path in r.artifacts),
    )
