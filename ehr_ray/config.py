"""An experiment: typed sections, read from YAML, checked once at the boundary.

Types and defaults live here and in `families/<name>/config.py`; a YAML file states only what
differs. The command line, a Tune sample and a test change values through the one `override`.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from ehr_ray.aliases import translated
from ehr_ray.config_errors import message, not_finite, not_names, outside, unknown
from ehr_ray.errors import ConfigError
from ehr_ray.events.subgroups import Subgroup, default_subgroups
from ehr_ray.places import below, local
from ehr_ray.registry import get_family
from ehr_ray.schedules import Schedule
from ehr_ray.search import DEFAULT, TuneConfig, parse_domain, paths
from ehr_ray.task import TaskConfig
from ehr_ray.workers import ClusterConfig

T = TypeVar("T")
Raw = dict[str, Any]

PositiveInt = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on, and how it reaches the workers."""

    __pydantic_config__ = {"extra": "forbid"}

    cohort: str
    """Folder or URI of the cohort: any MEDS dataset with train, tuning and held_out splits."""
    batch_size: PositiveInt = 32
    """Patients per optimizer step, over all workers and accumulation."""
    min_code_count: Annotated[int, Field(ge=0)] = 1
    """Codes seen less often than this in train are unknown to the model."""
    cache: Literal["disk", "memory"] = "disk"
    """Where model-ready rows live: files beside the runs, kept, or files that go with the run."""
    cache_dir: str | None = None
    """Folder or URI of the disk cache; default `<output>/.cache`."""
    bucket_batches: PositiveInt = 16
    """Batches whose patients are sorted by length together: larger pads less, mixes less."""
    shuffle_patients: PositiveInt = 65536
    """Patients shuffled together; cohorts larger than this are read in windows of whole blocks."""


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
    accumulate: PositiveInt = 1
    """Micro-batches each worker's share of a batch is cut into, to fit memory."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 runs matrix products under autocast; weights and losses stay float32."""
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


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What `evaluate` measures after training."""

    __pydantic_config__ = {"extra": "forbid"}

    task: str | None = None
    """Label file of the cohort to probe for; None takes the only one, or `mortality` of several."""
    after_training: bool = False
    """Whether `train` evaluates held_out once it has ended, as `ehr-ray evaluate RUN` does."""
    bootstrap: PositiveInt = 1000
    """Resamples behind each 95 % interval."""
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
    uri: str | None = None
    """Tracking URI; `MLFLOW_TRACKING_URI` wins; default is sqlite under the output folder, which
    must not be a URI then."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run, fully resolved: with the cohort, enough to repeat it."""

    __pydantic_config__ = {"extra": "forbid"}

    family: str
    """Model family, a key of `registry.FAMILIES`."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run: it lands in `<output>/<name>/`."""
    output: str = "runs"
    """Folder of runs, or its URI, such as s3://bucket/runs."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of initialisation, order and noise."""
    init_from: str | None = None
    """A run or checkpoint folder, or its URI, whose matching weights start this model."""
    freeze: tuple[str, ...] = ()
    """Regular expressions of parameter names that are not trained."""
    model: Any
    """The family's own options (`families/<name>/config.py`)."""
    data: DataConfig
    """What to train on, and how it reaches the workers."""
    schedules: dict[str, Annotated[Schedule, Field(discriminator="kind")]] = field(
        default_factory=dict
    )
    """Scheduled quantities: a number, or {kind: ramp|cycle, end, start, steps or epochs, ...}."""
    task: TaskConfig | None = None
    """A label to train for, instead of the family's own objective."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How long and how fast to train."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Where the run happens."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What `evaluate` measures after training."""
    search: dict[str, Any] = field(default_factory=dict)
    """Dotted path to search domain, as in `{train.lr: {loguniform: [1.0e-4, 1.0e-2]}}`; replaces
    the family's search space. `default` keeps the family's domain of a path, null drops one."""
    tune: TuneConfig = field(default_factory=TuneConfig)
    """How `tune` searches; what it varies is `search`."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where MLflow writes."""

    @property
    def place(self) -> str:
        """The run's folder or URI."""
        return below(self.output, self.name)

    @property
    def directory(self) -> Path:
        """The run's folder on this machine."""
        return local(self.place)

    @property
    def cohort(self) -> Path:
        """The cohort's folder on this machine."""
        return local(self.data.cohort)

    @property
    def cache(self) -> Path:
        """The disk cache's folder on this machine."""
        return local(self.data.cache_dir or below(self.output, ".cache"))


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read a YAML file, apply `a.b=value` overrides and check the result."""
    return parse(override(read_yaml(path), dict(parse_override(text) for text in overrides)))


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which would silently take the last of two values of one key."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; ConstructorError where a key is given twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name} is given twice", key.start_mark
                )
            seen |= {name} if name is not None else set()
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> Raw:
    """Return the mapping in a YAML file."""
    try:
        raw = _Loader(Path(path).read_text()).get_single_data()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such config; see configs/ for examples") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        raise ConfigError(f"{path}: not readable YAML: {reason}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, got {type(raw).__name__}")
    if bad := list(not_names(raw)):
        raise ConfigError(f"{path}: {'; '.join(bad[:4])}")
    return raw


def parse_override(text: str) -> tuple[str, Any]:
    """Split `a.b=value` into its path and its value, read as YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"{text}: not an override; write key=value, as in train.lr=0.001")
    try:
        return path, _Loader(value).get_single_data()
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path!r}: value {value[:80]!r} is not YAML") from error


