"""Options of the vitals VAE: the grid, the architectures, what training hides, the objective."""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Field

from ehr_ray.config.schedules import Constant, Cycle
from ehr_ray.config.schema import ConfigSchema
from ehr_ray.events.options import VITALS, Vital

Ratio = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
Layers = tuple[tuple[PositiveInt, PositiveInt], ...]
"""(kernel, stride) of each convolution of a branch."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A branch of the convolutions."""

    __pydantic_config__ = {"extra": "forbid"}

    name: Annotated[str, Field(pattern=r"^[A-Za-z_]+$")]
    """Its name in files and figures."""
    layers: Annotated[Layers, Field(min_length=1)]
    """(kernel, stride) of each convolution, as in [[3, 2], [5, 2]]; kernels are odd."""

    def __post_init__(self) -> None:
        """Check what keeps a convolution centred on its hour."""
        if even := [kernel for kernel, _ in self.layers if kernel % 2 == 0]:
            raise ValueError(f"scale {self.name}: kernel {even[0]} must be odd")


SCALES: Final = (
    Scale(name="local", layers=((3, 2), (5, 2), (5, 2))),
    Scale(name="hourly", layers=((15, 4), (31, 4))),
    Scale(name="daily", layers=((63, 8), (127, 8))),
    Scale(name="multiday", layers=((255, 16),)),
)
"""As designed for 745 hours."""


@dataclass(frozen=True, kw_only=True)
class VitalsVAEConfig:
    """A variational (or vector-quantised) autoencoder of hourly vital signs."""

    __pydantic_config__ = {"extra": "forbid"}

    vitals: tuple[Vital, ...] = VITALS
    """The vital signs, the codes that measure each, their valid ranges and carry limits."""
    first_hour: int = -24
    """First hour of the grid, counted from the origin."""
    last_hour: int = 720
    """Last hour of the grid, inclusive: 745 hours by default."""
    landmark: PositiveInt | None = None
    """Hours after the origin from which nothing is read, as 24, 48 or 72; null: the whole grid.

    An embedding that predicts an outcome must not see it: the grid ends at the landmark.
    """
    origin: Literal["admission", "first_vital"] = "admission"
    """Hour 0: the patient's first admission, or the first vital sign (the first ICU stay)."""
    clip_value: Annotated[float, Field(gt=0)] = 6.0
    """Largest |z-score| a value enters and is reconstructed with."""

    arch: Literal["conv", "lstm", "vq"] = "conv"
    """Multi-scale convolutions, the recurrent baseline, or convolutions with discrete codes."""
    fallback: Literal["vq"] | None = None
    """Architecture trained instead when this one's latent collapses with two of three seeds."""
    latent: PositiveInt = 32
    """Latent dimensions."""
    width: Annotated[int, Field(ge=2)] = 64
    """Channels of the deepest convolutions; the first ones have half."""
    scales: tuple[Scale, ...] = SCALES
    """Branches of convolutions, the finest first: that one draws every hour."""
    stem: PositiveInt = 12
    """Channels that values, masks and time since observation are mixed to for all branches."""
    bins: PositiveInt = 8
    """Time bins each branch is pooled to: what keeps when something happened."""
    trend_bins: PositiveInt = 96
    """Knots of the linear path beside the convolutions, in both directions."""
    lstm_width: PositiveInt = 128
    """Hidden width of the recurrent baseline."""
    codebook: PositiveInt = 256
    """Entries of the codebook (`vq`)."""
    code_groups: PositiveInt = 16
    """Codes a patient is described by (`vq`)."""
    code_width: PositiveInt = 8
    """Dimensions of a code (`vq`)."""
    commitment: NotNegative = 0.25
    """Weight of the commitment loss (`vq`; van den Oord et al. 2017, eq. 3)."""

    hide: Ratio = 0.1
    """Share of observed cells hidden from the encoder in training; in validation it is 0.1."""
    landmark_share: Ratio = 0.1
    """Share of training patients of whom the encoder sees only the hours up to a landmark."""
    landmarks: tuple[PositiveInt, ...] = (24, 48, 72)
    """Hours after the origin those patients are cut at, drawn evenly; ones off the grid are not."""
    objective: Literal["elbo", "published"] = "elbo"
    """A Gaussian likelihood summed over cells, or means of cells and dimensions as published.

    The published one divides squared errors on a min-max scale by the cells and the divergence by
    the dimensions, and hides nothing: with it, free bits alone decide whether the latent is used.
    """
    evidence: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Weight of the likelihood: hours of a patient are alike, so cells are not all evidence anew.

    1 takes them as independent, which pays for more nats than tell patients apart. The more cells
    a patient has, the less each is: 0.25 suits a month of hours, 0.5 two days. The divergence has
    weight `schedules.beta`, in validation 1.
    """
    branch_weight: NotNegative = 0.25
    """Weight of the reconstruction by the branches (their mean) beside the merged one."""
    noise: Annotated[float, Field(gt=0)] = 0.5
    """Standard deviation of a cell around its reconstruction where training starts, in z-scores."""
    learn_noise: bool = True
    """Whether each vital's noise is trained with the rest."""

    def __post_init__(self) -> None:
        """Check what one field alone cannot say."""
        if not self.vitals:
            raise ValueError("vitals must name at least one vital sign")
        names = [vital.name for vital in self.vitals]
        if len(set(names)) < len(names):
            raise ValueError(f"vitals {names} must have different names")
        if self.landmark is not None and self.landmark > self.last_hour + 1:
            raise ValueError(
                f"landmark {self.landmark} lies beyond the grid, which ends with hour "
                f"{self.last_hour}; raise last_hour or drop landmark"
            )
        if self.num_hours < 2:
            raise ValueError(
                f"first_hour {self.first_hour} to last_hour {self.last_hour} "
                f"(landmark {self.landmark}) leaves fewer than 2 hours"
            )
        branches = [scale.name for scale in self.scales]
        if not branches or len(set(branches)) < len(branches):
            raise ValueError(f"scales {branches} must be at least one, with different names")
        if self.fallback == self.arch:
            raise ValueError(f"fallback {self.fallback} must be another arch than {self.arch}")

    @property
    def num_hours(self) -> int:
        """Columns of the grid."""
        end = self.last_hour + 1
        return (end if self.landmark is None else min(end, self.landmark)) - self.first_hour

    @property
    def num_vitals(self) -> int:
        """Vital signs of the grid."""
        return len(self.vitals)

    @property
    def embedding_width(self) -> int:
        """Width of a patient's embedding."""
        return self.code_groups * self.code_width if self.arch == "vq" else self.latent


