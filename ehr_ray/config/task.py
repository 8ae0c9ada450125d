"""The `task` section of an experiment: a model trained to predict a label."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ehr_ray.events.labels import canonical_task

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
    """The rich features of the baselines, which the heads read beside the family's embedding.

    Each is standardised as in train, a skewed one after a logarithm, and a missing one is told.
    """

    __pydantic_config__ = {"extra": "forbid"}

    windows: Annotated[tuple[Positive, ...], Field(min_length=1)] = (12.0, 24.0, 36.0, 42.0, 48.0)
    """Hours before the prediction time at which windows end, ascending; the first starts at 0.
    Of the whole record there are statistics and the trend; of a window the mean."""
    max_codes: Annotated[int, Field(ge=1)] = 200
    """Codes that get statistics at most: those that most train patients have. Windows and trends
    are of the 64 such with values."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.4
    """Share of these inputs that training leaves out of a row."""
    variable_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the variables of which training leaves out all statistics of a row, as if they had
    not been measured: for patients of places that measure other variables."""

    def __post_init__(self) -> None:
        """Check what one value alone cannot say."""
        if sorted(set(self.windows)) != list(self.windows):
            raise ValueError(f"windows {list(self.windows)} must ascend")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """A head on a family's representation, trained on labels, with or without its encoder.

    Rows are cut at the label's prediction time, so nothing later is ever read.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    """Task of the cohort: `labels/<name>.parquet`, or the files in the folder `labels/<name>/`."""
    hours: tuple[Positive, ...] = ()
    """Hours of the admission before a prediction time at which a train patient is seen besides, cut
    there; they count from the origin where there is no admission. They teach to predict early.
    """
    label_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the train subjects whose labels are used, chosen by a hash of their id."""
    loss: Literal["bce", "focal"] = "bce"
    """Binary cross-entropy, or the focal loss (Lin et al. 2017, eq. 4)."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """How much the focal loss turns from easy rows."""
    class_weight: Literal["none", "balanced"] | Positive = "none"
    """Weight of a positive row; `balanced` is negatives over positives in train."""
    hidden: Annotated[int, Field(ge=0)] = 0
    """Width of the head's hidden layer; 0 makes the head linear."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout on the standardised representation in training."""
    hidden_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Dropout on the hidden layer in training."""
    pool: Literal["own", "attentive"] = "own"
    """What a head reads: the family's own pooling, or an attention over its states by a learned
    query. With the family's part frozen (`freeze: ['base\\..*']`) it is a probe."""
    members: Annotated[int, Field(ge=1)] = 1
    """Heads trained side by side from different starts; their logits are averaged."""
    statistics: StatisticsConfig | None = None
    """Statistics of each variable, read by the heads too; null: the embedding alone. Heads then
    differ in what training leaves out, and start at the label's rate in train."""
    select: Literal["auroc", "auprc", "f1", "loss"] = "auroc"
    """What of tuning chooses the checkpoint and counts for `train.patience`; f1 is at 0.5."""

    def __post_init__(self) -> None:
        """Let a task of nested folders be named with slashes."""
        object.__setattr__(self, "name", canonical_task(self.name))
        if self.statistics is not None and not self.hidden:
            raise ValueError("statistics need a hidden layer: give task.hidden, as in 128")
