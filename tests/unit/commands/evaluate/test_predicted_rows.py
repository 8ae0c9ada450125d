import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.evaluate.predicted_rows import read_rows
from ehr_ray.runtime.data.rows import sampled

SUBJECTS = [range(5), range(5, 7), range(7, 15)]
"""Those of each shard, a row each."""
SHARE = 0.5


@pytest.fixture
def folders(tmp_path):
    """What shards leave: samples of which the embedding tells the subject, two latents a row."""
    for number, subjects in enumerate(SUBJECTS):
        folder = tmp_path / f"{number:05d}"
        folder.mkdir()
        ids = np.array(subjects)
        samples = {
            "subject_id": ids,
            "timed": ids % 2 == 0,
            "embedding": [[float(i), -float(i)] for i in ids],
            "label": ids % 3 == 0,
        }
        pq.write_table(pa.table(samples), folder / "samples.parquet")
        if number != 1:  # none of its subjects was asked for them
            sample = np.repeat(np.arange(len(ids)), 2)
            latents = {"sample": sample, "of": ids[sample]}
            pq.write_table(pa.table(latents), folder / "latents.parquet")
    (tmp_path / "00003").mkdir()  # a shard without a labelled patient
    return [tmp_path / f"{number:05d}" for number in range(4)]


@pytest.mark.parametrize("share", [1.0, SHARE])
def test_wide_columns_and_tables_are_those_of_the_subjects_sampled(folders, share):
    found = read_rows(folders, ("latents", "tokens"), share)
    everybody = [i for of in SUBJECTS for i in of]
    chosen = [i for i in everybody if sampled(i, share)]
    assert found.whole == (share == 1)
    assert found.rows.samples.column_names == ["subject_id", "timed"]
    assert found.rows.samples["subject_id"].to_pylist() == everybody
    np.testing.assert_array_equal(found.rows.label, np.array(everybody) % 3 == 0)
    ids = found.sample.samples["subject_id"].to_pylist()
    assert ids == chosen
    assert [of[0] for of in found.sample.samples["embedding"].to_pylist()] == chosen
    np.testing.assert_array_equal(found.sample.label, np.array(chosen) % 3 == 0)
    assert list(found.sample.tables) == ["latents"]
    latents = found.sample.tables["latents"]
    told = [i for i in chosen if i not in SUBJECTS[1]]
    assert latents["of"].to_pylist() == [i for i in told for _ in range(2)]
    assert [ids[place] for place in latents["sample"].to_pylist()] == latents["of"].to_pylist()


def test_all_rows_come_a_shard_at_a_time_or_at_once_where_the_sample_has_them(folders):
    blocks = list(read_rows(folders, (), SHARE).blocks())
    assert [block.samples["subject_id"].to_pylist() for block in blocks] == list(
        map(list, SUBJECTS)
    )
    for block, of in zip(blocks, SUBJECTS, strict=True):
        assert [row[0] for row in block.samples["embedding"].to_pylist()] == list(of)
        np.testing.assert_array_equal(block.label, np.array(of) % 3 == 0)
    (block,) = read_rows(folders, (), 1.0).blocks(["subject_id"])
    assert block.samples.column_names == ["subject_id"]
    assert len(block.samples) == sum(map(len, SUBJECTS))
    narrow = next(read_rows(folders, (), SHARE).blocks(["subject_id"]))
    assert narrow.samples.column_names == ["subject_id"]
    assert narrow.label is None


def test_shards_without_a_row_are_none(folders):
    assert read_rows(folders[3:], (), 1.0) is None
