"""What an ingest tells of the values that it read otherwise than they stood."""

from datetime import datetime

import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError

HEAD = "subject_id,time,code,numeric_value\n"


def table(tmp_path, *rows, name="e.csv"):
    (tmp_path / name).write_text(HEAD + "".join(f"{row}\n" for row in rows))
    return tmp_path / name


def changes(cohort):
    rows = pq.read_table(cohort / "metadata/changes.parquet").to_pylist()
    return {(row["code"], row["change"]): row["count"] for row in rows}


PLAIN = [f"{i},2020-01-01,Na,140" for i in range(1, 30)]


def test_a_bad_value_loses_the_value_not_the_event(tmp_path, cohort, events_of):
    odd = ['"1,234"', "POSITIVE", "N/A", "−2.5", ">100", "<0.01"]
    rows = [f"1,2020-01-02 0{i}:00,X,{cell}" for i, cell in enumerate(odd)]
    path = cohort("table", table(tmp_path, *PLAIN, *rows))
    found = [r["numeric_value"] for r in events_of(path).to_pylist() if r["code"] == "X"]
    assert found == [1234, None, None, -2.5, 100, pytest.approx(0.01)]
    assert changes(path) == {
        ("X", "thousands mark"): 1,
        ("X", "not a number"): 1,
        ("X", "inequality"): 2,
    }
    bounds = pq.read_table(path / "metadata/inequalities.parquet").to_pylist()
    assert [(r["code"], r["time"], r["text_value"]) for r in bounds] == [
        ("X", datetime(2020, 1, 2, 4), ">100"),
        ("X", datetime(2020, 1, 2, 5), "<0.01"),
    ]
    assert pq.read_table(path / "metadata/rejected.parquet").num_rows == 0


@pytest.mark.parametrize(
    ("repeats", "rows", "kind"), [("keep", 4, "kept"), ("drop", 2, "left out")]
)
def test_exact_repeats_are_counted_and_kept_or_left_out(
    tmp_path, cohort, events_of, repeats, rows, kind
):
    path = table(tmp_path, *["1,2020-01-01,HR,80"] * 3, "1,2020-01-01,HR,81")
    made = cohort("table", path, repeats=repeats)
    assert len(events_of(made)) == rows
    assert changes(made) == {("HR", f"exact repeat, {kind}"): 2}


def test_repeats_are_found_across_files(tmp_path, cohort, events_of):
    (tmp_path / "in").mkdir()
    for name in ("a.csv", "b.csv"):
        table(tmp_path / "in", "1,2020-01-01,HR,80", "2,,Age,60", name=name)
    path = cohort("table", tmp_path / "in", repeats="drop")
    assert len(events_of(path)) == 2
    assert sum(changes(path).values()) == 2


MIXED = "give all times of events and labels with a zone, or none"


def test_times_with_a_zone_are_turned_to_utc_and_told(tmp_path, events_of):
    rows = ["1,2020-01-01T10:00+02:00,HR,80", "1,2020-01-01T09:00Z,HR,81", "1,,Sex,"]
    summary = ingest("table", table(tmp_path, *rows), tmp_path / "c")
    assert "times with a zone: 2, turned to UTC" in str(summary).splitlines()
    times = [r["time"].hour for r in events_of(tmp_path / "c").to_pylist() if r["code"] == "HR"]
    assert times == [8, 9]
    assert changes(tmp_path / "c") == {(None, "time with a zone"): 2}


def test_times_with_and_without_a_zone_are_refused_by_file_and_column(tmp_path, cohort):
    aware, bare = "1,2020-01-01T10:00Z,HR,80", "1,2020-01-01 10:00,HR,81"
    with pytest.raises(
        InputError, match=rf"e\.csv, column time: times with a zone, and oth.*; {MIXED}"
    ):
        cohort("table", table(tmp_path, aware, bare))
    (tmp_path / "in").mkdir()
    table(tmp_path / "in", bare, name="a.csv")
    table(tmp_path / "in", aware, name="b.csv")
    with pytest.raises(
        InputError,
        match=rf"^b\.csv, column time: times with a zone, but none in a\.csv, column t.*{MIXED}",
    ):
        cohort("table", tmp_path / "in")


@pytest.mark.parametrize(
    ("event", "label"),
    [
        ("2020-01-01T09:00+02:00", "2020-01-01 08:00"),
        ("2020-01-01T09:00+02:00", "2020-01-02"),
        ("2020-01-01 09:00", "2020-01-01T08:00Z"),
    ],
)
def test_labels_and_events_are_both_with_a_zone_or_both_without(tmp_path, cohort, event, label):
    (tmp_path / "l.csv").write_text(f"subject_id,prediction_time,died\n1,{label},1\n")
    path = table(tmp_path, f"1,{event},HR,80")
    with pytest.raises(InputError, match=rf"--labels l\.csv, column prediction_time.*{MIXED}"):
        cohort("table", path, labels=tmp_path / "l.csv")


