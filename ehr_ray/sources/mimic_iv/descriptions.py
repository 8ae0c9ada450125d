"""Codes -> the words that MIMIC-IV's dictionaries have for them."""

import os
from collections.abc import Iterable, Mapping

import pyarrow as pa

from ehr_ray.sources.parsing.blocks import check_columns
from ehr_ray.sources.parsing.csv_files import read_csv
from ehr_ray.sources.parsing.kinds import UNKNOWN, parse
from ehr_ray.sources.parsing.tables import Table, Titles
from ehr_ray.storage import files

Words = dict[str, str]


def read_titles(
    root: str, names: Mapping[str, str], table: Table
) -> dict[str, tuple[Titles, Words]]:
    """Return prefix -> (titles, key -> words) of a table; `names` are the files there by table."""
    return {
        titles.prefix: (titles, _words(root, names[titles.table], titles))
        for titles in table.titles
        if titles.table in names
    }


def _words(root: str, name: str, titles: Titles) -> Words:
    columns = [*titles.key, *titles.text]
    check_columns(root, name, columns)
    words: Words = {}
    with files.reads(os.path.join(root, name), "fetch it again"):
        for rows, _, _ in read_csv(root, name, columns):
            key, text = (
                zip(*(parse(rows[c], "text")[0].to_pylist() for c in names), strict=True)
                for names in (titles.key, titles.text)
            )
            for one, said in zip(key, text, strict=True):
                words.setdefault("//".join(one), ", ".join(t for t in said if t != UNKNOWN))
    return words


def describe(codes: Iterable[str], known: Mapping[str, tuple[Titles, Words]]) -> pa.Table:
    """Return `code` and `description` of the codes that have words: `Heart Rate (bpm)`."""
    found = {}
    for code in sorted(codes):
        for prefix, (titles, words) in known.items():
            if code.startswith(prefix + "//"):
                parts = code.removeprefix(prefix + "//").split("//")
                said = words.get("//".join(parts[: len(titles.key)]))
                unit = "//".join(parts[len(titles.key) :])
                if said:
                    found[code] = f"{said} ({unit})" if unit and unit != UNKNOWN else said
    return pa.table(
        {"code": pa.array(found, pa.string()), "description": pa.array(found.values(), pa.string())}
    )
