"""The `task` section of an experiment: a model trained to predict a label."""

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from ehr_ray.events.label_tasks import Kind, canonical_task

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Loss = Literal["bce", "focal", "huber", "squared", "cross_entropy"]
Choice = Literal[
    "auroc", "auprc", "f1", "mae", "rmse", "r2", "macro_auroc", "accuracy", "macro_f1", "loss"
]
LOSSES: Final[dict[Kind, tuple[Loss, ...]]] = {
    "binary": ("bce", "focal"),
    "regression": ("huber", "squared"),
    "classes": ("cross_entropy",),
}
CHOICES: Final[dict[Kind, tuple[Choice, ...]]] = {
    "binary": ("auroc", "auprc", "f1", "loss"),
    "regression": ("mae", "rmse", "r2", "loss"),
    "classes": ("macro_auroc", "accuracy", "macro_f1", "loss"),
}
"""What fits each kind of task; the first is what counts unless a config says otherwise."""
OUTPUTS: Final[dict[Kind, str]] = {
    "binary": "logit",
    "regression": "target_value",
    "classes": "class_logits",
}
"""The output of `Family.predict` that answers a task."""


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
    kind: Kind = "binary"
    """What the labels are: truth values, numbers (`float_value`, `integer_value`) or classes
    (`categorical_value`). Labels of another kind are refused."""
    classes: tuple[str, ...] = ()
    """Names of the classes, two or more, in the order of the model's outputs; of `classes` only."""
    hours: tuple[Positive, ...] = ()
    """Hours of the admission before a prediction time at which a train patient is seen besides, cut
    there; they count from the origin where there is no admission. They teach to predict early.
    """
    label_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the train subjects whose labels are used, chosen by a hash of their id."""
    loss: Loss | None = None
    """`bce` (binary cross-entropy) or `focal` (Lin et al. 2017, eq. 4); of a regression `huber`
    (with its corner at one standard deviation) or `squared`, of targets standardised as in train;
    of classes `cross_entropy`. null: the first of the kind."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """How much the focal loss turns from easy rows."""
    class_weight: Literal["none", "balanced"] | Positive = "none"
    """Weight of a positive row; `balanced` is negatives over positives in train. Classes can be
    balanced: each then counts as much as any other in train."""
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
    """Heads trained side by side from different starts; what they say is averaged. Of whole models
    it is `train.seeds`."""
    statistics: StatisticsConfig | None = None
    """Statistics of each variable, read by the heads too; null: the embedding alone. Heads then
    differ in what training leaves out, and start at the label's rate or mean in train."""
    start_at_rate: bool = False
    """Whether heads without statistics start at the label's rate in train too, of classes at their
    shares, in place of even odds; also those that `init_from` brings."""
    select: Choice | None = None
    """What of tuning chooses the checkpoint and counts for `train.patience`; f1 is at 0.5. null:
    `auroc`, of a regression `mae`, of classes `macro_auroc`, the mean over classes that have rows.
    """

    def __post_init__(self) -> None:
        """Name a task of nested folders with slashes or not, and settle what its kind decides."""
        object.__setattr__(self, "name", canonical_task(self.name))
        self._settle("loss", LOSSES[self.kind])
        self._settle("select", CHOICES[self.kind])
        if (self.kind == "classes") != bool(self.classes):
            raise ValueError(
                "kind classes needs the names of its classes: give task.classes"
                if self.kind == "classes"
                else f"classes {list(self.classes)} are of task.kind=classes, not {self.kind}"
            )
        if self.classes and len(set(self.classes)) < max(2, len(self.classes)):
            raise ValueError(f"classes {list(self.classes)}: give two or more, each once")
        weighted = {"binary": True, "regression": False, "classes": self.class_weight == "balanced"}
        if self.class_weight != "none" and not weighted[self.kind]:
            raise ValueError(
                f"class_weight {self.class_weight} does not fit kind {self.kind}; "
                + ("use none" if self.kind == "regression" else "use none or balanced")
            )
        self._check_start()
        if self.statistics is not None and not self.hidden:
            raise ValueError("statistics need a hidden layer: give task.hidden, as in 128")

    def _check_start(self) -> None:
        """Refuse a start at the rate where heads have it anyhow, or where it is not the start."""
        if not self.start_at_rate:
            return
        if self.statistics is not None:
            raise ValueError(
                "start_at_rate true with statistics: heads start there anyhow; drop it"
            )
        if self.kind == "regression":
            raise ValueError("start_at_rate true of a regression: it starts at the mean; drop it")
        if self.class_weight != "none":
            raise ValueError(
                "start_at_rate true with class_weight: such rows have another rate; use none"
            )

    def _settle(self, name: str, fitting: tuple[Any, ...]) -> None:
        """Set a field that was left open to the first that fits; refuse one that does not."""
        value = getattr(self, name)
        if value is None:
            object.__setattr__(self, name, fitting[0])
        elif value not in fitting:
            raise ValueError(
                f"{name} {value} does not fit kind {self.kind}; use {', '.join(fitting)}"
            )
