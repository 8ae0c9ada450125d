"""What the report shows, as records: whoever evaluates fills them, `page` renders them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from ehr_ray.evaluation.metrics.collapse import EmbeddingDiagnostics, LatentDiagnostics
from ehr_ray.evaluation.table import Table


@dataclass(frozen=True)
class SplitSize:
    """How many patients a split holds, how many have a label, how many of these are positive."""

    name: str
    patients: int
    labelled: int = 0
    positive: int | None = 0
    """None where labels are not binary."""


@dataclass(frozen=True)
class Rejected:
    """Input that ingest put into quarantine."""

    rows: int
    """Events (or rows) refused."""
    total: int
    """Events (or rows) read."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """How many for each reason."""
    changes: tuple[str, ...] = ()
    """What was read otherwise than it stood, a line each."""


@dataclass(frozen=True, kw_only=True)
class ReportContext:
    """All that the report shows. Only `title` is needed: a part without content is left out."""

    title: str
    run: Mapping[str, str] = field(default_factory=dict)
    """What was run, in a few words each: family, parameters, steps, workers, seconds, ..."""
    task: str = ""
    """Name of the label, e.g. `mortality`; empty without labels."""
    split: str = "held_out"
    """The split the verdict and the comparison are about."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Flat metrics with the keys of metrics.json."""
    verdicts: Sequence[str] = ()
    """Sentences of `TaskScores.verdicts`, strongest baseline first."""
    notes: Sequence[str] = ()
    """What did not go as usual, e.g. `TaskScores.notes`."""
    latents: Mapping[str, LatentDiagnostics] = field(default_factory=dict)
    """Collapse diagnostics of each latent, by name."""
    embeddings: Mapping[str, EmbeddingDiagnostics] = field(default_factory=dict)
    """Diagnostics of frozen representations without a posterior, by name."""
    reconstruction: Table | None = None
    """Reconstruction error of the model beside constants (train mean or median, last value)."""
    sections: Mapping[str, Table] = field(default_factory=dict)
    """Further tables by their heading, in the order shown: what the family's suites found."""
    captions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Title and caption of figures that `figures.CAPTIONS` does not name."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """By name, in the order shown; names in `figures.CAPTIONS` get their title and caption."""
    cohort: Mapping[str, str] = field(default_factory=dict)
    """Provenance: source, path or version, number of codes, ..."""
    splits: Sequence[SplitSize] = ()
    rejected: Rejected | None = None
    config: str = ""
    """The resolved experiment.yaml."""
    versions: Mapping[str, str] = field(default_factory=dict)