def test_times_without_a_zone_are_left_as_they_are(tmp_path):
    alone = ingest("table", table(tmp_path, *PLAIN, name="n.csv"), tmp_path / "naive")
    assert alone.changes == {}


def test_ids_in_harmless_spellings_are_one_subject_and_told(tmp_path):
    path = table(tmp_path, "P-17,2020-01-01,HR,80", "P-17 ,2020-01-02,HR,81", "7,,A,1", "7.0,,B,1")
    summary = ingest("table", path, tmp_path / "c")
    assert sum(summary.subjects.values()) == 2
    assert "subject ids in several spellings (blanks, .0): 2, taken as one each" in str(summary)


@pytest.mark.parametrize("other", ["007", "+7"])
def test_ids_that_may_be_two_subjects_are_refused(tmp_path, cohort, other):
    (tmp_path / "in").mkdir()
    table(tmp_path / "in", "7,2020-01-01,HR,80", name="a.csv")
    table(tmp_path / "in", f"{other},2020-01-02,HR,81", name="b.csv")
    with pytest.raises(InputError, match="1 subject ids are written in ways that may be two subj"):
        cohort("table", tmp_path / "in")


def test_decimal_commas_are_refused_with_the_option_that_reads_them(tmp_path, cohort, events_of):
    path = table(tmp_path, '1,2020-01-01,K,"4,1"', '1,2020-01-02,K,"3,9"')
    with pytest.raises(InputError, match=r"2 of 2 values have a decimal comma.*say --decimal ,"):
        cohort("table", path)
    values = events_of(cohort("table", path, decimal=","))["numeric_value"].to_pylist()
    assert values == [pytest.approx(4.1), pytest.approx(3.9)]


def test_a_column_of_words_is_no_column_of_values(tmp_path, cohort):
    path = table(tmp_path, "1,2020-01-01,Culture,MRSA", "1,2020-01-02,Culture,none seen")
    with pytest.raises(InputError, match="2 of 2 values are no numbers: is it the right column"):
        cohort("table", path)
    assert changes(cohort("table", path, max_rejected=1)) == {("Culture", "not a number"): 2}


def test_the_users_own_ranges_and_units_are_applied_to_a_table(tmp_path, cohort, events_of):
    (tmp_path / "e.csv").write_text(
        "subject_id,time,code,numeric_value,u\n1,2020-01-01,Temp,98.6,F\n1,2020-01-02,Temp,37,C\n"
        "1,2020-01-03,Temp,370,C\n1,2020-01-04,Sex,1,\n"
    )
    (tmp_path / "r.csv").write_text("code,low,high,unit\nTemp,20,45,C\n")
    (tmp_path / "u.csv").write_text(
        "code,unit,to,factor,offset\nTemp,F,C,0.555555555556,-17.7777777778\n"
    )
    path = cohort(
        "table",
        tmp_path / "e.csv",
        unit_column="u",
        ranges=str(tmp_path / "r.csv"),
        units=str(tmp_path / "u.csv"),
    )
    found = [(r["code"], r["numeric_value"]) for r in events_of(path).to_pylist()]
    assert found == [("Temp//C", pytest.approx(37)), ("Temp//C", 37), ("Sex", 1)]
    assert changes(path) == {("Temp//C", "out of range"): 1, ("Temp//C", "unit converted"): 1}


def test_codes_of_the_users_tables_that_no_event_has_are_told(tmp_path, cohort, caplog):
    (tmp_path / "r.csv").write_text("code,low,high,unit\nNa,20,450,\nPulse,0,350,\n")
    cohort("table", table(tmp_path, *PLAIN), ranges=str(tmp_path / "r.csv"))
    assert [record.getMessage() for record in caplog.records] == [
        "--ranges and --units: no event has the code Pulse"
    ]


def test_a_name_that_agrees_is_not_asked_for(tmp_path, cohort, events_of):
    path = cohort("table", table(tmp_path, "1,2020-01-01,HR,9999"))
    assert events_of(path)["numeric_value"].to_pylist() == [9999]


def test_other_limits_make_another_cohort(tmp_path, cohort):
    path = table(tmp_path, *PLAIN)
    cohort("table", path)
    for change in ({"ranges": "eicu"}, {"units": "mimic-iv"}, {"repeats": "drop"}):
        with pytest.raises(InputError, match="holds another input or other options"):
            cohort("table", path, **change)
