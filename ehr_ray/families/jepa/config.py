"""Options of the JEPA: rows, sizes, what is hidden, and what keeps it from collapse."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field

from ehr_ray.config.future_value import HOURS, check_future_value
from ehr_ray.config.future_value import IDLE as IDLE_VALUES
from ehr_ray.config.schedules import Ramp
from ehr_ray.config.schema import ConfigSchema
from ehr_ray.config.time_to_event import BINS, IDLE, Hours, check_time_to_event
from ehr_ray.events.options import Kind

Share = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
Pool = Literal["mean", "std", "min", "max", "first", "last"]
LatentLoss = Literal["smooth_l1", "infonce"]

TEMPERATURE: Final = 0.1
"""What cosines of states are divided by where they are contrasted."""


class Size(NamedTuple):
    """Encoder and predictor of a preset."""

    width: int
    depth: int
    heads: int
    predictor_width: int
    predictor_depth: int


PRESETS: Final = {
    "tiny": Size(192, 12, 3, 192, 4),
    "small": Size(384, 12, 6, 192, 4),
    "base": Size(768, 12, 12, 384, 6),
    "large": Size(1024, 24, 16, 384, 8),
}
"""The encoders of Assran et al. 2023 (I-JEPA) and Dosovitskiy et al. 2021 (ViT); the predictor has
as many heads as its encoder."""
DEFAULT: Final = Size(width=128, depth=4, heads=4, predictor_width=64, predictor_depth=2)
"""Without a preset: enough for a few thousand stays."""


@dataclass(frozen=True, kw_only=True)
class JEPAConfig:
    """A joint-embedding predictive architecture over the rows of a patient."""

    __pydantic_config__ = {"extra": "forbid"}

    rows: Kind = "hours"
    """A row is an hour with observations, or an admission."""
    max_values: PositiveInt = 128
    """Codes with values that are features at most: the most frequent in train."""
    max_flags: Annotated[int, Field(ge=0)] = 128
    """The same of codes without values, as diagnoses and procedures are."""
    outcomes: tuple[str, ...] = (
        "*death*",
        "*deceased*",
        "*died*",
        "*expire*",
        "*mortality*",
        "*readmission*",
        "*discharge*",
    )
    """Patterns of codes that are never a feature, whatever their case."""
    flows: tuple[str, ...] = ("urine*", "subject_fluid_output//*", "infusion_end//*")
    """Patterns of codes whose values are amounts, added up in a row."""
    discharges: tuple[str, ...] = ("hospital_discharge*",)
    """Patterns of codes that end a visit: its length is a feature from then on."""
    max_rows: Annotated[int, Field(ge=2)] | None = 512
    """Rows of a patient that are read at most, the latest; null: all."""
    carry_hours: NotNegative | None = None
    """Hours a feature's last level is shown in later rows, beside how old it is; null: always."""

    preset: Literal["tiny", "small", "base", "large"] | None = None
    """A named size: width, blocks and heads 192 x 12 x 3, 384 x 12 x 6, 768 x 12 x 12 or
    1024 x 24 x 16. Of the five fields below it fills those that are null; given ones stand beside
    it, though not all five, which would leave it nothing to say."""
    width: PositiveInt | None = None
    """Width of the encoder; null: the preset's, else 128."""
    depth: PositiveInt | None = None
    """Its blocks; null: the preset's, else 4."""
    heads: PositiveInt | None = None
    """Its attention heads, and the predictor's; null: the preset's, else 4."""
    predictor_width: PositiveInt | None = None
    """Width of the predictor; null: the preset's, else 64."""
    predictor_depth: PositiveInt | None = None
    """Its blocks; null: the preset's, else 2."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout in the encoder's blocks."""

    mask: Literal["future", "blocks", "both"] = "both"
    """What is predicted: rows after the context, several blocks of rows anywhere, or for each
    patient at each step one of the two."""
    context_rows: PositiveInt | None = None
    """Rows before a future that are seen, as in 15; null: all."""
    target_rows: PositiveInt = 5
    """Rows of a future; at most half of the patient's."""
    blocks: PositiveInt = 4
    """Blocks of rows that are hidden, as long as a quarter of the rows is left."""
    block_share: tuple[Share, Share] = (0.1, 0.25)
    """Smallest and largest length of a block over that of the patient."""
    context_ratio: Share = 1.0
    """Share of the rows left over that the context keeps."""

    level_noise: NotNegative = 0.0
    """Standard deviation of the noise on the levels of the context in training."""
    time_jitter: NotNegative = 0.0
    """Standard deviation, in minutes, by which the rows of the context are moved in training."""

    target: Literal["average", "online"] = "average"
    """Encoder of the states that are predicted: a moving average of the trained one (I-JEPA), or
    that one itself, with its gradient, which only a regulariser or `infonce` keeps from collapse
    (LeJEPA; CPC) and which is refused without."""
    latent_loss: LatentLoss = "smooth_l1"
    """How a predicted state is compared: with its own alone, or as the one among all hidden rows of
    the batch that it is nearest to (CPC, van den Oord et al. 2018, eq. 4)."""
    value_weight: NotNegative = 1.0
    """Weight of a head that tells the levels observed in the predicted rows; 0: there is none."""
    time_to_event_weight: NotNegative = 0.0
    """Weight of the negative log-likelihood of when each of many codes comes after the context; 0:
    no head."""
    time_to_event_codes: PositiveInt | tuple[str, ...] = 64
    """Those codes, features or not: so many of the most frequent by patients of train, or their
    names."""
    time_to_event_bins: tuple[Hours, ...] = BINS
    """Hours after the context between which a hazard is constant; the last bin has no end."""
    future_value_weight: NotNegative = 0.0
    """Weight of the nats of what each of many codes is measured at in the hours after the context;
    0: no head."""
    future_value_codes: PositiveInt | tuple[str, ...] = 64
    """Those codes, features or not: so many of the most frequent by patients of train that have
    values, or their names."""
    future_value_hours: tuple[Hours, ...] = HOURS
    """Hours after the context at which a window ends, and the next one begins: of each the mean."""
    regulariser: Literal["none", "vicreg", "sigreg"] = "none"
    """What keeps patients apart besides: variance and covariance (Bardes et al. 2022), or random
    projections made normal (Balestriero & LeCun 2025). Of the mean state of each context, over the
    patients of a worker, so it wants batches of hundreds."""
    regulariser_weight: NotNegative | None = None
    """Its weight; null: 1 for vicreg, 0.05 for sigreg."""

    pool: tuple[Pool, ...] = ("mean", "std", "max", "last")
    """How a patient's states become one embedding, concatenated."""
    embed_with: Literal["online", "target"] = "online"
    """Encoder of the embedding: the one that is trained, or its moving average, which a task does
    not train."""
    hide_rows: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Chance that a row is hidden when a task trains the encoder."""

    def __post_init__(self) -> None:
        """Check what one field alone cannot say."""
        if self.preset is not None and None not in self._given:
            raise ValueError(
                f"preset {self.preset} has no say beside {', '.join(Size._fields)}; set those to "
                "null that it shall fill"
            )
        size = self.size
        for name in ("width", "predictor_width"):
            if getattr(size, name) % size.heads:
                raise ValueError(
                    f"{name} {getattr(size, name)} must be a multiple of heads {size.heads}"
                )
        if self.block_share[0] > self.block_share[1]:
            raise ValueError(f"block_share {list(self.block_share)} must be smallest, largest")
        for name in ("time_to_event_weight", "future_value_weight"):
            if getattr(self, name) and self.rows != "hours":
                raise ValueError(f"{name} needs rows hours: a visit has no end of its own")
        check_time_to_event(self.time_to_event_codes, self.time_to_event_bins)
        check_future_value(self.future_value_codes, self.future_value_hours)
        if self.target == "online" and self.embed_with == "target":
            raise ValueError("embed_with target needs target average: there is no other encoder")
        if not self.pool:
            raise ValueError("pool must name at least one of mean, std, min, max, first, last")

    @property
    def size(self) -> Size:
        """The sizes that count: those given, else the preset's, else the default."""
        named = DEFAULT if self.preset is None else PRESETS[self.preset]
        return Size(*(n if own is None else own for own, n in zip(self._given, named, strict=True)))

    @property
    def regularised(self) -> bool:
        """Whether a regulariser counts in the loss."""
        return self.regulariser != "none" and self.regulariser_weight != 0

    @property
    def followed(self) -> int | tuple[str, ...]:
        """The codes whose times are read of patients: none without the head for them."""
        return self.time_to_event_codes if self.time_to_event_weight else 0

    @property
    def measured(self) -> int | tuple[str, ...]:
        """The codes whose values are read of patients: none without the head for them."""
        return self.future_value_codes if self.future_value_weight else 0

    @property
    def _given(self) -> tuple[int | None, ...]:
        return tuple(getattr(self, name) for name in Size._fields)


