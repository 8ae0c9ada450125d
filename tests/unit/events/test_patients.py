import dataclasses
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr_ray.errors import InputError
from ehr_ray.events.patients import cohort_shards, read_patients, shard_names, splits_of
from ehr_ray.events.schema import EVENTS
from ehr_ray.events.vocabulary import Vocabulary

MINUTE = 60_000_000
CODES = ("A", "B", "C")
VOCABULARY = Vocabulary(CODES, np.ones(3, np.int64), np.zeros(3), np.ones(3))


def write(path, events):
    """Events are (subject, minute or None, code, value or None)."""
    subject, minute, code, value = zip(*events, strict=True) if events else ((), (), (), ())
    time = [None if m is None else m * MINUTE for m in minute]
    columns = [
        pa.array(subject, pa.int64()),
        pa.array(time, pa.int64()).cast(pa.timestamp("us")),
        pa.array(code, pa.string()),
        pa.array(value, pa.float32()),
    ]
    pq.write_table(pa.Table.from_arrays(columns, schema=EVENTS), path, row_group_size=4)
    return path


def read(path, **options):
    return list(read_patients(path, VOCABULARY, **options))


def tokens(patient):
    return list(
        zip(patient.minute.tolist(), patient.code.tolist(), patient.value.tolist(), strict=True)
    )


def slow_patient(events):
    """One patient's (origin minute, tokens) from the contract; events as written."""
    marks = [m for _, m, code, _ in events if m is not None and "ADMISSION" in code.split("//")[0]]
    timed = [m for _, m, _, _ in events if m is not None]
    origin = min(marks) if marks else min(timed, default=0)
    found = []
    for _, minute, code, value in events:
        if code in CODES:
            since = 0.0 if minute is None else float(minute - origin)
            found.append((since, CODES.index(code), np.nan if value is None else float(value)))
    return origin, found


code = st.sampled_from([*CODES, "unknown", "ADMISSION", "ICU_ADMISSION//MICU"])
event = st.tuples(
    st.one_of(st.none(), st.integers(-5, 40)), code, st.sampled_from([None, 1.0, 2.5])
)
people = st.lists(st.lists(event, min_size=1, max_size=12), max_size=6)


@settings(deadline=None, max_examples=80)
@given(people, st.integers(1, 7))
def test_no_batch_of_rows_cuts_a_patient(tmp_path_factory, patients, batch_rows):
    key = lambda e: -(10**9) if e[0] is None else e[0]  # noqa: E731
    rows = [(7 + 3 * i, *e) for i, events in enumerate(patients) for e in sorted(events, key=key)]
    path = write(tmp_path_factory.mktemp("shard") / "0.parquet", rows)
    found = read(path, batch_rows=batch_rows)
    assert [p.subject_id for p in found] == [7 + 3 * i for i in range(len(patients))]
    for patient in found:
        mine = [row for row in rows if row[0] == patient.subject_id]
        origin, expected = slow_patient(mine)
        assert patient.origin == origin * MINUTE
        np.testing.assert_equal(tokens(patient), expected)


@pytest.mark.parametrize("mark", ["ADMISSION", "ICU_ADMISSION//MICU", "HOSPITAL_ADMISSION//ER//X"])
def test_the_first_admission_is_the_origin_and_no_token(tmp_path, mark):
    events = [(1, None, "A", 9.0), (1, 5, "A", 1.0), (1, 10, mark, None), (1, 12, "B", 2.0)]
    patient = read(write(tmp_path / "0.parquet", [*events, (1, 60, mark, None)]))[0]
    assert patient.origin == 10 * MINUTE
    assert tokens(patient) == [(0.0, 0, 9.0), (-5.0, 0, 1.0), (2.0, 1, 2.0)]


@pytest.mark.parametrize("code", ["ADMISSIONS", "RE_ADMISSION", "X//ADMISSION"])
def test_codes_that_only_look_like_an_admission_set_no_origin(tmp_path, code):
    patient = read(write(tmp_path / "0.parquet", [(1, 3, "A", 1.0), (1, 9, code, None)]))[0]
    assert patient.origin == 3 * MINUTE


