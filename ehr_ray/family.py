"""The contract between a model family and everything else: one record of plain functions.

`Family` is what every family brings. Its four groups (`Training`, `Evaluation`, `Transfer`,
`Files`) are for what only some need, and each may be left out.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ehr_ray.config.schema import ConfigSchema
from ehr_ray.config.search import Domain
from ehr_ray.events.blocks import RowStore
from ehr_ray.events.carry import PatientSets
from ehr_ray.events.patients import Patient
from ehr_ray.events.scaling import Scaling
from ehr_ray.events.vocabulary import Vocabulary

Row = Mapping[str, np.ndarray]
"""One model-ready patient: arrays whose first axis is ragged, the others fixed; or scalars."""
Batch = dict[str, Tensor]
"""A flat mapping of tensors, so that one comprehension moves it to a device."""
Scheduled = Mapping[str, float]
"""The value of every schedule at a step, by the schedule's name."""

C = TypeVar("C")
Read = TypeVar("Read", contravariant=True)
"""A config that is only read: what is written for a base class serves its subclasses too."""
M = TypeVar("M", bound=nn.Module)
Uses = TypeVar("Uses", bound=nn.Module, contravariant=True)
"""A model that is only used: what is written for any module serves a family's own too."""


@dataclass(frozen=True)
class Term:
    """One part of a loss as a sum and a count, so averages stay exact across ranks and batches.

    The objective is the sum over terms of `coef * sum / count`; a term with `coef` 0 is only
    logged. The count must not depend on the parameters.
    """

    sum: Tensor
    count: Tensor
    coef: float = 1.0


Terms = dict[str, Term]


@dataclass(frozen=True)
class Select:
    """The metric that ranks checkpoints and trials."""

    metric: str = "val/objective"
    mode: Literal["min", "max"] = "min"
    remedy: str = ""
    """What to do where nothing of tuning can be measured by it."""

    def better(self, value: float, best: float | None) -> bool:
        """Whether `value` beats `best`; anything finite beats None."""
        if best is None:
            return bool(np.isfinite(value))
        return value < best if self.mode == "min" else value > best


@dataclass(frozen=True)
class Diagnose(Generic[Uses]):
    """What tells at each report whether a model learns, where its loss does not."""

    measure: Callable[[Uses, Iterable[Batch]], Mapping[str, float]]
    """Metrics over tuning patients, the same ones each time; they get the prefix `val/`."""
    warn: Callable[[Sequence[Mapping[str, float]]], list[str]]
    """Lines to show, from these metrics of all reports after warm-up, the newest last."""
    patients: int = 256
    """Tuning patients that are measured at most."""


@dataclass(frozen=True)
class Learnable:
    """Which model-ready rows an objective can learn from, where not all; none is an error."""

    rows: Callable[[RowStore], NDArray[np.bool_]]
    """Of a split, bool [rows]."""
    what: str
    """What these have and the others have not: `2 rows or more`."""
    remedy: Callable[[Any], str]
    """What to do without any, of a config."""


@dataclass(frozen=True)
class Represent(Generic[Uses]):
    """A representation that can be trained further, for the head of a task."""

    function: Callable[[Uses, Batch, int | None], Tensor]
    """(model, batch, seed) to float [B, W], differentiable; with a seed inputs may be perturbed."""
    width: Callable[[Uses], int]
    """W of a model."""
    states: Callable[[Uses, Batch, int | None], tuple[Tensor, Tensor]] | None = None
    """Before pooling, for an attentive head: states [B, T, D] and which are real [B, T]."""
    state_width: Callable[[Uses], int] | None = None
    """D of a model."""
    columns: Callable[[Any, Vocabulary], tuple[str, ...]] | None = None
    """(config, vocabulary) to what each of the W is of, where some are of codes of the cohort."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Horizon:
    """Where a future begins and ends; minutes since the patient's origin."""

    start: float
    """Everything until then is known: the next event comes later."""
    end: float
    """The last minute that counts."""
    codes: NDArray[np.bool_]
    """Codes at whose first event it ends, [V]."""
    events: int
    """Events after which it is cut."""


Draw = Callable[[Batch, Horizon, Tensor, int], Batch]
"""(a batch of one patient, horizon, numbers of the draws [N], seed) to the events of each draw:
`code` [N, E], -1 after the last, their `minute` [N, E], and whether it was `cut` [N]. A draw
depends on subject, number and seed, and on no other draw."""


