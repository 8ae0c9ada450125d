"""Codes as clinical phrases: what a sentence transformer can make sense of.

Names come, in this order, from the lookups a user gives, from the cohort's own descriptions, from
the lookups that ship with the package (PhysioNet 2012 variables, common MIMIC-IV items), and at
last from the words of the code itself.
"""

import csv
import functools
import importlib.resources
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ehr_ray.errors import InputError
from ehr_ray.events.vocabulary import Vocabulary

Terms = Mapping[str, str]

NAMED = {"MEDS_BIRTH": "Birth", "MEDS_DEATH": "Death", "F": "female", "M": "male"}
VERBS = {"START", "STOP", "END"}
LEVELS = ("very low", "low", "normal", "high", "very high")
NO_UNIT = {"", "UNK", "N/A", "NONE", "NULL"}
MEDICAL = {"MEDICAL", "DIAGNOSIS", "PROCEDURE", "DIAG", "PROC", "ICD", "MEASUREMENT", "SYMPTOM"}
LAB = {"LAB", "MEASUREMENT"}
DEMOGRAPHIC = {"GENDER", "ETHNICITY", "RACE", "SEX"}
FIRST_CHART_ITEM = 220_000
"""MIMIC-IV numbers laboratory items below this and bedside items above."""

_INTERVAL = re.compile(r"<time_interval_(\d+)(d|mt)-(?:(\d+)(d|mt))?>", re.IGNORECASE)
_SPAN = {"d": "days", "mt": "months"}
_LEGEND = re.compile(r"\d+ .*, \d+ ")
_UNIT = re.compile(r"\s*\(([^()]*)\)\s*$")


@dataclass(frozen=True)
class Lookups:
    """Names a user brings: upper-cased code -> term, of diagnoses and the like, and of labs."""

    medical: Terms = field(default_factory=dict)
    lab: Terms = field(default_factory=dict)


NO_LOOKUPS = Lookups()


