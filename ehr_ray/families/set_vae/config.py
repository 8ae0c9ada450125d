"""Options of the SetVAE: what a set is, the architecture, the objective and the perturbations."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ehr_ray.config.locations import Location
from ehr_ray.config.schedules import Constant, Ramp
from ehr_ray.config.schema import ConfigSchema

Ratio = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
Pool = Literal["mean", "std", "min", "max", "first", "last"]
MOST_SETS = 65_535
"""Sets of a chunk at most: a GPU's attention starts a block of threads for each, and no more."""
QUERIES = 128
"""Queries that it has at a time: of fewer the others' place is kept."""


def most_sets(queries: int, width: int) -> int:
    """Return the sets of a chunk at most, each of so many queries: its kernel counts in 31 bits."""
    places = -(-queries // QUERIES) * QUERIES * width
    return max(1, min(MOST_SETS, (2**31 - 1) // places))


@dataclass(frozen=True, kw_only=True)
class SetConfig:
    """What SetVAE and SeqSetVAE share: the sets, their encoder and decoder, the objective."""

    __pydantic_config__ = {"extra": "forbid"}

    carry_minutes: NotNegative = 2880
    """Longest age a value is carried, in minutes, inclusive."""
    always_carry: tuple[str, ...] = ()
    """Codes carried whatever their age."""
    clip_value: Annotated[float, Field(gt=0)] | None = 10.0
    """Largest |z-score| a value enters and is reconstructed with; null for no limit."""

    embedding_csv: Location | None = None
    """Table of variable embeddings: a code column, then one numeric column a dimension; or a folder
    of the published program's expanded Parquet, which has them in its columns.

    Null draws random normal vectors, which are nearly orthogonal, from a fixed seed.
    """
    embedding_width: PositiveInt = 768
    """Dimensions of the random embeddings; a CSV brings its own."""
    reduced: PositiveInt = 64
    """Dimensions of the variable directions made of them, in which sets are reconstructed."""
    width: PositiveInt = 128
    """Width of the attention blocks."""
    latent: PositiveInt = 64
    """Latent dimensions of each level."""
    levels: PositiveInt = 2
    """Levels of the hierarchy: an induced set attention block and a latent each."""
    heads: PositiveInt = 4
    """Attention heads."""
    inducing: PositiveInt = 16
    """Inducing points of a set attention block."""
    memory: PositiveInt = 16
    """Tokens each latent is unfolded to for the decoder to attend to."""
    chunk_tokens: PositiveInt = 65536
    """Tokens of sets encoded together; more are recomputed in backward, so memory is bounded."""

    pool: tuple[Pool, ...] = ("mean", "std", "min", "max", "last")
    """How a patient's set latents become one embedding, concatenated."""

    direction_weight: NotNegative = 1.0
    """Weight of the cosine part of the Chamfer loss."""
    magnitude_weight: NotNegative = 1.0
    """Weight of its part on vector norms."""
    vector_weight: NotNegative = 3.0
    """Weight of its part on squared distances."""
    named_weight: NotNegative = 3.0
    """Weight of squared distances between each token and the vector decoded under its name.

    0 leaves the Chamfer distance alone, which tells sets apart but not their variables.
    """
    composition_weight: NotNegative = 0.0
    """Weight of -log p(which variables the set has | latent), a Bernoulli for each code.

    The decoder is told which there are; without this term no part of the NELBO judges a variable
    that does not belong but by its divergence.
    """
    variance_weight: NotNegative = 0.0
    """Reward for spread between the reconstructed tokens of a set."""

    p_stale: Ratio = 0.5
    """Chance that the value of a carried token is hidden from the encoder."""
    p_live: Ratio = 0.05
    """Chance that the value of a live token is hidden."""
    set_mae_ratio: Ratio = 0.15
    """Share of the tokens of a set that are masked besides."""
    small_set_threshold: Annotated[int, Field(ge=0)] = 5
    """Sets of at most this many tokens have one masked, or none."""
    small_set_mask_prob: Ratio = 0.4
    """Chance that a small set has one masked."""
    max_masks_per_set: Annotated[int, Field(ge=0)] = 2
    """Tokens masked in a set at most."""
    val_noise_std: NotNegative = 0.07
    """Standard deviation of the noise on visible values."""
    dir_noise_std: NotNegative = 0.01
    """Standard deviation of the jitter on variable directions, drawn once a step and variable."""
    perturb_task: bool = False
    """Hide and shake inputs also when a task is trained. A head on a frozen encoder is then trained
    on other latents than it is used on, and is worse for it."""
    decoder_noise: NotNegative = 0.3
    """Standard deviation of the noise on the decoder's queries in training."""
    eval_decoder_noise: NotNegative = 0.0
    """The same in evaluation; a function of the patient, so results repeat."""

    @property
    def chunk_limits(self) -> tuple[int, int]:
        """The padded tokens and the sets of a chunk at most."""
        return self.chunk_tokens, most_sets(self.inducing, self.width)

    def __post_init__(self) -> None:
        """Check what one field alone cannot say."""
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if not self.pool:
            raise ValueError("pool must name at least one of mean, std, min, max, first, last")


@dataclass(frozen=True, kw_only=True)
class SetVAEConfig(SetConfig):
    """SetVAE on sets of carried events."""

    sets_per_patient: PositiveInt | None = 16
    """Sets drawn from each patient at each training step; null trains on all of them."""
    predict_sets: Annotated[int, Field(ge=2)] | None = 32
    """Sets an embedding is pooled from at most, evenly spaced from first to last; null: all."""


SHAKING = (
    *("p_stale", "p_live", "set_mae_ratio", "small_set_threshold", "small_set_mask_prob"),
    *("max_masks_per_set", "val_noise_std", "dir_noise_std"),
)
DECODING = (
    *("direction_weight", "magnitude_weight", "vector_weight", "named_weight", "variance_weight"),
    *("composition_weight", "decoder_noise", "eval_decoder_noise"),
)


def idle(config: SetConfig, task: bool) -> dict[str, str]:
    """Return the paths that change nothing under a config, and what makes it so."""
    names: dict[str, str] = {}
    if task:
        names |= dict.fromkeys(DECODING, "a task")
        if not config.perturb_task:
            names |= dict.fromkeys(SHAKING, "a task and model.perturb_task=false")
    else:
        names["perturb_task"] = "no task"
    if not config.max_masks_per_set:
        names |= dict.fromkeys(
            ("set_mae_ratio", "small_set_mask_prob"), "model.max_masks_per_set=0"
        )
    if not config.small_set_threshold:
        names["small_set_mask_prob"] = "model.small_set_threshold=0"
    return {f"model.{name}": why for name, why in names.items()}


SCHEMA = ConfigSchema(
    config=SetVAEConfig,
    idle=idle,
    codes=("always_carry",),
    schedules={"beta": Ramp(end=0.2, steps=8000), "free_bits": Constant(value=0.05)},
    takes_task=True,
    takes_sets=True,
)
