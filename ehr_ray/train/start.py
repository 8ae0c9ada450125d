"""The model of a run before its first step."""

from typing import Any

import torch
from torch import nn

from ehr_ray.config.sections import TrainConfig
from ehr_ray.errors import ConfigError
from ehr_ray.family import AnyFamily
from ehr_ray.storage import files
from ehr_ray.train.checkpoint import saved_progress
from ehr_ray.train.compiled import compile_blocks
from ehr_ray.train.data_checks import check_batches, check_learnable
from ehr_ray.train.feed import move
from ehr_ray.train.initialise import by_part, initialise
from ehr_ray.train.loader import Loader
from ehr_ray.train.members import members_of
from ehr_ray.train.optim import freeze
from ehr_ray.train.report import Run
from ehr_ray.train.task import prepare_task_head, task_models


def starting_model(run: Run) -> nn.Module:
    """Return the run's model, on the backend's device where a task head needs that.

    A run without a saved state starts from `init_from`, has its files and rows checked and its
    buffers fitted; one that goes on takes all of that from its state, which the caller loads.
    """
    experiment, family = run.experiment, run.family
    fresh = saved_progress(run.folder) is None
    if fresh and family.files.check:
        family.files.check(experiment.model)
    torch.manual_seed(experiment.seed)
    module = family.build(experiment.model, run.vocabulary)
    if fresh and experiment.init_from:
        _start_from(run, module, experiment.init_from)
    freeze(module, experiment.freeze)
    set_blocks(module, experiment.train, family.name, run.backend.device)
    check_batches(family, experiment.model, run.loader, run.backend.world)
    few = check_learnable(family, experiment.model, run.loader)
    if few and fresh:
        run.tell(few)
    if fresh:
        fit_buffers(family, experiment.model, module, run.loader)
    if family.training.task_scores is not None:
        _start_task_head(run, module, fresh=fresh)
    return module


def fit_buffers(family: AnyFamily, config: Any, module: nn.Module, loader: Loader) -> None:
    """Fit what the family fits on train, on as many rows as it asks for."""
    training, store = family.training, loader.train
    asked = training.fit_rows(config) if training.fit_rows else len(store)
    number = min(asked, len(store))
    if training.fit_buffers and number:
        rows = store.rows([i * len(store) // number for i in range(number)])
        training.fit_buffers(module, loader.collate(rows))


def set_blocks(module: nn.Module, plan: TrainConfig, family: str, device: torch.device) -> None:
    """Have blocks recomputed and compiled as a plan says; ConfigError for a model without any."""
    if plan.activation_checkpointing:
        _recompute_blocks(module)
    if plan.compile != "none":
        compile_blocks(module, plan.compile, family, device)


def _recompute_blocks(module: nn.Module) -> None:
    """Have every transformer block, and the reader of sets, compute activations again."""
    parts = [part for part in module.modules() if hasattr(part, "recomputed")]
    if not parts:
        raise ConfigError(
            "train.activation_checkpointing=true: this model has no transformer blocks; drop it"
        )
    for part in parts:
        part.recomputed = True  # type: ignore[assignment]


def _start_from(run: Run, module: nn.Module, source: str) -> None:
    """Copy the weights of another run, and leave every tensor's fate in `init_from.txt`."""
    given, config = (source, run.family, run.vocabulary), run.experiment.model
    models = members_of(module)
    fates = [initialise(model, *given, config, member=i) for i, model in enumerate(models)]
    if run.backend.rank == 0:
        run.folder.mkdir(parents=True, exist_ok=True)
        prefixes = [f"members.{i}." if len(models) > 1 else "" for i in range(len(models))]
        lines = [f"{p}{line}" for p, own in zip(prefixes, fates, strict=True) for line in own]
        files.write_text(run.folder / "init_from.txt", "\n".join(lines) + "\n")
    run.tell(by_part([line for own in fates for line in own]))


def _start_task_head(run: Run, module: nn.Module, *, fresh: bool) -> None:
    """Standardise the head's input by the first batches and freeze what gets no gradient."""
    backend = run.backend
    module.to(backend.device)
    for model in task_models(module) if fresh else ():
        model.fit(run.loader.train)
    steps = run.loader.train_steps(0, 0, backend.rank, backend.world)
    batches = (move(batch, backend.device) for micro in steps for batch in micro)
    frozen = prepare_task_head(run.family, module, batches, backend, fresh=fresh)
    steps.close()
    if fresh:
        run.tell(by_part([f"{name}: frozen, out of the task's reach" for name in frozen]))
