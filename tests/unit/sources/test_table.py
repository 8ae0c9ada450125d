import gzip
import json
from datetime import datetime, timedelta
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError
from ehr_ray.events.labels import read_labels
from ehr_ray.events.patients import cohort_shards, read_patients
from ehr_ray.events.schema import RECORD
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.sources.parsing import csv_ranges
from ehr_ray.storage.paths import STAGING

CSV = """pid,charted,what,amount,unit
2,2020-01-01 10:00:00,HR,80,bpm
1,2020-01-01T09:30:00,HR,81.5,bpm
1,,Age,60,years
2,2020-01-01 09:00:00,Vent,,
1,2020-01-01,HR,NaN,bpm
"""
COLUMNS = {
    "id_column": "pid",
    "time_column": "charted",
    "code_column": "what",
    "value_column": "amount",
}
EXPECTED = [
    (1, None, "Age", 60.0),
    (1, datetime(2020, 1, 1), "HR", None),
    (1, datetime(2020, 1, 1, 9, 30), "HR", 81.5),
    (2, datetime(2020, 1, 1, 9), "Vent", None),
    (2, datetime(2020, 1, 1, 10), "HR", 80.0),
]


@pytest.fixture
def read(cohort, events_of):
    def run(path, **options):
        table = events_of(cohort("table", path, splits="all:train", **{**COLUMNS, **options}))
        rows = [tuple(r.values()) for r in table.to_pylist()]
        return sorted(rows, key=lambda r: r[0])

    return run


def test_a_csv_with_dates_becomes_events(tmp_path, read):
    (tmp_path / "events.csv").write_text(CSV)
    assert read(tmp_path / "events.csv") == EXPECTED


