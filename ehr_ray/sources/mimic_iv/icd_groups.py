"""Diagnoses of an admission as tasks: groups of ICD codes by a table that anyone can extend.

The table is a CSV of `task,version,prefix`: a task is true of an admission that was billed a code
of this version of ICD that begins with one of its prefixes. Codes have no dot in either place.
"""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.events.label_tasks import canonical_task
from ehr_ray.sources.parsing.admissions import Admissions, Rows
from ehr_ray.sources.parsing.blocks import Block
from ehr_ray.sources.parsing.cells import Mask
from ehr_ray.sources.parsing.labels import label_rows

SHIPPED: Final = "icd"
"""Name of the table that is shipped."""
COLUMNS: Final = ("task", "version", "prefix")
TAKEN: Final = (
    "mortality",
    "length_of_stay",
    "length_of_stay_7d",
    "length_of_stay_class",
    "readmission_30d",
)
Groups = Mapping[str, tuple[str, ...]]
"""Task to prefixes, each `version//code`."""


def groups_file(name: str) -> Path:
    """Return the file of a table, by its path or the name of the one that is shipped."""
    return Path(__file__).with_suffix(".csv") if name == SHIPPED else Path(name).absolute()


def read_groups(path: Path) -> Groups:
    """Read a table; InputError names a line that is none."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise InputError(
                    f"--tasks {path}: no column {missing[0]}; give task,version,prefix"
                )
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--tasks {path}: unreadable ({error}); give a CSV, or `icd`") from None
    groups: dict[str, tuple[str, ...]] = {}
    for line, row in rows:
        task, version, code = ((row[name] or "").strip() for name in COLUMNS)
        code = code.replace(".", "").upper()
        if not task or version not in ("9", "10") or not code:
            raise InputError(
                f"--tasks {path}, line {line}: needs a task, version 9 or 10 and the beginning of "
                f"a code, not {task!r}, {version!r}, {code!r}"
            )
        name = canonical_task(task)
        if name in TAKEN:
            raise InputError(
                f"--tasks {path}, line {line}: {name} has labels of its own; rename it"
            )
        groups[name] = (*groups.get(name, ()), f"{version}//{code}")
    if not groups:
        raise InputError(f"--tasks {path}: no rows; give task,version,prefix")
    return groups


def billed(
    found: Admissions, blocks: Iterable[Block], groups: Groups
) -> tuple[Mask, dict[str, Mask]]:
    """Return (which admissions have a diagnosis, which one of each group), bool [A] each.

    `blocks` are of `hosp/diagnoses_icd`. What was billed to an admission inside another counts for
    the outer one.
    """
    some = np.zeros(len(found.hadm), bool)
    groups_of = {task: np.zeros(len(found.hadm), bool) for task in groups}
    for block in blocks:
        columns = block.columns
        row, known = found.find(columns["subject_id"], columns["hadm_id"])
        row = found.outer[row[known]] if len(found.hadm) else row[known]
        some[row] = True
        at, codes = _codes(columns)
        for task, prefixes in groups.items():
            member = np.array([code.startswith(prefixes) for code in codes], bool)
            groups_of[task][row[member[at[known]]]] = True
    return some, groups_of


def _codes(columns: Mapping[str, Any]) -> tuple[npt.NDArray[np.intp], list[str]]:
    """Return (index of each row's code, `version//code` of each)."""
    version = pc.cast(pa.array(np.asarray(columns["icd_version"])), pa.string())
    text = pa.array(np.asarray(columns["icd_code"], dtype=object), pa.string())
    text = pc.replace_substring(pc.utf8_upper(pc.utf8_trim_whitespace(text)), ".", "")
    both = pc.binary_join_element_wise(version, text, "//").dictionary_encode()
    return both.indices.to_numpy().astype(np.intp), both.dictionary.to_pylist()


def group_labels(
    found: Admissions, row: Rows, time: Any, some: Mask, groups_of: Mapping[str, Mask]
) -> dict[str, pa.Table]:
    """Return label rows by group of admissions `row`, predicted at `time`.

    One without any diagnosis was not billed: it has no answer.
    """
    told = some[row]
    row, times = row[told], pa.array(time[told])
    return {
        task: label_rows(found.subject[row], member[row], times=times)
        for task, member in groups_of.items()
    }
