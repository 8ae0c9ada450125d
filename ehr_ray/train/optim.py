"""AdamW's parameter groups and the learning rate of a step."""

import dataclasses
import math
import re
from collections.abc import Sequence

import torch
from torch import nn

from ehr_ray.config.sections import LayerConfig, TrainConfig
from ehr_ray.errors import ConfigError
from ehr_ray.train.members import members_of
from ehr_ray.train.sharding import is_part


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Stop training the parameters whose name fully matches one of the patterns."""
    for pattern in patterns:
        try:
            matched = [p for n, p in _named(model) if re.fullmatch(pattern, n)]
        except re.error as error:
            raise ConfigError(f"freeze: {pattern!r} is no regular expression: {error}") from error
        if not matched:
            names = ", ".join(n for n, _ in _named(model)[:5])
            raise ConfigError(f"freeze: {pattern!r} matches no parameter; names are like {names}")
        for parameter in matched:
            parameter.requires_grad_(False)
    if patterns and not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"freeze: {list(patterns)} leaves nothing to train; freeze less")


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on the matrices of torch's own layers only.

    Biases, norms and embeddings have none, nor what a model holds by itself: points, seeds and
    queries are vectors attended to, whatever their shape. A module names others as `decayed`.

    Each of `train.layers` makes groups of its own, with `lr_ratio` and `from_epoch`.
    """
    maps = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if _is_layer(module) or name in getattr(module, "decayed", ())
    }
    layers = [LayerConfig(), *config.layers.values()]
    patterns = [_compiled(pattern, model) for pattern in config.layers]
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in _named(model):
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and id(parameter) in maps
            fits = (i for i, pattern in enumerate(patterns, start=1) if pattern.fullmatch(name))
            groups.setdefault((next(fits, 0), not matrix), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": groups[layer, plain],
                "weight_decay": 0.0 if plain else config.weight_decay,
                "decays": not plain,
                **dataclasses.asdict(layers[layer]),
            }
            for layer, plain in sorted(groups)
        ],
        lr=config.lr,
        fused=all(_has_kernel(parameter) for parameter in model.parameters()) or None,
    )


def _has_kernel(parameter: nn.Parameter) -> bool:
    """Return whether the step of a parameter is one pass over its memory, as on a GPU.

    On a CPU nine passes were a quarter of HCAT's step, a tenth of JEPA's.
    """
    return parameter.is_cuda or parameter.is_cpu or is_part(parameter)


def _is_layer(module: nn.Module) -> bool:
    own = type(module).__module__.startswith("torch.nn")
    return own and not isinstance(module, nn.Embedding)


def set_lr(optimizer: torch.optim.Optimizer, lr: float, epoch: float = math.inf) -> None:
    """Give every group its learning rate at an epoch; groups not trained yet are held."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_ratio"]
        group["held"] = epoch < group["from_epoch"]


def set_weight_decay(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every group of matrices its weight decay."""
    for group in optimizer.param_groups:
        if group["decays"]:
            group["weight_decay"] = value


def drop_held(optimizer: torch.optim.Optimizer) -> None:
    """Drop the gradients of held groups: AdamW then leaves them and their moments alone."""
    for group in optimizer.param_groups:
        if group.get("held"):
            for parameter in group["params"]:
                parameter.grad = None


def _named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return parameters by name; those of each member of `train.seeds` have the names of one."""
    return [named for part in members_of(model) for named in part.named_parameters()]


def _compiled(pattern: str, model: nn.Module) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"train.layers: {pattern!r} is no regular expression: {error}") from error
    names = [name for name, _ in _named(model)]
    if not any(compiled.fullmatch(name) for name in names):
        raise ConfigError(
            f"train.layers: {pattern!r} matches no parameter; names are like {', '.join(names[:5])}"
        )
    return compiled


def weight_decay(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return the weight decay of a step: half a cosine from the first to the final value."""
    if config.final_weight_decay is None:
        return config.weight_decay
    done = (1 - math.cos(math.pi * min(1.0, step / max(1, total_steps)))) / 2
    return config.weight_decay + (config.final_weight_decay - config.weight_decay) * done


def learning_rate(
    step: int,
    total_steps: int,
    config: TrainConfig,
    reductions: int = 0,
    steps_per_epoch: int = 1,
) -> float:
    """Return the learning rate of a step: linear warm-up, then the chosen decay.

    `reductions` is how often a plateau was met; each halves the rate, down to `min_lr_ratio`.
    """
    warmup = config.warmup(steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.lr_schedule == "constant":
        return config.lr
    if config.lr_schedule == "plateau":
        return config.lr * max(config.min_lr_ratio, 0.5**reductions)
    if config.lr_schedule == "restarts":
        done = _share_of_period(step / steps_per_epoch, config)
        left = (1 + math.cos(math.pi * done)) / 2
        return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)
    span = max(1, total_steps - warmup)
    done = min(1.0, (step - warmup) / span)
    left = 1 - done if config.lr_schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)


def _share_of_period(epoch: float, config: TrainConfig) -> float:
    """Return how much of the current period is over (Loshchilov and Hutter 2017, eq. 5)."""
    length = config.restart_epochs
    while epoch >= length:
        epoch -= length
        length *= config.restart_factor
    return epoch / length
