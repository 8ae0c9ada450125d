"""Five HDF5 files, one a modality, to events: an embedding is 512 codes with values.

`clinical.h5` (or any name that holds the modality's) says who the patients are and what became of
them; of a modality without a row, or with a row of zeros, there are no events.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.modalities import WIDTH
from ehr_ray.events.modality_h5 import ModalityFile, aggregate, read_modality
from ehr_ray.events.options import MODALITIES, RECURRENCE_2Y, SURVIVAL_5Y
from ehr_ray.sources.parsing.cells import events_table, since_epoch
from ehr_ray.sources.parsing.identifiers import subject_ids
from ehr_ray.sources.parsing.labels import label_rows
from ehr_ray.sources.parsing.quarantine import Rejects
from ehr_ray.sources.source import Chunk, Source, Unit

DAY: Final = 1440.0
HORIZONS: Final = {o.name: o.horizon_days for o in (SURVIVAL_5Y, RECURRENCE_2Y)}


@dataclass(frozen=True)
class ModalityOptions:
    """This source has no options."""


def units(path: Path, options: ModalityOptions) -> list[Unit]:  # noqa: ARG001
    """Return the one unit: files of one folder, found by the modality in their name."""
    files = sorted(p.name for p in path.glob("[!.]*.h5")) if path.is_dir() else []
    found = {}
    for name in MODALITIES:
        fits = [file for file in files if name in file.lower()]
        if len(fits) > 1:
            raise InputError(f"--input {path}: {fits[0]} and {fits[1]} are both {name}; keep one")
        if fits:
            found[name] = fits[0]
    if "clinical" not in found:
        raise InputError(f"--input {path}: no clinical*.h5 in it; it says who the patients are")
    return [Unit(str(path), tuple(found.values()), uses=())]


def read(unit: Unit, options: ModalityOptions) -> Iterator[Chunk]:  # noqa: ARG001
    """Yield the embeddings of each modality, and the labels of the clinical file.

    `InputError` where nothing says which rows of two files are of one patient.
    """
    rejects = Rejects()
    parts = {
        name: _patients(Path(unit.root) / file, name)
        for name in MODALITIES
        for file in unit.files
        if name in file.lower()
    }
    _refuse_nameless(unit, parts)
    clinical = parts["clinical"]
    known = set(clinical.ids)
    events, rows = [], 0
    for name, part in parts.items():
        rows += len(part.ids)
        strangers = np.array([one not in known for one in part.ids], bool)
        for row in np.flatnonzero(strangers):
            rejects.row(f"{name}.h5", int(row) + 1, "no row in the clinical file")
        events += _events(name, part, part.embedding.any(1) & ~strangers)
    ids, _, names = subject_ids(pa.array(clinical.ids, pa.string()))
    labels = {}
    for task, label in clinical.labels.items():
        told = label >= 0
        labels[task] = label_rows(ids[told], label[told] == 1, 0.0)
        times, _ = since_epoch(np.full(int(told.sum()), HORIZONS[task]), DAY)
        codes = pa.array([f"LABEL//{task}//{int(x)}" for x in label[told]], pa.string())
        events.append(events_table(ids[told], times, codes, np.full(int(told.sum()), np.nan)))
    yield Chunk(
        events=pa.concat_tables(events),
        labels=labels,
        rejects=rejects.table(),
        rows_read=rows,
        files_read=len(parts),
        names=names,
    )


def _refuse_nameless(unit: Unit, parts: dict[str, ModalityFile]) -> None:
    """Raise `InputError` where row numbers would stand for patients of other files."""
    nameless = [name for name, part in parts.items() if not part.named]
    rows = {len(part.ids) for part in parts.values()}
    if nameless and (len(nameless) < len(parts) or len(rows) > 1):
        raise InputError(
            f"--input {unit.root}: the {nameless[0]} file has no patient_id, so that nobody knows "
            "of which patients of the other files its rows are; give each file a patient_id [N]"
        )


def _patients(path: Path, name: str) -> ModalityFile:
    """Return a file's patients; only slides may be several of one patient."""
    rows = read_modality(path)
    if name == "spatial":
        return aggregate(rows)
    if len(set(rows.ids)) < len(rows.ids):
        twice = next(one for one in rows.ids if rows.ids.count(one) > 1)
        first = rows.ids.index(twice)
        raise InputError(
            f"{path}: rows {first + 1} and {rows.ids.index(twice, first + 1) + 1} are of one "
            "patient; only a spatial file may have several"
        )
    return rows


def _events(name: str, part: ModalityFile, kept: np.ndarray) -> list[pa.Table]:
    ids, _, _ = subject_ids(pa.array(part.ids, pa.string()))
    prefix, number = name.upper(), int(kept.sum())
    codes = pa.array([f"{prefix}//EMBEDDING//{i:03d}" for i in range(WIDTH)], pa.string())
    found = [
        _static(
            np.repeat(ids[kept], WIDTH),
            codes.take(pa.array(np.tile(np.arange(WIDTH), number))),
            part.embedding[kept].ravel(),
        ),
        _static(ids[kept], _same(f"{prefix}//QUALITY", number), part.quality[kept]),
    ]
    if part.variance is not None:
        spread = np.sqrt(np.maximum(part.variance[kept], 0)).mean(1)
        found.append(_static(ids[kept], _same(f"{prefix}//SPREAD", number), spread))
    return found


def _same(code: str, number: int) -> pa.Array:
    return pa.array([code] * number, pa.string())


def _static(ids: np.ndarray, codes: pa.Array, values: np.ndarray) -> pa.Table:
    times, _ = since_epoch(np.full(len(ids), np.nan), 1.0)
    return events_table(ids, times, codes, values.astype(np.float64))


SOURCE: Final = Source(
    name="modality-h5",
    description="HDF5 files of five modalities (clinical.h5, ...), 512 numbers a patient or slide",
    options=ModalityOptions,
    units=units,
    read=read,
    positive=lambda _: {o.name: o.describes for o in (SURVIVAL_5Y, RECURRENCE_2Y)},
)
