import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import AwayError, InputError
from ehr_ray.events.code_statistics import fit_codes
from ehr_ray.events.manifest import FOLDER
from ehr_ray.events.patients import splits_of
from ehr_ray.events.vocabulary import is_fitted
from ehr_ray.registry import get_family
from ehr_ray.runtime.data import dataset, manifest, tasks
from ehr_ray.runtime.data.dataset import (
    check_cohort,
    codes_table,
    named_origin,
    num_patients,
    vocabulary_of,
)
from ehr_ray.runtime.data.prepared import prepared
from ehr_ray.storage import sync
from ehr_ray.storage.paths import local, uri_of

MINUTE = 60_000_000


def write(root, split, rows):
    """Rows are (subject, minute, code, value)."""
    subject, minute, code, value = zip(*rows, strict=True)
    table = {
        "subject_id": pa.array(subject, pa.int64()),
        "time": pa.array([m * MINUTE for m in minute], pa.timestamp("us")),
        "code": pa.array(code),
        "numeric_value": pa.array(value, pa.float64()),
    }
    path = root / "data" / split / "0.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)


@pytest.fixture
def others(tmp_path):
    """A dataset of another maker, with statistics that are not those of its train split."""
    rows = [(i, m, "LAB", 4.0 + m) for i in range(3) for m in (0, 2)]
    write(tmp_path, "train", [*rows, (7, 0, "LAB", 1e300), (8, 0, "LAB", np.inf)])
    write(tmp_path, "held_out", [(9, 0, "ENCOUNTER//3", None), (9, 1, "LAB", 100.0)])
    codes = {
        "code": ["LAB"],
        "description": ["a lab"],
        "parent_codes": [["LOINC/1"]],
        "count": [1],
        "mean": [88.0],
        "std": [0.001],
    }
    (tmp_path / "metadata").mkdir()
    pq.write_table(pa.table(codes), tmp_path / "metadata/codes.parquet")
    return tmp_path


def test_statistics_of_another_maker_are_fitted_anew_and_what_codes_are_is_kept(others):
    row = next(r for r in codes_table(others).to_pylist() if r["code"] == "LAB")
    assert (row["count"], row["num_values"], row["mean"], row["std"]) == (8, 6, 5.0, 1.0)
    assert (row["description"], row["parent_codes"]) == ("a lab", ["LOINC/1"])


def test_statistics_of_our_own_ingest_are_believed(synthetic_cohort, monkeypatch):
    monkeypatch.setattr(dataset, "fitted_codes", None)
    assert is_fitted(codes_table(synthetic_cohort))


def replaced(cohort, folder, split="train"):
    """A copy of a cohort of ingest with twice the values in one shard, under its own name."""
    shutil.copytree(cohort, folder)
    shard = folder / "data" / split / "0.parquet"
    table = pq.read_table(shard)
    at = table.column_names.index("numeric_value")
    twice = pc.multiply(table["numeric_value"], pa.scalar(2, pa.float32()))
    pq.write_table(table.set_column(at, table.schema.field(at), twice), shard)
    return folder


def means(table):
    valued = table.filter(pc.greater(table["num_values"], 0))
    return dict(zip(valued["code"].to_pylist(), valued["mean"].to_pylist(), strict=True))


def test_a_run_on_a_replaced_shard_of_train_has_the_statistics_of_its_data(
    synthetic_cohort, tmp_path, tiny_experiment
):
    cohort, said = replaced(synthetic_cohort, tmp_path / "cohort"), []
    data = {"data.cohort": str(cohort), "data.cache_dir": str(tmp_path / "cache")}
    experiment = tiny_experiment(changes={**data, "data.scale": "standard"})
    shards = splits_of(cohort)
    true = fit_codes(shards["train"], [*shards["tuning"], *shards["held_out"]])
    for _ in range(2):  # fitted, and from the cache
        with prepared(experiment, get_family("set_vae"), on_ray=False, say=said.append) as found:
            own = dict(zip(found.vocabulary.codes, found.vocabulary.mean, strict=True))
        expected = {code: mean for code, mean in means(true).items() if code in own}
        assert {code: own[code] for code in expected} == pytest.approx(expected)
    before = codes_table(synthetic_cohort)
    assert codes_table(cohort)["description"].equals(before["description"])
    assert means(true)["HR"] > 1.1 * means(before)["HR"]  # one shard of three has other values
    assert sum("other shards than at ingest" in line for line in said) == 2


def test_statistics_are_of_train_alone_whatever_else_was_replaced(
    synthetic_cohort, tmp_path, monkeypatch
):
    monkeypatch.setattr(dataset, "fitted_codes", None)
    cohort = replaced(synthetic_cohort, tmp_path / "cohort", "tuning")
    assert codes_table(cohort).equals(codes_table(synthetic_cohort))


def test_a_cohort_without_a_manifest_keeps_its_statistics(synthetic_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "fitted_codes", None)
    cohort = replaced(synthetic_cohort, tmp_path / "cohort")
    shutil.rmtree(cohort / FOLDER)
    assert codes_table(cohort).equals(codes_table(synthetic_cohort))


