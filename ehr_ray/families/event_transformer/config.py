"""Options of the event transformer: what a token says, the architecture, the objectives."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ehr_ray.config.future_value import HOURS, check_future_value
from ehr_ray.config.future_value import IDLE as IDLE_VALUES
from ehr_ray.config.locations import Location, ModelName
from ehr_ray.config.schema import ConfigSchema
from ehr_ray.config.text_models import check_width
from ehr_ray.config.time_to_event import BINS, IDLE, Hours, check_time_to_event
from ehr_ray.events.options import Place, TokenOptions

NotNegative = Annotated[float, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
Position = Literal["sinusoidal", "rotary", "time"]
OBJECTIVES = ("next_event", "next_value", "next_time", "time_to_event", "future_value")
"""What a `_weight` is of."""
Pool = Literal["mean", "cls", "max", "attention", "last"]


@dataclass(frozen=True, kw_only=True)
class EventTransformerConfig:
    """A transformer over events embedded as clinical phrases."""

    __pydantic_config__ = {"extra": "forbid"}

    arch: Literal["encoder", "decoder"] = "encoder"
    """An encoder sees the whole record, a decoder what came before; the weights are the same."""

    phrases: Location | None = None
    """Folder of embedded phrases, from `ehr-ray phrases`; null: training makes it and says where.

    A checkpoint carries the table, so that a run is applied where the folder is gone.
    """
    text_model: ModelName = "all-MiniLM-L6-v2"
    """Sentence transformer of the phrases, by name or folder; `hashing` needs no model: it counts
    letter groups."""
    medical_lookup: Location | None = None
    """CSV with columns code and term: names of diagnoses, procedures and the like."""
    lab_lookup: Location | None = None
    """CSV with columns code and term: names of laboratory codes."""
    values: Place = "merged"
    """A value joins its code's phrase ("Lab creatinine high"), follows as its own, or is left."""
    value_as: Literal["bin", "number"] = "bin"
    """A value as one of five bins by train quantiles, or as a number."""
    levels: Annotated[int, Field(ge=2)] = 16
    """Numbers a code has at most where values are numbers: the middles of equal shares of train."""
    units: Place = "none"
    """The unit joins the value, follows as its own phrase, or is left out."""
    gaps: Place = "merged"
    """The time since the event before: added to the next token, its own phrase, or left out."""
    value_channel: bool = True
    """Also multiply a projection of the phrase by the z-scored value; bins alone are coarse."""
    clip_value: Annotated[float, Field(gt=0)] = 5.0
    """Largest |z-score| of that channel."""

    embedding_dim: PositiveInt | None = None
    """Width of the phrase embeddings; null takes the text model's, or 256 for `hashing`."""
    model_dim: PositiveInt = 256
    """Width of the transformer."""
    n_heads: PositiveInt = 8
    """Attention heads."""
    n_layers: PositiveInt = 6
    """Blocks."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout of the input and of what each block adds; attention itself has none."""
    max_length: PositiveInt = 512
    """Tokens of a patient that enter at once."""
    truncation: Literal["last", "random"] = "last"
    """Of a longer record: its last tokens, or in training a random window, otherwise the last."""
    positions: tuple[Position, ...] = ("sinusoidal",)
    """Where a token stands: by its rank (sinusoidal, rotary), by minutes since admission (time)."""
    pooling: tuple[Pool, ...] = ("mean",)
    """How a patient's tokens become one vector, concatenated; a decoder's `cls` is its last."""

    pool_queries: PositiveInt = 1
    """Learned queries of `attention` pooling (Lee et al. 2019, eq. 11), a vector each."""

    head: Literal["plain", "tied", "none"] = "plain"
    """Scores of the next phrase: a matrix of their own, products with the phrase table, or no
    head of any objective, for a model that is trained for a task."""
    next_event_weight: NotNegative = 1.0
    """Weight of the nats of the next, or hidden, phrase; 0: no such head."""
    next_value_weight: NotNegative = 0.0
    """Weight of the squared error of the next event's z-scored value; 0: no such head."""
    next_time_weight: NotNegative = 0.0
    """Weight of the squared error of log(1 + minutes to the next event); 0: no such head."""
    time_to_event_weight: NotNegative = 0.0
    """Weight of the negative log-likelihood of when each of many codes comes next; 0: no head."""
    time_to_event_codes: PositiveInt | tuple[str, ...] = 64
    """Those codes: so many of the most frequent by patients of train, or their names."""
    time_to_event_bins: tuple[Hours, ...] = BINS
    """Hours from a moment on between which a code's hazard is constant; the last bin has no end."""
    future_value_weight: NotNegative = 0.0
    """Weight of the nats of what many codes are measured at in the next hours; 0: no head."""
    future_value_codes: PositiveInt | tuple[str, ...] = 64
    """Those codes: so many of the most frequent by patients of train that have values, or names."""
    future_value_hours: tuple[Hours, ...] = HOURS
    """Hours from a moment on at which a window ends, and the next one begins: of each the mean."""
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of tokens an encoder is pretrained to fill in: it has no next event. Validation hides
    0.15 of them whatever this is."""

    def __post_init__(self) -> None:
        """Check what one field alone cannot say."""
        if self.model_dim % (2 * self.n_heads):
            raise ValueError(
                f"model_dim {self.model_dim} must be an even multiple of n_heads {self.n_heads}"
            )
        if self.phrases is None:
            check_width(self.text_model, self.embedding_dim)
        if not self.pooling:
            raise ValueError("pooling must name at least one of mean, cls, max, attention, last")
        if self.arch == "encoder" and self.next_time_weight:
            raise ValueError("next_time_weight needs arch decoder: an encoder sees the next event")
        for name in ("time_to_event_weight", "future_value_weight"):
            if self.arch == "encoder" and getattr(self, name):
                raise ValueError(f"{name} needs arch decoder: an encoder sees what comes")
        check_time_to_event(self.time_to_event_codes, self.time_to_event_bins)
        check_future_value(self.future_value_codes, self.future_value_hours)
        weights = (getattr(self, f"{name}_weight") for name in OBJECTIVES)
        if self.head != "none" and not any(weights):
            raise ValueError("next_event_weight 0 leaves nothing to train: give another weight")

    @property
    def fills_in(self) -> bool:
        """Whether the model is pretrained by hidden tokens."""
        return self.arch == "encoder" and self.head != "none"

    @property
    def has_cls(self) -> bool:
        """Whether a vector of its own stands before a patient's tokens."""
        return self.arch == "encoder" and "cls" in self.pooling

    @property
    def asks_moments(self) -> bool:
        """Whether a head is asked of what comes in the hours after moments."""
        return bool(self.time_to_event_weight or self.future_value_weight)

    @property
    def token_options(self) -> TokenOptions:
        """What turns events into tokens."""
        return TokenOptions(
            values=self.values,
            value_as=self.value_as,
            levels=self.levels,
            units=self.units,
            gaps=self.gaps,
        )


