import gzip
import io
import tarfile
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.labels import read_labels

OUTCOMES = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"
STATICS = ["00:00,Age,54", "00:00,Gender,0", "00:00,Height,-1", "00:00,ICUType,4"]
STAYS = {
    132539: [*STATICS, "00:00,Weight,-1", "00:07,HR,73", "00:07,Temp,35.1", "47:37,HR,77"],
    132540: [*STATICS, "00:00,Weight,76", "48:00,AST,1.2e+04"],
}


def rows_of(table, subject):
    rows = [r for r in table.to_pylist() if r["subject_id"] == subject]
    return [
        (r["time"] and r["time"] - datetime(2000, 1, 1), r["code"], r["numeric_value"])
        for r in rows
    ]


def test_a_stay_becomes_sorted_events_with_statics_first(tmp_path, cohort, write_stays, events_of):
    write_stays(tmp_path / "raw" / "set-a", STAYS)
    events = events_of(cohort("physionet2012", tmp_path / "raw", splits="all:train"))
    assert rows_of(events, 132539) == [
        (None, "Age", 54.0),
        (None, "Gender", 0.0),
        (None, "ICUType", 4.0),
        (timedelta(0), "ADMISSION", None),
        (timedelta(minutes=7), "HR", 73.0),
        (timedelta(minutes=7), "Temp", pytest.approx(35.1)),
        (timedelta(hours=47, minutes=37), "HR", 77.0),
    ]
    assert rows_of(events, 132540)[-2:] == [
        (timedelta(0), "Weight", 76.0),
        (timedelta(hours=48), "AST", 12000.0),
    ]


def test_an_archive_gives_the_same_bytes_as_its_folder(
    tmp_path, cohort, write_stays, write_archive
):
    write_stays(tmp_path / "folder" / "set-a", STAYS)
    (tmp_path / "packed").mkdir()
    write_archive(tmp_path / "packed" / "set-a.tar.gz", STAYS)
    shards = [
        (cohort("physionet2012", tmp_path / name, name=name) / "data" / "train" / "0.parquet")
        for name in ("folder", "packed")
    ]
    assert shards[0].read_bytes() == shards[1].read_bytes()


def test_minus_one_and_implausible_values_are_missing_unless_ranges_are_off(
    tmp_path, cohort, write_stays, events_of
):
    write_stays(tmp_path / "raw", {1: ["00:01,Temp,-17.8", "00:02,Temp,-1", "00:03,Temp,-1.0"]})
    (tmp_path / "raw/1.txt").write_text((tmp_path / "raw/1.txt").read_text() + "00:04,HR,80\n")
    events = events_of(cohort("physionet2012", tmp_path / "raw", name="ranged"))
    assert [r[2] for r in rows_of(events, 1)] == [None, 80]
    events = events_of(cohort("physionet2012", tmp_path / "raw", ranges="none"))
    assert [r[2] for r in rows_of(events, 1)] == [None, pytest.approx(-17.8), 80]
    changes = pq.read_table(tmp_path / "out/ranged/metadata/changes.parquet").to_pylist()
    assert {"code": "Temp", "change": "not recorded", "count": 2} in changes


def test_outcomes_become_labels_at_48_hours_and_unknown_ones_do_not(tmp_path, cohort, write_stays):
    write_stays(tmp_path / "raw", {i: ["00:01,HR,80"] for i in (1, 2, 3)})
    rows = "1,6,1,5,-1,0\n2,6,1,-1,-1,1\n3,6,1,3,-1,-1\n9,6,1,5,-1,0\n"
    (tmp_path / "raw" / "Outcomes-a.txt").write_text(OUTCOMES + rows)
    labels = cohort("physionet2012", tmp_path / "raw") / "labels"
    death = pq.read_table(labels / "mortality.parquet").to_pylist()
    stay = pq.read_table(labels / "length_of_stay_3d.parquet").to_pylist()
    at = datetime(2000, 1, 3)
    assert [tuple(r.values()) for r in death] == [(1, at, False), (2, at, True)]
    assert [tuple(r.values()) for r in stay] == [(1, at, True), (3, at, False)]


def test_days_of_a_stay_are_tasks_of_their_own_where_they_are_asked_for(
    tmp_path, cohort, write_stays
):
    days = {1: 2, 2: 3, 3: 7, 4: 8, 5: 1, 6: -1}
    write_stays(tmp_path / "raw", {i: ["00:01,HR,80"] for i in days})
    rows = [f"{i},6,1,{n},-1,0\n" for i, n in days.items()]
    (tmp_path / "raw" / "Outcomes-a.txt").write_text(OUTCOMES + "".join(rows))
    plain = cohort("physionet2012", tmp_path / "raw", name="plain") / "labels"
    assert {path.stem for path in plain.iterdir()} == {"mortality", "length_of_stay_3d"}
    labels = cohort("physionet2012", tmp_path / "raw", tasks="length_of_stay") / "labels"
    at = datetime(2000, 1, 3)
    found = pq.read_table(labels / "length_of_stay.parquet").to_pylist()
    assert [tuple(r.values()) for r in found] == [(1, at, 2), (2, at, 3), (3, at, 7), (4, at, 8)]
    found = pq.read_table(labels / "length_of_stay_class.parquet")
    assert found["categorical_value"].to_pylist() == ["<3", "3-7", "3-7", ">7"]
    with pytest.raises(InputError, match=r"^--tasks icd: length_of_stay is what there is"):
        cohort("physionet2012", tmp_path / "raw", name="other", tasks="icd")


