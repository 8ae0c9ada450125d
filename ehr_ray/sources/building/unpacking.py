"""Large compressed files, unpacked once before units are read, so that several tasks read them.

    unpacked/<unit>/<piece>.rows  the lines of a range, zstd (parsing/csv_ranges.py)
             <unit>.json          the ranges, left last; none of a unit that stays whole

Once all of the latter are there the units are fixed, however the ingest goes on; the pieces go with
the staging folder.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ehr_ray.sources.building.staging import Plan, publish_as
from ehr_ray.sources.parsing.csv_ranges import piece_name, unpack
from ehr_ray.sources.source import Unit
from ehr_ray.storage import files

UNPACKED: Final = "unpacked"


def ranges_path(plan: Plan, number: int) -> Path:
    """Return the file of the ranges of unit `number`."""
    return plan.staging / UNPACKED / f"{number:06d}.json"


def unpack_unit(plan: Plan, number: int, unit: Unit | None) -> None:
    """Leave the ranges of a unit and their lines; without a unit, that it stays whole.

    What is there is kept.
    """
    path = ranges_path(plan, number)
    if path.exists():
        return
    ranges: list[tuple[int, int, int]] = []
    if unit is not None:
        folder = path.with_suffix("")
        with files.new_folder(folder, publish_as(folder)) as pieces:
            ranges = unpack(unit, pieces)
    files.write_text(path, json.dumps(ranges))


def cut_units(plan: Plan, units: Sequence[Unit]) -> list[Unit]:
    """Return the units, each that was unpacked as those of its pieces, in their order."""
    found = []
    for number, unit in enumerate(units):
        ranges = [] if unit.packed is None else json.loads(ranges_path(plan, number).read_text())
        pieces = [
            replace(
                unit,
                start=start,
                stop=stop,
                line=line,
                piece=f"{UNPACKED}/{number:06d}/{piece_name(index)}",
            )
            for index, (start, stop, line) in enumerate(ranges)
        ]
        found += pieces or [unit]
    return found
