"""AdamW's parameter groups and the learning rate of a step."""

import math
import re
from collections.abc import Sequence

import torch
from torch import nn

from ehr_ray.config import TrainConfig
from ehr_ray.errors import ConfigError


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Stop training the parameters whose name fully matches one of the patterns."""
    for pattern in patterns:
        try:
            matched = [p for n, p in model.named_parameters() if re.fullmatch(pattern, n)]
        except re.error as error:
            raise ConfigError(f"freeze: {pattern!r} is no regular expression: {error}") from error
        if not matched:
            names = ", ".join(n for n, _ in list(model.named_parameters())[:5])
            raise ConfigError(f"freeze: {pattern!r} matches no parameter; names are like {names}")
        for parameter in matched:
            parameter.requires_grad_(False)
    if patterns and not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"freeze: {list(patterns)} leaves nothing to train; freeze less")


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only (biases, norms, embeddings have none)."""
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
            (decay if matrix else plain).append(parameter)
    groups = [
        {"params": decay, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr)


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then the chosen decay."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.lr
    span = max(1, total_steps - config.warmup_steps)
    done = min(1.0, (step - config.warmup_steps) / span)
    left = 1 - done if config.lr_schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)
