"""What is known of each kept subject itself: sex, birth, age, death."""

from typing import Final

import numpy as np
import pyarrow as pa

from ehr_ray.sources.mimic_iv.table_units import Registry
from ehr_ray.sources.parsing.admissions import Ids
from ehr_ray.sources.parsing.cells import Floats, Times, events_table

DESCRIPTIONS: Final = {
    "GENDER//F": "Female",
    "GENDER//M": "Male",
    "AGE": "Age at the first hospital admission (years; above 89 all are 91)",
    "MEDS_BIRTH": "Birth (1 January of its shifted year)",
    "MEDS_DEATH": "Death",
    "ED_REGISTRATION": "Registered in the emergency department",
    "ED_OUT": "Left the emergency department",
}


def people(registry: Registry) -> pa.Table:
    """Return the `EVENTS` of all kept subjects.

    `GENDER//<sex>` and `AGE` are static. The anchor gives an age in one shifted year; the age here
    is that of the first admission, without which there is none. `MEDS_BIRTH` is the start of the
    year of birth.
    """
    kept = registry.kept
    ids, births = registry.subject[kept], registry.birth_year[kept]
    never = np.full(len(ids), np.datetime64("NaT"), "datetime64[us]")
    born = (births - 1970).astype("datetime64[Y]").astype("datetime64[us]")
    death = registry.death()[kept]
    first, age = _ages(registry)
    pieces = [
        _rows(
            ids,
            never,
            [f"GENDER//{sex}" for sex in registry.sex.filter(pa.array(kept)).to_pylist()],
        ),
        _rows(ids[first], never[first], "AGE", age[first]),
        _rows(ids, born, "MEDS_BIRTH"),
        _rows(ids[~np.isnat(death)], death[~np.isnat(death)], "MEDS_DEATH"),
    ]
    return pa.concat_tables(pieces)


def _ages(registry: Registry) -> tuple[np.ndarray, Floats]:
    """Return (whether a kept subject was ever admitted, its age then)."""
    admissions = registry.admissions
    subjects, first = np.unique(admissions.subject, return_index=True)
    years = admissions.start[first].astype("datetime64[Y]").astype(np.int64) + 1970
    at = np.searchsorted(registry.subject, subjects)
    age = np.full(len(registry.subject), np.nan)
    age[at] = years - registry.birth_year[at]
    age = age[registry.kept]
    return ~np.isnan(age), age


def _rows(ids: Ids, times: Times, code: str | list[str], values: Floats | None = None) -> pa.Table:
    codes = pa.array([code] * len(ids) if isinstance(code, str) else code, pa.string())
    return events_table(ids, times, codes, np.full(len(ids), np.nan) if values is None else values)