def test_subjects_of_a_replaced_shard_are_checked(synthetic_cohort, tmp_path, monkeypatch):
    cohort = tmp_path / "cohort"
    shutil.copytree(synthetic_cohort, cohort)
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "check_dataset", None)
        check_cohort(cohort)
    shutil.copy(cohort / "data/train/0.parquet", cohort / "data/tuning/0.parquet")
    with pytest.raises(InputError, match="subjects are in more than one shard"):
        check_cohort(cohort)


def test_what_is_fitted_is_kept_until_a_file_changes(others, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    first = codes_table(others, cache)
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "fitted_codes", None)
        assert codes_table(others, cache).equals(first)
    write(others, "train", [(1, 0, "LAB", 3.0)])
    assert codes_table(others, cache)["count"].to_pylist() == [0, 1]


def test_a_check_is_made_once_and_told_each_time(others, tmp_path_factory, monkeypatch):
    cache, told = tmp_path_factory.mktemp("cache"), []
    table = pa.table({"subject_id": [0], "split": ["train"]})
    pq.write_table(table, others / "metadata/subject_splits.parquet")
    check_cohort(others, cache, told.append)
    monkeypatch.setattr(dataset, "check_dataset", None)
    check_cohort(others, cache, told.append)
    assert told == [told[0]] * 2
    assert told[0].startswith("5 of 6 subjects have no row")


@pytest.fixture(params=["disk", "store"])
def cache_without_files(request, tmp_path_factory, monkeypatch):
    """A folder that cannot be made, or one of a store that gives nobody the right to write."""
    folder = tmp_path_factory.mktemp("cache")
    if request.param == "disk":
        (folder / "file").touch()
        return folder / "file" / "cache"

    def refuse(place, **_):
        if uri_of(place):
            raise AwayError(f"{place}: no access")

    monkeypatch.setenv("EHR_RAY_STAGING", str(folder / "staging"))
    monkeypatch.setattr(sync, "push", refuse)
    return local(f"file://{folder}/store")


def test_a_cache_that_takes_no_files_ends_nothing(others, cache_without_files, monkeypatch):
    ran, told = [], []

    def run_jobs(function, jobs, *, on_ray, **options):
        ran.append(on_ray)
        return tasks.run_jobs(function, jobs, **options, on_ray=False)

    for module in (dataset, manifest):
        monkeypatch.setattr(module, "run_jobs", run_jobs)
    table = pa.table({"subject_id": [0], "split": ["train"]})
    pq.write_table(table, others / "metadata/subject_splits.parquet")
    check_cohort(others, cache_without_files, told.append, on_ray=True)
    assert told[0].startswith("5 of 6 subjects have no row")
    assert ran == [True, False, False, False]  # by this process, to a folder of its own
    assert codes_table(others, cache_without_files, on_ray=True).equals(codes_table(others))


def test_what_is_wrong_with_a_dataset_is_told_where_the_cache_takes_no_files(
    others, cache_without_files
):
    write(others, "tuning", [(9, 0, "LAB", 1.0)])
    with pytest.raises(InputError, match="1 subjects are in more than one shard"):
        check_cohort(others, cache_without_files)


def test_ids_are_checked_by_jobs_that_can_travel_and_leave_nothing(
    others, tmp_path_factory, monkeypatch
):
    ran, cache = [], tmp_path_factory.mktemp("cache")

    def run_jobs(function, jobs, **options):
        ran.append((type(function).__name__, len(jobs), options["on_ray"]))
        there = pickle.loads(pickle.dumps(function))
        return tasks.run_jobs(there, jobs, **dict(options, on_ray=False))

    monkeypatch.setattr(dataset, "run_jobs", run_jobs)
    check_cohort(others, cache, on_ray=True)
    assert ran == [("LeaveIds", 2, True), ("CheckIds", 1, True)]
    assert [path.suffix for path in cache.iterdir()] == [".json"]
    write(others, "tuning", [(9, 0, "LAB", 1.0)])
    with pytest.raises(InputError, match="1 subjects are in more than one shard"):
        check_cohort(others, cache)
    assert [path.suffix for path in cache.iterdir()] == [".json"]


def test_patients_are_those_of_the_manifest(others, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    found = [num_patients(others, split, cache, on_ray=False) for split in ("train", "held_out")]
    assert found == [5, 1]


def test_values_are_robust_unless_told(others):
    robust, standard = vocabulary_of(others, 0), vocabulary_of(others, 0, scaling="standard")
    assert (robust.scaling, standard.scaling) == ("robust", "standard")


def test_the_origin_of_a_dataset_as_it_stands_is_configured(others):
    vocabulary = vocabulary_of(others, 0, origin=("ENCOUNTER",))
    assert (vocabulary.origin, vocabulary.codes) == (("ENCOUNTER",), ("LAB",))
    assert named_origin(others) is None
    with pytest.raises(InputError, match=r"data\.origin=\['STAY'\]: no such code"):
        vocabulary_of(others, 0, origin=("STAY",))
    with pytest.raises(InputError, match=r"data\.origin MEDS_BIRTH: a birth is no time origin"):
        vocabulary_of(others, 0, origin=("MEDS_BIRTH",))
