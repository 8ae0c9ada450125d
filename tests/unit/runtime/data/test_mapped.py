import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up import eicu

from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError
from ehr_ray.events.code_map import CodeMap, Entry, load_code_map
from ehr_ray.events.labels import label_files
from ehr_ray.events.patients import cohort_shards
from ehr_ray.events.schema import EVENTS, SPLITS
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.runtime.data import mapped
from ehr_ray.runtime.data.manifest import opened
from ehr_ray.runtime.data.mapped import mapped_cohort
from ehr_ray.storage import in_place, sync
from ehr_ray.storage.paths import local

RENAME = CodeMap({"HR": Entry("pulse", 2.0, 1.0), "other": Entry("breath", 1.0, 0.0)}, "map.csv")


def copy(cohort, codes, vocabulary, folder, splits=("held_out",)):
    return mapped_cohort(
        cohort, splits, codes, vocabulary, folder, on_ray=False, say=lambda _: None
    )


def read(shard):
    return pq.ParquetFile(shard).read()


def test_a_copy_has_all_rows_in_their_order_with_the_codes_of_the_map(
    synthetic_cohort, synthetic_vocabulary, tmp_path, monkeypatch
):
    monkeypatch.setattr(mapped, "BATCH_ROWS", 50)
    names = synthetic_vocabulary.codes
    codes = CodeMap({names[0]: Entry(names[1], 2.0, 1.0), "gone": Entry("far", 1, 0)}, "map.csv")
    folder, lines = copy(synthetic_cohort, codes, synthetic_vocabulary, tmp_path / "out")
    assert [line.split(": ", 1)[1] for line in lines] == [
        "the model does not know 1 of the 2 codes it maps to: far",
        "1 of its 2 codes are in no event: gone",
    ]
    assert folder == tmp_path / "out"
    assert label_files(folder).keys() == label_files(synthetic_cohort).keys()
    pairs = zip(
        cohort_shards(synthetic_cohort, "held_out"), cohort_shards(folder, "held_out"), strict=True
    )
    for old, new in [(read(a).to_pylist(), read(b).to_pylist()) for a, b in pairs]:
        assert [row["code"] for row in new] == [
            names[1] if row["code"] == names[0] else row["code"] for row in old
        ]
        for before, after in zip(old, new, strict=True):
            assert (before["subject_id"], before["time"]) == (after["subject_id"], after["time"])
            if before["code"] == names[0]:
                assert after["numeric_value"] == pytest.approx(2 * before["numeric_value"] + 1)
    assert not (folder / "data" / SPLITS[0]).exists()


def test_a_copy_in_a_store_is_there_alone_and_read_there(
    synthetic_cohort, synthetic_vocabulary, tmp_path, monkeypatch
):
    first, second, *_ = synthetic_vocabulary.codes
    codes = CodeMap({first: Entry(second, 2.0, 1.0)}, "map.csv")
    here, _ = copy(synthetic_cohort, codes, synthetic_vocabulary, tmp_path / "out")
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "copies"))
    cohort = sync.fetch_cohort(f"file://{synthetic_cohort}")
    output = local(f"file://{tmp_path}/store/run/.parts/mapped-1")
    there, _ = copy(cohort, codes, synthetic_vocabulary, output)
    assert label_files(there).keys() == label_files(here).keys()
    for wanted, shard in zip(
        cohort_shards(here, "held_out"), cohort_shards(there, "held_out"), strict=True
    ):
        with in_place.parquet(sync.in_store(shard)) as file:
            assert file.read().equals(read(wanted))
    assert [p for p in (tmp_path / "copies").rglob("*.parquet") if "data" in p.parts] == []


def test_shards_of_other_types_and_without_values_are_read(synthetic_vocabulary, tmp_path):
    shard = tmp_path / "meds" / "data" / "held_out" / "0.parquet"
    shard.parent.mkdir(parents=True)
    code = pa.array(["HR", "x"]).dictionary_encode()
    time = pa.array([0, 1_000_000_000], pa.timestamp("ns"))
    pq.write_table(pa.table({"subject_id": [1, 1], "time": time, "code": code}), shard)
    codes = CodeMap({"HR": Entry(synthetic_vocabulary.codes[0], 0.0, 5.0)}, "map.csv")
    folder, lines = copy(tmp_path / "meds", codes, synthetic_vocabulary, tmp_path / "out")
    (path,) = cohort_shards(folder, "held_out")
    assert read(path).schema.equals(EVENTS)
    assert read(path)["numeric_value"].to_pylist() == [5.0, None]
    assert lines == []


def test_a_copy_has_the_events_that_ingest_with_the_map_would_have_made(tmp_path):
    """So a model says the same of a cohort whether its codes are mapped at ingest or later."""
    eicu.write(tmp_path / "eicu")
    how = {"splits": "all:held_out", "cpus": 1}
    ingest("eicu", tmp_path / "eicu", tmp_path / "plain", **how)
    ingest("eicu", tmp_path / "eicu", tmp_path / "there", code_map="eicu", **how)
    codes = load_code_map("eicu")
    names = tuple(sorted({entry.to for entry in codes.entries.values()}))
    ones = np.ones(len(names))
    model = Vocabulary(names, ones.astype(np.int64), 0 * ones, ones)
    folder, _ = copy(tmp_path / "plain", codes, model, tmp_path / "out")
    told = [cohort_shards(place, "held_out") for place in (folder, tmp_path / "there")]
    for one, other in zip(*told, strict=True):
        assert read(one).equals(read(other))
    assert set(read(other)["code"].to_pylist()) & set(names)


def test_a_map_of_other_data_or_to_other_codes_is_refused(
    synthetic_cohort, synthetic_vocabulary, tmp_path
):
    with pytest.raises(InputError, match="the model knows none of the 2 codes it maps to"):
        copy(synthetic_cohort, RENAME, synthetic_vocabulary, tmp_path / "a")
    codes = CodeMap({"gone": Entry(synthetic_vocabulary.codes[0], 1.0, 0.0)}, "map.csv")
    with pytest.raises(InputError, match="no event has any of its 1 codes, such as gone"):
        copy(synthetic_cohort, codes, synthetic_vocabulary, tmp_path / "b")


def test_what_is_counted_of_a_copy_is_of_its_own_shards(
    synthetic_cohort, synthetic_vocabulary, tmp_path
):
    first = synthetic_vocabulary.codes[0]
    codes = CodeMap({"new": Entry(first, 1.0, 0.0), first: Entry("new", 1.0, 0.0)}, "map.csv")
    folder, _ = copy(synthetic_cohort, codes, synthetic_vocabulary, tmp_path / "out")
    with (
        opened(folder, folder, on_ray=False) as copied,
        opened(synthetic_cohort, None, on_ray=False) as whole,
    ):
        assert set(copied.column("split")) == {"held_out"}
        assert copied.total("events") == whole.total("events", "held_out")
        before, after = (m.by_code(["count"], "held_out") for m in (whole, copied))
        assert after["new"] == before[first]
        assert first not in after
