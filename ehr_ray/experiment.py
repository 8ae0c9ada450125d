"""An experiment: typed sections, read from YAML, checked once at the boundary.

Types and defaults live here and in `families/<name>/config.py`; a YAML file states only what
differs. The command line, a Tune sample and a test change values through the one `override`.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from ehr_ray.config.cluster import ClusterConfig
from ehr_ray.config.crossval import CrossvalConfig
from ehr_ray.config.idle import refusals
from ehr_ray.config.locations import Location, Mark, Marks, located, marks_of, same_place
from ehr_ray.config.messages import message, not_finite, not_names, outside, unknown
from ehr_ray.config.published_keys import translated
from ehr_ray.config.published_vae import FAMILY as VAE_FAMILY
from ehr_ray.config.published_vae import is_published_vae, translated_vae
from ehr_ray.config.schedules import Schedule
from ehr_ray.config.search import DEFAULT, TuneConfig, parse_domain, paths
from ehr_ray.config.sections import DataConfig, EvaluationConfig, TrackingConfig, TrainConfig
from ehr_ray.config.task import TaskConfig
from ehr_ray.config.yaml_files import Raw, differences, override, parse_override, read_yaml
from ehr_ray.errors import ConfigError
from ehr_ray.registry import FAMILIES, get_schema
from ehr_ray.storage.paths import is_uri, join, local

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run, fully resolved: with the cohort, enough to repeat it."""

    __pydantic_config__ = {"extra": "forbid"}

    family: str
    """Model family, a key of `registry.FAMILIES`."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run: it lands in `<output>/<name>/`."""
    output: Location = "runs"
    """Folder of runs, or its URI, such as s3://bucket/runs."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of initialisation, order and noise."""
    init_from: Location | None = None
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
    crossval: CrossvalConfig = field(default_factory=CrossvalConfig)
    """How `crossval` divides the cohort, and its ablations."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where MLflow writes."""

    @property
    def location(self) -> str:
        """The run's folder or URI."""
        return join(self.output, self.name)

    @property
    def directory(self) -> Path:
        """The run's folder on this machine."""
        return local(self.location)

    @property
    def cohort(self) -> Path:
        """The cohort's folder on this machine."""
        return local(self.data.cohort)

    @property
    def cache(self) -> Path:
        """The disk cache's folder on this machine."""
        return local(self.data.cache_dir or join(self.output, ".cache"))


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read a YAML file, apply `a.b=value` overrides and check the result; paths are absolute.

    A relative one means the working folder, whichever folder the YAML lies in. ConfigError too for
    an option that the rest of the config makes meaningless.
    """
    raw = override(read_yaml(path), dict(parse_override(text) for text in overrides))
    experiment = parse(completed(raw))
    if problems := refusals_of(experiment):
        raise ConfigError("; ".join(problems))
    return with_absolute_paths(experiment)


def refusals_of(experiment: Experiment) -> list[str]:
    """Return a line for each option that the rest of a config makes meaningless, path first."""
    return list(refusals(experiment, get_schema(experiment.family)))


def completed(raw: Raw) -> Raw:
    """Return a config with what `data.expanded` was made with, as far as it says nothing of it.

    A folder that is not there is told when its rows are asked for. Raises InputError for one that
    is none of sets.
    """
    data, family = raw.get("data"), raw.get("family")
    given = data.get("expanded") if isinstance(data, Mapping) else None
    model = raw.get("model") or {}
    if not isinstance(given, str) or family not in FAMILIES or not isinstance(model, Mapping):
        return raw
    if not get_schema(str(family)).takes_sets:
        return raw
    from ehr_ray.sources.expanded import fetch_sets, made_with  # with pandas, for few configs

    folder = fetch_sets(given)
    if not folder.is_dir():
        return raw
    scale, options = made_with(folder)
    return {**raw, "data": {"scale": scale, **(data or {})}, "model": {**options, **model}}


def with_absolute_paths(experiment: Experiment) -> Experiment:
    """Return the experiment with the working folder before every relative path; URIs stay."""
    return parse(located(dump(experiment), _marks(experiment)))


def portable(experiment: Experiment) -> Experiment:
    """Return the experiment with the last name of each path alone, and no tracking store.

    It can be handed on: it names nobody's folders or servers. Names of models stay.
    """

    def last(text: str, mark: Mark) -> str:  # noqa: ARG001
        return PurePath(text).name if is_uri(text) or os.path.isabs(text) else text

    elsewhere = dataclasses.replace(experiment.tracking, uri=None)
    plain = dump(dataclasses.replace(experiment, tracking=elsewhere))
    plain["cluster"]["address"] = None
    return parse(located(plain, _marks(experiment), last))


def _marks(experiment: Experiment) -> Marks:
    model = get_schema(experiment.family).config
    return {**dict(marks_of(Experiment)), **dict(marks_of(model, "model."))}


def parse(raw: Mapping[str, Any]) -> Experiment:
    """Turn plain data into a typed experiment, or raise ConfigError naming every bad path.

    The working folder is not looked at: relative paths stay so.
    """
    if bad := list(not_names(raw)):
        raise ConfigError("; ".join(bad))
    if is_published_vae(raw):
        scales = dataclasses.asdict(get_schema(VAE_FAMILY).config())["scales"]
        raw = translated_vae(raw, {scale["name"]: scale for scale in scales})
    raw = translated(raw)
    if not isinstance(raw.get("family"), str):
        raise ConfigError(f"family: missing; name one of {', '.join(FAMILIES)}")
    schema = get_schema(raw["family"])
    problems: list[str] = []
    defaults = {name: dataclasses.asdict(s) for name, s in schema.schedules.items()}
    schedules = _schedules(raw.get("schedules") or {}, defaults, problems)
    model = _check(schema.config, raw.get("model") or {}, "model", problems)
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
        problems += outside(experiment.schedules, schema.schedule_limits)
    if model is not None:
        problems += not_finite(dataclasses.asdict(model), "model")
    if raw.get("task") and not schema.takes_task:
        problems.append(f"task: family {raw['family']} has no representation for a task to read")
    if experiment is not None and experiment.data.expanded is not None:
        problems += _without_events(experiment, takes_sets=schema.takes_sets)
    if experiment is not None and model is not None and schema.untrainable:
        problem = schema.untrainable(model, experiment.task is not None)
        problems += [problem] if problem else []
    if experiment is not None and model is not None and schema.undivided:
        cluster, setting = experiment.cluster, schema.undivided(model)
        if setting and cluster.strategy == "fsdp" and cluster.most_workers > 1:
            problems.append(
                f"cluster.strategy=fsdp: with {setting} a parameter is a single number, which "
                "cannot be divided; set it to ddp, or change that"
            )
    if experiment is not None:
        problems += _not_together(experiment)
    if problems:
        raise ConfigError("; ".join(problems))
    assert experiment is not None
    return dataclasses.replace(experiment, model=model)


def _not_together(experiment: Experiment) -> list[str]:
    """Return a line for each option of `train` and `cluster` that another one rules out."""
    problems, train, cluster = [], experiment.train, experiment.cluster
    divided = cluster.strategy == "fsdp" and cluster.most_workers > 1
    if train.compile == "reduce-overhead":
        option = "train.compile=reduce-overhead"
        if train.accumulate > 1:
            # The next micro-batch would write where the gradient of the last one lies.
            problems.append(
                f"{option}: graphs keep gradients for one micro-batch, and train.accumulate="
                f"{train.accumulate}; set that to 1, or give default"
            )
        if train.activation_checkpointing:
            # What is computed once more in the backward pass would be replayed into memory that
            # the gradient still reads; that it is not has been shown nowhere.
            problems.append(
                f"{option}: with train.activation_checkpointing=true graphs would be replayed "
                "within a gradient; give default, or set that to false"
            )
        if divided:
            # A block's weights are gathered elsewhere each time, and graphs are of addresses.
            problems.append(
                f"{option}: with cluster.strategy=fsdp graphs would be recorded at each step; "
                "give default, or set the strategy to ddp"
            )
    if divided and cluster.backend == "gloo" and cluster.gpus_per_worker:
        problems.append(
            f"cluster.gpus_per_worker={cluster.gpus_per_worker:g}: workers that share a GPU save "
            "no memory with cluster.strategy=fsdp; give each a GPU, or set the strategy to ddp"
        )
    return problems


def _without_events(experiment: Experiment, *, takes_sets: bool) -> list[str]:
    """Return what a config asks of sets that were made before, and only events can answer."""
    problems = []
    if not takes_sets:
        text = f"family {experiment.family} reads events, not sets; drop it, data.cohort has them"
        problems.append(f"data.expanded: {text}")
    if experiment.task is not None:
        problems.append("task: data.expanded cannot be cut at prediction times; drop one of them")
    if experiment.tune.rank == "probe":
        problems.append("tune.rank=probe: data.expanded cannot be cut; rank by metric")
    return problems


def dump(experiment: Experiment) -> Raw:
    """Return plain data with every value resolved; `parse(dump(e)) == e`."""
    plain: Raw = _plain(dataclasses.asdict(experiment))
    return plain


def to_yaml(experiment: Experiment) -> str:
    """Return `dump` as YAML text."""
    return yaml.safe_dump(dump(experiment), sort_keys=False, allow_unicode=True)


def changes_since(path: Path, experiment: Experiment) -> list[str]:
    """Return the differences between a dump in a file and an experiment.

    Paths are the same where they lead to the same place from the working folder. An option that the
    dump's version did not have yet was at its default.
    """
    marks, raw = _marks(experiment), read_yaml(path)
    with contextlib.suppress(ConfigError):  # an option is gone: told as it stands
        filled = dump(parse(raw))
        if "scale" not in raw.get("data", {}):  # values were scaled otherwise then
            del filled["data"]["scale"]
        raw = filled
    old, new = (located(each, marks, same_place) for each in (raw, dump(experiment)))
    return list(differences(old, new))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(child) for child in value]
    return value


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
    """Let `schedules.beta.end` change one field of the default schedule; null means all of it."""
    if value is None:
        return default
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


_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)
"""What validates a section; making it takes far longer than validating."""


def _check(kind: type[T], raw: Any, at: str, problems: list[str]) -> T | None:
    try:
        section: T = _adapter(kind).validate_python(raw)
        return section
    except ValidationError as error:
        for item in error.errors():
            problems.append(message(kind, item, at))
        return None