def idle(config: VitalsVAEConfig, _task: bool) -> dict[str, str]:
    """Return the paths that change nothing under a config, and what makes it so."""
    arch, published = f"model.arch={config.arch}", config.objective == "published"
    model: dict[str, str] = {}
    if "vq" not in (config.arch, config.fallback):
        model["commitment"] = arch
    if config.arch == "lstm" and config.fallback is None:
        model["branch_weight"] = arch
    if published:
        hiding = ("hide", "landmark_share", "landmarks")
        likelihood = ("evidence", "branch_weight", "noise", "learn_noise")
        model |= dict.fromkeys((*hiding, *likelihood), "model.objective=published")
    elif not config.landmark_share:
        model["landmarks"] = "model.landmark_share=0"
    found = {f"model.{name}": why for name, why in model.items()}
    if config.arch == "vq":
        found |= dict.fromkeys(("schedules.beta", "schedules.free_bits"), arch)
    if config.arch == "vq" or published:
        found["schedules.mean_share"] = arch if config.arch == "vq" else "model.objective=published"
    return found


def inactive_paths(config: VitalsVAEConfig, _task: bool) -> tuple[str, ...]:
    """Return the sizes of architectures that a trial does not train, a fallback's among them."""
    codes = ("model.codebook", "model.code_groups", "model.commitment")
    if config.arch == "lstm":
        return (*codes, "model.width")
    return ("model.latent",) if config.arch == "vq" else codes


SCHEMA = ConfigSchema(
    config=VitalsVAEConfig,
    idle=idle,
    schedules={
        "beta": Cycle(end=1.0, epochs=40, ramp_ratio=0.5),
        "free_bits": Constant(value=0.1),
        # Curves are decoded from posterior means: the end of a cycle teaches the decoder those.
        "mean_share": Cycle(end=1.0, epochs=40, wait_ratio=0.75, ramp_ratio=0.05),
    },
)
