import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_up import hancock

from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError
from ehr_ray.events.labels import read_labels
from ehr_ray.sources.hancock.reader import denied


@pytest.fixture
def folder(tmp_path):
    raw = tmp_path / "raw"
    hancock.write(raw)
    return raw


@pytest.fixture
def read(folder, tmp_path):
    def run(name="cohort", **options):
        cohort = tmp_path / name
        ingest("hancock", folder, cohort, splits="all:train", options=options, cpus=1)
        return cohort

    return run


def targets(folder):
    with open(folder / "targets.csv") as file:
        return {int(row["patient_id"]): row for row in csv.DictReader(file)}


def test_events_are_features_at_the_diagnosis_and_outcomes_at_their_days(read, folder):
    cohort = read()
    events = pq.read_table(cohort / "data" / "train").to_pandas()
    one = events[events["subject_id"] == 1].set_index("code")
    assert one.loc["CLINICAL//age_at_initial_diagnosis", "numeric_value"] >= 40
    assert {"CLINICAL//sex//0", "CLINICAL//sex//1"} & set(one.index)
    assert "ICD//C020" in one.index
    assert "ICD//C021" not in one.index
    origin = one.loc["ADMISSION", "time"]
    assert one.loc["BLOOD//Hb", "time"] == origin
    end = (one.loc["FOLLOW_UP//END", "time"] - origin).days
    assert end == int(targets(folder)[1]["days_to_last_information"])
    features = events[events["code"].str.match("CLINICAL|BLOOD|ICD|TMA")]
    assert (features["time"].isna() | (features["time"] == origin)).all()


def test_post_baseline_columns_are_denied(read):
    codes = pq.read_table(read() / "metadata" / "codes.parquet")["code"].to_pylist()
    assert not [c for c in codes if "progress" in c or c == "CLINICAL//recurrence"]
    for column in ("recurrence", "days_to_progress_1", "metastasis_1_locations", "rfs_event"):
        assert denied(column)
    for column in ("adjuvant_radiotherapy", "year_of_initial_diagnosis", "days_to_first_treatment"):
        assert denied(column)
    assert not denied("primarily_metastasis")
    assert not denied("age_at_initial_diagnosis")


def test_tiles_with_tissue_are_events_and_padding_is_none(read):
    events = pq.read_table(read() / "data" / "train").to_pandas()
    tiles = events[events["code"].str.startswith("TMA//HE//")].groupby("subject_id").size()
    assert tiles.to_dict() == {1: 512, 2: 256, 3: 512, 4: 512}


def test_labels_follow_the_horizons(read, folder):
    cohort = read()
    label = read_labels(cohort, "recurrence_2y")
    told = dict(zip(label.subject_id.tolist(), label.value.tolist(), strict=True))
    for subject, row in targets(folder).items():
        last, day = float(row["days_to_last_information"]), row["days_to_recurrence"]
        if day:
            assert told[subject] == (float(day) <= 730)
        elif row["survival_status"] == "deceased" or last >= 730:
            assert told[subject] is False
        else:
            assert subject not in told
    meaning = json.loads((cohort / "metadata" / "tasks.json").read_text())
    assert "no event within 1825 days" in meaning["survival_5y"]