def idle(config: EventTransformerConfig, task: bool) -> dict[str, str]:
    """Return the paths that change nothing under a config, and what makes it so."""
    model: dict[str, str] = {}
    if task or config.head == "none":
        why = "a task" if task else "model.head=none"
        weights = [f"{name}_weight" for name in OBJECTIVES]
        model |= dict.fromkeys(("mask_ratio", *weights), why)
    elif not config.fills_in:
        model["mask_ratio"] = f"model.arch={config.arch}"
    if config.head != "none" and not config.next_event_weight:
        model["head"] = "model.next_event_weight=0"
    if not config.time_to_event_weight:
        model |= dict.fromkeys(IDLE, "model.time_to_event_weight=0")
    if not config.future_value_weight:
        model |= dict.fromkeys(IDLE_VALUES, "model.future_value_weight=0")
    if config.values == "none":
        model |= dict.fromkeys(("value_as", "levels"), "model.values=none")
    elif config.value_as == "bin":
        model["levels"] = "model.value_as=bin"
    return {f"model.{name}": why for name, why in model.items()}


TOKEN_FIELDS = ("values", "value_as", "levels", "units", "gaps", "clip_value")
"""The fields `transform` reads."""


SCHEMA = ConfigSchema(
    config=EventTransformerConfig,
    idle=idle,
    takes_task=True,
)
