"""What an evaluation does where the cohort is not the run's own: codes, coverage, drift, places."""

import dataclasses
from pathlib import Path

from ehr_ray.commands.evaluate.report_content import Subject
from ehr_ray.errors import InputError
from ehr_ray.evaluation.coverage import measure_coverage, require_coverage
from ehr_ray.evaluation.suite import SuiteResult
from ehr_ray.evaluation.tasks.downstream import Split
from ehr_ray.evaluation.tasks.external import drift_result
from ehr_ray.events.code_map import CodeMap
from ehr_ray.events.subgroups import Subgroup, place_subgroups
from ehr_ray.runtime.data.dataset import CODES
from ehr_ray.runtime.data.manifest import opened
from ehr_ray.runtime.data.mapped import mapped_cohort
from ehr_ray.runtime.data.tasks import Say
from ehr_ray.sources.building.resume import has_changed
from ehr_ray.sources.building.staging import MAPPED
from ehr_ray.storage import files


def check_share(share: float, subject: Subject) -> None:
    """Refuse a `--recalibrate` that is no share, or that has nothing to be refitted on."""
    if not 0 < share < 1:
        raise InputError(f"--recalibrate {share}: not a share between 0 and 1")
    if subject.own or subject.task is None:
        needs = "another cohort (--cohort)" if subject.own else "a task (--task)"
        raise InputError(f"--recalibrate {share}: needs {needs}")


def mapped_subject(
    subject: Subject, code_map: CodeMap | None, scratch: Path, say: Say
) -> tuple[Subject, tuple[str, ...]]:
    """Return (the subject with a mapped copy of its events, lines on the map)."""
    if code_map is None:
        return subject, ()
    cohort, lines = mapped_cohort(
        subject.cohort,
        [subject.split],
        code_map,
        subject.loaded.vocabulary,
        scratch,
        on_ray=subject.on_ray,
        say=say,
    )
    return dataclasses.replace(subject, mapped=cohort), tuple(lines)


def coverage_result(subject: Subject, least: float, say: Say) -> SuiteResult:
    """Return which events of another cohort's split the model knows; of its own it knows all.

    Metrics are `<split>/known_events`, the share of them, and `<split>/trained_events`, the share
    of what the model was trained on whose codes they have.
    """
    if subject.own:
        return SuiteResult()
    events, cache = subject.events, subject.cache_of(subject.events)
    with opened(events, cache, on_ray=subject.on_ray, say=say) as manifest:
        coverage = measure_coverage(manifest, subject.loaded.vocabulary, subject.split)
    mapped = subject.mapped is not None or has_changed(subject.cohort, MAPPED)
    require_coverage(coverage, least, subject.cohort, mapped=mapped)
    return SuiteResult(
        metrics={
            f"{subject.split}/known_events": coverage.known,
            f"{subject.split}/trained_events": coverage.trained,
        },
        sections={"Events the model does not know": coverage.table()} if coverage.unknown else {},
        lines=tuple(filter(None, (coverage.line(), coverage.absent_line()))),
    )


def drift_of(subject: Subject, home: Split, judged: Split) -> SuiteResult:
    """Return how far the variables of another cohort are from the run's own."""
    if home.features is None or judged.features is None or subject.features is None:
        return SuiteResult()
    names = subject.loaded.vocabulary.codes
    codes = [names[i] for i in subject.features.simple]
    return drift_result(codes, home.features, judged.features, subject.split)


def subgroups_by_place(cohort: Path) -> dict[str, Subgroup]:
    """Return the subgroups by hospital of a cohort, of the codes that it lists."""
    path = cohort / CODES
    if not path.is_file():
        return {}
    codes: list[str] = files.read_parquet(path, ["code"])["code"].to_pylist()
    return place_subgroups(codes)
