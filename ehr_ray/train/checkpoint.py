"""What a run leaves on disk: the checkpoint users load, and the state resume needs.

Tensors are safetensors, the rest YAML and Parquet: nothing is unpickled. Folders appear by one
rename, so a kill at any moment leaves the old or the new one, never a half.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ehr_ray.config import Experiment, parse, read_yaml, to_yaml
from ehr_ray.errors import ConfigError, InputError
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.family import AnyFamily
from ehr_ray.places import local
from ehr_ray.train.task import family_of


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
    """Best value of each of `Family.also`."""


def save_checkpoint(
    run: Path,
    model: nn.Module,
    experiment: Experiment,
    vocabulary: Vocabulary,
    name: str = "checkpoint",
) -> None:
    """Write `<run>/checkpoint/`, or `name`: weights, experiment and vocabulary; self-contained."""
    partial = _fresh(run / f".checkpoint.{os.getpid()}")
    _save(model.state_dict(), partial / "model.safetensors")
    (partial / "experiment.yaml").write_text(to_yaml(experiment))
    pq.write_table(vocabulary.to_table(), partial / "vocabulary.parquet")
    final, old = run / name, run / f".{name.partition('/')[0]}.old"
    final.parent.mkdir(exist_ok=True)
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def load(path: str | Path) -> Loaded:
    """Load a run's (or checkpoint folder's) model on CPU, in eval mode; needs no Ray."""
    folder = checkpoint_folder(path)
    experiment = parse(read_yaml(folder / "experiment.yaml"))
    family = family_of(experiment)
    vocabulary = Vocabulary.from_table(pq.read_table(folder / "vocabulary.parquet"))
    model = family.build(experiment.model, vocabulary)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return Loaded(experiment, family, vocabulary, model.eval())


def checkpoint_folder(path: str | Path) -> Path:
    """Return the checkpoint folder of a run folder, or the folder itself if it is one."""
    path = local(path)
    for folder in (path / "checkpoint", path / ".checkpoint.old", path):
        if (folder / "model.safetensors").is_file() and (folder / "experiment.yaml").is_file():
            return folder
    raise InputError(f"{path}: no checkpoint here; give the folder of a run that has been trained")


def save_state(
    run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write `<run>/state/<step>/` and remove the older ones."""
    name = f"{progress.step:012d}"
    partial = _fresh(run / "state" / f".{name}.{os.getpid()}")
    _save(model.state_dict(), partial / "model.safetensors")
    _save(_moments(optimizer), partial / "optimizer.safetensors")
    (partial / "progress.yaml").write_text(yaml.safe_dump(asdict(progress)))
    final = run / "state" / name
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for other in (run / "state").iterdir():
        if other.is_dir() and other.name != name:
            shutil.rmtree(other, ignore_errors=True)


def saved_progress(run: Path) -> Progress | None:
    """Return the progress of the newest state of a run, or None if it has none."""
    folder = _latest(run)
    return None if folder is None else Progress(**read_yaml(folder / "progress.yaml"))


def load_state(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Restore weights and moments from the newest state; None (nothing changed) without one."""
    folder = _latest(run)
    if folder is None:
        return None
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except RuntimeError as error:
        raise ConfigError(
            f"{folder}: the weights do not fit this model; use another name"
        ) from error
    _restore_moments(optimizer, load_file(folder / "optimizer.safetensors"))
    return Progress(**read_yaml(folder / "progress.yaml"))


def _latest(run: Path) -> Path | None:
    folders = [p for p in (run / "state").glob("[0-9]*") if (p / "progress.yaml").is_file()]
    return max(folders, key=lambda p: p.name, default=None)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    save_file(_tensors(state), path)
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)  # the library makes it private; runs lie on shared storage


def _tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            flat[f"{index}.{key}"] = torch.as_tensor(value)
    return _tensors(flat)


def _restore_moments(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    parameters = _parameters(optimizer)
    states: dict[int, dict[str, Any]] = {}
    for name, value in flat.items():
        index, key = name.split(".", 1)
        device = "cpu" if key == "step" else parameters[int(index)].device
        states.setdefault(int(index), {})[key] = value.to(device)
    for number, state in states.items():
        optimizer.state[parameters[number]] = state
