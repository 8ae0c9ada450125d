"""Any family trained for a label: its representation under a head (the `task` section).

B patients, W width of the representation, M heads.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehr_ray.config.task import TaskConfig
from ehr_ray.errors import ConfigError
from ehr_ray.events.patient_statistics import StatisticsReader
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment
from ehr_ray.family import AnyFamily, Axis, Batch, Represent, Select, Term, Terms, Transfer
from ehr_ray.nn.focal import focal
from ehr_ray.nn.noise import forked_rng
from ehr_ray.nn.pooling import AttentivePool
from ehr_ray.registry import get_family
from ehr_ray.train.backend import Backend
from ehr_ray.train.statistics import LABEL, STATISTICS, StatisticsHeads, reader_of, with_statistics

LIMIT = 6.0
"""Standard deviations a feature enters a head with at most."""
HEADS_ALONE = (LABEL, STATISTICS)


def family_of(experiment: Experiment, prevalence: float | None = None) -> AnyFamily:
    """Return the family an experiment trains: with a `task` section, its family under a head.

    `prevalence` of the label in train is what class weights are made of; None where no loss is
    computed.
    """
    family = get_family(experiment.family)
    return family if experiment.task is None else with_task(family, experiment.task, prevalence)


def with_task(family: AnyFamily, task: TaskConfig, prevalence: float | None = None) -> AnyFamily:
    """Return a family that predicts a label from what `family` represents.

    `predict` keeps its outputs and adds `logit` [B]. Raises ConfigError for a family without
    `represent`.
    """
    represent = family.represent
    if represent is None:
        raise ConfigError(f"task: family {family.name} has no representation for a task to read")
    if task.pool == "attentive" and represent.states is None:
        raise ConfigError(f"task.pool: family {family.name} has no states to attend to; use own")
    positive = _positive_weight(task, prevalence)
    by_loss = task.select == "loss"
    remedy = "give tuning rows of both classes, or choose by task.select=loss"
    ranked = Select(f"val/{task.select}", "max", remedy)
    select = Select("val/task", "min") if by_loss else ranked

    shown, base = family.evaluation, family
    if task.statistics is not None:
        family = with_statistics(family, task.statistics)

    def predict(model: TaskModel, batch: Batch) -> Batch:
        logit = model(batch, None).float().mean(1)
        return {**base.predict(model.base, _inputs(batch)), "logit": logit}

    def build(config: Any, vocabulary: Vocabulary) -> TaskModel:
        given = task.statistics
        reader = reader_of(vocabulary, given) if given is not None else None
        return TaskModel(base.build(config, vocabulary), represent, task, reader)

    return replace(
        family,
        build=build,
        loss=lambda model, batch, _scheduled, seed: task_loss(model, batch, seed, task, positive),
        predict=predict,
        represent=None,
        select=select,
        # The base is no longer trained for its own objective: what watches that has no say.
        training=replace(
            family.training,
            task_scores=lambda model, batch: task_scores(model, batch, task, positive),
            after_step=None,
            held=None,
            diagnose=None,
            learnable=None,
            needs_pairs=None,
        ),
        transfer=_transfer(family, task),
        evaluation=replace(
            shown,
            latents=_on_base(shown.latents),
            reconstruct=_on_base(shown.reconstruct),
            outputs={name: _on_base(function) for name, function in shown.outputs.items()},
        ),
    )


def _transfer(family: AnyFamily, task: TaskConfig) -> Transfer:
    """Return what the heads add: their input is standardised anew, its columns have names."""
    base, columns = family.transfer, family.represent.columns if family.represent else None
    own = (*base.data_buffers, "center", "scale")
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
        represent: Represent,
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
        self.heads: nn.Module
        if reader is None:
            self.heads = nn.ModuleList(_head(width, task) for _ in range(task.members))
        else:
            self.heads = StatisticsHeads(width, reader, task)

    def forward(self, batch: Batch, seed: int | None) -> Tensor:
        """Return logits [B, M]; `seed` keys the perturbation of inputs, None leaves them alone."""
        features = (self.features(batch, seed) - self.center) / self.scale
        features = features.clamp(-LIMIT, LIMIT)
        if isinstance(self.heads, StatisticsHeads):
            logits: Tensor = self.heads(features, batch[STATISTICS])
            return logits
        assert isinstance(self.heads, nn.ModuleList)
        return torch.cat([head(features) for head in self.heads], 1)

    def features(self, batch: Batch, seed: int | None) -> Tensor:
        """Return the representation, float [B, W], before it is standardised."""
        inputs = _inputs(batch)
        if self.pool is None:
            return self._represent.function(self.base, inputs, seed).float()
        assert self._represent.states is not None
        return self.pool(*self._represent.states(self.base, inputs, seed)).float()


def task_loss(
    model: nn.Module, batch: Batch, seed: int, task: TaskConfig, positive_weight: float
) -> Terms:
    """Return the weighted loss as `task`, averaged over rows and heads.

    `seed` keys the perturbation of the inputs, in training alone.
    """
    logit = model(batch, seed if model.training else None).float()
    return _weighted(logit, batch[LABEL], task, positive_weight)


def task_scores(
    model: nn.Module, batch: Batch, task: TaskConfig, positive_weight: float
) -> tuple[Terms, Tensor]:
    """Return the terms of the inputs as they are, and the mean logit of the heads, [B]."""
    logit = model(batch, None).float()
    return _weighted(logit, batch[LABEL], task, positive_weight), logit.mean(1)


def _weighted(logit: Tensor, label: Tensor, task: TaskConfig, positive_weight: float) -> Terms:
    label = label.unsqueeze(1).expand_as(logit)
    loss = F.binary_cross_entropy_with_logits(logit, label, reduction="none")
    if task.loss == "focal":
        loss = focal(loss, task.focal_gamma)
    weight = torch.where(label > 0, positive_weight, 1.0)
    return {"task": Term((weight * loss).sum(), weight.sum())}


def ranking_metrics(logit: Tensor, label: Tensor) -> dict[str, float]:
    """Return AUROC, average precision and F1 at 0.5 of all rows; NaN where a class is missing."""
    y, score = label.numpy() > 0, logit.double().numpy()
    if not len(y) or y.all() or not y.any():
        return {"auroc": np.nan, "auprc": np.nan, "f1": np.nan}
    # Here, since every worker imports this module, and scikit-learn takes a second.
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    return {
        "auroc": float(roc_auc_score(y, score)),
        "auprc": float(average_precision_score(y, score)),
        "f1": float(f1_score(y, score >= 0, zero_division=0)),
    }


def _inputs(batch: Batch) -> Batch:
    return {name: values for name, values in batch.items() if name not in HEADS_ALONE}


def _heads(width: int) -> int:
    """Return how many attention heads of 32 numbers or more a width divides into."""
    return max(n for n in range(1, max(1, width // 32) + 1) if width % n == 0)


def _head(width: int, task: TaskConfig) -> nn.Module:
    if not task.hidden:
        return nn.Sequential(nn.Dropout(task.dropout), nn.Linear(width, 1))
    return nn.Sequential(
        nn.Dropout(task.dropout),
        nn.Linear(width, task.hidden),
        nn.GELU(),
        nn.Dropout(task.hidden_dropout),
        nn.Linear(task.hidden, 1),
    )


def _positive_weight(task: TaskConfig, prevalence: float | None) -> float:
    if task.class_weight == "none" or prevalence is None:
        return 1.0
    if task.class_weight == "balanced":
        return (1 - prevalence) / prevalence if 0 < prevalence < 1 else 1.0
    return float(task.class_weight)


def _on_base(function):  # type: ignore[no-untyped-def]
    return None if function is None else lambda model, batch: function(model.base, _inputs(batch))


BATCHES = 16
"""Batches whose representation is measured, on each rank."""


def prepare_task_head(
    family: AnyFamily, model: nn.Module, batches: Iterator[Batch], backend: Backend, *, fresh: bool
) -> list[str]:
    """Standardise the heads' input (a fresh run only) and freeze what the task does not reach.

    A decoder, say, gets no gradient, and DDP would wait for it. Returns the names of the frozen.
    """
    assert isinstance(model, TaskModel)
    first = next(batches)
    if fresh:
        standardise(model, [first, *islice(batches, BATCHES - 1)], backend)
    scheduled = dict.fromkeys(family.schema.schedules, 0.0)
    with forked_rng(first[LABEL].device):
        for term in family.loss(model, first, scheduled, 1).values():
            term.sum.backward()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    for name in unused:
        model.get_parameter(name).requires_grad_(False)
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
