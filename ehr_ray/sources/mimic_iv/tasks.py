"""Labels of MIMIC-IV: death in hospital, the stay, readmission, and groups of diagnoses.

See `parsing.admissions` and `icd_groups`.

The start is the first hospital admission, or the first to an ICU.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.sources.mimic_iv.icd_groups import billed, group_labels, read_groups
from ehr_ray.sources.mimic_iv.options import MimicIvOptions
from ehr_ray.sources.mimic_iv.table_units import Registry
from ehr_ray.sources.mimic_iv.tables import DIAGNOSES, STAYS
from ehr_ray.sources.parsing.admissions import (
    readmission_labels,
    stay_labels,
    stay_length_labels,
    still_there,
)
from ehr_ray.sources.parsing.blocks import joined, read_whole
from ehr_ray.sources.parsing.cells import Times


def labels(
    registry: Registry,
    options: MimicIvOptions,
    root: str,
    stays: str | None,
    groups: Sequence[str] = (),
) -> dict[str, pa.Table]:
    """Return label rows by task of all kept subjects; `stays` is the file of ICU stays.

    `groups` are the file of diagnoses and the table of their groups, where they are tasks.
    """
    if options.label_start == "icu":
        assert stays is not None
        row, start = _first_icu(registry, root, stays)
    else:
        row, start = _first_hospital(registry)
    found = registry.admissions
    death = registry.death()[np.searchsorted(registry.subject, found.subject)]
    diagnoses: dict[str, pa.Table] = {}
    if groups:
        columns = dict.fromkeys(("subject_id", "hadm_id", "icd_version", "icd_code"))
        blocks = read_whole(root, groups[0], DIAGNOSES, columns, registry)
        members = billed(found, blocks, read_groups(Path(groups[1])))
        there, _, time = still_there(found, row, start, options.label_hours)
        diagnoses = group_labels(found, there, time, *members)
    lengths: dict[str, pa.Table] = {}
    if options.stay:
        lengths = stay_length_labels(found, row, start, options.label_hours)
    return {
        **stay_labels(found, row, start, options.label_hours),
        **lengths,
        **diagnoses,
        "readmission_30d": readmission_labels(found, registry.look_up(found.subject)[1], death),
    }


def _first_hospital(registry: Registry) -> tuple[npt.NDArray[np.intp], Times]:
    """Return (row of each kept subject's first admission, its start)."""
    found = registry.admissions
    row = found.first()
    row = row[registry.look_up(found.subject[row])[1]]
    return row, found.start[row]


def _first_icu(registry: Registry, root: str, stays: str) -> tuple[npt.NDArray[np.intp], Times]:
    """Return (row of the admission with each kept subject's first ICU stay, start of the stay)."""
    held = dict.fromkeys(("subject_id", "hadm_id", "stay_id"), np.int64)
    columns = {**held, "intime": "datetime64[us]"}
    found = joined(read_whole(root, stays, STAYS, columns, registry), columns)
    ids, hadm, stay, start = found.values()
    row, known = registry.admissions.find(ids, hadm)
    order = np.lexsort((stay, start, ids))
    order = order[known[order]]
    _, first = np.unique(ids[order], return_index=True)
    order = order[first]
    return row[order], start[order]