def test_what_is_hidden_is_not_of_the_input(tmp_path, cohort, write_stays, events_of):
    for number, folder in enumerate(("set-a", ".trash", "set-a/.old"), start=1):
        write_stays(tmp_path / "in" / folder, {number: ["00:01,HR,80"]})
    (tmp_path / "in/._set-b.tar.gz").write_text("what a Mac notes beside a file")
    events = events_of(cohort("physionet2012", tmp_path / "in"))
    assert {*events["subject_id"].to_pylist()} == {1}


def test_a_stay_without_outcome_is_still_a_patient(tmp_path, cohort, write_stays):
    write_stays(tmp_path / "raw", {1: ["00:01,HR,80"], 2: ["00:01,HR,80"]})
    (tmp_path / "raw" / "Outcomes-a.txt").write_text(OUTCOMES + "1,6,1,5,-1,0\n")
    path = cohort("physionet2012", tmp_path / "raw")
    assert pq.read_table(path / "metadata/subject_splits.parquet").num_rows == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("00:65,HR,80", "time '00:65' is not HH:MM"),
        ("noon,HR,80", "time 'noon' is not HH:MM"),
        ("00:05,,80", "parameter '' is not a name"),
        ("00:05,HR", "not Time,Parameter,Value: '00:05,HR'"),
        ("00:05,HR,80,81", "not Time,Parameter,Value: '00:05,HR,80,81'"),
        ("", "time '' is not HH:MM"),
        ("Time,Parameter,Value", "time 'Time' is not HH:MM"),
        ("00:05,RecordID,77", "RecordID '77' in another file"),
    ],
)
def test_a_bad_row_is_quarantined_with_its_line(
    tmp_path, cohort, write_stays, events_of, row, reason
):
    good = ["00:01,HR,80", "00:02,HR,81"]
    write_stays(tmp_path / "raw", {1: good, 2: [*good, row, "00:09,HR,82"], 3: good})
    path = cohort("physionet2012", tmp_path / "raw", max_rejected=0.5)
    rejected = pq.read_table(path / "metadata/rejected.parquet").to_pylist()
    assert rejected == [{"file": "2.txt", "line": 5, "reason": reason}]
    events = events_of(path)
    assert [r[2] for r in rows_of(events, 2)] == [None, 80, 81, 82]
    assert [r[2] for r in rows_of(events, 3)] == [None, 80, 81]


@pytest.mark.parametrize(
    "text", ["", "Time,Parameter,Value\n", "Time,Parameter,Value\n00:00,RecordID,2\n"]
)
def test_an_empty_stay_is_a_rejected_file(tmp_path, cohort, write_stays, text):
    write_stays(tmp_path / "raw", {1: ["00:01,HR,80"], 3: ["00:01,HR,80"]})
    (tmp_path / "raw" / "2.txt").write_text(text)
    path = cohort("physionet2012", tmp_path / "raw", max_rejected=0.5)
    rejected = pq.read_table(path / "metadata/rejected.parquet").to_pylist()
    assert rejected == [{"file": "2.txt", "line": None, "reason": "empty: no measurements"}]
    splits = pq.read_table(path / "metadata/subject_splits.parquet")
    assert splits["subject_id"].to_pylist() == [1, 3]


def test_line_ends_of_any_system_are_read(tmp_path, cohort, events_of):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "1.txt").write_bytes(b"Time,Parameter,Value\r\n00:01,HR,80\r\n00:02,HR,81")
    events = events_of(cohort("physionet2012", tmp_path / "raw"))
    assert [r[2] for r in rows_of(events, 1)] == [None, 80, 81]


def test_the_same_stay_twice_names_both_files(tmp_path, cohort, write_stays, write_archive):
    write_stays(tmp_path / "raw" / "set-a", STAYS)
    write_archive(tmp_path / "raw" / "set-a.tar.gz", STAYS)
    with pytest.raises(InputError) as error:
        cohort("physionet2012", tmp_path / "raw")
    assert str(error.value) == (
        "one subject is in set-a.tar.gz/set-x/132539.txt and in set-a/132539.txt: "
        "remove one of them"
    )