@dataclass(frozen=True)
class Trajectories(Generic[Uses]):
    """Futures that a model draws event by event."""

    lacks: Callable[[Any], str | None]
    """What a config lacks to draw any, and the remedy; None where nothing."""
    fit: Callable[[Uses, Vocabulary, Iterable[Batch]], Draw]
    """(model, vocabulary, records it was not trained on) to what draws."""


@dataclass(frozen=True, kw_only=True)
class Training(Generic[C, Uses]):
    """What only some models need in training and in a search."""

    fit_buffers: Callable[[Uses, Batch], None] | None = None
    """Fits buffers of a new model on rows of train, one batch, before the first step."""
    fit_rows: Callable[[C], int] | None = None
    """How many rows that is of a config, evenly spread, and 0 for none; None: all of train."""
    after_step: Callable[[Uses, Scheduled], None] | None = None
    """Runs after each optimizer step, as the moving average of a target encoder does."""
    counts: Callable[[nn.Module, Batch, int], Mapping[str, Tensor]] | None = None
    """(model, batch, noise seed) to the count of each term that can have a coefficient, from masks
    and the draws that the seed keys; None: with `train.accumulate` the forward runs twice.
    They must be those of the loss: gradients of a step of several ranks, or micro-batches, are
    divided by them."""
    held: Callable[[Uses, Scheduled], Iterable[nn.Parameter]] | None = None
    """Parameters that a step at these values leaves as they are, decay and moments included."""
    clipped: Callable[[Uses], Iterable[nn.Module]] | None = None
    """Parts whose gradients `train.clip` limits each by its own norm; None: the model by one."""
    summarise: Callable[[Mapping[str, float]], Mapping[str, float]] | None = None
    """Further metrics of a report, computed from the means of the terms, such as a perplexity."""
    diagnose: Diagnose[Uses] | None = None
    """Measured at each report besides the terms; None for models whose loss says enough."""
    learnable: Learnable | None = None
    """Which rows the model can learn from; None: all."""
    needs_pairs: Callable[[C], str | None] | None = None
    """The setting, as `a.b=value`, by which patients of a batch are compared with each other, so
    that each worker's micro-batch needs two; None where nothing does."""
    inactive_paths: Callable[[C, bool], Collection[str]] | None = None
    """(config, whether a task is trained) to further paths of the search space that change nothing
    in a trial, though a config may state them, unlike those of `ConfigSchema.idle`, or that make no
    config beside the others."""
    rank: Select | None = None
    """What ranks the trials of a search where `select` does not: it must mean the same in all of
    them, whatever is searched. `probe/auroc` stands for a probe (`TuneConfig.rank`)."""
    fallback: Callable[[C, Mapping[str, float]], C | None] | None = None
    """The model to train instead of one with these latent metrics on tuning; None: it stands."""
    task_scores: Callable[[Uses, Batch], tuple[Terms, Tensor]] | None = None
    """Validation's terms and what is said of the batch's `label` they are of, [B] or of K classes
    [B, K], in one pass of a family under a task head (`train/task.py`)."""
    task_metrics: Callable[[Tensor, Tensor], Mapping[str, float]] | None = None
    """Metrics of all that `task_scores` said and of the labels [N], beside them."""
    task_width: int = 1
    """Columns of what `task_scores` says: 1, or K."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Generic[Read, Uses]):
    """What `evaluate` can show of a model besides its embedding."""

    latents: Callable[[Uses, Batch], Batch] | None = None
    """Posterior `mu` and `logvar` [N, Z] with the row's `patient` [N], for collapse diagnostics."""
    reconstruct: Callable[[Uses, Batch], Batch] | None = None
    """Values by name, one entry a token: `patient, set, code, value, estimate, carried, hidden`."""
    outputs: Mapping[str, Callable[[Uses, Batch], Batch]] = field(default_factory=dict)
    """Further tables of `evaluate`, by name: entries with their row's `patient` [N], 1-D or 2-D."""
    suites: tuple[str, ...] = ()
    """Parts of `evaluate` that read those tables, as `module:function` of an `evaluation.suite`."""
    task_outputs: Callable[[Read], Mapping[str, str]] | None = None
    """Tasks a model answers by itself, to the output of `predict` that is its logit."""
    baseline_codes: Callable[[Read, Vocabulary], np.ndarray] | None = None
    """Codes that get simple features for the baselines, bool [V]; None: all may."""
    trajectories: Trajectories[Uses] | None = None
    """How futures are drawn (`evaluate --zero-shot`); None: the model tells none."""


