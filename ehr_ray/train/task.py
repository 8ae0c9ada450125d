"""Any family trained for a label: its representation under a head (the `task` section).

B patients, W width of the representation, M heads.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ehr_ray.config.task import OUTPUTS, TaskConfig
from ehr_ray.errors import ConfigError
from ehr_ray.events.blocks import RowStore
from ehr_ray.events.patient_statistics import StatisticsReader
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment
from ehr_ray.family import AnyFamily, Axis, Batch, Represent, Terms, Transfer
from ehr_ray.nn.noise import forked_rng
from ehr_ray.nn.pooling import AttentivePool
from ehr_ray.registry import get_family
from ehr_ray.train.backend import Backend
from ehr_ray.train.members import members_of, with_members
from ehr_ray.train.statistics import LABEL, STATISTICS, StatisticsHeads, reader_of, with_statistics
from ehr_ray.train.targets import (
    SCALE_BUFFERS,
    class_weights,
    num_outputs,
    row_weights,
    selection,
    start_logits,
    target_loss,
    target_metrics,
)

LIMIT = 6.0
"""Standard deviations a feature enters a head with at most."""
HEADS_ALONE = (LABEL, STATISTICS)


def family_of(experiment: Experiment, shares: float | Sequence[float] | None = None) -> AnyFamily:
    """Return the family an experiment trains: with a `task` section, its family under a head.

    `shares` of the classes in train, or that of positive rows, are what class weights are made of;
    None where no loss is computed. With `train.seeds` it is several of them.
    """
    family, task = get_family(experiment.family), experiment.task
    if task is None:
        return family
    family, number = with_task(family, task, shares), num_members(experiment)
    return family if number == 1 else with_members(family, number, OUTPUTS[task.kind])


def num_members(experiment: Experiment) -> int:
    """Return how many models an experiment trains at once."""
    return 1 if experiment.task is None else experiment.train.seeds


def with_task(
    family: AnyFamily, task: TaskConfig, shares: float | Sequence[float] | None = None
) -> AnyFamily:
    """Return a family that predicts a label from what `family` represents.

    `predict` keeps its outputs and adds `logit` [B], of a regression `target_value` [B], of K
    classes `class_logits` [B, K]. Raises ConfigError for a family without `represent`.
    """
    represent = family.represent
    if represent is None:
        raise ConfigError(f"task: family {family.name} has no representation for a task to read")
    if task.pool == "attentive" and represent.states is None:
        raise ConfigError(f"task.pool: family {family.name} has no states to attend to; use own")
    weights = row_weights(task, shares)
    shown, base = family.evaluation, family
    if task.statistics is not None:
        family = with_statistics(family, task.statistics)

    def predict(model: TaskModel, batch: Batch) -> Batch:
        said = model.said(model(batch, None).float())
        return {**base.predict(model.base, _inputs(batch)), OUTPUTS[task.kind]: said}

    def build(config: Any, vocabulary: Vocabulary) -> TaskModel:
        given = task.statistics
        reader = reader_of(vocabulary, given) if given is not None else None
        return TaskModel(base.build(config, vocabulary), represent, task, reader)

    return replace(
        family,
        build=build,
        loss=lambda model, batch, _scheduled, seed: task_loss(model, batch, seed, task, weights),
        predict=predict,
        represent=None,
        select=selection(task),
        # The base is no longer trained for its own objective: what watches that has no say.
        training=replace(
            family.training,
            task_scores=lambda model, batch: task_scores(model, batch, task, weights),
            task_metrics=lambda said, label: target_metrics(said, label, task),
            task_width=num_outputs(task),
            after_step=None,
            held=None,
            diagnose=None,
            learnable=None,
            needs_pairs=None,
            counts=lambda _model, batch, _seed: task_counts(batch, task, weights),
        ),
        transfer=_transfer(family, task),
        evaluation=replace(
            shown,
            latents=_on_base(shown.latents) if shown.latents else None,
            reconstruct=_on_base(shown.reconstruct) if shown.reconstruct else None,
            outputs={name: _on_base(function) for name, function in shown.outputs.items()},
        ),
    )


def _transfer(family: AnyFamily, task: TaskConfig) -> Transfer:
    """Return what the heads add: their input is standardised anew, its columns have names."""
    base, columns = family.transfer, family.represent.columns if family.represent else None
    own = (*base.data_buffers, "center", "scale", *SCALE_BUFFERS)
    if columns is None or task.pool == "attentive":
        return replace(base, data_buffers=own)

    def axes(config: Any, vocabulary: Vocabulary) -> Mapping[str, Axis]:
        axis = Axis(1, columns(config, vocabulary))
        heads = {f"heads.{member}.1.weight": axis for member in range(task.members)}
        return {**(base.axes(config, vocabulary) if base.axes else {}), **heads}

    return replace(base, data_buffers=own, axes=axes)


class TaskModel(nn.Module):
    """A representation, standardised as it is at the start, and the heads that read it."""

    center: Tensor
    scale: Tensor

    def __init__(
        self,
        base: nn.Module,
        represent: Represent[Any],
        task: TaskConfig,
        reader: StatisticsReader | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        width = represent.width(base)
        self._represent = represent
        self.pool: AttentivePool | None = None
        if task.pool == "attentive":
            assert represent.state_width is not None
            width = represent.state_width(base)
            self.pool = AttentivePool(width, _heads(width))
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self._task, self.outputs = task, num_outputs(task)
        self.scaled = task.kind == "regression"
        if self.scaled:
            for name, value in zip(SCALE_BUFFERS, (0.0, 1.0), strict=True):
                self.register_buffer(name, torch.tensor(value))
        self.heads: nn.Module
        if reader is None:
            self.heads = nn.ModuleList(_head(width, task) for _ in range(task.members))
        else:
            self.heads = StatisticsHeads(width, reader, task)

    def forward(self, batch: Batch, seed: int | None) -> Tensor:
        """Return what the heads say, [B, M], of K classes [B, M, K], of a regression standardised.

        `seed` keys the perturbation of inputs, None leaves them alone.
        """
        features = (self.features(batch, seed) - self.center) / self.scale
        features = features.clamp(-LIMIT, LIMIT)
        if isinstance(self.heads, StatisticsHeads):
            logits: Tensor = self.heads(features, batch[STATISTICS])
            return logits
        assert isinstance(self.heads, nn.ModuleList)
        said = torch.stack([head(features) for head in self.heads], 1)
        return said.squeeze(2) if self.outputs == 1 else said

    def said(self, raw: Tensor) -> Tensor:
        """Return the mean of the heads, [B] or [B, K], of a regression in the labels' own unit."""
        mean = raw.mean(1)
        if not self.scaled:
            return mean
        location, spread = (self.get_buffer(name) for name in SCALE_BUFFERS)
        return mean * spread + location

    def standardised(self, label: Tensor) -> Tensor:
        """Return labels [B] as the loss compares them: of a regression standardised as in train."""
        if not self.scaled:
            return label
        location, spread = (self.get_buffer(name) for name in SCALE_BUFFERS)
        return (label - location) / spread

    def fit(self, rows: RowStore) -> None:
        """Fit on rows of train what the heads start from besides their input's scale."""
        if self.scaled:
            self.fit_scale(rows.column(LABEL))
        if isinstance(self.heads, StatisticsHeads):
            self.heads.fit(rows)
        elif self._task.start_at_rate:
            self._start_at(start_logits(rows.column(LABEL), self._task))

    @torch.no_grad()
    def _start_at(self, logits: Tensor) -> None:
        """Have every head begin with these, [1] or [K]."""
        assert isinstance(self.heads, nn.ModuleList)
        for head in self.heads:
            *_, last = head.children()
            last.get_parameter("bias").copy_(logits)

    @torch.no_grad()
    def fit_scale(self, label: NDArray[np.floating]) -> None:
        """Take mean and standard deviation of the labels of train, of a regression, as its scale.

        Every rank reads the same labels, so all of them start alike.
        """
        spread = float(np.std(label, dtype=np.float64))
        values = float(np.mean(label, dtype=np.float64)), spread if spread > 0 else 1.0
        for name, value in zip(SCALE_BUFFERS, values, strict=True):
            self.get_buffer(name).fill_(value)

    def features(self, batch: Batch, seed: int | None) -> Tensor:
        """Return the representation, float [B, W], before it is standardised."""
        inputs = _inputs(batch)
        if self.pool is None:
            return self._represent.function(self.base, inputs, seed).float()
        assert self._represent.states is not None
        return self.pool(*self._represent.states(self.base, inputs, seed)).float()