def test_without_an_admission_the_first_timed_event_is_the_origin_even_if_unknown(tmp_path):
    events = [(1, None, "C", 1.0), (1, 4, "unknown", None), (1, 6, "A", 1.0)]
    patient = read(write(tmp_path / "0.parquet", events))[0]
    assert tokens(patient) == [(0.0, 2, 1.0), (2.0, 0, 1.0)]
    assert patient.static.tolist() == [True, False]


def test_a_patient_whose_codes_are_all_unknown_stays_without_events(tmp_path):
    patient = read(write(tmp_path / "0.parquet", [(1, 4, "unknown", None)]))[0]
    assert (patient.subject_id, len(patient.code)) == (1, 0)


def test_until_keeps_static_and_earlier_events_inclusive(tmp_path):
    events = [(1, None, "A", 1.0), (1, 5, "A", 2.0), (1, 6, "B", 3.0), (1, 7, "C", 4.0)]
    patient = read(write(tmp_path / "0.parquet", events))[0]
    known = patient.until(6 * MINUTE)
    assert known.value.tolist() == [1.0, 2.0, 3.0]
    assert (known.origin, known.subject_id) == (patient.origin, 1)
    assert known.minute.tolist() == [0.0, 0.0, 1.0]


def test_admissions_are_those_to_the_first_ones_place_as_far_as_they_are_known(tmp_path):
    events = [
        (1, 0, "HOSPITAL_ADMISSION//EW", None),
        (1, 5, "ICU_ADMISSION//MICU", None),
        (1, 6, "A", 1.0),
        (1, 90, "HOSPITAL_ADMISSION//ELECTIVE", None),
        (2, 3, "ICU_ADMISSION", None),
        (2, 7, "HOSPITAL_ADMISSION", None),
        (3, 1, "A", 1.0),
        (4, 0, "ADMISSION", None),
        (4, 0, "HOSPITAL_ADMISSION", None),
        (4, 50, "ICU_ADMISSION", None),
        (4, 70, "HOSPITAL_ADMISSION", None),
    ]
    first, second, third, fourth = read(write(tmp_path / "a.parquet", events))
    assert (first.admitted / MINUTE).tolist() == [0, 90]
    assert (first.until(89 * MINUTE).admitted / MINUTE).tolist() == [0]
    assert (second.admitted / MINUTE).tolist() == [3]
    assert third.admitted.tolist() == []
    assert (fourth.admitted / MINUTE).tolist() == [0, 0, 70]


def test_an_empty_shard_has_no_patients(tmp_path):
    assert read(write(tmp_path / "0.parquet", [])) == []


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_unsorted_times_are_refused(tmp_path, batch_rows):
    path = write(tmp_path / "7.parquet", [(1, 5, "A", 1.0), (1, 4, "A", 1.0)])
    with pytest.raises(InputError, match=r"7\.parquet: .*not sorted"):
        read(path, batch_rows=batch_rows)


def test_a_static_event_after_timed_ones_is_refused(tmp_path):
    path = write(tmp_path / "7.parquet", [(1, 5, "A", 1.0), (1, None, "A", 1.0)])
    with pytest.raises(InputError, match=r"7\.parquet: .*not sorted"):
        read(path)


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_a_subject_that_appears_twice_is_refused(tmp_path, batch_rows):
    events = [(1, 5, "A", 1.0), (2, 4, "A", 1.0), (1, 6, "A", 1.0)]
    with pytest.raises(InputError, match=r"7\.parquet: the events of a subject are in two places"):
        read(write(tmp_path / "7.parquet", events), batch_rows=batch_rows)


@pytest.mark.parametrize("damage", ["text", "cut", "middle", "gone"])
def test_a_corrupt_shard_is_named(tmp_path, damage):
    path = write(tmp_path / "7.parquet", [(i, 5, "A", float(i)) for i in range(200)])
    content = path.read_bytes()
    if damage == "text":
        path.write_bytes(b"subject_id,time\n")
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "middle":
        path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"7\.parquet"):
        read(path)