@pytest.mark.parametrize("damage", ["truncated", "not an archive"])
def test_a_damaged_archive_stops_the_ingest(tmp_path, cohort, write_archive, write_stays, damage):
    write_stays(tmp_path / "raw" / "set-b", {i: ["00:01,HR,80"] for i in range(1, 500)})
    path = tmp_path / "raw" / "set-a.tar.gz"
    write_archive(path, {i: [f"00:01,HR,{i * 7919 % 1013}"] for i in range(1000, 1200)})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "truncated" else gzip.compress(b"x" * 99))
    with pytest.raises(InputError, match=r"set-a.tar.gz: corrupt archive .*; fetch it again"):
        cohort("physionet2012", tmp_path / "raw")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_without_stays_says_what_is_looked_for(tmp_path, cohort):
    with pytest.raises(InputError, match=r"no <RecordID>.txt and no set-\*.tar.gz in it"):
        cohort("physionet2012", tmp_path)


def test_malformed_outcomes_are_quarantined(tmp_path, cohort, write_stays):
    write_stays(tmp_path / "raw", {1: ["00:01,HR,80"], 2: ["00:01,HR,80"]})
    (tmp_path / "raw" / "Outcomes-a.txt").write_text(OUTCOMES + "1,6,1,5,-1,0\n2,6,1,x,-1,1\n2,6\n")
    path = cohort("physionet2012", tmp_path / "raw", max_rejected=0.5)
    rejected = pq.read_table(path / "metadata/rejected.parquet").to_pylist()
    assert [(r["file"], r["line"]) for r in rejected] == [
        ("Outcomes-a.txt", 3),
        ("Outcomes-a.txt", 4),
    ]


def test_outcomes_are_taken_as_they_are_written(tmp_path, cohort, write_stays):
    write_stays(tmp_path / "raw", {i: ["00:01,HR,80"] for i in (1, 2, 3)})
    rows = "1,6,1,3.9,-1,0\n2,6,1,5,-1,0.9\n3.5,6,1,5,-1,1\n"
    (tmp_path / "raw" / "Outcomes-a.txt").write_text("\ufeff" + OUTCOMES + rows, "utf-8")
    path = cohort("physionet2012", tmp_path / "raw", max_rejected=0.9)
    assert read_labels(path, "length_of_stay_3d").value.tolist() == [True]
    assert read_labels(path, "mortality").value.tolist() == [False]
    rejected = pq.read_table(path / "metadata/rejected.parquet").to_pylist()
    assert [(r["file"], r["line"]) for r in rejected] == [
        ("Outcomes-a.txt", 3),
        ("Outcomes-a.txt", 4),
    ]


def test_a_mark_of_utf8_is_no_part_of_a_stay(tmp_path, cohort, events_of):
    (tmp_path / "raw").mkdir()
    text = "\ufeffTime,Parameter,Value\n00:00,RecordID,1\n00:01,HR,80\n"
    (tmp_path / "raw" / "1.txt").write_text(text, "utf-8")
    path = cohort("physionet2012", tmp_path / "raw", splits="all:train", max_rejected=0)
    assert "HR" in events_of(path, "train")["code"].to_pylist()


def test_all_real_stays_come_in(shared, cohort, events_of):
    path = cohort("physionet2012", shared("physionet2012"))
    splits = pq.read_table(path / "metadata/subject_splits.parquet")
    assert splits.num_rows == 8000
    assert pq.read_table(path / "metadata/rejected.parquet").num_rows == 0
    death = pq.read_table(path / "labels/mortality.parquet")
    assert (death.num_rows, sum(death["boolean_value"].to_pylist())) == (8000, 1122)
    events = events_of(path)
    codes = events["code"].value_counts().to_pylist()
    counts = {row["values"]: row["counts"] for row in codes}
    assert (counts["ADMISSION"], counts["ICUType"], counts["HR"]) == (8000, 8000, 457144)
    assert counts["Height"] == 8000 - 3824 - 20  # not measured, and such as no adult has
    assert "RecordID" not in counts


def test_an_archive_that_points_elsewhere_writes_and_reads_nothing_there(tmp_path, cohort):
    secret = tmp_path / "900003.txt"
    secret.write_text("Time,Parameter,Value\n00:00,RecordID,900003\n01:00,HR,1\n")
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "set-a.tar.gz", "w:gz") as archive:
        for name in ("../../900001.txt", f"{tmp_path}/900002.txt", "set-a/132539.txt"):
            stay = Path(name).stem
            data = f"Time,Parameter,Value\n00:00,RecordID,{stay}\n01:00,HR,80\n".encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, kind in (("900003.txt", tarfile.SYMTYPE), ("900004.txt", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(secret)
            archive.addfile(member)
    path = cohort("physionet2012", tmp_path / "in", splits="all:train")
    ids = pq.read_table(path / "data" / "train")["subject_id"].to_pylist()
    assert set(ids) == {132539, 900001, 900002}
    made = {tmp_path / "in", tmp_path / "in" / "set-a.tar.gz", tmp_path / "out"}
    after = set(tmp_path.rglob("*")) - set((tmp_path / "out").rglob("*"))
    assert after == {*before, *made}
    assert not (tmp_path.parent / "900001.txt").exists()
