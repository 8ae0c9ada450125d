"""Embedded events, a `.pt` file a patient, to a cohort: the source `embedded-pt`.

`{train,tuning,held_out}/<id>.pt` holds `embeddings` (N, D), perhaps `token_ids` (N,) and `label`,
as `export-pt` and the published program write it. A vector is a code, named by its token and a
hash of its bytes, so that a model reads ids into one table and never a vector an event.

It stands here and not among the sources, which do without torch; `--help` imports it without.
"""

import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.schema import VECTORS
from ehr_ray.sources.building.metadata import check_number
from ehr_ray.sources.parsing.cells import events_table, since_epoch
from ehr_ray.sources.parsing.csv_files import whole_csv
from ehr_ray.sources.parsing.identifiers import NAMES, subject_id
from ehr_ray.sources.parsing.labels import label_rows
from ehr_ray.sources.parsing.quarantine import Rejects
from ehr_ray.sources.parsing.split_folders import files_by_split
from ehr_ray.sources.source import CHUNK_ROWS, FILES_PER_UNIT, Chunk, Source, Unit

SUFFIX: Final = ".pt"
SUBJECTS: Final = "subjects.csv"
TASK: Final = "label"
COLUMNS: Final = {"binary": "boolean_value", "classes": "categorical_value"}
_COUNTED: Final = re.compile(r"patient_\d+")
"""Names that count the patients of one folder, and so say nobody's id."""

LabelKind = Literal["binary", "classes", "regression"]


@dataclass(frozen=True)
class EmbeddedOptions:
    """What the label of a file is."""

    label_kind: LabelKind = field(
        default="binary",
        metadata={"help": f"the task `{TASK}`: 0 and 1, whole numbers as classes, or a number"},
    )


@dataclass(frozen=True, eq=False)
class EmbeddedPatient:
    """One file: `vectors` float32 [N, D], `tokens` int64 [N] or None, `label` or None."""

    vectors: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int64] | None
    label: float | None


def units(path: Path, options: EmbeddedOptions) -> list[Unit]:  # noqa: ARG001
    """List groups of 2,000 files of the folder itself and of its split folders."""
    if not path.is_dir():
        raise InputError(f"--input {path}: must be a folder with train/<id>{SUFFIX}")
    uses = (SUBJECTS,) if (path / SUBJECTS).is_file() else ()
    found = []
    for folder, split, files in files_by_split(path, (SUFFIX,), _is_embedded):
        names = [os.path.join(folder, name) for name in files]
        for start in range(0, len(names), FILES_PER_UNIT):
            part = tuple(names[start : start + FILES_PER_UNIT])
            found.append(Unit(str(path), part, split=split, uses=uses))
    if not found:
        raise InputError(f"--input {path}: no <id>{SUFFIX} in it or in train/, tuning/, held_out/")
    return found


def _is_embedded(path: Path) -> bool:
    try:
        read_embedded(str(path))
    except (OSError, InputError):
        return False
    return True


def read(unit: Unit, options: EmbeddedOptions) -> Iterator[Chunk]:
    """Yield whole patients, about 1,000,000 events at a time, with the vectors not met before."""
    owners = _subjects(os.path.join(unit.root, SUBJECTS)) if unit.uses else None
    seen: set[str] = set()
    group: dict[str, EmbeddedPatient] = {}
    rows = 0
    first: tuple[str, int] | None = None
    rejects = Rejects()
    for name in unit.files:
        try:
            patient = read_embedded(os.path.join(unit.root, name))
            if patient.label is not None:
                _answer(patient.label, options.label_kind)
        except (OSError, InputError) as error:
            rejects.file(name, str(error))
            continue
        width = patient.vectors.shape[1]
        first = first or (name, width)
        if width != first[1]:
            raise InputError(
                f"{os.path.join(unit.root, name)}: embeddings of {width} numbers, and those of "
                f"{first[0]} are of {first[1]}; embed all by one model"
            )
        group[name] = patient
        rows += len(patient.vectors)
        if rows >= CHUNK_ROWS:
            yield _chunk(unit, group, owners, seen, options)
            group, rows = {}, 0
    yield _chunk(unit, group, owners, seen, options)
    yield Chunk(rejects=rejects.table(), files_read=len(rejects))