def task_models(model: nn.Module) -> list[TaskModel]:
    """Return the models of a task that are trained at once, which DDP may have wrapped."""
    return [model for model in members_of(model) if isinstance(model, TaskModel)]


def task_loss(
    model: nn.Module, batch: Batch, seed: int, task: TaskConfig, weights: Sequence[float]
) -> Terms:
    """Return the weighted loss as `task`, averaged over rows and heads.

    `seed` keys the perturbation of the inputs, in training alone.
    """
    raw = model(batch, seed if model.training else None).float()
    return target_loss(raw, _head_of(model).standardised(batch[LABEL]), task, weights)


def task_counts(batch: Batch, task: TaskConfig, weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the sum over rows and heads of the rows' weights, [], of the term `task`."""
    place = batch[LABEL].long().unsqueeze(1).expand(-1, task.members)
    return {"task": class_weights(place, weights).sum()}


def task_scores(
    model: nn.Module, batch: Batch, task: TaskConfig, weights: Sequence[float]
) -> tuple[Terms, Tensor]:
    """Return the terms of the inputs as they are, and what `predict` says, [B] or [B, K]."""
    raw, own = model(batch, None).float(), _head_of(model)
    return target_loss(raw, own.standardised(batch[LABEL]), task, weights), own.said(raw)


def _head_of(model: nn.Module) -> TaskModel:
    """Return the first model: labels and answers are scaled by what all of them share."""
    return task_models(model)[0]


def _inputs(batch: Batch) -> Batch:
    return {name: values for name, values in batch.items() if name not in HEADS_ALONE}


def _heads(width: int) -> int:
    """Return how many attention heads of 32 numbers or more a width divides into."""
    return max(n for n in range(1, max(1, width // 32) + 1) if width % n == 0)


def _head(width: int, task: TaskConfig) -> nn.Module:
    if not task.hidden:
        return nn.Sequential(nn.Dropout(task.dropout), nn.Linear(width, num_outputs(task)))
    return nn.Sequential(
        nn.Dropout(task.dropout),
        nn.Linear(width, task.hidden),
        nn.GELU(),
        nn.Dropout(task.hidden_dropout),
        nn.Linear(task.hidden, num_outputs(task)),
    )


def _on_base(function: Callable[[Any, Batch], Batch]) -> Callable[[TaskModel, Batch], Batch]:
    return lambda model, batch: function(model.base, _inputs(batch))


BATCHES = 16
"""Batches whose representation is measured, on each rank."""


def prepare_task_head(
    family: AnyFamily, model: nn.Module, batches: Iterator[Batch], backend: Backend, *, fresh: bool
) -> list[str]:
    """Standardise the heads' input (a fresh run only) and freeze what the task does not reach.

    A decoder, say, gets no gradient, and DDP would wait for it. Returns the names of the frozen.
    """
    first, models = next(batches), task_models(model)
    if fresh:
        seen = [first, *islice(batches, BATCHES - 1)]
        for member in models:
            standardise(member, seen, backend)
    scheduled = dict.fromkeys(family.schema.schedules, 0.0)
    with forked_rng(first[LABEL].device):
        for term in family.loss(model, first, scheduled, 1).values():
            term.sum.backward()
    named = [
        (name, parameter)
        for member in models
        for name, parameter in member.named_parameters()
        if parameter.requires_grad
    ]
    # Ranks have other first batches: what any of them reaches is trained by all.
    own = [float(parameter.grad is not None) for _, parameter in named]
    reached = backend.all_sum(torch.tensor(own, device=first[LABEL].device)).tolist()
    unused = []
    for (name, parameter), count in zip(named, reached, strict=True):
        if not count:
            parameter.requires_grad_(False)
            unused.append(name)
    model.zero_grad(set_to_none=True)
    return unused


@torch.no_grad()
def standardise(model: TaskModel, batches: list[Batch], backend: Backend) -> None:
    """Measure mean and standard deviation of the representation over batches of every rank."""
    was = model.training
    model.eval()
    features = torch.cat([model.features(batch, None) for batch in batches]).double()
    model.train(was)
    ones = torch.ones(len(features), 1, dtype=torch.float64, device=features.device)
    sums = backend.all_sum(torch.cat([ones, features, features.square()], 1).sum(0))
    count, width = sums[0], features.shape[1]
    mean = sums[1 : width + 1] / count
    variance = (sums[width + 1 :] / count - mean.square()).clamp(min=0)
    model.center.copy_(mean)
    model.scale.copy_(torch.where(variance > 1e-8, variance, 1.0).sqrt())
