"""Options of the vitals VAE: the grid, the architectures, what training hides, the objective."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ehr_ray.config.schedules import Constant, Cycle
from ehr_ray.config.schema import ConfigSchema
from ehr_ray.events.grid import VITALS, Vital

Ratio = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]


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


def inactive_paths(config: VitalsVAEConfig) -> tuple[str, ...]:
    """Return the paths of the search space that change nothing under a config."""
    idle: tuple[str, ...] = ()
    if config.arch == "vq":  # codes have no divergence, and a width of their own
        idle += ("schedules.beta.end", "schedules.beta.ramp_ratio", "schedules.free_bits")
        idle += ("model.latent",)
    if config.arch == "lstm":  # it has a width of its own, and no branches
        idle += ("model.width", "model.branch_weight")
    elif config.objective == "published":
        idle += ("model.branch_weight",)
    return idle + (("model.hide",) if config.objective == "published" else ())


SCHEMA = ConfigSchema(
    config=VitalsVAEConfig,
    schedules={
        "beta": Cycle(end=1.0, epochs=40, ramp_ratio=0.5),
        "free_bits": Constant(value=0.1),
        # Curves are decoded from posterior means: the end of a cycle teaches the decoder those.
        "mean_share": Cycle(end=1.0, epochs=40, wait_ratio=0.75, ramp_ratio=0.05),
    },
)
