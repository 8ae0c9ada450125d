"""The sections of a config that every family shares."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from ehr_ray.config.locations import Location, TrackingURI
from ehr_ray.config.types import NotNegative, PositiveInt, Ratio
from ehr_ray.events.scaling import Scaling
from ehr_ray.events.subgroups import Subgroup, default_subgroups


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on, and how it reaches the workers."""

    __pydantic_config__ = {"extra": "forbid"}

    cohort: Location
    """Folder or URI of the cohort: any MEDS dataset with train, tuning and held_out splits."""
    expanded: Location | None = None
    """Folder or URI of what `expand` wrote, or of the published program's, to train on in place of
    the cohort it was made of, by families that read sets; its window and scaling are believed."""
    value_stats: Location | None = None
    """CSV of variable, mean and std that the values of a published `expanded` were scaled by."""
    batch_size: PositiveInt = 32
    """Patients per optimizer step, over all workers and accumulation."""
    eval_batch_size: PositiveInt | None = None
    """Patients of a batch in validation, over all workers; null: `batch_size`."""
    origin: tuple[str, ...] | None = None
    """Codes whose first event is a subject's minute 0, alone or before a slash, for a dataset used
    as it stands; null: those of its ingest, else the usual names of an admission."""
    scale: Scaling = "robust"
    """How values are scaled by the statistics of train, in every family: robust by median and
    interquartile range, which typing errors leave alone, standard by mean and standard deviation.
    See `events/scaling.py`."""
    min_code_count: Annotated[int, Field(ge=0)] = 1
    """Codes seen less often than this in train are unknown to the model. 0 is as 1, unless events
    came embedded: then those of other splits are read too."""
    mode: Literal["auto", "cache", "stream"] = "auto"
    """Rows are made once and kept, or made anew for each epoch, ahead of the step, and not kept;
    batches are the same. auto: kept where the disk has room for them."""
    cache: Literal["disk", "memory"] = "disk"
    """Where model-ready rows live: files beside the runs, kept, or files that go with the run."""
    cache_dir: Location | None = None
    """Folder or URI of the disk cache; default `<output>/.cache`."""
    bucket_batches: PositiveInt = 16
    """Batches whose patients are sorted by length together: larger pads less, mixes less."""
    collate_threads: PositiveInt | None = None
    """Threads of each worker that make batches of rows, ahead of the step; null: half of
    `cluster.cpus_per_worker`, one at least. Batches are the same."""
    shuffle_patients: PositiveInt = 65536
    """Patients shuffled together; of larger cohorts each worker reads its part, in windows. Of a
    stream it holds its share of two windows."""

    def __post_init__(self) -> None:
        """Check what one field alone cannot say."""
        if self.mode == "stream" and self.cache == "memory":
            raise ValueError("mode=stream keeps no rows, so cache=memory does nothing; drop one")


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """How some parameters are trained otherwise than the rest."""

    __pydantic_config__ = {"extra": "forbid"}

    lr_ratio: NotNegative = 1.0
    """Their learning rate over `train.lr`."""
    from_epoch: NotNegative = 0.0
    """Epoch from which they are trained: layers are unfrozen one after the other by it."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how fast to train."""

    __pydantic_config__ = {"extra": "forbid"}

    max_epochs: PositiveInt = 10
    """Passes over the train split at most."""
    max_steps: PositiveInt | None = None
    """Optimizer steps at most; None for no limit besides `max_epochs`."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine", "plateau", "restarts"] = "cosine"
    """Shape of the decay from the peak to `min_lr_ratio` at the last step; plateau: halved after
    `plateau_patience` reports, and one more, without a better selection metric; restarts: half a
    cosine over `restart_epochs`, again and again."""
    restart_epochs: Annotated[float, Field(gt=0)] = 10.0
    """Epochs of the first period of `restarts`; at its end the rate is at its peak again."""
    restart_factor: Annotated[float, Field(ge=1)] = 2.0
    """Length of each period of `restarts` over that of the one before."""
    plateau_patience: Annotated[int, Field(ge=0)] = 3
    """Reports without a better selection metric that a plateau is waited for."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps of linear warm-up to the peak."""
    warmup_epochs: NotNegative | None = None
    """Its length in passes over the train split, in place of `warmup_steps`."""
    min_lr_ratio: Ratio = 0.05
    """Learning rate at the end over the peak."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay on matrices; biases, norms and embeddings have none."""
    final_weight_decay: NotNegative | None = None
    """Weight decay at the last step, reached along half a cosine; None: it stays the same."""
    layers: dict[str, LayerConfig] = field(default_factory=dict)
    """Regular expression of parameter names to {lr_ratio, from_epoch}; the first fit counts."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; None for no limit."""
    seeds: PositiveInt = 1
    """Models of a `task` that are trained side by side on the same batches, of other first weights,
    dropout and noise, each as in a run of its own: `clip` is of its gradient alone, and the first
    is what a run of one gives. The answer, on tuning too, is the mean of theirs: of logits, or of a
    regression's values. Time and memory are as many times those of one."""
    accumulate: PositiveInt = 1
    """Micro-batches each worker's share of a batch is cut into, to fit memory."""
    activation_checkpointing: bool = False
    """Whether a transformer's blocks, and the chunks of sets a set transformer reads, keep their
    inputs alone for the gradient and are computed once more: the same weights in less memory, for
    another forward pass. Other models refuse it."""
    compile: Literal["none", "default", "reduce-overhead"] = "none"
    """Whether a transformer's blocks are compiled where they are trained, by torch's names:
    `default` fuses their operations, `reduce-overhead` also records them as graphs of a GPU. Each
    shape is compiled once, which takes a minute and more in all. Other models refuse it."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 runs matrix products under autocast; weights and losses stay float32."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Of float32 matrix products and convolutions, by torch's names: with `high` a GPU multiplies
    in TF32, which is several times as fast and keeps ten bits of each factor."""
    deterministic: bool = False
    """Whether a GPU's kernels that add in another order each time are refused; slower. Runs on the
    CPU repeat without it."""
    report_steps: PositiveInt | None = None
    """Steps between validations, checkpoints and rows of the history; None: once an epoch."""
    patience: PositiveInt | None = None
    """Reports without a better selection metric after which training stops; None: never."""
    patience_cycles: PositiveInt | None = None
    """Whole cycles of the schedules without one after which it stops; None: never.

    With a schedule that starts anew, reports within a cycle say little of the next one.
    """
    keep_steps: PositiveInt | None = None
    """Steps between checkpoints that are kept, in `checkpoints/<step>/`, beside the best; None:
    the best alone."""
    keep_epochs: PositiveInt | None = None
    """The same in passes over the train split, in place of `keep_steps`."""

    def warmup(self, steps_per_epoch: int) -> int:
        """Return the steps of the warm-up."""
        epochs = self.warmup_epochs
        return self.warmup_steps if epochs is None else round(epochs * steps_per_epoch)

    def kept_every(self, steps_per_epoch: int) -> int | None:
        """Return the steps between checkpoints that are kept; None: the best alone."""
        return self.keep_steps if self.keep_epochs is None else self.keep_epochs * steps_per_epoch