@dataclass(frozen=True)
class Axis:
    """An axis of a tensor, `dim`, and what each of its places is of, in `names`."""

    dim: int
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What `init_from` must not copy as it stands into a model of another cohort.

    A tensor is named by the end of its dotted name: `directions` is also `sets.directions`.
    """

    code_indexed_tensors: tuple[str, ...] = ()
    """Tensors with a row for each code of the vocabulary: their rows are matched by code."""
    axes: Callable[[Any, Vocabulary], Mapping[str, Axis]] | None = None
    """(config, vocabulary) to further tensors whose places along one axis are features of the
    cohort: they are matched by name. A name may stand for several places, which are alike."""
    meanings: Callable[[Any], Mapping[str, Any]] | None = None
    """What a config says its inputs are, by path: a checkpoint of others is refused."""
    data_buffers: tuple[str, ...] = ()
    """Buffers made of the cohort and the config alone: neither copied nor counted."""


@dataclass(frozen=True, kw_only=True)
class Files(Generic[Read]):
    """What a family reads and writes besides checkpoints."""

    check: Callable[[Read], None] | None = None
    """Raises InputError where a file the config names is not there, before a run's first step."""
    phrases: Callable[[Read, Vocabulary], list[str]] | None = None
    """Texts a sentence transformer embeds before training; the config then has `phrases`, the
    folder of the table, `text_model` and `embedding_dim`."""
    from_sets: Callable[[PatientSets, Read], Row] | None = None
    """`transform` of a patient whose values were carried forward and scaled before
    (`data.expanded`); the config then has `carry_minutes`, `always_carry`, `embedding_csv`."""
    export: Callable[[Iterable[Patient], Read, Vocabulary, Path], int] | None = None
    """Writes patients to the family's file format and returns how many (`prepare --export`)."""
    run_metadata: (
        Callable[[Mapping[str, Any], Any, Mapping[str, Sequence[int]]], Mapping[str, Any]] | None
    ) = None
    """JSON files of a finished run, by name: from its experiment as plain data, its history (a data
    frame) and the subjects of train and tuning."""
    extra_checkpoints: Callable[[Read], Mapping[str, Select]] | None = None
    """Checkpoints kept besides the best one, as `checkpoints/best_<name>`; where there are any, the
    last one is `checkpoints/final`."""


@dataclass(frozen=True, kw_only=True)
class Family(Generic[C, M]):
    """Everything a model family brings. Plain functions, so each is tested alone.

    Randomness inside `loss` comes either from torch's generators, which the loop seeds from
    (seed, step, rank), or, where one worker and two shall give the same loss, from
    `nn.noise` keyed by the step's noise seed and the patient.
    """

    name: str
    schema: ConfigSchema[C]
    """Its config class, with the schedules and their defaults."""
    transform: Callable[[Patient, C, Vocabulary], Row]
    """Events to a model-ready row: numpy, pure, causal (t is told by events up to t)."""
    collate: Callable[[Sequence[Row], C], Batch]
    """Rows to padded tensors; padding never changes a result."""
    build: Callable[[C, Vocabulary], M]
    """The model, initialised from torch's seeded generator."""
    loss: Callable[[nn.Module, Batch, Scheduled, int], Terms]
    """(model, batch, scheduled values, noise seed) to the terms of the batch. It calls
    `model(batch, ...)` exactly once, since DDP synchronises there; a `nn.transformer.Block` in it
    computes equally often on every rank, since FSDP2 gathers its weights there."""
    predict: Callable[[M, Batch], Batch]
    """Deterministic outputs, first axis patients; `embedding` [B, width] is one of them."""
    represent: Represent[M] | None = None
    """What a task head reads; None: the family takes no task."""
    cache_fields: tuple[str, ...] = ()
    """Config fields that `transform` reads: with the data they are the key of the cache."""
    version: int = 1
    """Raise when `transform` gives other rows for the same events because of code that stands in
    another module: this and the text of its own module are part of the cache key."""
    former_scaling: Scaling = "standard"
    """How values were scaled before there was `data.scale`: a checkpoint of then goes on so."""
    eval_scheduled: Scheduled = field(default_factory=dict)
    """Their values in validation: fixed, so that trials with other schedules stay comparable."""
    search_space: Mapping[str, Domain] = field(default_factory=dict)
    """Dotted config path to domain: what Ray Tune searches unless a config says otherwise."""
    select: Select = Select()
    """The metric that ranks the checkpoints of a run."""
    training: Training[C, M] = Training()
    evaluation: Evaluation[C, M] = Evaluation()
    transfer: Transfer = Transfer()
    files: Files[C] = Files()


AnyFamily = Family[Any, Any]


def unwrapped(model: nn.Module) -> Any:
    """Return the model that DDP has wrapped, of the family's own class; any other itself."""
    return getattr(model, "module", model)
