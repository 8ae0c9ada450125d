import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.evaluation.coverage import (
    Coverage,
    check_min_known,
    coverage_of,
    measure_coverage,
    require_coverage,
)
from ehr_ray.events.manifest import FOLDER, Manifest, describe_shard, file_name, write_manifest
from ehr_ray.events.vocabulary import Vocabulary


@pytest.fixture
def vocabulary():
    return Vocabulary(("HR", "SpO2"), np.ones(2, np.int64), np.zeros(2), np.ones(2))


def test_admissions_count_as_neither_known_nor_unknown(vocabulary):
    coverage = coverage_of({"HR": 6, "ADMISSION": 5, "RR": 3, "GCS": 1}, vocabulary)
    assert coverage.events == 10
    assert list(coverage.unknown.items()) == [("RR", 3), ("GCS", 1)]
    assert coverage.line() == (
        "the model knows 60.0% of 10 events; 2 codes are new to it: RR (3), GCS (1)"
    )


def test_codes_of_the_model_that_no_event_has_are_told_with_what_was_trained_on_them():
    counts = np.array([50, 10, 40])
    model = Vocabulary(("HR", "MAP", "Temp"), counts, np.zeros(3), np.ones(3))
    coverage = coverage_of({"HR": 2, "Temp": 0, "DRUG": 8}, model)
    assert (coverage.known, coverage.trained) == pytest.approx((0.2, 0.5))
    assert list(coverage.absent) == ["Temp", "MAP"]
    assert coverage.absent_line() == (
        "these events have codes of 50.0% of those it was trained on; 2 of its codes are not "
        "there: Temp (40.0%), MAP (10.0%)"
    )
    assert coverage_of({"HR": 1, "MAP": 1, "Temp": 1}, model).absent_line() == ""


def test_codes_that_are_there_by_a_stray_row_alone_are_not_known():
    counts = np.array([50, 10, 40])
    model = Vocabulary(("HR", "MAP", "Temp"), counts, np.zeros(3), np.ones(3))
    coverage = coverage_of({"HR": 20, "MAP": 3, "Temp": 30, "DRUG": 947}, model)
    assert coverage.trained == pytest.approx(0.4)  # HR and MAP have less than 5 % of train's share
    with pytest.raises(InputError, match=r"the model knows 5\.3% of 1,000 events"):
        require_coverage(coverage, 0.5, "there")


def test_many_events_that_a_model_never_reads_are_no_reason_to_refuse_what_it_does():
    counts = np.array([50, 10, 40])
    model = Vocabulary(("HR", "MAP", "Temp"), counts, np.zeros(3), np.ones(3))
    coverage = coverage_of({"HR": 2, "DRUG": 8}, model)
    require_coverage(coverage, 0.5, "there")
    with pytest.raises(
        InputError, match=r"50\.0% of those it was trained on.*--min-known-events 0\.50 "
    ):
        require_coverage(coverage, 0.6, "there")
    with pytest.raises(
        InputError, match="ingest the tables that have them, or add rows to the map"
    ):
        require_coverage(coverage, 0.6, "there", mapped=True)


def test_of_no_events_all_are_known(vocabulary):
    assert coverage_of({"ADMISSION": 2}, vocabulary).known == 1


def counted(folder, *codes):
    """Return the manifest of shards with these codes, and a shard of another split."""
    folder.mkdir()
    rows = []
    for number, given in enumerate([*codes, ["Z"]]):
        path = folder / f"{number}.parquet"
        table = {"subject_id": [number] * len(given), "code": pa.array(given, pa.string())}
        pq.write_table(pa.table(table), path)
        split = "train" if number < len(codes) else "tuning"
        rows.append(describe_shard(path, path.name, split))
    write_manifest(rows, folder / FOLDER)
    return Manifest((folder / FOLDER / file_name(0),))


def test_events_are_counted_over_shards_and_admissions_are_none(tmp_path, synthetic_vocabulary):
    known = synthetic_vocabulary.codes[0]
    manifest = counted(tmp_path / "data", ["ADMISSION", known, "X", known], ["Y", "X", "X"])
    assert measure_coverage(manifest, synthetic_vocabulary).unknown["Z"] == 1
    coverage = measure_coverage(manifest, synthetic_vocabulary, "train")
    assert coverage.events == 6
    assert list(coverage.unknown.items()) == [("X", 3), ("Y", 1)]
    assert coverage.known == pytest.approx(1 / 3)
    assert coverage.line() == (
        "the model knows 33.3% of 6 events; 2 codes are new to it: X (3), Y (1)"
    )
    assert coverage.table().rows[0] == ("X", "3", 0.5)


def test_a_cohort_of_codes_the_model_knows_is_passed(tmp_path, synthetic_vocabulary):
    manifest = counted(tmp_path / "d", list(synthetic_vocabulary.codes))
    coverage = measure_coverage(manifest, synthetic_vocabulary, "train")
    assert (coverage.known, coverage.unknown) == (1.0, {})
    require_coverage(coverage, 1.0, "there")
    assert json.dumps(coverage.line())


def test_a_cohort_of_other_codes_is_refused_with_the_share_that_would_pass():
    coverage = Coverage(10, {"LAB//1": 6})
    require_coverage(coverage, 0.4, "there")
    with pytest.raises(InputError, match=r"knows 40.0% of 10 events.*LAB//1 \(6\).*events 0\.40 "):
        require_coverage(coverage, 0.5, "there")
    with pytest.raises(InputError, match=r"by --code-map \(eicu, mimic-iv or a CSV file\)"):
        require_coverage(coverage, 0.5, "there")


@pytest.mark.parametrize("share", [2.0, -0.1, float("nan")])
def test_a_share_of_known_events_is_between_0_and_1(share):
    for fine in (0.0, 0.5, 1.0):
        check_min_known(fine)
    with pytest.raises(InputError, match=rf"--min-known-events {share:g}: not a share between"):
        check_min_known(share)