def test_a_compressed_csv_gives_the_same(tmp_path, read):
    (tmp_path / "events.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    assert read(tmp_path / "events.csv.gz") == EXPECTED


def test_parquet_gives_the_same(tmp_path, read):
    (tmp_path / "events.csv").write_text(CSV)
    table = pa_csv.read_csv(tmp_path / "events.csv")
    assert pa.types.is_timestamp(table["charted"].type)
    pq.write_table(table, tmp_path / "events.parquet", row_group_size=2)
    assert read(tmp_path / "events.parquet") == EXPECTED


def test_a_folder_of_pieces_may_cut_subjects_anywhere(tmp_path, read):
    head, *rows = CSV.splitlines()
    (tmp_path / "in").mkdir()
    for i, row in enumerate(rows):
        (tmp_path / "in" / f"{i}.csv").write_text(f"{head}\n{row}\n")
    assert read(tmp_path / "in") == EXPECTED


def test_what_is_hidden_in_a_folder_is_no_piece_of_it(tmp_path, read):
    for name in (
        "in/events.csv",
        "in/.trash/old.csv",
        "in/a/.c.staging-0/parts/0.csv",
        "in/._b.csv",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(CSV)
    assert read(tmp_path / "in") == EXPECTED


def test_files_of_a_folder_are_known_in_any_capitals_and_others_are_told(
    tmp_path, cohort, events_of
):
    folder = tmp_path / "in"
    folder.mkdir()
    head = "subject_id,time,code,numeric_value\n"
    (folder / "jan.csv").write_text(head + "1,2024-01-01,HR,80\n")
    (folder / "FEB.CSV").write_text(head + "2,2024-01-01,HR,81\n")
    (folder / "mar.CSV.GZ").write_bytes(gzip.compress((head + "3,2024-01-01,HR,82\n").encode()))
    (folder / "apr.TSV").write_text((head + "4,2024-01-01,HR,83\n").replace(",", "\t"))
    rows = pa.table({"subject_id": [5], "time": ["2024-01-01"], "code": ["HR"]})
    rows = rows.append_column("numeric_value", pa.array([84.0]))
    pq.write_table(rows, folder / "may.PARQUET")
    (folder / "README.txt").write_text("what these are")
    (folder / "june.txt").write_text(head + "6,2024-01-01,HR,85\n")
    (folder / "README.md").write_text("Our export.")
    path = cohort("table", folder, splits="all:train")
    assert sorted(events_of(path)["subject_id"].to_pylist()) == [1, 2, 3, 4, 5]
    told = pq.read_table(path / "metadata/changes.parquet").to_pylist()
    assert told == [{"code": "june.txt", "change": "file of another ending", "count": 1}]


@pytest.mark.parametrize(("unit", "scale"), [("minutes", 60), ("hours", 1)])
def test_relative_time_counts_from_an_admission(tmp_path, read, unit, scale):
    (tmp_path / "e.csv").write_text(f"pid,charted,what,amount\n1,{scale * 2.5},HR,80\n1,,Age,60\n")
    rows = read(tmp_path / "e.csv", time_unit=unit)
    assert rows == [
        (1, None, "Age", 60.0),
        (1, datetime(2000, 1, 1), "ADMISSION", None),
        (1, datetime(2000, 1, 1, 2, 30), "HR", 80.0),
    ]


def test_an_admission_that_is_there_is_not_repeated(tmp_path, read):
    (tmp_path / "e.csv").write_text(
        "pid,charted,what,amount\n1,0,ADMISSION,\n1,5,HR,80\n2,5,HR,80\n"
    )
    rows = read(tmp_path / "e.csv", time_unit="minutes")
    assert [(r[0], r[2]) for r in rows] == [
        (1, "ADMISSION"),
        (1, "HR"),
        (2, "ADMISSION"),
        (2, "HR"),
    ]


def test_ties_keep_the_order_of_the_file(tmp_path, read):
    rows = "".join(f"1,5,HR,{value}\n" for value in (70, 90, 80))
    (tmp_path / "e.csv").write_text("pid,charted,what,amount\n" + rows)
    assert [r[3] for r in read(tmp_path / "e.csv", time_unit="minutes")] == [None, 70, 90, 80]


def test_bad_rows_are_quarantined_by_line_however_the_file_is_cut(tmp_path, cohort, monkeypatch):
    monkeypatch.setattr("ehr_ray.sources.parsing.csv_files.BLOCK_BYTES", 300)
    bad = {
        7: ("9,5,HR", "3 cells where the header has 4: '9,5,HR'"),
        8: ("9,5,HR,1,2", "5 cells where the header has 4: '9,5,HR,1,2'"),
        41: (",5,HR,1", "subject id is blank"),
        60: ("9,5,,1", "code is blank"),
        61: ("9,soon,HR,1", "time 'soon' is not a time"),
        99: ("9", "1 cells where the header has 4: '9'"),
    }
    lines = ["pid,charted,what,amount"]
    lines += [bad[n][0] if n in bad else f"{n},5,HR,80" for n in range(2, 100)]
    lines[54] = ""
    (tmp_path / "e.csv").write_text("\n".join(lines) + "\n")
    path = cohort("table", tmp_path / "e.csv", max_rejected=0.2, time_unit="minutes", **COLUMNS)
    rejected = pq.read_table(path / "metadata/rejected.parquet").to_pylist()
    found = sorted((r["line"], r["reason"]) for r in rejected)
    assert found == [(n, reason) for n, (_, reason) in bad.items()]
    assert pq.read_table(path / "metadata/subject_splits.parquet").num_rows == 98 - len(bad) - 1


def test_a_refused_time_that_is_a_number_tells_the_option_for_numbers(tmp_path, cohort):
    (tmp_path / "e.csv").write_text("pid,charted,what,amount\n1,3.5,HR,80\n1,soon,HR,80\n")
    with pytest.raises(InputError, match="not a time; say --time-unit minutes or hours"):
        cohort("table", tmp_path / "e.csv", max_rejected=0.4, **COLUMNS)
    (tmp_path / "e.csv").write_text("pid,charted,what,amount\n1,soon,HR,80\n1,soon,HR,80\n")
    with pytest.raises(InputError, match="is not a time") as told:
        cohort("table", tmp_path / "e.csv", max_rejected=0.4, **COLUMNS)
    assert "--time-unit" not in str(told.value)


def test_labels_default_to_the_last_event_or_count_from_the_origin(tmp_path, cohort):
    (tmp_path / "e.csv").write_text(CSV)
    (tmp_path / "l.csv").write_text("id,died,note\n1,true,fine\n2,False,poor\n")
    for minute, hour in ((None, 10), (90, 10)):
        path = cohort(
            "table",
            tmp_path / "e.csv",
            name=str(minute),
            labels=tmp_path / "l.csv",
            label_minute=minute,
            **COLUMNS,
        )
        rows = pq.read_table(path / "labels/died.parquet").to_pylist()
        assert [r["boolean_value"] for r in rows] == [True, False]
        expected = datetime(2020, 1, 1, hour, 30 if minute else 0)
        assert rows[1]["prediction_time"] == expected


def test_labels_of_numbers_and_classes_are_tasks_of_these_kinds(tmp_path, cohort):
    (tmp_path / "e.csv").write_text(CSV)
    (tmp_path / "l.csv").write_text('id,days,unit\n1,"2,5",ward\n2,4,ICU\n')
    options = {"label_numbers": "days", "label_classes": "unit", "decimal": ",", **COLUMNS}
    path = cohort("table", tmp_path / "e.csv", labels=tmp_path / "l.csv", **options)
    days, unit = read_labels(path, "days"), read_labels(path, "unit")
    assert (days.kind, days.value.tolist()) == ("regression", [2.5, 4])
    assert (unit.kind, unit.classes, unit.value.tolist()) == ("classes", ("ICU", "ward"), [1, 0])


def test_names_of_subjects_are_hashed(tmp_path, cohort):
    (tmp_path / "e.csv").write_text(CSV.replace("\n1,", "\nann,"))
    path = cohort("table", tmp_path / "e.csv", **COLUMNS)
    assert pq.read_table(path / "metadata/subject_ids.parquet")["name"].to_pylist() == ["ann"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"code_column": "item"},
            "--code-column item: e.csv has the columns pid, charted, what, amount, unit",
        ),
        ({"time_unit": "days"}, "--time-unit days: choose from timestamp, minutes, hours"),
    ],
)
def test_bad_options_name_the_flag_and_the_choice(tmp_path, cohort, options, message):
    (tmp_path / "e.csv").write_text(CSV)
    with pytest.raises(InputError, match=message):
        cohort("table", tmp_path / "e.csv", **{**COLUMNS, **options})