def read_embedded(path: str) -> EmbeddedPatient:
    """Return what a file holds; InputError, without its name, where it is no such dict of tensors.

    Nothing but tensors and plain containers is read: no code of the file runs.
    """
    import torch  # `ingest --help` and other sources do without

    with open(path, "rb") as file:
        given = io.BytesIO(file.read())  # torch tells a cut file as an error of the disk
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of foreign pickles, which are refused here
            content = torch.load(given, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file may raise anything here
        kind = type(error).__name__
        raise InputError(f"no file of tensors that torch reads by weights_only ({kind})") from None
    embeddings = content.get("embeddings") if isinstance(content, dict) else None
    if not isinstance(embeddings, torch.Tensor):
        raise InputError("no tensor `embeddings`; a file is a dict of embeddings and label")
    if embeddings.ndim != 2 or not embeddings.is_floating_point() or not embeddings.shape[1]:
        shape = tuple(embeddings.shape)
        raise InputError(f"embeddings are {embeddings.dtype} {shape}, not floats of [N, D]")
    vectors = embeddings.detach().to_dense().float().numpy() + np.float32(0)  # no -0
    if not np.isfinite(vectors).all():
        raise InputError("embeddings hold what is no finite number")
    return EmbeddedPatient(
        vectors, _tokens(content.get("token_ids"), len(vectors)), _label(content.get("label"))
    )


def _tokens(given: Any, number: int) -> npt.NDArray[np.int64] | None:
    if given is None:
        return None
    tokens = np.asarray(given)
    if tokens.shape != (number,) or not np.issubdtype(tokens.dtype, np.integer):
        raise InputError(
            f"token_ids are {tokens.dtype} {tokens.shape}, not whole numbers of [{number}]"
        )
    return tokens.astype(np.int64)


def _label(given: Any) -> float | None:
    if given is None:
        return None
    value = np.asarray(given)
    if value.size != 1 or value.dtype.kind not in "biuf":
        raise InputError(f"label is {value.dtype} {value.shape}, not one number")
    return float(value.reshape(()))


def _answer(label: float, kind: LabelKind) -> bool | str | float:
    """Return a label as its column holds it; InputError where it is not of the kind."""
    if kind == "binary" and label in (0, 1):
        return label == 1
    if kind == "classes" and label.is_integer() and label >= 0:
        return str(int(label))
    if kind == "regression" and np.isfinite(label):
        return label
    wanted = {"binary": "0 or 1", "classes": "a class 0, 1, ...", "regression": "finite"}[kind]
    raise InputError(
        f"label {label:g} is not {wanted}; say --label-kind, or leave out what is unknown"
    )


def _chunk(
    unit: Unit,
    group: dict[str, EmbeddedPatient],
    owners: dict[str, str] | None,
    seen: set[str],
    options: EmbeddedOptions,
) -> Chunk:
    """Return the events, labels and new vectors of some files; `seen` codes are given already."""
    written = [_spelt(unit, name, owners) for name in group]
    ids = np.array([subject_id(spelt) for spelt in written], np.int64)
    sizes = [len(patient.vectors) for patient in group.values()]
    codes, vectors = _coded(group.values(), seen)
    minutes = np.concatenate([np.zeros(0), *map(np.arange, sizes)]).astype(np.float64)
    times, _ = since_epoch(minutes, 1.0)
    none = np.full(len(codes), np.nan)
    events = events_table(np.repeat(ids, sizes), times, pa.array(codes, pa.string()), none)
    if unit.split:
        events = events.append_column("split", pa.repeat(unit.split, len(events)))
    return Chunk(
        events=events,
        labels=_labels(ids, [patient.label for patient in group.values()], options.label_kind),
        rows_read=len(events),
        files_read=len(group),
        subjects=pa.table({"subject_id": ids, "file": pa.array(list(group), pa.string())}),
        names=pa.table([ids, pa.array(written, pa.string())], schema=NAMES),
        vectors=vectors,
    )


def _coded(patients: Iterable[EmbeddedPatient], seen: set[str]) -> tuple[list[str], pa.Table]:
    """Return the code of each event of some patients, and the vectors of those not in `seen`."""
    codes: list[str] = []
    new: dict[str, npt.NDArray[np.float32]] = {}
    for patient in patients:
        number = len(patient.vectors)
        tokens = [None] * number if patient.tokens is None else patient.tokens.tolist()
        for token, vector in zip(tokens, patient.vectors, strict=True):
            codes.append(code := code_of(token, vector))
            if code not in seen:
                seen.add(code)
                new[code] = vector
    check_number(len(seen))
    return codes, pa.table([list(new), list(new.values())], schema=VECTORS)


def _labels(
    ids: npt.NDArray[np.int64], given: Sequence[float | None], kind: LabelKind
) -> dict[str, pa.Table]:
    known = np.array([label is not None for label in given], bool)
    answers = [_answer(label, kind) for label in given if label is not None]
    column = COLUMNS.get(kind, "float_value")
    return {TASK: label_rows(ids[known], answers, column=column)} if answers else {}


def code_of(token: int | None, vector: npt.NDArray[np.float32]) -> str:
    """Return the code of a vector [D]: the same for the same token and numbers, anywhere."""
    digest = hashlib.sha256(vector.tobytes()).hexdigest()[:16]
    return f"VECTOR//{digest}" if token is None else f"TOKEN//{token}-{digest}"


def _spelt(unit: Unit, name: str, owners: dict[str, str] | None) -> str:
    """Return how a file's patient is called: as subjects.csv says, else by the file."""
    if owners is not None:
        if name not in owners:
            raise InputError(f"--input {unit.root}: {SUBJECTS} does not say whose {name} is")
        return owners[name]
    stem = os.path.basename(name)[: -len(SUFFIX)]
    return f"{unit.split}/{stem}" if unit.split and _COUNTED.fullmatch(stem) else stem


def _subjects(path: str) -> dict[str, str]:
    needed = ("split", "file", "subject_id")
    rows = whole_csv(path, needed)
    short = next((i for i, row in enumerate(rows, 2) if not all(map(row.get, needed))), None)
    if short is not None:
        raise InputError(f"{path}: row {short} lacks one of {', '.join(needed)}; give it")
    return {os.path.join(row["split"], row["file"]): row["subject_id"] for row in rows}


SOURCE: Final = Source(
    name="embedded-pt",
    description="{train,tuning,held_out}/<id>.pt: embeddings, token_ids and label of a patient",
    options=EmbeddedOptions,
    units=units,
    read=read,
    relative_time=lambda _: False,  # an ADMISSION would be an event without a vector
)
