"""What ranks trials: measured on the same tuning patients, whatever a trial's loss is made of.

A loss whose weights are swept means something else in every trial, so trials are compared by a
metric at fixed scheduled values, or by a probe, and a latent that tells patients apart by nothing
is marked as collapsed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from ehr_ray.errors import ConfigError
from ehr_ray.evaluation.metrics.collapse import latent_diagnostics
from ehr_ray.events.auroc import auroc
from ehr_ray.events.batched import batched
from ehr_ray.events.blocks import RowStore
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment
from ehr_ray.family import AnyFamily, Select
from ehr_ray.runtime.data.prepared import Prepared
from ehr_ray.storage import sync
from ehr_ray.train import history
from ehr_ray.train.backend import Backend
from ehr_ray.train.loader import Loader
from ehr_ray.train.predictor import Predictor
from ehr_ray.train.sharding import plain
from ehr_ray.train.statistics import LABEL

MEASURES: Final = "measures.parquet"
"""A trial's own measures, a row a report, beside its history."""
TRIAL: Final = "trial.yaml"
"""A trial's record, beside both."""
PROBE: Final = Select("probe/auroc", "max")
"""The metric of trials that are ranked by a probe."""
LATENT_PATIENTS: Final = 256
UNTRAINED_STEPS: Final = 100
"""Steps up to which, as in warm-up, a latent that says nothing is new and has not collapsed."""
WORST: Final = -1e30
"""Score of a report without a number: worse than any."""

Measure = Callable[[nn.Module, Mapping[str, float]], dict[str, float]]


def rank_of(experiment: Experiment, family: AnyFamily) -> Select:
    """Return what ranks the trials of a search; ConfigError where it cannot."""
    wanted = experiment.tune.rank
    if experiment.task is not None:
        if wanted == "probe":
            raise ConfigError("tune.rank=probe: a run with a task has a metric of its own; drop it")
        return family.select
    if wanted == "probe" or (wanted is None and family.training.rank == PROBE):
        return PROBE
    return family.select if wanted == "metric" else family.training.rank or family.select


def score(select: Select, row: Mapping[str, float]) -> float:
    """Return a report's value for the scheduler: higher is better, `WORST` without a number."""
    value = row.get(select.metric, math.nan)
    if not math.isfinite(value):
        return WORST
    return value if select.mode == "max" else -value


@dataclass(frozen=True)
class TrialRanking:
    """What to measure at each report of a trial, picklable."""

    rank: Select
    probe: Prepared | None
    """Rows cut at the prediction time of a task, with its label; None without a probe."""
    patients: int
    """Rows of train, and of tuning, a probe reads at most."""

    def bind(
        self, experiment: Experiment, family: AnyFamily, vocabulary: Vocabulary, loader: Loader
    ) -> Measure:
        """Return the function of (model, report) that measures."""
        diagnose = family.training.diagnose
        rows = {} if self.probe is None else {n: self.probe.store(n) for n in ("train", "tuning")}
        young = max(UNTRAINED_STEPS, experiment.train.warmup(loader.steps_per_epoch))

        def measure(module: nn.Module, row: Mapping[str, float]) -> dict[str, float]:
            was_training = module.training
            given = (family, experiment.model, vocabulary, module.eval())
            exact = experiment.train.matmul_precision
            predictor = Predictor(*given, matmul_precision=exact)
            measures = _latents(predictor, loader)
            values = {k.removeprefix("val/"): v for k, v in row.items()}
            lines = diagnose.warn([values]) if diagnose else None
            measures |= collapse_flags(measures, lines, early=row["step"] <= young)
            if rows:
                size = experiment.data.batch_size
                measures[PROBE.metric] = _probed(predictor, rows, self.patients, size)
            module.train(was_training)
            return measures | {"score": score(self.rank, {**row, **measures})}

        return measure


