"""Patients as sets with carried values: what `expand` wrote, or the published program before it.

`expand` writes files of many patients and, beside them, what they were made with. The published
layout has a file a patient, `{train,valid,test}/<id>.parquet`, the embedding of each variable in
further columns, and says neither its window nor how its values were scaled.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ehr_ray.errors import ConfigError, InputError
from ehr_ray.events.carry import PatientSets, Tokens
from ehr_ray.events.patients import splits_of, whole_subjects
from ehr_ray.events.schema import EXPANDED, SPLIT_NAMES, SPLITS
from ehr_ray.events.vocabulary import Vocabulary, scaling_of
from ehr_ray.sources.parsing.identifiers import subject_id
from ehr_ray.sources.parsing.value_stats import with_value_stats
from ehr_ray.storage import files, in_place, sync
from ehr_ray.storage.listing import stamp
from ehr_ray.storage.paths import canonical, check_folder, uri_of

RECORD: Final = "_expand.json"
"""What the folder was made of and with."""
CODES: Final = "codes.parquet"
"""The codes beside it, with the statistics its values were scaled by."""
EMPTY: Final = b"empty"
"""Key of a file's metadata: [place in the file, subject] of patients without a token, as JSON."""
FILES_PER_SHARD: Final = 256
_TOKENS: Final = [name for name in EXPANDED.names if name != "subject_id"]
_AGAIN: Final = "run `ehr-ray expand` again"


@dataclass(frozen=True)
class ExpandedShard:
    """A file of many patients, or some files of a folder, of one patient each."""

    name: str
    place: Path
    files: tuple[str, ...] = ()

    @property
    def paths(self) -> list[Path]:
        """Its files."""
        return [self.place / name for name in self.files] or [self.place]


def shards_of(folder: Path) -> dict[str, list[ExpandedShard]]:
    """Return the shards of each split that has any, in order.

    Raises InputError for a folder that is neither layout, or that `expand` has not finished.
    """
    record = record_of(folder)
    if record is None:
        return _published_shards(folder)
    shards: dict[str, list[ExpandedShard]] = {split: [] for split in SPLITS}
    for name, *_ in record["shards"]:
        _, split, *parts = Path(name).with_suffix("").parts
        shard = "-".join(parts)
        shards[split].append(ExpandedShard(shard, folder / split / f"{shard}.parquet"))
    every = [shard.place for found in shards.values() for shard in found]
    missing = [path for path in every if not _known(path)]
    if missing or not (folder / CODES).is_file():
        raise InputError(
            f"{folder}: {len(every) - len(missing)} of {len(every)} files are there; {_AGAIN}"
        )
    return {split: found for split, found in shards.items() if found}


def _known(path: Path) -> bool:
    try:
        stamp(path)
    except FileNotFoundError:
        return False
    return True


def fetch_sets(location: str | Path) -> Path:
    """Fetch what `expand` wrote without its shards, which are listed; a published folder whole."""
    if uri_of(location) is None:
        return Path(location)
    folder = sync.fetch(location, only=(RECORD, CODES), missing_ok=True)
    own = SPLITS if record_of(folder) is not None else None
    return sync.fetch(location, below=own, listed=own)


def record_of(folder: Path) -> dict[str, Any] | None:
    """Return what `expand` recorded of a folder; None where it did not write it."""
    path = folder / RECORD
    if not path.is_file():
        return None
    with files.reads(path, _AGAIN):
        try:
            record: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise OSError(f"not JSON: {error}") from error
    if record.get("layout") is None:
        raise InputError(f"{folder}: does not say what it was made with; remove it and {_AGAIN}")
    return record


def _published_shards(folder: Path) -> dict[str, list[ExpandedShard]]:
    check_folder(folder, "data.expanded=", "make it with `ehr-ray expand`")
    shards: dict[str, list[ExpandedShard]] = {split: [] for split in SPLITS}
    for place in sorted(folder.iterdir()):
        if place.name not in SPLIT_NAMES or not place.is_dir():
            continue
        names = sorted(p.name for p in place.glob("*.parquet") if not p.name.startswith("."))
        ids = pd.Series([subject_id(Path(name).stem) for name in names], index=names)
        if ids.duplicated().any():
            raise InputError(f"{place / ids.index[ids.duplicated()][0]}: its id is there twice")
        for start in range(0, len(names), FILES_PER_SHARD):
            part = tuple(names[start : start + FILES_PER_SHARD])
            shard = ExpandedShard(f"{place.name}-{start // FILES_PER_SHARD}", place, part)
            shards[SPLIT_NAMES[place.name]].append(shard)
    if not shards["train"]:
        raise InputError(
            f"data.expanded={folder}: no train/*.parquet; give what `ehr-ray expand` wrote"
        )
    return {split: found for split, found in shards.items() if found}