def test_numbers_where_dates_are_wanted_say_the_remedy(tmp_path, cohort):
    table = pa.table({"pid": [1], "charted": [5.0], "what": ["HR"], "amount": [80.0]})
    pq.write_table(table, tmp_path / "e.parquet")
    with pytest.raises(
        InputError, match="column charted holds double: say --time-unit minutes or hours"
    ):
        cohort("table", tmp_path / "e.parquet", **COLUMNS)


@pytest.mark.parametrize("data", [b"", b"pid,charted,what,amount\n"])
def test_a_csv_without_rows_is_refused(tmp_path, cohort, data):
    (tmp_path / "e.csv").write_bytes(data)
    with pytest.raises(InputError, match=r"e\.csv: (empty, not even a header|unreadable: no rows)"):
        cohort("table", tmp_path / "e.csv", **COLUMNS)


def test_a_truncated_gzip_is_refused(tmp_path, cohort):
    data = gzip.compress((CSV * 2000).encode())
    (tmp_path / "e.csv.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"e\.csv\.gz"):
        cohort("table", tmp_path / "e.csv.gz", **COLUMNS)


@pytest.mark.parametrize("code", ["ADMISSION", "HOSPITAL_ADMISSION//ER", "ICU_ADMISSION//MICU"])
@pytest.mark.parametrize("unit", ["hours", "timestamp"])
def test_every_admission_of_ones_own_begins_a_visit_in_any_unit_of_time(
    tmp_path, cohort, code, unit
):
    times = (0, 6, 100, 400)
    if unit == "timestamp":
        times = [str(datetime(2020, 1, 1) + timedelta(hours=hour)) for hour in times]
    codes = (code, "HR", code, code)
    rows = [f"1,{time},{what},," for time, what in zip(times, codes, strict=True)]
    path = tmp_path / "events.csv"
    path.write_text("\n".join([CSV.splitlines()[0], *rows]) + "\n")
    made = cohort("table", path, splits="all:train", time_unit=unit, **COLUMNS)
    known = Vocabulary(("HR",), np.ones(1, np.int64), np.zeros(1), np.ones(1))
    (patient,) = read_patients(cohort_shards(made, "train")[0], known)
    assert ((patient.admitted - patient.origin) / 3.6e9).tolist() == [0, 100, 400]


def damaged(tmp_path, kind):
    """Write 60,000 good rows and then, in the last block, damage; return the file."""
    rows = [f"{i % 500},{i},HR,80" for i in range(60_000)]
    text = "pid,charted,what,amount\n" + "\n".join(rows) + "\n"
    if kind == "encoding":
        path = tmp_path / "e.csv"
        path.write_bytes(text.encode() + b"1,5,M\xfcller,80\n")
    elif kind == "gzip":
        path = tmp_path / "e.csv.gz"
        path.write_bytes(gzip.compress(text.encode())[:-2000])
    else:
        path = tmp_path / "e.parquet"
        table = pa.table(
            [[str(i % 500) for i in range(60_000)], range(60_000), ["HR"] * 60_000, range(60_000)],
            names=["pid", "charted", "what", "amount"],
        )
        pq.write_table(table, path, row_group_size=20_000, compression="zstd")
        data = bytearray(path.read_bytes())
        at = pq.ParquetFile(path).metadata.row_group(2).column(3).data_page_offset
        data[at : at + 400] = bytes(400)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["encoding", "gzip", "parquet"])