HIDING = ("mask", "context_rows", "target_rows", "blocks", "block_share", "context_ratio")


def idle(config: JEPAConfig, task: bool) -> dict[str, str]:
    """Return the paths that change nothing under a config, and what makes it so."""
    model: dict[str, str] = {}
    if config.mask == "future":
        model |= dict.fromkeys(("blocks", "block_share"), "model.mask=future")
    elif config.mask == "blocks":
        model |= dict.fromkeys(("context_rows", "target_rows"), "model.mask=blocks")
    if config.rows == "hours":
        model["discharges"] = "model.rows=hours"
    if config.regulariser == "none":
        model["regulariser_weight"] = "model.regulariser=none"
    if not config.time_to_event_weight:
        model |= dict.fromkeys(IDLE, "model.time_to_event_weight=0")
    if not config.future_value_weight:
        model |= dict.fromkeys(IDLE_VALUES, "model.future_value_weight=0")
    if task:
        weights = (
            "time_to_event_weight",
            *IDLE,
            "future_value_weight",
            *IDLE_VALUES,
            "latent_loss",
            "value_weight",
            "regulariser",
            "regulariser_weight",
            "level_noise",
            "time_jitter",
        )
        model |= dict.fromkeys((*HIDING, *weights), "a task")
    else:
        model["hide_rows"] = "no task"
    found = {f"model.{name}": why for name, why in model.items()}
    if config.target == "online":
        found["schedules.momentum"] = "model.target=online"
    return found


def untrainable(config: JEPAConfig, task: bool) -> str | None:
    """Return why states of the encoder itself cannot be the target; a task trains by labels."""
    kept = config.latent_loss == "infonce" or config.regularised
    if task or kept or config.target == "average":
        return None
    return (
        "model.target=online: states told from themselves alone collapse to one; add "
        "model.regulariser=sigreg or vicreg with a model.regulariser_weight above 0, or "
        "model.latent_loss=infonce"
    )


def inactive_paths(config: JEPAConfig, task: bool) -> tuple[str, ...]:
    """Return the paths no trial reads or may set.

    A task has no predictor, though its run may state one; own states are not told without the
    regulariser that was given.
    """
    if task:
        return ("model.predictor_width", "model.predictor_depth")
    without = dataclasses.replace(config, regulariser="none", regulariser_weight=None)
    return ("model.regulariser",) if untrainable(without, task) else ()


SCHEMA = ConfigSchema(
    config=JEPAConfig,
    idle=idle,
    untrainable=untrainable,
    schedules={"momentum": Ramp(start=0.996, end=1.0)},
    schedule_limits={"momentum": (0.0, 1.0)},
    takes_task=True,
)
