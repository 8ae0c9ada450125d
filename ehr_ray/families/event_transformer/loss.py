"""The pretraining objective: the next event, its value, and when it or each of many codes comes."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ehr_ray.errors import ConfigError
from ehr_ray.families.event_transformer.config import EventTransformerConfig
from ehr_ray.families.event_transformer.time_to_event import asked_moments
from ehr_ray.family import Batch, Scheduled, Term, Terms
from ehr_ray.nn.time_to_event import gain


def loss(model: nn.Module, batch: Batch, _scheduled: Scheduled, seed: int) -> Terms:
    """Return terms per predicted token, with their heads: `event` in nats, `value`, `time`.

    `time_to_event` is per moment and code, in nats of a density of hours. For the log alone are
    `time_to_event_baseline`, the same of the rates of train, `accuracy`, and `padding`, the share
    of tokens that are computed in vain.
    """
    config: EventTransformerConfig = getattr(model, "module", model).config
    if config.head == "none":
        raise ConfigError("model.head=none: nothing to pretrain; use plain or tied, or give a task")
    out = model(batch, seed)
    phrase = out["phrase"]
    count = torch.full((), float(len(phrase)), device=phrase.device)
    terms = {}
    if "nats" in out:
        terms["event"] = Term(out["nats"], count, coef=config.next_event_weight)
        terms["accuracy"] = Term(out["right"], count, coef=0.0)
    terms["padding"] = _padding(batch["mask"][:, : config.max_length])
    if "value" in out:
        valued = out["valued"].float()
        error = (out["value"] - out["target_value"]).square() * valued
        terms["value"] = Term(error.sum(), valued.sum(), coef=config.next_value_weight)
    if "time" in out:
        error = (out["time"] - out["target_time"]).square()
        terms["time"] = Term(error.sum(), count, coef=config.next_time_weight)
    if "time_to_event" in out:
        answers = out["answers"]
        terms["time_to_event"] = Term(out["time_to_event"], answers, config.time_to_event_weight)
        terms["time_to_event_baseline"] = Term(out["time_to_event_baseline"], answers, coef=0.0)
    return terms


def counts(model: nn.Module, batch: Batch, seed: int) -> dict[str, Tensor]:
    """Return how many tokens, values and answers a batch asks for: each [], by term."""
    plain = getattr(model, "module", model)
    config: EventTransformerConfig = plain.config
    batch = plain.window(batch, seed if model.training else None)
    asked = plain.asked(batch, seed)
    found = {"event": asked.sum(), "time": asked.sum(), "value": (batch["valued"] & asked).sum()}
    if config.time_to_event_weight:
        _, real = asked_moments(batch, seed)
        found["time_to_event"] = real.sum().float() * len(plain.time_to_event.codes)
    return found


def _padding(mask: Tensor) -> Term:
    size = torch.full((), float(mask.numel()), device=mask.device)
    return Term(size - mask.sum(), size, coef=0.0)


def summary(means: Mapping[str, float]) -> dict[str, float]:
    """Return exp of the mean nats of an event, and what times to events gain over train's rates."""
    found = {"perplexity": math.exp(min(means["event"], 50.0))} if "event" in means else {}
    return found | gain(means)
