"""What a run leaves on disk: the checkpoint users load, and the state resume needs.

Tensors are safetensors, the rest YAML and Parquet: nothing is unpickled. Folders are on the disk
before one rename shows them, so a kill or a power cut leaves the old or the new one, never a half.
Tensors carry a checksum, and the previous checkpoint and state stay: what the disk damaged later is
seen, and the one before is used instead.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from ehr_ray.config.yaml_files import override, read_yaml
from ehr_ray.errors import ConfigError, InputError
from ehr_ray.events.vocabulary import Vocabulary, scaling_of
from ehr_ray.experiment import Experiment, parse, to_yaml
from ehr_ray.family import AnyFamily
from ehr_ray.registry import get_family
from ehr_ray.storage import files
from ehr_ray.storage.paths import GIVE_A_RUN, check_run_folder, local
from ehr_ray.train.checksums import damage_of, document, save_tensors, starts_as_pickle
from ehr_ray.train.sharding import divided_as
from ehr_ray.train.task import family_of

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
KEPT_STATES = 2
FILES = (WEIGHTS, "experiment.yaml", "vocabulary.parquet")
"""What makes a checkpoint."""


@dataclass(frozen=True)
class Loaded:
    """A trained model with all it needs to be applied, on CPU."""

    experiment: Experiment
    family: AnyFamily
    vocabulary: Vocabulary
    model: nn.Module


@dataclass
class Progress:
    """Where a run is: all that resume needs besides weights and moments."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    reports_since_best: int = 0
    reductions: int = 0
    """Times the learning rate was halved on a plateau."""
    seconds: float = 0.0
    finished: bool = False
    bests: dict[str, float] = field(default_factory=dict)
    """Best value of each of `Files.extra_checkpoints`."""


def save_checkpoint(
    run: Path,
    model: nn.Module,
    experiment: Experiment,
    vocabulary: Vocabulary,
    name: str = "checkpoint",
) -> None:
    """Write `<run>/checkpoint/`, or `name`: weights, experiment and vocabulary; self-contained.

    The previous `checkpoint/` stays as `.checkpoint.old`. `RunError` where the disk is full or
    read-only; what was there stays as it was.
    """
    final, old = run / name, run / f".{name.partition('/')[0]}.old"

    def publish(partial: Path) -> None:
        final.parent.mkdir(exist_ok=True)
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        partial.rename(final)
        files.sync(final.parent)

    with files.new_folder(run / "checkpoint", publish) as partial:
        save_tensors(model.state_dict(), partial / WEIGHTS)
        (partial / "experiment.yaml").write_text(document(to_yaml(experiment)))
        files.write_parquet(vocabulary.to_table(), partial / "vocabulary.parquet")
    if final.parent != run:
        shutil.rmtree(old, ignore_errors=True)


def load(path: str | Path) -> Loaded:
    """Load a run's (or checkpoint folder's) model on CPU, in eval mode; needs no Ray."""
    folder = checkpoint_folder(path)
    vocabulary = read_vocabulary(folder)
    raw = read_yaml(folder / "experiment.yaml")
    experiment = parse(override(raw, {"data.scale": vocabulary.scaling}))
    family = family_of(experiment)
    model = family.build(experiment.model, vocabulary)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise InputError(
            f"{folder}: the weights do not fit the experiment.yaml beside them; restore both"
        ) from error
    return Loaded(experiment, family, vocabulary, model.eval())


def read_vocabulary(folder: Path) -> Vocabulary:
    """Return the vocabulary of a checkpoint folder, which scales values as in its training."""
    table = files.read_parquet(folder / "vocabulary.parquet")
    scaling = scaling_of(table)
    if scaling is None:
        family = get_family(str(read_yaml(folder / "experiment.yaml").get("family")))
        scaling = family.former_scaling
    return Vocabulary.from_table(table, scaling=scaling)


def checkpoint_folder(path: str | Path) -> Path:
    """Return the checkpoint folder of a run folder, or the folder itself if it is one.

    A damaged one is passed over for the one before, with a warning; `InputError` without another.
    """
    path = local(path)
    damage = ""
    for folder in (path / "checkpoint", path / ".checkpoint.old", path):
        if not (folder / WEIGHTS).is_file() or not (folder / "experiment.yaml").is_file():
            continue
        if folder.name == ".checkpoint.old":
            damage = damage or f"{path / 'checkpoint'}: missing"
        found = damage_of(folder, FILES)
        if not found:
            if damage:
                log.warning("%s; using the one before it, %s", damage, folder)
            return folder
        damage = damage or found
    if damage:
        raise InputError(
            f"{damage}; restore it from a copy, or remove the run's folder and train it again"
        )
    if path.is_file() and starts_as_pickle(path):
        raise InputError(
            f"{path}: a pickle runs code when it is read; give the folder of a run instead"
        )
    check_run_folder(path)
    raise InputError(f"{path}: no checkpoint here; {GIVE_A_RUN}")