def test_an_outcome_on_the_day_of_diagnosis_counts_and_comes_after_the_prediction(read, folder):
    rows = targets(folder)
    rows[1] |= {"recurrence": "yes", "days_to_recurrence": "0"}
    with open(folder / "targets.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[1]))
        table.writeheader()
        table.writerows(rows.values())
    cohort = read()
    label = read_labels(cohort, "recurrence_2y")
    mine = label.subject_id == 1
    assert label.value[mine].tolist() == [True]
    events = pq.read_table(cohort / "data" / "train").to_pandas()
    time = events[(events["subject_id"] == 1) & (events["code"] == "RECURRENCE")]["time"].item()
    assert np.datetime64(time) > np.datetime64(label.cuts()[1][0], "us")


def test_a_competing_death_can_be_unknown_and_a_cause_can_be_asked_for(read, folder):
    cohort = read(competing_death="unknown", death_cause="tumor")
    known = set(read_labels(cohort, "recurrence_2y").subject_id.tolist())
    survival = read_labels(cohort, "survival_5y")
    died = set(survival.subject_id[~survival.value].tolist())
    for subject, row in targets(folder).items():
        last = float(row["days_to_last_information"])
        if not row["days_to_recurrence"] and row["survival_status"] == "deceased" and last < 730:
            assert subject not in known
        other = row["survival_status_with_cause"] == "deceased not tumor specific"
        assert not (other and subject in died)


def test_a_column_that_tells_the_outcome_stops_the_run_with_its_name(read, folder):
    rows = [
        [i, int(bool(row["days_to_recurrence"]) and float(row["days_to_recurrence"]) <= 730)]
        for i, row in targets(folder).items()
    ]
    hancock.write_table(folder / "pathological.csv", ["patient_id", "second_look"], rows)
    with pytest.raises(InputError, match=r"pathological.csv: second_look.*recurrence_2y"):
        read()


@pytest.mark.parametrize(
    ("flag", "answer"),
    [("recurrence", "yes"), ("survival_status", "deceased")],
)
def test_a_copy_of_a_flag_is_a_leak_though_it_tells_less_of_the_horizon(read, folder, flag, answer):
    rows = [[i, int(row[flag] == answer)] for i, row in targets(folder).items()]
    hancock.write_table(folder / "icd_codes.csv", ["patient_id", "z999"], rows)
    with pytest.raises(InputError, match=r"icd_codes.csv: z999: .* at any time"):
        read()


@pytest.mark.parametrize(
    ("column", "was", "message"),
    [
        ("recurrence", {"yes": "1", "no": "0"}, "recurrence '[01]' is neither yes nor no"),
        ("survival_status", {"deceased": "Dead", "living": "Alive"}, "neither deceased nor living"),
    ],
)
def test_answers_in_other_words_are_refused_not_taken_for_no(read, folder, column, was, message):
    rows = [{**row, column: was[row[column]]} for row in targets(folder).values()]
    hancock.write_table(folder / "targets.csv", list(rows[0]), [list(row.values()) for row in rows])
    with pytest.raises(InputError, match=message):
        read()


def test_the_cause_of_death_is_needed_where_it_decides(read, folder):
    rows = list(targets(folder).values())
    for row in rows:
        row.pop("survival_status_with_cause")
    hancock.write_table(folder / "targets.csv", list(rows[0]), [list(row.values()) for row in rows])
    with pytest.raises(InputError, match="no column survival_status_with_cause"):
        read(death_cause="tumor")


def test_the_record_of_tasks_says_which_deaths_count(read):
    default, other = (
        json.loads((read(**options) / "metadata" / "tasks.json").read_text())
        for options in (
            {},
            {"name": "other", "death_cause": "tumor", "competing_death": "unknown"},
        )
    )
    assert default["survival_5y"].endswith("of deaths those of any cause count")
    assert other["survival_5y"].endswith("of deaths only those by a tumour count")
    assert "is without it" in default["recurrence_2y"]
    assert "has no label" in other["recurrence_2y"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("clinical.csv", "patient_id,sex\n001,1\n1,0\n", "rows 2 and 3 are of one patient"),
        ("clinical.csv", "name,sex\n001,1\n", "no column patient_id"),
        ("clinical.csv", "patient_id,sex\n001\n", "row 2 has 1 cells, not 2"),
        ("tma_tile_dtr_256_HE.npz", "nothing", "not a readable archive"),
        ("targets.csv", "patient_id,recurrence\n001,no\n", "no column days_to_recurrence"),
    ],
)
def test_what_is_wrong_is_named(read, folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read()


def test_patients_without_a_row_in_targets_are_rejected(read, folder):
    with open(folder / "blood.csv", "a") as file:
        file.write("999,1.0\n")
    rejected = pq.read_table(read() / "metadata" / "rejected.parquet").to_pylist()
    assert rejected == [{"file": "blood.csv", "line": 52, "reason": "no row in targets"}]