class RankingBackend:
    """A backend whose reports carry what ranks trials; rank 0 measures and keeps it on disk."""

    def __init__(
        self,
        backend: Backend,
        measure: Measure,
        run: Path,
        log: Callable[..., None],
        stored: Callable[[], bool],
    ) -> None:
        """`log` is told the measures and the step; `stored` waits for the state in its store.

        It returns whether the state is there; without it the measures stay here too, and go with
        a later report.
        """
        self._backend, self._measure, self._run, self._log = backend, measure, run, log
        self._stored = stored
        self.device, self.rank, self.world = backend.device, backend.rank, backend.world
        self._module: nn.Module | None = None

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return what the backend makes of the model, and remember it."""
        wrapped = self._backend.wrap(model)
        self._module = plain(wrapped)
        return wrapped

    def all_sum(self, values: Tensor) -> Tensor:
        """Return the sum over ranks."""
        return self._backend.all_sum(values)

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin a sum over ranks; what is returned waits for it, and returns it."""
        return self._backend.begin_sum(values)

    def report(self, metrics: dict[str, float]) -> None:
        """Measure, keep and pass on."""
        if self.rank > 0:
            self._backend.report(metrics)
            return
        assert self._module is not None
        measures = self._measure(self._module, metrics)
        row = {"step": metrics["step"], "epoch": metrics["epoch"], **measures}
        history.append(self._run, row, MEASURES)
        if self._stored():
            sync.push(self._run / MEASURES)
        self._log(measures, int(metrics["step"]))
        self._backend.report({**metrics, **measures})


def measured(run: Path) -> int:
    """Return the last step a trial was measured at; 0 before the first.

    A kill between a report's state and its measures leaves a state beyond it: the steps up to
    there are taken again, or the report would be missing among those that rank the trial.
    """
    rows = history.read(run, file=MEASURES)
    return int(rows["step"].max()) if len(rows) else 0


def _latents(predictor: Predictor, loader: Loader) -> dict[str, float]:
    """Return the state of the posteriors of some tuning patients; {} for other models."""
    latents = predictor.family.evaluation.latents
    if latents is None:
        return {}
    parts = [predictor.outputs(b, latents) for b in loader.fixed_batches(LATENT_PATIENTS)]
    if not parts or "mu" not in parts[0]:
        return {}
    mu, logvar = (torch.cat([part[name] for part in parts]).numpy() for name in ("mu", "logvar"))
    if not (np.isfinite(mu).all() and np.isfinite(logvar).all()):
        return {"latent/collapsed": 1.0}
    diagnostics = latent_diagnostics(mu, logvar).metrics()
    names = ("kl_per_row", "active_units", "active_share", "collapsed")
    return {f"latent/{name}": diagnostics[name] for name in names}


def collapse_flags(
    posteriors: Mapping[str, float], lines: Sequence[str] | None, *, early: bool
) -> dict[str, float]:
    """Return `latent/collapsed` and `latent/untrained`; {} where nothing watches the latent.

    It has collapsed where its posteriors or a line of the family's own diagnosis (None: it has
    none) say so. `early`, a latent that tells nothing is new: untrained.
    """
    if lines is None and "latent/collapsed" not in posteriors:
        return {}
    warned = any(line.startswith("collapsed") for line in lines or ())
    collapsed = max(posteriors.get("latent/collapsed", 0.0), float(warned))
    untrained = early and collapsed >= 1
    return {
        "latent/collapsed": 0.0 if untrained else collapsed,
        "latent/untrained": float(untrained),
    }


def _probed(predictor: Predictor, rows: Mapping[str, RowStore], limit: int, size: int) -> float:
    """Return the AUROC on tuning rows of a logistic regression on train embeddings.

    Of `limit` rows of each split at most, `size` at a time; NaN where a class is missing or an
    embedding is not finite.
    """
    # Here, since every worker imports this module, and scikit-learn takes a second.
    from ehr_ray.evaluation.tasks.probe import DEFAULT_C, fit_probe

    (x, y), (other, label) = (
        _embedded(predictor, rows[split], limit, size) for split in ("train", "tuning")
    )
    if min(len(np.unique(y)), len(np.unique(label))) < 2:
        return math.nan
    if not (np.isfinite(x).all() and np.isfinite(other).all()):
        return math.nan
    # One strength for all: tuning scores the trials, so it must not choose anything in them.
    probe, _ = fit_probe(x, y, other, label, c_grid=(DEFAULT_C,))
    return auroc(label, probe.predict(other, calibrated=False))


def _embedded(
    predictor: Predictor, store: RowStore, limit: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings [N, W] and labels [N] of at most `limit` rows, evenly spaced."""
    count = min(limit, len(store))
    chosen = np.linspace(0, max(0, len(store) - 1), count).astype(np.int64)
    label = np.asarray(store.column(LABEL))[chosen] > 0
    embeddings = [np.zeros((0, 1), np.float32)]
    for part in batched(chosen.tolist(), max(2, size)):
        # Every report reads the same rows: their files may as well be brought whole.
        outputs = predictor.outputs(predictor.batch(store.rows(part, again=True)))
        embeddings.append(outputs["embedding"].float().numpy())
    return np.concatenate(embeddings[1:] or embeddings), label
