"""The pretraining objective: the next event, its value and time, and the hours after moments."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ehr_ray.errors import ConfigError
from ehr_ray.families.event_transformer.config import EventTransformerConfig
from ehr_ray.families.event_transformer.future_value import values_of
from ehr_ray.families.event_transformer.time_to_event import asked_moments
from ehr_ray.family import Batch, Scheduled, Term, Terms, unwrapped
from ehr_ray.nn.moment_heads import gain


def loss(model: nn.Module, batch: Batch, _scheduled: Scheduled, seed: int) -> Terms:
    """Return terms per predicted token, with their heads: `event` in nats, `value`, `time`.

    `time_to_event` is per moment and code, in nats of a density of hours, `future_value` per window
    in which a code is measured, in nats of a density of its scaled values. For the log alone are
    `time_to_event_baseline` and `future_value_baseline`, the same of the rates of train and of the
    last value carried forward, `accuracy`, and `padding`, the share of tokens computed in vain.
    """
    config: EventTransformerConfig = unwrapped(model).config
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
    if "future_value" in out:
        answers = out["values"]
        terms["future_value"] = Term(out["future_value"], answers, config.future_value_weight)
        terms["future_value_baseline"] = Term(out["future_value_baseline"], answers, coef=0.0)
    return terms


def counts(model: nn.Module, batch: Batch, seed: int) -> dict[str, Tensor]:
    """Return how many tokens, values and answers a batch asks for: each [], by term."""
    plain = unwrapped(model)
    config: EventTransformerConfig = plain.config
    batch = plain.window(batch, seed if model.training else None)
    asked = plain.asked(batch, seed)
    found = {"event": asked.sum(), "time": asked.sum(), "value": (batch["valued"] & asked).sum()}
    if config.asks_moments:
        index, real = asked_moments(batch, seed)
        if config.time_to_event_weight:
            found["time_to_event"] = real.sum().float() * len(plain.time_to_event.codes)
        if config.future_value_weight:
            found["future_value"] = values_of(plain, batch, index, real).asked.sum()
    return found


def _padding(mask: Tensor) -> Term:
    size = torch.full((), float(mask.numel()), device=mask.device)
    return Term(size - mask.sum(), size, coef=0.0)


def summary(means: Mapping[str, float]) -> dict[str, float]:
    """Return exp of the mean nats of an event, and what other terms gain over their baselines."""
    found = {"perplexity": math.exp(min(means["event"], 50.0))} if "event" in means else {}
    return found | gain(means)
