"""Searches as plain data, so that configs and families need no Ray: domains, and how to search."""

import difflib
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ehr_ray.config.messages import unknown
from ehr_ray.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

Sample = dict[str, Any]
"""Dotted config path to the value of one trial."""
MOST_POINTS = 100_000
KINDS = ("uniform", "loguniform", "choice")
DEFAULT = "default"
"""In place of a domain: the family's own one for this path."""
FIXED = (
    "family",
    "name",
    "output",
    "data.cohort",
    "data.expanded",
    "data.value_stats",
    "data.cache",
    "data.mode",
    "task.name",
    "evaluation.",
    "search",
    "crossval",
    "tracking.",
    "tune.",
    "cluster.",
)
"""Paths a search cannot vary: they say where and how it runs, or whom trials are judged by."""


@dataclass(frozen=True)
class Uniform:
    """A float drawn evenly from [low, high]."""

    low: float
    high: float


@dataclass(frozen=True)
class LogUniform:
    """A float whose logarithm is drawn evenly from [log low, log high]."""

    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """One of the listed values."""

    values: tuple[Any, ...]


Domain = Uniform | LogUniform | Choice


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How `tune` searches; what it varies is `search`."""

    __pydantic_config__ = {"extra": "forbid"}

    trials: Annotated[int, Field(ge=1)] = 16
    """Trials in all. A grid has as many as it has points."""
    method: Literal["random", "grid", "optuna"] = "random"
    """Random draws, every combination, or Optuna's tree-structured Parzen estimator."""
    grid_points: Annotated[int, Field(ge=2)] = 3
    """Points of a range in a grid, ends included; evenly on the scale of the domain."""
    scheduler: Literal["none", "asha", "median", "pbt"] = "asha"
    """Who stops trials early: nobody; successive halving (ASHA, Li et al. 2020); the median of the
    others (Golovin et al. 2017); or population-based training (Jaderberg et al. 2017), which stops
    none but lets bad trials go on from the weights and varied values of good ones."""
    grace_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps before a trial is first stopped or, in PBT, replaced, and between two such
    decisions of PBT; None: those of an eighth of the run."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """ASHA keeps one of so many trials at each rung; rungs are as many times further apart."""
    rank: Literal["metric", "probe"] | None = None
    """What ranks trials: a metric of tuning patients at fixed schedules, or a logistic regression
    on the embedding of train patients, scored by its AUROC for `evaluation.task` on tuning ones;
    None: as the family says."""
    probe_patients: Annotated[int, Field(ge=10)] = 2000
    """Rows of train, and of tuning, that a probe reads at most."""
    concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trials at a time at most; None: as many as the cluster has CPUs and GPUs for. In PBT trials
    take turns, so that all of them can trade; with this, or `spare_cpus`, so many at a time do."""
    spare_cpus: Annotated[float, Field(ge=0)] = 0
    """CPUs kept free of trials. Model-ready data are made on Ray Data before the first trial
    starts, so a search needs none; other jobs on the cluster may."""
    register: bool = True
    """Whether the best trial becomes a version of the MLflow model of the search's name."""


def parse_domain(raw: Any, at: str) -> Domain:
    """Read `{uniform: [a, b]}`, `{loguniform: [a, b]}`, `{choice: [...]}` or a plain list."""
    if isinstance(raw, list):
        raw = {"choice": raw}
    if isinstance(raw, Mapping) and len(raw) == 1:
        kind, value = next(iter(raw.items()))
        if kind == "choice" and isinstance(value, list) and value:
            return Choice(tuple(map(_meant, value)))
        if kind in ("uniform", "loguniform") and isinstance(value, list) and len(value) == 2:
            low, high = (_number(v) for v in value)
            if -math.inf < low < high < math.inf and (low > 0 or kind == "uniform"):
                return Uniform(low, high) if kind == "uniform" else LogUniform(low, high)
        if kind not in KINDS:
            raise ConfigError(unknown(f"{at}.{kind}", str(kind), KINDS))
        if kind == "loguniform" and _low(value) <= 0:
            raise ConfigError(f"{at}: loguniform takes a logarithm, so its low must be above 0")
        if kind == "choice" and value == []:
            raise ConfigError(
                f"{at}: a list without a choice; write some, or null to leave the path unswept"
            )
    raise ConfigError(
        f"{at}: not a search domain: {raw!r}; write a list of choices, "
        "{uniform: [low, high]} or {loguniform: [low, high]} with low < high"
    )


