"""Options of the SeqSetVAE: those of its sets, and what ties them in time."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ehr_ray.config.schedules import Constant, Ramp
from ehr_ray.config.schema import ConfigSchema
from ehr_ray.families.set_vae.config import PositiveInt, Ratio, SetConfig, idle

SplitPredictions = Literal["sets", "quarters", "history", "statistics"]


@dataclass(frozen=True, kw_only=True)
class SeqSetVAEConfig(SetConfig):
    """SeqSetVAE-PoE: a stay as a sequence of sets, each expected from those before it."""

    p_live: Ratio = 0.0
    """Chance that the value of a live token is hidden; by default carried ones alone are."""
    prior: Literal["transformer", "gru"] = "transformer"
    """What predicts a set's latent from the past: all steps at once, or one after the other."""
    poe: Literal["naive", "gated"] = "naive"
    """Product of experts as it is, or with the set's precision scaled by a learned gate."""
    prior_width: PositiveInt = 128
    """Width of the prior."""
    prior_layers: PositiveInt = 2
    """Transformer blocks; the GRU has one layer."""
    prior_heads: PositiveInt = 4
    """Attention heads of the transformer."""
    time_buckets: Annotated[int, Field(ge=2)] = 64
    """Buckets of the time gap, their edges log-spaced from half a minute to a day."""

    decode_sets: PositiveInt | None = 8
    """Sets drawn from each patient that are reconstructed at a step; null: all.

    All sets are encoded and have a divergence; a draw leaves the reconstruction unbiased. In
    validation it is the same draw each time.
    """
    predict_sets: Annotated[int, Field(ge=2)] | None = 32
    """Sets an embedding is made of at most, evenly spaced from first to last; null: all."""
    learn_sets: PositiveInt | None = 16
    """Sets drawn from each patient through which a task trains the encoder at a step; null: all.

    The representation is of all sets; the others are encoded without a gradient.
    """
    embed: tuple[SplitPredictions, ...] = ("sets", "quarters", "history")
    """What an embedding joins: the posterior means pooled over sets (`pool`), their means in each
    quarter of the time from the origin to the last set, the prior's last state, and plain
    statistics of each variable's measured values, which no model made."""

    def __post_init__(self) -> None:
        """Check what one field alone cannot say."""
        super().__post_init__()
        if self.prior_width % self.prior_heads:
            raise ValueError(
                f"prior_width {self.prior_width} must be a multiple of prior_heads "
                f"{self.prior_heads}"
            )
        if not self.embed:
            raise ValueError("embed must name at least one of sets, quarters, history, statistics")


def sequence_idle(config: SeqSetVAEConfig, task: bool) -> dict[str, str]:
    """Return the paths that change nothing under a config, and what makes it so."""
    found = idle(config, task)
    drawn, why = ("decode_sets", "a task") if task else ("learn_sets", "no task")
    found[f"model.{drawn}"] = why
    if "sets" not in config.embed:
        found["model.pool"] = f"model.embed={list(config.embed)}"
    return found


SCHEMA = ConfigSchema(
    config=SeqSetVAEConfig,
    idle=sequence_idle,
    codes=("always_carry",),
    schedules={
        "beta": Ramp(end=0.2, steps=8000),
        "free_bits": Constant(value=0.03),
        "capacity": Constant(value=0.0),
    },
    takes_task=True,
    takes_sets=True,
)
