"""What stands beside the shards: codes, labels, and lines on how the subjects were divided."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.events.code_statistics import CodeFit
from ehr_ray.events.schema import ORIGIN_CODES, VECTORS, VECTORS_FILE, is_origin
from ehr_ray.events.vocabulary import described, with_origin
from ehr_ray.sources.building.groups import group_notes
from ehr_ray.sources.building.ranges import Buckets, Settled, merged, written
from ehr_ray.sources.building.staging import Plan, side_table, splits_table, stacked
from ehr_ray.sources.building.statistics import found_quantiles
from ehr_ray.sources.parsing.identifiers import NAMES
from ehr_ray.sources.parsing.labels import LeftOut
from ehr_ray.sources.source import Source, Unit
from ehr_ray.storage import files

MOST_VECTORS: Final = 1_000_000
"""Embeddings of a cohort: a model holds them all, and an event decoder scores each of them."""


@dataclass(frozen=True)
class TaskSummary:
    """Labels of one task: how many, and the mean of their values (None unless boolean or float).

    `unknown` rows had no answer, `repeated` ones said what another row says.
    """

    labels: int
    mean: float | None
    unknown: int = 0
    repeated: int = 0

    def __str__(self) -> str:
        """Return what the screen says of it."""
        parts = [f"{self.labels:,} labels"]
        parts += [] if self.mean is None else [f"mean {self.mean:.3f}"]
        parts += [f"{self.unknown:,} rows without an answer"] if self.unknown else []
        parts += [f"{self.repeated:,} rows that repeat another"] if self.repeated else []
        return ", ".join(parts)


def division_notes(plan: Plan, undivided: int, found: Sequence[Settled]) -> Iterator[str]:
    """Yield what is to be said of how the subjects were divided, of whom ranges tell what is found.

    No split was said of `undivided` of them.
    """
    if undivided and plan.unlisted == "drop":
        yield (
            f"--splits {plan.policy.file}: {undivided:,} subjects of the input have no split there "
            "and are left out (--unlisted drop)"
        )
    elif undivided:
        shares = ", ".join(f"{share:g}" for share in plan.policy.fractions)
        yield f"{undivided:,} subjects have no split in the source: divided by hash, {shares}"
    divided = sum(each.divided for each in found)
    if plan.split_by is not None:
        yield from group_notes(plan, sum(each.subjects.total() for each in found) - divided)
    if plan.policy.file is not None and not plan.policy.keep_source:
        table = splits_table(plan)
        if table.renamed:
            names = ", ".join(f"{name} -> {ours}" for name, ours in sorted(table.renamed.items()))
            yield f"--splits {plan.policy.file}: {names}"
        absent = len(table.subject_id) - divided
        if absent:
            yield f"--splits {plan.policy.file}: {absent:,} of its subjects are not in the input"


def fitted_codes(
    plan: Plan, source: Source, fit: CodeFit, parts: list[Path], unit: Unit
) -> pa.Table:
    """Return the fitted codes with what source and input say about them; `unit` is any of it."""
    table = fit.table(found_quantiles(plan, len(fit.ranges())))
    known = {"ADMISSION": "Start of the stay", **source.descriptions}
    said = [pa.table({"code": list(known), "description": list(known.values())})]
    said += [found for part in parts if (found := side_table(part, "codes")) is not None]
    if source.describe is not None:
        said.append(source.describe(unit, table["code"].to_pylist()))
    table = described(table, pa.concat_tables(said, promote_options="default"))
    if plan.origin != ORIGIN_CODES and not any(
        is_origin(code, plan.origin) for code in table["code"].to_pylist()
    ):
        raise InputError(
            f"--origin {','.join(plan.origin)}: no event of the input has such a code; check it"
        )
    return with_origin(table, plan.origin)


def write_labels(
    plan: Plan, ranges: Sequence[Buckets], found: Sequence[Settled], cohort: Path
) -> tuple[dict[str, TaskSummary], int]:
    """Write the label files; return what they hold, and how many rows had no such subject.

    `found` is what the jobs of `ranges` settled. Raises `InputError` where labels clash.
    """
    summaries, orphans = {}, 0
    for task in found[0].labels:
        left_out = sum((each.labels[task] for each in found), LeftOut())
        left_out.check(task)
        orphans += left_out.without_subject
        pieces = written(plan, ranges, f"labels/{task}")
        path = cohort / "labels" / f"{task}.parquet"
        schema = files.open_parquet(pieces[0]).schema_arrow
        value = schema.names[2]
        rows = sum(files.open_parquet(piece).metadata.num_rows for piece in pieces)
        mean = None
        if rows:
            path.parent.mkdir(exist_ok=True)
            files.write_parquet_pieces(merged(pieces), schema, path)
            if value in ("boolean_value", "float_value"):
                mean = pc.mean(files.open_parquet(path).read([value]).combine_chunks()[0]).as_py()
        summaries[task] = TaskSummary(rows, mean, left_out.unknown, left_out.repeated)
    return summaries, orphans


def write_names(plan: Plan, ranges: Sequence[Buckets], folder: Path) -> None:
    """Write `subject_ids.parquet`, how ids were written that are not their number, if any."""
    if pieces := written(plan, ranges, "names"):
        files.write_parquet_pieces(merged(pieces), NAMES, folder / "subject_ids.parquet")


def write_vectors(parts: list[Path], cohort: Path) -> None:
    """Write the embedding of each code once, where events came embedded.

    Raises `InputError` for embeddings of several widths, and for too many.
    """
    table = stacked(parts, "vectors", VECTORS)
    if not len(table):
        return
    _, first = np.unique(np.array(table["code"].to_pylist()), return_index=True)
    check_number(len(first))
    table = table.take(pa.array(first))
    widths = pc.unique(pc.list_value_length(table["vector"])).to_pylist()
    if len(widths) > 1:
        one, other, *_ = sorted(widths)
        raise InputError(
            f"embeddings of {one} and of {other} numbers in one input; embed all by one model"
        )
    files.write_parquet(table, cohort / VECTORS_FILE)


def check_number(vectors: int) -> None:
    """Raise `InputError` for more embeddings than a model can hold."""
    if vectors > MOST_VECTORS:
        raise InputError(
            f"more than {MOST_VECTORS:,} different embeddings: each event seems to have its own, "
            "as of a model that reads the others; embed events by their text alone"
        )