def _low(value: Any) -> float:
    return _number(value[0]) if isinstance(value, list) and len(value) == 2 else math.nan


def _meant(value: Any) -> Any:
    """Return a choice, as a number where YAML reads one without a point (1e-3) as text."""
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
    return float(value) if is_number else value


def _number(value: Any) -> float:
    """Return the number YAML meant (it reads 1e-3 as text); nan, which has no order, for others."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def paths(raw: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, domain as written), however deep `search` is nested.

    `search.train.lr=[1e-3, 1e-4]` on the command line nests what a YAML writes in one line.
    """
    for key, value in raw.items():
        nested = isinstance(value, Mapping) and value and not set(value) <= set(KINDS)
        if nested and not any(difflib.get_close_matches(str(k), KINDS, 1, 0.7) for k in value):
            yield from paths(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def space_of(search: Mapping[str, Any], default: Mapping[str, Domain]) -> dict[str, Domain]:
    """Return the domains of a search: those of the config, or without any the family's.

    A path with `default` in place of a domain keeps the family's, so that a config can narrow a
    space to some of its paths; null drops a path.
    """
    found: dict[str, Domain] = {}
    for path, raw in paths(search):
        if path.startswith(FIXED):
            raise ConfigError(f"search.{path}: cannot vary between trials")
        if raw is None:
            continue
        if raw == DEFAULT:
            if path not in default:
                known = ", ".join(default)
                raise ConfigError(
                    f"search.{path}: the family searches no such path; it has {known}"
                )
            found[path] = default[path]
        else:
            found[path] = parse_domain(raw, f"search.{path}")
    if not search:
        found = dict(default)
    if not found:
        raise ConfigError("search: nothing to vary; name a path, as in train.lr: [1.0e-3, 1.0e-4]")
    return found


def ends(domain: Domain) -> tuple[Any, ...]:
    """Return the values of a choice, or the two ends of a range."""
    return domain.values if isinstance(domain, Choice) else (domain.low, domain.high)


def draw(space: Mapping[str, Domain], seed: int, number: int) -> Sample:
    """Return trial `number` of a random search: a function of (seed, number) alone."""
    import numpy as np  # here: a config is checked without it

    rng = np.random.default_rng((seed, number))
    return {path: _draw(domain, rng) for path, domain in space.items()}


def grid(space: Mapping[str, Domain], points: int) -> list[Sample]:
    """Return every combination of choices and of `points` of each range.

    Raises ConfigError, with the arithmetic, where they are more than anybody trains.
    """
    sizes = [len(d.values) if isinstance(d, Choice) else points for d in space.values()]
    if math.prod(sizes) > MOST_POINTS:
        sides = " x ".join(map(str, sizes))
        raise ConfigError(
            f"tune.method=grid: {sides} = {math.prod(sizes):,} trials over {', '.join(space)}; "
            "name fewer paths in search, or lower tune.grid_points"
        )
    axes = [_points(domain, points) for domain in space.values()]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]


def shuffled(space: Mapping[str, Domain], seed: int) -> list[Sample] | None:
    """Return every combination once, in an order drawn by the seed; None where one is a range.

    So a random search over few choices tries none of them twice.
    """
    sizes = [len(d.values) for d in space.values() if isinstance(d, Choice)]
    if len(sizes) < len(space) or math.prod(sizes) > MOST_POINTS:
        return None
    import numpy as np

    points = grid(space, 2)
    return [points[i] for i in np.random.default_rng(seed).permutation(len(points))]


def _draw(domain: Domain, rng: "np.random.Generator") -> Any:
    if isinstance(domain, Choice):
        return domain.values[int(rng.integers(len(domain.values)))]
    if isinstance(domain, LogUniform):
        return float(math.exp(rng.uniform(math.log(domain.low), math.log(domain.high))))
    return float(rng.uniform(domain.low, domain.high))


def _points(domain: Domain, points: int) -> list[Any]:
    if isinstance(domain, Choice):
        return list(domain.values)
    import numpy as np

    spaced = np.geomspace if isinstance(domain, LogUniform) else np.linspace
    return [float(v) for v in spaced(domain.low, domain.high, points)]
