"""Options of HCAT: modalities, outcomes, sizes, imputation, augmentation and the objective."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field

from ehr_ray.config.locations import Location, ModelName
from ehr_ray.config.schedules import Constant, Ramp
from ehr_ray.config.schema import ConfigSchema
from ehr_ray.config.text_models import check_width
from ehr_ray.events.options import MODALITIES, MODALITY_CODES, RECURRENCE_2Y, SURVIVAL_5Y, Outcome

Ratio = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]

Modality = Literal["clinical", "temporal", "pathological", "semantic", "spatial"]


class Size(NamedTuple):
    """Sizes that go together."""

    width: int
    heads: int
    global_layers: int
    vae_width: int
    latent: int


PRESETS: Final[Mapping[str, Size]] = {
    "tiny": Size(16, 2, 1, 16, 8),
    "small": Size(32, 4, 1, 32, 16),
    "medium": Size(64, 4, 2, 64, 32),
    "large": Size(192, 8, 3, 192, 64),
    "published": Size(512, 8, 3, 512, 64),
}
"""`published` is the size of the published code, made for far more patients than 600."""
DEFAULT: Final = PRESETS["small"]
"""Without a preset."""


@dataclass(frozen=True, kw_only=True)
class HCATConfig:
    """A multi-modal VAE that imputes, and a transformer that predicts two outcomes."""

    __pydantic_config__ = {"extra": "forbid"}

    codes: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(MODALITY_CODES))
    """Regular expressions of the codes of each modality: clinical, temporal, pathological,
    semantic, spatial. A modality without codes is never there."""
    landmark_hours: NotNegative = 0.0
    """Hours after the origin up to which events are features, inclusive; outcomes lie after."""
    survival: Outcome = SURVIVAL_5Y
    """The first outcome."""
    recurrence: Outcome = RECURRENCE_2Y
    """The second outcome."""

    text_model: ModelName | None = None
    """Sentence transformer that embeds the phrases of the semantic codes beside their flags: a name
    or folder, or `hashing`, which needs no model; null: flags alone."""
    phrases: Location | None = None
    """Folder of the embedded phrases; null: training makes it."""
    embedding_dim: PositiveInt | None = None
    """Width of a phrase's embedding; null: that of the text model."""

    preset: Literal["tiny", "small", "medium", "large", "published"] | None = None
    """Sizes that go together. Of the five fields below it fills those that are null; given ones
    stand beside it, though not all five, which would leave it nothing to say."""
    width: PositiveInt | None = None
    """Width of the tokens in the transformer; null: the preset's, else 32."""
    heads: PositiveInt | None = None
    """Attention heads; null: the preset's, else 4."""
    global_layers: PositiveInt | None = None
    """Layers of the encoder over all tokens; null: the preset's, else 1."""
    vae_width: PositiveInt | None = None
    """Width of the VAE's hidden layers and of the refinement, a fraction of it at finer scales;
    null: the preset's, else 32."""
    latent: PositiveInt | None = None
    """Dimensions of the joint latent; null: the preset's, else 16."""
    scales: Annotated[int, Field(ge=1, le=4)] = 3
    """Scales of each modality's encoder."""
    dropout: Ratio = 0.2
    """Dropout wherever there is any."""

    missing: Literal["impute", "mask"] = "impute"
    """What becomes of a missing modality: its imputation is a token, or no token is."""
    joint: Literal["poe", "attention"] = "poe"
    """How modalities make one latent: a product of experts, or an attention over those present."""
    impute_iterations: Annotated[int, Field(ge=0)] = 3
    """Refinements of an imputation; 0 takes it as the VAE gives it."""
    mask_ratio: Ratio = 0.2
    """Share of the present modalities hidden in training to learn what they were."""
    gate: bool = True
    """Whether tokens are weighted by their quality; false weights them alike."""
    linear: bool = True
    """Whether a linear path leads from the tokens to each outcome beside the transformer."""
    linear_modalities: tuple[Modality, ...] = ("clinical", "temporal", "pathological")
    """Modalities the linear path reads."""

    moddrop: Ratio = 0.1
    """Probability that a modality is dropped in training; clinical never is."""
    moddrop_mode: Literal["per_sample", "per_batch"] = "per_sample"
    """Each modality of each patient by itself, or one modality of a whole batch."""
    emb_noise: NotNegative = 0.05
    """Standard deviation of the noise on tokens in training."""
    mc_samples: Annotated[int, Field(ge=0)] = 0
    """Passes with every dropout on behind `predict`'s `*_std`; 0 leaves them out."""

    alpha_surv: NotNegative = 1.0
    """Weight of the survival loss."""
    alpha_rec: NotNegative = 1.0
    """Weight of the recurrence loss."""
    alpha_con: NotNegative = 0.0
    """Weight of the contrast between two views of a patient (InfoNCE); 0 makes no second view.

    Negatives are the other patients of a worker's micro-batch, not those of other workers."""
    alpha_kl: NotNegative = 0.05
    """Weight of the latent's divergence."""
    alpha_impute: NotNegative = 0.1
    """Weight of reconstruction and imputation."""
    contrastive_temp: Annotated[float, Field(gt=0)] = 0.07
    """Temperature of the contrast."""
    focal_gamma: NotNegative = 0.0
    """Turns the loss from easy rows (focal loss, Lin et al. 2017); 0 is cross-entropy."""
    best_by: Literal["f1", "auc"] = "f1"
    """What of tuning `checkpoints/best_surv`, `best_rec` and `best_avg` are the best by: F1 at 0.5,
    or AUROC."""
    class_weight: Literal["none", "balanced"] = "none"
    """Whether the positive class weighs as much as the other in train."""
    censoring_weight: bool = True
    """Whether known rows stand for those lost before the horizon (IPCW, fitted on train)."""

    def __post_init__(self) -> None:
        """Check what one field alone cannot say."""
        unknown = sorted(set(self.codes) - set(MODALITIES))
        if unknown:
            raise ValueError(f"codes: no modality {unknown[0]}; there are {', '.join(MODALITIES)}")
        if self.preset is not None and None not in self._given:
            raise ValueError(
                f"preset {self.preset} has no say beside {', '.join(Size._fields)}; set those to "
                "null that it shall fill"
            )
        size = self.size
        if size.width % size.heads:
            raise ValueError(f"width {size.width} must be a multiple of heads {size.heads}")
        if self.phrases is None:
            check_width(self.text_model, self.embedding_dim)
        if self.missing == "impute" and not self.alpha_impute:
            raise ValueError("alpha_impute 0 leaves the imputer untrained; set missing=mask")
        if self.survival.name == self.recurrence.name:
            raise ValueError(f"both outcomes are called {self.survival.name}")

    @property
    def outcomes(self) -> tuple[Outcome, Outcome]:
        """Both outcomes in order."""
        return self.survival, self.recurrence

    @property
    def size(self) -> Size:
        """The sizes that count: those given, else the preset's, else the default."""
        named = DEFAULT if self.preset is None else PRESETS[self.preset]
        return Size(*(n if own is None else own for own, n in zip(self._given, named, strict=True)))

    @property
    def _given(self) -> tuple[int | None, ...]:
        return tuple(getattr(self, name) for name in Size._fields)

    @property
    def views(self) -> int:
        """Views of a patient in training."""
        return 2 if self.alpha_con else 1