def checkpoint_damage(run: Path) -> str:
    """Return what is wrong with the checkpoint of a run itself; "" where nothing is."""
    return damage_of(run / "checkpoint", FILES)


def save_state(
    run: Path, model: nn.Module, moments: Mapping[str, Tensor], progress: Progress
) -> None:
    """Write `<run>/state/<step>/`; the one before it stays, older ones are removed.

    It holds all of the model and of its `moments_of` the optimizer, however many ranks there are.
    """
    name = f"{progress.step:012d}"
    final = run / "state" / name

    def publish(partial: Path) -> None:
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)

    with files.new_folder(run / "state" / name, publish) as partial:
        save_tensors(model.state_dict(), partial / WEIGHTS)
        save_tensors(moments, partial / "optimizer.safetensors")
        (partial / "progress.yaml").write_text(document(yaml.safe_dump(asdict(progress))))
    kept = [folder for folder in _states(run) if folder.name <= name][:KEPT_STATES]
    for other in (run / "state").iterdir():
        if other.is_dir() and other not in kept:
            shutil.rmtree(other, ignore_errors=True)


def drop_states(run: Path, after: int) -> None:
    """Remove the states of steps later than `after`: the run goes on from one before them."""
    for folder in _states(run):
        if int(folder.name) > after:
            shutil.rmtree(folder, ignore_errors=True)


def saved_progress(run: Path) -> Progress | None:
    """Return the progress of the newest whole state of a run, or None if it has none."""
    folder = _latest(run)
    return None if folder is None else _progress(folder)


def load_state(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Restore weights and moments from the newest whole state; None (nothing changed) without one.

    A damaged state is passed over for the one before it, with a warning: the steps between are
    trained again. A sharded model takes its parts. `InputError` where every state is damaged.
    """
    folder = _latest(run)
    if folder is None:
        return None
    try:
        own = model.state_dict()
        saved = load_file(folder / WEIGHTS)
        parts = {name: divided_as(saved[name], own.get(name, saved[name])) for name in saved}
        model.load_state_dict(parts)
    except RuntimeError as error:
        raise ConfigError(
            f"{folder}: the weights do not fit this model; use another name"
        ) from error
    _restore_moments(optimizer, load_file(folder / "optimizer.safetensors"), folder)
    return _progress(folder)


def _latest(run: Path) -> Path | None:
    damage = ""
    for folder in _states(run):
        found = damage_of(folder, (WEIGHTS, "optimizer.safetensors", "progress.yaml"))
        if not found:
            if damage:
                log.warning("%s; going on from the state before it, %s", damage, folder.name)
            return folder
        damage = damage or found
    if damage:
        raise InputError(
            f"{damage}, and no older state is whole; restore it, or remove {run / 'state'} "
            "to train from the start"
        )
    return None


def _states(run: Path) -> list[Path]:
    """Return the states of a run, the newest first: by step, whatever the clock was."""
    return sorted((run / "state").glob("[0-9]*"), key=lambda p: p.name, reverse=True)


def _progress(folder: Path) -> Progress:
    try:
        progress = Progress(**read_yaml(folder / "progress.yaml"))
    except TypeError as error:
        raise InputError(f"{folder / 'progress.yaml'}: {error}; restore it") from error
    if f"{progress.step:012d}" != folder.name:
        raise InputError(f"{folder / 'progress.yaml'}: step {progress.step}; restore it")
    return progress


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as it holds it, by `<number of the parameter>.<key>`."""
    flat: dict[str, Tensor] = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            flat[f"{index}.{key}"] = torch.as_tensor(value)
    return flat


def _restore_moments(
    optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor], source: Path
) -> None:
    parameters = _parameters(optimizer)
    states: dict[int, dict[str, Any]] = {}
    for name, value in flat.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)] if int(index) < len(parameters) else None
        if parameter is None or (key != "step" and value.shape != parameter.shape):
            raise ConfigError(
                f"{source}: its moments are of other parameters than this version or config "
                "trains; use another name"
            )
        # A fused step counts on the device.
        counts_here = key == "step" and not optimizer.defaults.get("fused")
        device = torch.device("cpu") if counts_here else parameter.device
        held = value if key == "step" else divided_as(value, parameter)
        states.setdefault(int(index), {})[key] = held.to(device)
    for number, state in states.items():
        optimizer.state[parameters[number]] = state
