"""Several verbs in a row from one YAML: what is trained is not trained again."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ehr_ray.config.yaml_files import override, parse_override, read_yaml
from ehr_ray.errors import ConfigError
from ehr_ray.experiment import (
    Experiment,
    completed,
    parse,
    refusals_of,
    with_absolute_paths,
)

STAGES = "stages"
"""Key that makes a YAML a pipeline: a list of `{verb: config, key: value, ...}`."""
VERBS = ("phrases", "train", "evaluate")
INGEST = "ingest"
"""Verb of a first stage that makes the cohort of the others, `{ingest: SOURCE, input: PATH, ...}`;
on the command line its keys are `ingest.input=PATH` and the like."""
WHOLE = (
    *("splits", "origin", "seed", "max_rejected", "ranges", "units", "repeats", "code_map"),
    "split_by",
    "unlisted",
)
"""Options that `ingest` has whatever the source, as on its command line."""


@dataclass(frozen=True)
class Stage:
    """One verb on one experiment."""

    verb: str
    experiment: Experiment


@dataclass(frozen=True)
class IngestStage:
    """What makes the cohort; `options` are those of `ingest` and of its source, by name."""

    source: str
    input: str | None
    options: Mapping[str, Any]
    source_options: Mapping[str, Any]


@dataclass(frozen=True)
class Pipeline:
    """The stages of a pipeline, and what makes their cohort, if that is a stage too."""

    stages: list[Stage]
    ingest: IngestStage | None = None

    @property
    def cohort(self) -> str:
        """Where the cohort lies that all stages read, if it is made here."""
        return self.stages[0].experiment.data.cohort


def is_pipeline(path: Path) -> bool:
    """Whether a YAML lists stages."""
    return STAGES in read_yaml(path)


def load_pipeline(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read the stages of a pipeline, all of them checked before the first begins.

    Configs lie beside the pipeline; further keys of a stage and the command line's overrides, which
    all stages share, change them. A `train` without `init_from` starts from the `train` before it.
    ConfigError too for an option that does nothing in its stage, or, of those that all share, in
    any.
    """
    given = dict(parse_override(text) for text in overrides)
    made = {key: given.pop(key) for key in [*given] if key.startswith(f"{INGEST}.")}
    if "name" in given:
        raise ConfigError("name: every stage has its own; set output=FOLDER instead")
    raw = read_yaml(path)
    unknown = set(raw) - {STAGES}
    if unknown or not isinstance(raw[STAGES], list) or not raw[STAGES]:
        raise ConfigError(f"{path}: a pipeline has the key {STAGES} alone, a list of stages")
    items = list(raw[STAGES])
    first = items.pop(0) if isinstance(items[0], Mapping) and INGEST in items[0] else None
    if made and first is None:
        raise ConfigError(f"{min(made)}: {path} has no stage {INGEST}; drop it")
    changed = {key.removeprefix(f"{INGEST}."): value for key, value in made.items()}
    ingest = None if first is None else _ingest(path, {**first, **changed})
    if not items:
        raise ConfigError(f"{path}: a cohort alone is no pipeline; `ehr-ray ingest` makes it")
    stages: list[Stage] = []
    idle: list[dict[str, str]] = []
    before: Experiment | None = None
    for number, item in enumerate(items, start=1 + (first is not None)):
        verb, config, changes = _item(path, number, item)
        plain = override(override(read_yaml(path.parent / config), changes), given)
        if before is not None and verb == "train" and plain.get("init_from") is None:
            plain["init_from"] = before.location
        experiment = with_absolute_paths(parse(completed(plain)))
        idle.append({re.split("[=:]", line)[0]: line for line in refusals_of(experiment)})
        before = experiment if verb == "train" else before
        stages.append(Stage(verb, experiment))
    names = [stage.experiment.name for stage in stages if stage.verb == "train"]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two stages train a run of one name ({', '.join(names)})")
    _refuse_idle(stages, idle, given)
    pipeline = Pipeline(stages, ingest)
    if ingest is not None and len({stage.experiment.data.cohort for stage in stages}) > 1:
        raise ConfigError(f"{path}: stages read several cohorts, of which one is made; name one")
    return pipeline


def _refuse_idle(
    stages: Sequence[Stage], idle: Sequence[Mapping[str, str]], given: Mapping[str, Any]
) -> None:
    """Raise ConfigError for what does nothing: in a stage, or, if all share it, in each."""

    def shared(name: str) -> bool:
        return any(key == name or key.startswith(f"{name}.") for key in given)

    everywhere = set(idle[0]).intersection(*idle)
    for stage, lines in zip(stages, idle, strict=True):
        for name, line in lines.items():
            if not shared(name) or name in everywhere:
                raise ConfigError(f"{stage.verb} {stage.experiment.name}: {line}")


def _ingest(path: Path, item: Mapping[str, Any]) -> IngestStage:
    """Read the stage that makes the cohort; its options are checked, its input is not read."""
    from ehr_ray.sources.source import get_source, make_options  # sources, for few pipelines

    source, given = item[INGEST], item.get("input")
    texts = [source, *item, "" if given is None else given]
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{path}: stage 1 must be {INGEST}: SOURCE, with input: PATH")
    rest = {key: value for key, value in item.items() if key not in (INGEST, "input")}
    whole = {key: value for key, value in rest.items() if key in WHOLE}
    own = {key: value for key, value in rest.items() if key not in WHOLE}
    make_options(get_source(source), own)
    return IngestStage(source, given, whole, own)


def run_pipeline(
    pipeline: Pipeline,
    run: Mapping[str, Callable[[Experiment], Any]],
    ingest: Callable[[IngestStage, str], Any],
    say: Callable[[str], Any],
) -> None:
    """Run the stages in order by the function of their verb, after what makes their cohort."""
    first, total = 1, len(pipeline.stages)
    if pipeline.ingest is not None:
        first, total = 2, total + 1
        say(f"1/{total} {INGEST} {pipeline.ingest.source}")
        ingest(pipeline.ingest, pipeline.cohort)
    for number, stage in enumerate(pipeline.stages, start=first):
        say(f"{number}/{total} {stage.verb} {stage.experiment.name}")
        run[stage.verb](stage.experiment)


def _item(path: Path, number: int, item: Any) -> tuple[str, str, dict[str, Any]]:
    verbs = [key for key in item if key in VERBS] if isinstance(item, Mapping) else []
    if len(verbs) != 1 or not isinstance(item[verbs[0]], str):
        known = f"{', '.join(VERBS)}" + (f", or be {INGEST}: SOURCE" if number == 1 else "")
        given = [key for key in item if key not in VERBS] if isinstance(item, Mapping) else []
        close = [c for key in given for c in get_close_matches(str(key), [*VERBS, INGEST], 1)]
        hint = f"; did you mean {close[0]}?" if close and not verbs else ""
        raise ConfigError(f"{path}: stage {number} must name one config under one of {known}{hint}")
    changes = {key: value for key, value in item.items() if key != verbs[0]}
    return verbs[0], item[verbs[0]], changes
