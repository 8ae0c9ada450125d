"""Patients and admissions, whole in memory: who is kept, who was where when, and who died.

About 50 bytes a patient and as many an admission; no other table is ever held.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.sources.mimic_iv.options import MimicIvOptions
from ehr_ray.sources.mimic_iv.tables import ADMISSIONS, PATIENTS
from ehr_ray.sources.parsing.admissions import Admissions, Ids
from ehr_ray.sources.parsing.blocks import joined, read_whole
from ehr_ray.sources.parsing.cells import Mask, Times
from ehr_ray.sources.source import Chunk
from ehr_ray.sources.splits import sample_positions

HOUR: Final = np.timedelta64(1, "h")
NAT: Final = np.datetime64("NaT", "us")
DAY: Final = np.timedelta64(1, "D")


@dataclass(frozen=True, eq=False)
class Registry:
    """All patients, in order of id; P rows.

    Args:
        subject: ids, ascending, [P].
        sex: `F`, `M` or `UNK`, [P].
        birth_year: year of the anchor less the age then, [P].
        dod: date of death where one is known, else NaT, [P].
        admissions: of all of them.
        kept: who comes into the cohort, [P].
        table: where they are listed.
    """

    subject: Ids
    sex: pa.Array
    birth_year: Ids
    dod: Times
    admissions: Admissions
    kept: Mask
    table: str = PATIENTS.name

    def look_up(self, ids: Ids) -> tuple[Mask, Mask]:
        """Return (whether each subject is known, whether it is kept)."""
        if not len(self.subject):
            return np.zeros(len(ids), bool), np.zeros(len(ids), bool)
        at = np.minimum(np.searchsorted(self.subject, ids), len(self.subject) - 1)
        known = self.subject[at] == ids
        return known, known & self.kept[at]

    def death(self) -> Times:
        """Return when each subject died, NaT where not known, [P].

        In hospital to the minute. Elsewhere there is a date alone, and death stands at its end,
        and never before the end of the day of the last discharge, which who leaves alive outlives:
        an earlier date is mistyped. Too late hides nothing from a model, too early would tell it.
        """
        admissions = self.admissions
        at = np.searchsorted(self.subject, admissions.subject)
        end = np.full(len(self.subject), np.datetime64("NaT"), "datetime64[us]")
        np.fmax.at(end, at, admissions.end)
        outside = np.where(np.isnat(self.dod), self.dod, np.fmax(day_end(self.dod), day_end(end)))
        inside = np.full(len(self.subject), np.datetime64("NaT"), "datetime64[us]")
        np.fmin.at(inside, at, admissions.death)
        return np.where(np.isnat(inside), outside, inside)


def day_end(dates: Times) -> Times:
    """Return the last second of each date."""
    start = dates.astype("datetime64[D]").astype("datetime64[us]")
    last: Times = np.add(start, np.timedelta64(86_399, "s"))
    return last


def load(root: str, patients: str, admissions: str, options: MimicIvOptions) -> Registry:
    """Read both tables and choose the subjects that `options` keep.

    Rows that cannot be read are left out here; the units that read these tables quarantine them.
    """
    registry, _ = read_patients(root, patients)
    columns = joined(read_whole(root, admissions, ADMISSIONS, _STAY), _STAY)
    known, _ = registry.look_up(columns["subject_id"])
    found = _admissions({name: values[known] for name, values in columns.items()})
    registry = replace(registry, admissions=found)
    return replace(registry, kept=select(registry, options))


def read_patients(root: str, name: str) -> tuple[Registry, Chunk]:
    """Return (patients without admissions, all kept; what was refused)."""
    blocks = read_whole(root, name, PATIENTS, _PERSON)
    rows_read = sum(block.rows_read for block in blocks)
    first: set[int] = set()
    for block in blocks:
        block.refuse(_repeats(block.columns["subject_id"], first), lambda _: "subject_id again")
    columns = joined(blocks, _PERSON)
    order = np.argsort(columns["subject_id"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    registry = Registry(
        subject=columns["subject_id"],
        sex=pa.array(columns["gender"], pa.string()),
        birth_year=columns["anchor_year"] - np.rint(columns["anchor_age"]).astype(np.int64),
        dod=columns["dod"],
        admissions=_admissions(joined([], _STAY)),
        kept=np.ones(len(order), bool),
    )
    rejects = [block.rejects.table() for block in blocks]
    return registry, Chunk(
        rejects=pa.concat_tables([Chunk().rejects, *rejects]), rows_read=rows_read, files_read=1
    )


def _repeats(ids: Ids, seen: set[int]) -> Mask:
    bad = np.zeros(len(ids), bool)
    for i, subject in enumerate(ids.tolist()):
        bad[i] = subject in seen
        seen.add(subject)
    return bad


_PERSON: Final = {
    "subject_id": np.int64,
    "gender": object,
    "anchor_age": np.float64,
    "anchor_year": np.int64,
    "dod": "datetime64[us]",
}
_STAY: Final = {
    "subject_id": np.int64,
    "hadm_id": np.int64,
    "admittime": "datetime64[us]",
    "dischtime": "datetime64[us]",
    "deathtime": "datetime64[us]",
    "hospital_expire_flag": np.float64,
}
"""Columns that are held, and how."""


def _admissions(columns: dict[str, npt.NDArray[Any]]) -> Admissions:
    """Return the admissions with mistyped ends and deaths put right.

    A `deathtime` before the admission, or over a day after its end, is mistyped: death is then at
    the end if the flag says that the patient died in it, and else not in it. An end before the
    start is the death in the admission, else not known.
    """
    subject, hadm = columns["subject_id"], columns["hadm_id"]
    start, end, death = columns["admittime"], columns["dischtime"], columns["deathtime"]
    # A comparison with NaT is false.
    end = np.where(end < start, np.where(death >= start, death, NAT), end)
    believed = (death >= start) & (death <= end + DAY)
    died = (columns["hospital_expire_flag"] == 1) | believed
    death = np.where(believed, death, np.where(died, end, np.datetime64("NaT")))
    return Admissions.of(subject, hadm, start, end, died, death)


def select(registry: Registry, options: MimicIvOptions) -> Mask:
    """Return who is kept, [P].

    A subject's position is a hash of its id alone: a larger `sample_frac` or `max_admissions`
    keeps everyone a smaller one does. Raises `InputError` where nobody is left.
    """
    position = sample_positions(registry.subject)
    admissions = registry.admissions
    at = np.searchsorted(registry.subject, admissions.subject)
    count = np.bincount(at, minlength=len(registry.subject))
    length = count.astype(np.float64)
    if options.seq_unit == "hours":
        length[:] = 0
        np.maximum.at(length, at, (admissions.end - admissions.start) / HOUR)
    kept = (position < options.sample_frac) & (length >= options.min_seq_length)
    if options.max_admissions is not None:
        order = np.argsort(position, kind="stable")
        order = order[kept[order]]
        kept[order[np.cumsum(count[order]) > options.max_admissions]] = False
    if not kept.any():
        most = options.max_admissions
        also = "" if most is None else f" --max-admissions {most}"
        raise InputError(
            f"none of {len(kept)} patients is kept by --sample-frac {options.sample_frac:g} "
            f"--min-seq-length {options.min_seq_length} (of {options.seq_unit}; the longest is "
            f"{length.max(initial=0):g}){also}: ask for less"
        )
    return kept