@dataclass(frozen=True, kw_only=True)
class StackWeights:
    """Weights of the calibrated logits that an ensemble adds up."""

    __pydantic_config__ = {"extra": "forbid"}

    network: NotNegative
    """Of the model trained for the task."""
    gbm_rich: NotNegative
    """Of the trees."""
    logistic_rich: NotNegative
    """Of logistic regression."""
    offset: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """What is added to their sum."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What `evaluate` measures after training."""

    __pydantic_config__ = {"extra": "forbid"}

    task: str | None = None
    """Label file of the cohort to probe for; None takes the only one, or `mortality` of several."""
    after_training: bool = False
    """Whether `train` evaluates held_out once it has ended, as `ehr-ray evaluate RUN` does."""
    baselines: bool = True
    """Whether simple baselines are fitted beside the model; they take most of the time."""
    ensemble: bool = False
    """Whether what is judged, and written to `predictions/`, is a model trained for a task averaged
    with trees and logistic regression on rich features. By hour, and for `ehr_ray.load`, it is the
    model alone."""
    stack: StackWeights | None = None
    """Weights of the ensemble's parts, as `crossval` of the same config tells them, learned from
    what they said of unseen patients; null: network and the others half and half."""
    bootstrap: PositiveInt = 1000
    """Resamples of patients behind each 95 % interval."""
    fit_patients: PositiveInt = 100_000
    """Patients, about as many, of train that probe and baselines are fitted on at most, and of
    tuning that they are calibrated on, chosen by a hash of the subject: what they read of each is
    held by one process, some kilobytes a row. Where a patient has several labels, a row each, it
    bounds the rows, as `max_patients` and `hour_patients` do. Of the judged split all rows are
    scored; what else is measured on it is of so many, or of one of these two if more."""
    max_patients: PositiveInt = 1000
    """Patients of a split that reconstruction and collapse diagnostics are computed on."""
    umap_patients: Annotated[int, Field(ge=0)] = 0
    """Patients of a UMAP beside the map of the embedding at most; 0: none. It takes up to a minute
    for 2,000."""
    hours: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = (6, 12, 24, 48)
    """Hours after a subject's origin at which the same label is predicted early; [] for none."""
    hour_patients: PositiveInt = 20_000
    """Patients of a split that are predicted at those hours: fewer cost less time and memory."""
    subgroups: dict[str, Subgroup] = field(default_factory=default_subgroups)
    """Ways to divide patients, by name, as in `sex: {groups: {female: [GENDER//F], ...}}` and
    `age: {edges: [45, 65], codes: [Age]}`; {} for none. See `events/subgroups.py`."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where MLflow writes."""

    __pydantic_config__ = {"extra": "forbid"}

    experiment: str | None = "ehr_ray"
    """MLflow experiment name; null switches tracking off."""
    uri: TrackingURI | None = None
    """Tracking URI; `MLFLOW_TRACKING_URI` wins; default is sqlite under the output folder, which
    must not be a URI then."""