def made_with(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return `data.scale` and the options of a model that a folder answers by itself."""
    record = record_of(folder)
    if record is not None:
        options = {"carry_minutes": record["lvcf_minutes"], "always_carry": record["always_carry"]}
        return record["scale"], options
    vectors = _vector_columns(shards_of(folder)["train"][0].paths[0])
    return "standard", {"embedding_csv": canonical(folder)} if vectors else {}


def check_made_with(folder: Path, model: Any, data: Any) -> None:
    """Raise ConfigError, by name, where a config says otherwise than the folder.

    Args:
        folder: what is trained on.
        model: with `carry_minutes` and `always_carry`.
        data: the `data` section.
    """
    record = record_of(folder)
    if data.scale != (scale := "standard" if record is None else record["scale"]):
        raise ConfigError(f"data.scale={data.scale}: the values of {folder} are {scale}; give that")
    if record is None:
        if data.origin is not None:
            raise ConfigError(f"data.origin={list(data.origin)}: {folder} has minutes; drop it")
        return
    origin = tuple(record["origin"])
    minutes, always = record["lvcf_minutes"], record["always_carry"]
    if model.carry_minutes != minutes:
        raise ConfigError(
            f"model.carry_minutes={model.carry_minutes:g}: {folder} was carried for {minutes:g} "
            f"minutes; give that, or expand again with --lvcf-minutes {model.carry_minutes:g}"
        )
    if sorted(model.always_carry) != always:
        raise ConfigError(
            f"model.always_carry={list(model.always_carry)}: {folder} has {always}; give that, or "
            "expand again with --always-carry"
        )
    if data.origin is not None and tuple(data.origin) != origin:
        raise ConfigError(
            f"data.origin={list(data.origin)}: {folder} counts minutes from {list(origin)}; drop it"
        )
    if data.value_stats is not None:
        raise ConfigError(
            f"data.value_stats={data.value_stats}: {folder} has those it was made with; drop it, "
            "or expand again with --value-stats"
        )


def check_made_of(folder: Path, cohort: Path) -> None:
    """Raise ConfigError where a folder is of another cohort than the one beside it in the config.

    A cohort that is not there, as of the published layout, is not asked for.
    """
    record = record_of(folder)
    if record is None or not cohort.is_dir():
        return
    there = {
        str(path.relative_to(cohort)): stamp(path)[0]
        for paths in splits_of(cohort).values()
        for path in paths
    }
    if there != {name: size for name, size, *_ in record["shards"]}:
        raise ConfigError(
            f"data.cohort={cohort}: {folder} is not of it but of {record['cohort']}, or it has "
            "changed since; give that cohort, or expand this one"
        )


def vocabulary_of_sets(folder: Path, min_count: int, value_stats: Path | None) -> Vocabulary:
    """Return the codes seen often enough in train, with the statistics values were scaled by."""
    if record_of(folder) is not None:
        table = files.read_parquet(folder / CODES, remedy=_AGAIN)
        scaling = scaling_of(table) or "robust"
        return Vocabulary.from_table(table, min_count=max(1, min_count), scaling=scaling)
    if value_stats is None:
        raise ConfigError(
            f"data.expanded={folder}: does not say what its values were scaled by; give its CSV "
            "of variable, mean and std as data.value_stats=PATH"
        )
    counts: dict[str, int] = {}
    for shard in shards_of(folder)["train"]:
        for path in shard.paths:
            table = _read(path, ["variable", "is_carry"])
            live = table.filter(pc.equal(table["is_carry"].cast(pa.float64()), 0.0))
            for entry in pc.value_counts(live["variable"].cast(pa.string())).to_pylist():
                counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    codes = sorted(code for code, count in counts.items() if count >= max(1, min_count))
    count = np.array([counts[code] for code in codes], np.int64)
    plain = Vocabulary(tuple(codes), count, np.zeros(len(codes)), np.ones(len(codes)))
    return with_value_stats(plain, value_stats, "data.value_stats")


def read_sets(
    place: Path,
    names: Sequence[str],
    vocabulary: Vocabulary,
    *,
    window: float,
    always: Sequence[str] = (),
    batch_rows: int = 1 << 18,
) -> Iterator[PatientSets]:
    """Yield the patients of a shard, in order, with the codes a vocabulary knows.

    Sets in which nothing known was observed are left out, as if the others had never been
    recorded. `window` and `always` are what a published file is held against. Raises InputError,
    naming the file, for one that is damaged or no such table.
    """
    if not names:
        yield from _of_shard(place, vocabulary, batch_rows)
        return
    kept = vocabulary.encode(always)
    for name in names:
        table = _read(place / name, _TOKENS)
        columns = _columns(table, place / name, vocabulary)
        sets = _patient(subject_id(Path(name).stem), columns)
        tokens = sets.tokens
        old = tokens.is_carry & (tokens.age > window) & ~np.isin(tokens.code, kept)
        if old.any():
            raise InputError(
                f"{place / name}: carries {vocabulary.codes[tokens.code[old][0]]!r} for "
                f"{tokens.age[old].max():g} minutes, beyond model.carry_minutes={window:g}; give "
                "the window it was made with, or its code in model.always_carry"
            )
        yield sets


def _of_shard(path: Path, vocabulary: Vocabulary, batch_rows: int) -> Iterator[PatientSets]:
    with files.reads(path, _AGAIN), in_place.parquet(path, _AGAIN) as file:
        _require(file.schema_arrow.names, EXPANDED.names, path)
        said = (file.metadata.metadata or {}).get(EMPTY, b"[]")
        empty = dict(json.loads(said))
        none = _patient(0, _columns(EXPANDED.empty_table(), path, vocabulary)).tokens
        place = 0
        for table in whole_subjects(file, path, EXPANDED.names, batch_rows):
            subject = table["subject_id"].to_numpy()
            starts = np.flatnonzero(np.append(True, subject[1:] != subject[:-1]))
            columns = _columns(table, path, vocabulary)
            for start, end in zip(starts, np.append(starts[1:], len(subject)), strict=True):
                while place in empty:
                    yield PatientSets(empty[place], none)
                    place += 1
                part = {name: values[start:end] for name, values in columns.items()}
                yield _patient(int(subject[start]), part)
                place += 1
        while place in empty:
            yield PatientSets(empty[place], none)
            place += 1


def _read(path: Path, columns: Sequence[str]) -> pa.Table:
    with files.reads(path, "restore it"), in_place.parquet(path) as file:
        _require(file.schema_arrow.names, columns, path)
        return file.read(list(columns), use_threads=False)


def _require(there: Sequence[str], wanted: Sequence[str], path: Path) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}; an expanded file has {wanted}")


def _columns(table: pa.Table, path: Path, vocabulary: Vocabulary) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of tokens as arrays; InputError where one holds what it must not."""
    try:
        result = {
            name: table[name].cast(pa.float64()).to_numpy().astype(np.float64)
            for name in ("value", "time", "set_index", "age")
        }
        result["is_carry"] = table["is_carry"].cast(pa.float64()).to_numpy()
        encoded = table["variable"].cast(pa.string()).combine_chunks().dictionary_encode()
    except pa.ArrowException as error:
        raise InputError(f"{path}: a column is not of numbers ({error}); mend it") from error
    for name, values in result.items():
        wrong = ~np.isfinite(values) if name in ("value", "time") else ~(values >= 0)
        if name == "is_carry":
            wrong = (values != 0) & (values != 1)
        if wrong.any():
            raise InputError(f"{path}: {name} is {values[wrong][0]} in a row; mend it")
    ids = np.append(vocabulary.encode(encoded.dictionary.to_pylist()), np.int32(-1))
    result["code"] = ids[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
    return result


def _patient(subject: int, columns: Mapping[str, npt.NDArray[Any]]) -> PatientSets:
    """Return one patient's rows as sets of the codes that are known."""
    code, old = columns["code"], columns["set_index"].astype(np.int64)
    carried = columns["is_carry"] > 0
    count = int(old.max(initial=-1)) + 1
    minute = np.zeros(count)
    minute[old] = columns["time"]
    known = code >= 0
    any_known = np.bincount(old[known], minlength=count) > 0
    live = np.bincount(old[known & ~carried], minlength=count) > 0
    kept = live | (any_known & (minute == 0))  # what came before minute 0 makes a set there
    token = known & kept[old]
    tokens = Tokens(
        set_index=(np.cumsum(kept) - 1)[old[token]].astype(np.int32),
        code=code[token],
        value=columns["value"][token].astype(np.float32),
        age=columns["age"][token],
        is_carry=carried[token],
        minute=minute[kept],
    )
    if np.any(np.diff(old) < 0) or np.any(np.diff(tokens.minute) < 0):
        raise InputError(f"subject {subject}: its sets are not in order of time; {_AGAIN}")
    return PatientSets(subject, tokens)


def _vector_columns(path: Path) -> list[str]:
    """Return the columns `v0`, `v1`, ... of an embedding, [] where a file has none."""
    with files.reads(path, "restore it"):
        names = set(pq.read_schema(path).names)
    found: list[str] = []
    while f"v{len(found)}" in names:
        found.append(f"v{len(found)}")
    return found


def embeddings_of(folder: Path, codes: Sequence[str]) -> pd.DataFrame:
    """Return the embedding columns of a published folder, one row for each of the codes found.

    Files of train are read until every code was met.
    """
    waiting, rows = set(codes), []
    for shard in shards_of(folder)["train"]:
        for path in shard.paths:
            if not waiting:
                break
            names = _read(path, ["variable"])["variable"].to_pandas()
            new = names[names.isin(waiting)].drop_duplicates()
            if len(new):
                table = _read(path, ["variable", *_vector_columns(path)])
                rows.append(table.take(new.index.to_numpy()).to_pandas())
                waiting -= set(new)
    return pd.concat(rows) if rows else pd.DataFrame({"variable": [], "v0": []})
