"""`expand` as a Ray Data job: equal to the function, complete, restartable."""

import errno

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.expand import ShardExpander, expand
from ehr_ray.errors import InputError, ResourcesUnavailableError
from ehr_ray.events.carry import carry_forward
from ehr_ray.events.patients import read_patients, splits_of
from ehr_ray.events.schema import EXPANDED
from ehr_ray.runtime.data.dataset import vocabulary_of

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def expanded(cluster, cohort, tmp_path_factory):
    output = tmp_path_factory.mktemp("expanded") / "out"
    return output, expand(cohort, output, lvcf_minutes=180)


def test_every_patient_is_whole_and_equals_the_array_function(expanded, cohort):
    output, summary = expanded
    table = pd.concat(pd.read_parquet(p) for p in sorted(output.glob("*/*.parquet")))
    vocabulary = vocabulary_of(cohort, 1)
    patients = {
        p.subject_id: p
        for paths in splits_of(cohort).values()
        for path in paths
        for p in read_patients(path, vocabulary)
    }
    assert summary.patients == len(patients) == table["subject_id"].nunique()
    assert summary.tokens == len(table)
    for subject, rows in table.groupby("subject_id", sort=False):
        p = patients[subject]
        tokens = carry_forward(p.minute, p.code, p.value, p.static, window=180)
        assert [vocabulary.codes[c] for c in tokens.code] == rows["variable"].tolist()
        np.testing.assert_array_equal(tokens.set_index, rows["set_index"])
        np.testing.assert_array_equal(tokens.age, rows["age"])
        np.testing.assert_array_equal(tokens.is_carry, rows["is_carry"])
        scale = (tokens.value - vocabulary.mean[tokens.code]) / vocabulary.std[tokens.code]
        np.testing.assert_allclose(
            np.nan_to_num(scale, nan=1.0), rows["value"], rtol=1e-5, atol=1e-6
        )


def test_columns_and_order_are_the_contract(expanded):
    output, _ = expanded
    path = next(output.glob("train/*.parquet"))
    assert pq.read_schema(path).names == EXPANDED.names
    assert pq.read_schema(path).field("variable").type == "string"
    rows = pd.read_parquet(path)
    ordered = rows.sort_values(["subject_id", "time", "variable"], kind="stable")
    pd.testing.assert_frame_equal(rows, ordered)


def test_a_rerun_makes_only_the_missing_shards_with_the_same_bytes(expanded, cohort):
    output, summary = expanded
    shards = sorted(output.glob("*/*.parquet"))
    before = {path: path.read_bytes() for path in shards}
    times = {path: path.stat().st_mtime_ns for path in shards}
    shards[0].unlink()
    again = expand(cohort, output, lvcf_minutes=180)
    assert again.tokens == summary.tokens
    assert {path: path.read_bytes() for path in shards} == before
    assert [p for p in shards if p.stat().st_mtime_ns != times[p]] == [shards[0]]


def test_other_options_in_the_same_folder_are_refused(expanded, cohort):
    output, _ = expanded
    with pytest.raises(InputError, match="another expansion"):
        expand(cohort, output, lvcf_minutes=60)


def test_unknown_always_carry_code_is_named(cluster, cohort, tmp_path):
    with pytest.raises(InputError, match="no code 'HRR'"):
        expand(cohort, tmp_path / "out", always_carry=("HRR",))
    assert not (tmp_path / "out").exists()


def test_a_corrupt_shard_stops_with_its_name(cluster, cohort, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(cohort, broken)
    shard = next((broken / "data" / "train").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(InputError, match=rf"{shard.name}: unreadable, damaged"):
        expand(broken, tmp_path / "out")


def test_value_stats_replace_the_train_statistics_and_bad_ones_are_named(cluster, cohort, tmp_path):
    stats = tmp_path / "stats.csv"
    stats.write_text("code,mean,std\nHR,0,abc\n")
    with pytest.raises(InputError, match="mean or std of 'HR' is not a number"):
        expand(cohort, tmp_path / "bad", value_stats=stats)
    assert not (tmp_path / "bad").exists()
    stats.write_text("code,mean,std\nHR,10,2\n")
    expand(cohort, tmp_path / "out", value_stats=stats)
    rows = pd.read_parquet(next((tmp_path / "out").glob("held_out/*.parquet")))
    raw = pd.concat(pd.read_parquet(p) for p in (cohort / "data" / "held_out").glob("*.parquet"))
    live = rows[(rows["variable"] == "HR") & ~rows["is_carry"]]["value"]
    known = {np.float32((v - 10) / 2) for v in raw[raw["code"] == "HR"]["numeric_value"]}
    assert set(live.astype(np.float32)) <= known


def test_a_disk_that_fills_up_is_named_by_what_was_written_and_leaves_no_part(
    cohort, tmp_path, monkeypatch
):
    expander = ShardExpander(vocabulary_of(cohort, 1), 60.0, ())
    job = {"shard": str(splits_of(cohort)["train"][0]), "target": str(tmp_path / "0.parquet")}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(
            ResourcesUnavailableError, match=r"0\.parquet: No space left on device; free space"
        ):
            expander(job)
    assert not list(tmp_path.iterdir())
    expander(job)
    assert [path.name for path in tmp_path.iterdir()] == ["0.parquet"]