def read_lookup(path: str | Path | None, key: str) -> Terms:
    """Return the terms of a CSV with columns `code` and `term`; {} for None.

    Keys are upper-cased, empty terms left out; of two rows with one code the last wins. `key` is
    the option that names the file, for the message of InputError.
    """
    if path is None:
        return {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = {name.strip().lower(): name for name in reader.fieldnames or ()}
            if not {"code", "term"} <= set(names):
                raise InputError(f"{key}={path}: columns {sorted(names)}; it needs code and term")
            rows = [(row[names["code"]] or "", row[names["term"]] or "") for row in reader]
    except FileNotFoundError as error:
        raise InputError(f"{key}={path}: no such file; correct the path or drop {key}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{key}={path}: not a readable CSV ({error}); save it as UTF-8") from error
    return {code.strip().upper(): term.strip() for code, term in rows if term.strip()}


def phrases_of(vocabulary: Vocabulary, lookups: Lookups = NO_LOOKUPS) -> list[str]:
    """Return the phrase of every code, without value and unit."""
    pairs = zip(vocabulary.codes, vocabulary.descriptions, strict=True)
    return [phrase_of(code, description, lookups) for code, description in pairs]


def units_of(vocabulary: Vocabulary) -> list[str]:
    """Return the unit of every code; empty where none is known. No lookup of a user has a say."""
    return [
        unit_of(code, description)
        for code, description in zip(vocabulary.codes, vocabulary.descriptions, strict=True)
    ]


def phrase_of(code: str, description: str = "", lookups: Lookups = NO_LOOKUPS) -> str:
    """Return the phrase of one code, as in `LAB//50912//mg/dL` -> "Lab Creatinine"."""
    head, *rest = code.split("//")
    if len(rest) > 1 and rest[-1] in LEVELS:
        return f"{phrase_of(code.rpartition('//')[0], description, lookups)} {rest[-1]}"
    if not rest:
        head, rest = _old_prefix(head)
    whole = code.upper()
    given = lookups.medical.get(whole) or lookups.lab.get(whole)
    if given:
        return given
    if not rest:
        return _alone(code, description)
    kind, item = head.upper(), rest[0]
    if kind in LAB and item.upper() in lookups.lab:
        return f"Lab {lookups.lab[item.upper()]}"
    if kind in MEDICAL and rest[-1].upper() in lookups.medical:
        return lookups.medical[rest[-1].upper()]
    if _plain(description):
        return _plain(description)
    if kind in LAB:
        lab = kind == "LAB" and not (item.isdigit() and int(item) >= FIRST_CHART_ITEM)
        return f"Lab {_item(item)}" if lab else _item(item)
    if kind in DEMOGRAPHIC:
        return " ".join(["Demographic", kind.lower(), *(_words(part) for part in rest)])
    if kind == "MEDICAL":
        return _words(" ".join(rest))
    if kind == "DIAGNOSIS" and len(rest) == 3 and rest[0] == "ICD":
        return " ".join(filter(None, ["Diagnosis,", _chapter(rest[1], rest[2]), *rest]))
    known = [p for p in rest if p.upper() not in NO_UNIT and p != unit_of(code)]
    return " ".join([_words(head).capitalize(), *(_item(part) for part in known)])


def unit_of(code: str, description: str = "") -> str:
    """Return the unit a code or its description states: `LAB//50912//mg/dL` -> "mg/dL"."""
    parts = code.split("//")
    if len(parts) > 2 and parts[0].upper() in {*LAB, "SUBJECT_FLUID_OUTPUT"}:
        unit = parts[-1].strip()
        return "" if unit.upper() in NO_UNIT or unit in LEVELS else unit
    found = _UNIT.search(description)
    if found and not re.fullmatch(r"[\d\s.-]+|.*=.*|.*\d \w+, \d.*", found[1]):
        return found[1]
    return _own_units().get(code, "")


def _alone(code: str, description: str) -> str:
    interval = _INTERVAL.fullmatch(code)
    if interval:
        first, unit, last, end = interval.groups()
        if last is None:
            return f"more than {first} {_SPAN[unit.lower()]}"
        same = unit.lower() == end.lower()
        return f"{first}{'' if same else ' ' + _SPAN[unit.lower()]}-{last} {_SPAN[end.lower()]}"
    if re.fullmatch(r"Q\d+", code):
        return code[1:]
    if code in NAMED:
        return NAMED[code]
    if _plain(description):
        return _plain(description)
    own = _own_terms().get(code)
    return own or (code if code.startswith(("<", "AGE")) else _words(code))


def _old_prefix(code: str) -> tuple[str, list[str]]:
    """Split `DIAG_I10` and the like, the other spelling of the same thing."""
    kind, underscore, rest = code.partition("_")
    full = {"DIAG": "DIAGNOSIS", "PROC": "PROCEDURE", "MED": "MEDICATION", "LAB": "LAB"}.get(kind)
    return (full, [rest]) if full and underscore and rest else (code, [])


def _plain(description: str) -> str:
    """Return a description without its unit; "" for a legend of numbers, which names nothing."""
    return "" if _LEGEND.match(description) else _UNIT.sub("", description)


def _item(part: str) -> str:
    return _own_terms().get(part) or (f"item {part}" if part.isdigit() else _words(part))


def _chapter(version: str, code: str) -> str:
    """Return the chapter of an ICD diagnosis, so that an unnamed code still says what it is of."""
    start = code[:3].upper()
    rows = (r for r in _rows("icd_chapters.csv") if r["version"] == version)
    return next((r["term"] for r in rows if r["first"] <= start <= r["last"]), "")


def _words(text: str) -> str:
    """Return a code as words; capitals of a whole sentence are lowered, acronyms stay."""
    text = NAMED.get(text, text).replace("_", " ").strip()
    return text.lower() if text.isupper() and (" " in text or text in VERBS) else text


@functools.cache
def _rows(name: str) -> tuple[Mapping[str, str], ...]:
    text = (importlib.resources.files("ehr_ray.events") / "lookups" / name).read_text("utf-8")
    return tuple(csv.DictReader(text.splitlines()))


@functools.cache
def _own_terms() -> Terms:
    rows = [*_rows("physionet2012.csv"), *_rows("mimic_iv.csv")]
    return {row["code"]: row["term"] for row in rows}


@functools.cache
def _own_units() -> Terms:
    return {row["code"]: row["unit"] for row in _rows("physionet2012.csv")}