def test_a_damaged_file_leaves_nothing_and_all_its_rows_are_counted(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("ehr_ray.sources.parsing.csv_files.BLOCK_BYTES", 100_000)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/good.csv").write_text("pid,charted,what,amount\n7000,5,HR,80\n")
    path = damaged(tmp_path / "in", kind)
    options = {"time_unit": "minutes", **COLUMNS}
    summary = ingest("table", tmp_path / "in", tmp_path / "c", max_rejected=1, options=options)
    assert sum(summary.subjects.values()) == 1
    assert summary.rejected_files == 1
    assert summary.rows_read == summary.rejected_rows + 1
    assert summary.rejected_rows == {"encoding": 60_001, "parquet": 60_000}.get(
        kind, summary.rejected_rows
    )
    assert summary.rejected_rows > 30_000
    (rejected,) = pq.read_table(tmp_path / "c/metadata/rejected.parquet").to_pylist()
    assert (rejected["file"], rejected["line"]) == (path.name, None)
    assert ("--encoding" in rejected["reason"]) == (kind == "encoding")


@pytest.mark.parametrize(("one", "other"), [("e.csv", "e.csv.gz"), ("e.csv", "e.parquet")])
def test_a_file_beside_its_copy_is_refused(tmp_path, cohort, one, other):
    (tmp_path / "in").mkdir()
    for name in (one, other):
        (tmp_path / "in" / name).write_text(CSV)
    with pytest.raises(InputError, match=rf"{one} beside {other}, which would be read twice"):
        cohort("table", tmp_path / "in", **COLUMNS)


def test_a_german_export_is_read_by_options_and_hinted_at(tmp_path, read, cohort):
    text = "pid;charted;what;amount\n1;2020-01-01;Größe;1,5\n1;2020-01-02;Größe;1.234,5\n"
    (tmp_path / "e.csv").write_bytes(text.encode("cp1252"))
    rows = read(tmp_path / "e.csv", delimiter=";", decimal=",", encoding="cp1252")
    assert [row[2:] for row in rows] == [("Größe", 1.5), ("Größe", 1234.5)]
    (tmp_path / "plain.csv").write_text(text.replace("Größe", "size"))
    with pytest.raises(InputError, match=r"pid;charted;what;amount; say --delimiter ';'"):
        cohort("table", tmp_path / "plain.csv", name="other", **COLUMNS)
    with pytest.raises(InputError, match="say which by --encoding"):
        cohort("table", tmp_path / "e.csv", name="other", delimiter=";", decimal=",", **COLUMNS)


def test_a_column_given_twice_is_refused_in_parquet_too(tmp_path, cohort):
    table = pa.table([["1"], [1], ["HR"], [80.0], [81.0]], names=[*COLUMNS.values(), "amount"])
    pq.write_table(table, tmp_path / "e.parquet")
    with pytest.raises(InputError, match="two columns are called amount"):
        cohort("table", tmp_path / "e.parquet", time_unit="minutes", **COLUMNS)


def test_labels_stand_at_their_own_prediction_times(tmp_path):
    events = [f"{s},2150-01-01 {h:02d}:00:00,HR,80" for s in (1, 2) for h in range(0, 24, 6)]
    (tmp_path / "events.csv").write_text("\n".join(["patient_id,time,code,value", *events]))
    rows = [
        f"{s},2150-01-0{day},{s == 1},boolean" for s in (1, 2) for day in (2, 3) for _ in range(day)
    ]
    head = "patient_id,prediction_time,value,label_type"
    (tmp_path / "labeled_patients.csv").write_text("\n".join([head, *rows]))
    summary = ingest(
        "table",
        tmp_path / "events.csv",
        tmp_path / "out",
        options={
            "id_column": "patient_id",
            "value_column": "value",
            "labels": tmp_path / "labeled_patients.csv",
        },
        cpus=1,
    )
    found = pq.read_table(tmp_path / "out/labels/value.parquet").to_pylist()
    assert [(r["subject_id"], r["prediction_time"].day, r["boolean_value"]) for r in found] == [
        (1, 2, True),
        (1, 3, True),
        (2, 2, False),
        (2, 3, False),
    ]
    assert "task value: 4 labels, mean 0.500, 6 rows that repeat another" in str(summary)


def test_labels_are_joined_by_the_id_column_of_the_events(tmp_path, cohort):
    events = [f"{stay},{h},Lactate,{stay}" for stay in range(1, 7) for h in range(3)]
    (tmp_path / "events.csv").write_text("\n".join(["stay_id,hours,item,reading", *events]))
    labels = [f"{7 - stay},{stay},{int(stay < 3)}" for stay in range(1, 7)]
    (tmp_path / "labels.csv").write_text("\n".join(["subject_id,stay_id,died", *labels]))
    path = cohort(
        "table",
        tmp_path / "events.csv",
        id_column="stay_id",
        time_column="hours",
        time_unit="hours",
        code_column="item",
        value_column="reading",
        labels=tmp_path / "labels.csv",
    )
    rows = pq.read_table(path / "labels/died.parquet").to_pylist()
    assert {r["subject_id"]: r["boolean_value"] for r in rows} == {i: i < 3 for i in range(1, 7)}


def test_times_that_count_from_admission_have_their_origin(tmp_path):
    (tmp_path / "e.csv").write_text("subject_id,time,code,numeric_value\n1,5,A,1\n")
    with pytest.raises(InputError, match="--origin A: times of this input count from the admissio"):
        ingest(
            "table",
            tmp_path / "e.csv",
            tmp_path / "out",
            origin="A",
            options={"time_unit": "hours"},
            cpus=1,
        )


def test_a_file_that_several_tasks_read_gives_the_cohort_of_one(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    rows = [
        f"P-{random.integers(1, 60)},2020-01-{random.integers(1, 28):02d} 10:00:00,"
        f'"C,{random.integers(9)}",{random.normal():.3f},mg'
        for _ in range(3000)
    ]
    rows[700] += ",too many"
    rows[2000] = "P-1,no time,HR,1,bpm"
    rows[2500] = "P-2,2020-01-01,HR,>100,bpm"
    (tmp_path / "events.csv").write_text("\n".join(["pid,charted,what,amount,unit", *rows]) + "\n")
    table = pa_csv.read_csv(
        tmp_path / "events.csv",
        parse_options=pa_csv.ParseOptions(invalid_row_handler=lambda _: "skip"),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(["charted", "amount"], pa.string())
        ),
    )
    pq.write_table(table, tmp_path / "events.parquet", row_group_size=500)

    def made(file, name):
        lines = []
        ingest(
            "table",
            tmp_path / file,
            tmp_path / name,
            options=COLUMNS,
            max_rejected=0.5,
            cpus=1,
            progress=lines.append,
        )
        files = [path for path in sorted((tmp_path / name).rglob("*")) if path.is_file()]
        record = json.loads((tmp_path / name / RECORD).read_text())
        del record["fingerprint"]
        content = {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in files
            if path.name != RECORD.name
        }
        units = sum(line.startswith("read ") for line in lines)
        return units, record, content

    whole = {file: made(file, f"whole-{file}") for file in ("events.csv", "events.parquet")}
    monkeypatch.setattr("ehr_ray.sources.parsing.csv_ranges.RANGE_BYTES", 20_000)
    monkeypatch.setattr("ehr_ray.sources.parsing.csv_ranges.SCAN_BYTES", 7_000)
    monkeypatch.setattr("ehr_ray.sources.parsing.parquet_files.CHUNK_ROWS", 500)
    for file, (units, *cohort) in whole.items():
        more, *cut = made(file, f"cut-{file}")
        assert (units, more > 4) == (1, True)
        assert cut == cohort
    rejected = pq.read_table(tmp_path / "cut-events.csv/metadata/rejected.parquet").to_pylist()
    assert [row["line"] for row in rejected] == [702, 2002]


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_files_of_a_store_whose_names_are_in_no_uri_are_read_whole(tmp_path, monkeypatch, form):
    """With # or ? a name of a store has no URI of its own, and its stand-in holds zeros alone."""
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    monkeypatch.setattr(csv_ranges, "RANGE_BYTES", 200)
    raw = tmp_path / "raw"
    for number, name in enumerate(("a#1", "b?/c d", "e")):
        path = raw / f"{name}.{form}"
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = [f"p{number}{i % 5}" for i in range(40)]
        rows = pa.table({"id": ids, "time": range(40), "code": ["x"] * 40, "value": range(40)})
        if form == "parquet":
            pq.write_table(rows, path, row_group_size=10)
        else:
            pa_csv.write_csv(rows, path)
    columns = {f"{name}_column": name for name in ("id", "time", "code", "value")}
    options = {**columns, "time_unit": "hours"}
    made = {}
    for place in (raw, f"file://{raw}"):
        output = tmp_path / f"made{len(made)}"
        made[output] = ingest("table", place, output, options=options, cpus=1)
    here, there = made
    assert made[there].rows_read == made[here].rows_read == 120
    shards = [[path.read_bytes() for path in sorted((o / "data").rglob("*.*"))] for o in made]
    assert shards[0] == shards[1]


def test_an_input_in_a_store_that_changes_while_it_is_read_makes_no_cohort(tmp_path, monkeypatch):
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    events = tmp_path / "raw" / "events.csv"
    events.parent.mkdir()
    events.write_text("id,time,code,value\n" + "".join(f"p{i},1,x,{i}\n" for i in range(20)))
    columns = {f"{name}_column": name for name in ("id", "time", "code", "value")}
    run = partial(
        ingest,
        "table",
        f"file://{events.parent}",
        tmp_path / "made",
        options={**columns, "time_unit": "hours"},
        cpus=1,
    )

    def change(line):
        if line == "fitting codes on train":
            events.write_text(events.read_text() + "p1,2,x,3\n")

    with pytest.raises(InputError, match=r"--input file://.*raw: changed while it was read; run"):
        run(progress=change)
    assert not (tmp_path / "made").exists()
    assert not [*tmp_path.glob(".made.staging-*")]  # it would pass for what was read before
    assert run().rows_read == 21