def test_a_missing_column_is_named(tmp_path):
    pq.write_table(pa.table({"subject_id": [1], "code": ["A"]}), tmp_path / "7.parquet")
    with pytest.raises(InputError, match=r"7\.parquet: no column \['time'\]"):
        read(tmp_path / "7.parquet")


def test_null_codes_and_values_that_are_no_numbers_are_refused(tmp_path):
    good = {"subject_id": [1], "time": pa.array([0], pa.timestamp("us")), "code": ["A"]}
    for name, bad in [
        ("code", pa.array([None], pa.string())),
        ("numeric_value", ["high"]),
        ("numeric_value", [[1.0]]),
        ("time", ["soon"]),
        ("subject_id", pa.array([None], pa.int64())),
    ]:
        pq.write_table(pa.table({**good, name: bad}), tmp_path / "7.parquet")
        with pytest.raises(InputError, match=r"7\.parquet"):
            read(tmp_path / "7.parquet")


def test_a_shard_without_values_and_with_other_types_reads(tmp_path):
    table = pa.table(
        {
            "subject_id": [1, 1],
            "time": pa.array([0, 60], pa.timestamp("s")),
            "code": pa.array(["A", "B"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "7.parquet")
    patient = read(tmp_path / "7.parquet")[0]
    assert patient.minute.tolist() == [0.0, 1.0]
    assert np.isnan(patient.value).all()


def test_shards_are_ordered_by_number(tmp_path):
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    for name in ("10", "9", "0"):
        write(folder / f"{name}.parquet", [])
    assert [p.stem for p in cohort_shards(tmp_path, "train")] == ["0", "9", "10"]
    assert list(splits_of(tmp_path)) == ["train"]


def test_a_folder_that_is_no_cohort_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match="ehr-ray ingest"):
        cohort_shards(tmp_path, "train")
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="no shards under data/"):
        splits_of(tmp_path)


@pytest.mark.parametrize("how", ["half", "flip", "gone", "empty"])
def test_a_damaged_shard_is_named_and_never_read_as_fewer_patients(
    tmp_path, synthetic_cohort, synthetic_vocabulary, how
):
    cohort = tmp_path / "cohort"
    shutil.copytree(synthetic_cohort, cohort)
    shard = cohort_shards(cohort, "train")[1]
    content = bytearray(shard.read_bytes())
    if how == "gone":
        shard.unlink()
        with pytest.raises(InputError, match=r"train/1\.parquet: gone, 1 of 8 shards"):
            splits_of(cohort)
        return
    if how == "flip":
        for place in (0.3, 0.35, 0.4):  # one may hit a page's header, where it changes nothing
            content[int(len(content) * place)] ^= 16
    shard.write_bytes(content if how == "flip" else content[: len(content) // 2 * (how == "half")])
    with pytest.raises(InputError, match=r"1\.parquet: unreadable, damaged .*; ingest the cohort"):
        list(read_patients(shard, synthetic_vocabulary))


def test_a_split_that_was_removed_is_no_fault_and_a_bad_record_is(tmp_path, synthetic_cohort):
    cohort = tmp_path / "cohort"
    shutil.copytree(synthetic_cohort, cohort)
    for shard in cohort_shards(cohort, "tuning"):
        shard.unlink()
    with pytest.raises(InputError, match=r"tuning/0\.parquet: gone, 2 of 2 shards"):
        splits_of(cohort)
    (cohort / "data" / "tuning").rmdir()
    assert set(splits_of(cohort)) == {"train", "held_out"}
    (cohort / "metadata" / "ingest.json").write_text("[1, 2")
    with pytest.raises(InputError, match=r"ingest\.json: unreadable.*; restore it"):
        splits_of(cohort)


def test_shards_of_one_name_in_two_folders_are_made_into_two_files(tmp_path):
    for name in ("a/0", "b/0", "1"):
        (tmp_path / "data" / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "data" / "train" / f"{name}.parquet", [(1, 0, "A", 1.0)])
    shards = cohort_shards(tmp_path, "train")
    assert sorted(shard_names(tmp_path, "train", shards)) == ["1", "a-0", "b-0"]
    with pytest.raises(InputError, match=r"train/a-0\.parquet: has the name of a/0\.parquet"):
        shard_names(tmp_path, "train", [*shards, tmp_path / "data" / "train" / "a-0.parquet"])


def test_events_before_the_origin_keep_their_time(tmp_path):
    rows = [(1, -60, "A", 1.0), (1, 0, "ADMISSION", None), (1, 5, "A", 2.0)]
    (patient,) = read(write(tmp_path / "0.parquet", rows))
    assert patient.minute.tolist() == [-60.0, 5.0]


def test_minutes_are_exact_over_a_life(tmp_path):
    old = 100 * 525_960
    rows = [(1, 0, "ADMISSION", None), (1, old, "A", 1.0), (1, old + 1, "A", 1.0)]
    (patient,) = read(write(tmp_path / "0.parquet", rows))
    assert patient.minute.tolist() == [old, old + 1]


@pytest.mark.parametrize("birth", ["MEDS_BIRTH", "SNOMED/3950001"])
def test_a_birth_is_no_origin(tmp_path, birth):
    vocabulary = Vocabulary((*CODES, birth), np.ones(4, int), np.zeros(4), np.ones(4))
    rows = [(1, -500, birth, None), (1, 7, "A", 1.0), (1, 9, "A", 2.0)]
    (patient,) = read_patients(write(tmp_path / "0.parquet", rows), vocabulary)
    assert patient.origin == 7 * MINUTE
    assert patient.minute.tolist() == [-507.0, 0.0, 2.0]


def test_known_before_the_admission_is_told_from_the_first_event(tmp_path):
    rows = [(1, 3, "A", 1.0), (1, 8, "A", 2.0), (1, 20, "ADMISSION", None), (1, 30, "A", 3.0)]
    (patient,) = read(write(tmp_path / "0.parquet", rows))
    early = patient.until(10 * MINUTE)
    assert early.origin == 3 * MINUTE
    assert early.minute.tolist() == [0.0, 5.0]
    assert patient.until(25 * MINUTE).origin == 20 * MINUTE


@pytest.mark.parametrize("mark", ["VISIT//IP", "Visit/IP", "INPATIENT_ADMISSION//X"])
def test_other_common_names_of_an_admission_are_found(tmp_path, mark):
    (patient,) = read(write(tmp_path / "0.parquet", [(1, 2, "A", 1.0), (1, 9, mark, None)]))
    assert patient.origin == 9 * MINUTE


def test_the_origin_is_of_the_codes_that_are_named(tmp_path):
    rows = [(1, 1, "ADMISSION", None), (1, 4, "ENCOUNTER//7", None), (1, 9, "A", 1.0)]
    vocabulary = dataclasses.replace(VOCABULARY, origin=("ENCOUNTER",))
    (patient,) = read_patients(write(tmp_path / "0.parquet", rows), vocabulary)
    assert patient.origin == 4 * MINUTE


@pytest.mark.parametrize("huge", [1e300, float("inf"), -1e39])
def test_a_number_that_float32_does_not_hold_is_missing(tmp_path, huge):
    path = tmp_path / "0.parquet"
    times = pa.array([0, 1], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(
        pa.table({"subject_id": [1, 1], "time": times, "code": ["A", "A"],
                  "numeric_value": pa.array([huge, 2.0], pa.float64())}),
        path,
    )  # fmt: skip
    np.testing.assert_equal(read(path)[0].value.tolist(), [np.nan, 2.0])


def test_a_patient_of_static_events_and_a_birth_has_no_event_with_a_time(tmp_path):
    codes = ("MEDS_BIRTH", "A")
    vocabulary = Vocabulary(codes, np.ones(2, np.int64), np.zeros(2), np.ones(2))
    events = [(1, None, "A", 1.0), (1, -500, "MEDS_BIRTH", None), (1, 10, "A", 1.0)]
    (patient,) = read_patients(write(tmp_path / "0.parquet", events), vocabulary)
    assert [patient.until(m * MINUTE).timed(vocabulary) for m in (-600, 9, 10)] == [0, 0, 1]