def idle(config: HCATConfig, _task: bool) -> dict[str, str]:
    """Return the paths that change nothing under a config, and what makes it so."""
    model: dict[str, str] = {}
    found: dict[str, str] = {}
    if config.missing == "mask":
        why = "model.missing=mask"
        model |= dict.fromkeys(("mask_ratio", "alpha_kl", "alpha_impute"), why)
        found = dict.fromkeys(("schedules.beta", "schedules.free_bits"), why)
    elif not config.alpha_kl:
        found = dict.fromkeys(("schedules.beta", "schedules.free_bits"), "model.alpha_kl=0")
    if not config.linear:
        model["linear_modalities"] = "model.linear=false"
    if not config.alpha_con:
        model["contrastive_temp"] = "model.alpha_con=0"
    if not config.moddrop:
        model["moddrop_mode"] = "model.moddrop=0"
    if config.text_model is None:
        model |= dict.fromkeys(("phrases", "embedding_dim"), "model.text_model=null")
    return found | {f"model.{name}": why for name, why in model.items()}


def undivided(config: HCATConfig) -> str | None:
    """Return the setting whose parameters are single numbers, which no rank has a part of."""
    return "model.missing=impute" if config.missing == "impute" else None


SCHEMA = ConfigSchema(
    config=HCATConfig,
    schedules={
        "beta": Ramp(start=0.0, end=1.0, epochs=10),
        "free_bits": Constant(value=0.0),
    },
    idle=idle,
    undivided=undivided,
)
