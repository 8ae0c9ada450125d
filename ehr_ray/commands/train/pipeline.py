"""Several verbs in a row from one YAML: what is trained is not trained again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehr_ray.config.yaml_files import override, parse_override, read_yaml
from ehr_ray.errors import ConfigError
from ehr_ray.experiment import Experiment, completed, parse, with_absolute_paths

STAGES = "stages"
"""Key that makes a YAML a pipeline: a list of `{verb: config, key: value, ...}`."""
VERBS = ("phrases", "train", "evaluate")


@dataclass(frozen=True)
class Stage:
    """One verb on one experiment."""

    verb: str
    experiment: Experiment


def is_pipeline(path: Path) -> bool:
    """Whether a YAML lists stages."""
    return STAGES in read_yaml(path)


def load_pipeline(path: Path, overrides: Sequence[str] = ()) -> list[Stage]:
    """Read the stages of a pipeline, all of them checked before the first begins.

    Configs lie beside the pipeline; further keys of a stage and the command line's overrides, which
    all stages share, change them. A `train` without `init_from` starts from the `train` before it.
    """
    given = dict(parse_override(text) for text in overrides)
    if "name" in given:
        raise ConfigError("name: every stage has its own; set output=FOLDER instead")
    raw = read_yaml(path)
    unknown = set(raw) - {STAGES}
    if unknown or not isinstance(raw[STAGES], list) or not raw[STAGES]:
        raise ConfigError(f"{path}: a pipeline has the key {STAGES} alone, a list of stages")
    stages: list[Stage] = []
    before: Experiment | None = None
    for number, item in enumerate(raw[STAGES], start=1):
        verb, config, changes = _item(path, number, item)
        plain = override(override(read_yaml(path.parent / config), changes), given)
        if before is not None and verb == "train" and plain.get("init_from") is None:
            plain["init_from"] = before.location
        experiment = with_absolute_paths(parse(completed(plain)))
        before = experiment if verb == "train" else before
        stages.append(Stage(verb, experiment))
    names = [stage.experiment.name for stage in stages if stage.verb == "train"]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two stages train a run of one name ({', '.join(names)})")
    return stages


def run_pipeline(
    stages: Sequence[Stage], run: Mapping[str, Callable[[Experiment], Any]], say: Callable
) -> None:
    """Run the stages in order by the function of their verb."""
    for number, stage in enumerate(stages, start=1):
        say(f"{number}/{len(stages)} {stage.verb} {stage.experiment.name}")
        run[stage.verb](stage.experiment)


def _item(path: Path, number: int, item: Any) -> tuple[str, str, dict[str, Any]]:
    verbs = [key for key in item if key in VERBS] if isinstance(item, Mapping) else []
    if len(verbs) != 1 or not isinstance(item[verbs[0]], str):
        raise ConfigError(
            f"{path}: stage {number} must name one config under one of {', '.join(VERBS)}"
        )
    changes = {key: value for key, value in item.items() if key != verbs[0]}
    return verbs[0], item[verbs[0]], changes