def override(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> Raw:
    """Return a copy with the value at each dotted path replaced."""
    result = _copy(raw)
    for path, value in changes.items():
        node = result
        *parents, last = path.split(".")
        for key in parents:
            child = node.get(key)
            if child is None:
                child = node[key] = {}
            if not isinstance(child, dict):
                raise ConfigError(f"{path}: {key} is a value here, not a section")
            node = child
        node[last] = value
    return result


def parse(raw: Mapping[str, Any]) -> Experiment:
    """Turn plain data into a typed experiment, or raise ConfigError naming every bad path."""
    if bad := list(not_names(raw)):
        raise ConfigError("; ".join(bad))
    raw = translated(raw)
    if not isinstance(raw.get("family"), str):
        raise ConfigError("family: missing; name one, as in `family: set_vae`")
    family = get_family(raw["family"])
    problems: list[str] = []
    defaults = {name: dataclasses.asdict(s) for name, s in family.schedules.items()}
    schedules = _schedules(raw.get("schedules") or {}, defaults, problems)
    model = _check(family.config, raw.get("model") or {}, "model", problems)
    plain = {**raw, "schedules": schedules, "model": None}
    experiment = _check(Experiment, plain, "", problems)
    search = raw.get("search")
    for path, domain in paths(search) if isinstance(search, Mapping) else ():
        if domain is None or domain == DEFAULT:
            continue
        try:
            parse_domain(domain, f"search.{path}")
        except ConfigError as error:
            problems.append(str(error))
    if experiment is not None:
        problems += not_finite(dataclasses.asdict(experiment))
        problems += outside(experiment.schedules, family.schedule_limits)
    if model is not None:
        problems += not_finite(dataclasses.asdict(model), "model")
    if raw.get("task") and family.represent is None:
        problems.append(f"task: family {family.name} has no representation for a task to read")
    if problems:
        raise ConfigError("; ".join(problems))
    assert experiment is not None
    return dataclasses.replace(experiment, model=model)


def dump(experiment: Experiment) -> Raw:
    """Return plain data with every value resolved; `parse(dump(e)) == e`."""
    plain: Raw = yaml.safe_load(yaml.safe_dump(_plain(dataclasses.asdict(experiment))))
    return plain


def to_yaml(experiment: Experiment) -> str:
    """Return `dump` as YAML text."""
    return yaml.safe_dump(dump(experiment), sort_keys=False, allow_unicode=True)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Yield `path: old -> new` for every value two dumps do not share."""
    for key in sorted({*old, *new}):
        a, b, path = old.get(key), new.get(key), f"{at}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{path}.")
        elif a != b:
            told = ["null" if value is None else str(value) for value in (a, b)]
            yield (
                f"{path}: {' -> '.join(told)}"
                if key in old and key in new
                else (f"{path}: new, {told[1]}" if key in new else f"{path}: gone, was {told[0]}")
            )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(child) for child in value]
    return value


def _copy(raw: Mapping[str, Any]) -> Raw:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in raw.items()}


def _schedules(raw: Any, defaults: dict[str, Raw], problems: list[str]) -> Any:
    if not isinstance(raw, Mapping):
        return raw
    for name in raw:
        if name not in defaults:
            problems.append(unknown(f"schedules.{name}", name, defaults))
    resolved = dict(defaults)
    for name, value in raw.items():
        if name in defaults:
            resolved[name] = _merged(defaults[name], value)
    return resolved


def _merged(default: Raw, value: Any) -> Any:
    """Let `schedules.beta.end` change one field of the family's default schedule."""
    if isinstance(value, str):  # YAML reads 1e-2 (without a dot) as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"kind": "constant", "value": value}
    if not isinstance(value, Mapping) or value.get("kind", default["kind"]) != default["kind"]:
        return value
    lengths = {"steps", "epochs"}
    dropped = lengths if lengths & value.keys() else set()
    return {**{k: v for k, v in default.items() if k not in dropped}, **value}


def _check(kind: type[T], raw: Any, at: str, problems: list[str]) -> T | None:
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        for item in error.errors():
            problems.append(message(kind, item, at))
        return None
