import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from ehr_ray.errors import InputError
from ehr_ray.sources.synthetic import LABS, VITALS, SyntheticOptions, make_patient, read, units


def test_the_default_cohort_has_the_promised_size(cohort, events_of):
    path = cohort("synthetic")
    events = events_of(path).to_pandas()
    visits = (events.code == "HR").sum()
    labs = events.code.isin([v.name for v in LABS]).sum()
    assert events.subject_id.nunique() == 500
    assert abs(visits - 16_500) < 700
    assert (len(VITALS), len(LABS)) == (10, 15)
    assert 1 - labs / (15 * visits) == pytest.approx(0.3, abs=0.01)
    assert pq.read_table(path / "labels/outcome.parquet").num_rows == 500


def test_a_patient_depends_on_seed_and_number_alone():
    few, many = SyntheticOptions(patients=3), SyntheticOptions(patients=5000)
    a, b = make_patient(2, few), make_patient(2, many)
    np.testing.assert_array_equal(a.values, b.values)
    other = make_patient(2, SyntheticOptions(data_seed=1))
    assert not np.array_equal(a.values[:10], other.values[:10])


def test_units_bound_what_is_held():
    work = units(None, SyntheticOptions(patients=2500))
    assert [(u.start, u.stop) for u in work] == [(1, 1001), (1001, 2001), (2001, 2501)]
    (chunk,) = read(work[-1], SyntheticOptions(patients=2500))
    assert pc.count_distinct(chunk.events["subject_id"]).as_py() == 500


def _grid(number, names, options):
    patient = make_patient(number, options)
    columns = []
    for name in names:
        code = [v.name for v in (*VITALS, *LABS)].index(name) + 2
        columns.append(patient.values[patient.codes == code])
    return np.stack(columns), patient.outcome


def test_values_are_correlated_over_time_and_with_each_other():
    options = SyntheticOptions(missing_ratio=0.0)
    lag, cross = [], []
    for number in range(1, 200):
        series, _ = _grid(number, ["SysABP", "MAP"], options)
        lag.append(np.corrcoef(series[0][1:], series[0][:-1])[0, 1])
        cross.append(np.corrcoef(series)[0, 1])
    assert np.mean(lag) > 0.5
    assert np.mean(cross) > 0.4


def test_the_outcome_is_learnable_but_not_certain():
    options = SyntheticOptions(min_visits=24, max_visits=24, missing_ratio=0.0)
    names = [v.name for v in (*VITALS, *LABS)]
    data = [_grid(number, names, options) for number in range(1, 1201)]
    x = np.stack([np.r_[series.mean(1), series[:, -6:].mean(1)] for series, _ in data])
    y = np.array([outcome for _, outcome in data])
    x = (x - x.mean(0)) / x.std(0)
    model = LogisticRegression(C=0.01, max_iter=500).fit(x[:800], y[:800])
    auroc = roc_auc_score(y[800:], model.predict_proba(x[800:])[:, 1])
    assert 0.8 < auroc < 0.97
    assert 0.2 < y.mean() < 0.5


def test_the_number_of_visits_says_nothing_about_the_outcome():
    patients = [make_patient(number, SyntheticOptions()) for number in range(1, 2001)]
    visits = [(p.codes == 2).sum() for p in patients]
    assert roc_auc_score([p.outcome for p in patients], visits) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patients": 0}, "--patients 0: at least 1"),
        ({"patients": "many"}, "--patients many: not a whole number"),
        ({"min_visits": 9, "max_visits": 3}, "need 1 <= min <= max"),
        ({"missing_ratio": 1.5}, "--missing-ratio 1.5: not between 0 and 1"),
        ({"label_hours": -1}, "--label-hours -1.0"),
        ({"patient": 3}, "--patient: no option of --source synthetic; it has --patients"),
    ],
)
def test_impossible_options_are_refused(cohort, options, message):
    with pytest.raises(InputError, match=message):
        cohort("synthetic", **options)


def test_several_admissions_are_whole_and_readmission_is_known_at_discharge(cohort, events_of):
    path = cohort("synthetic", splits="all:train", patients=60, admissions=4)
    events = events_of(path).to_pandas().dropna(subset="time")
    marks = events[events.code.str.startswith("HOSPITAL_")]
    assert not (events.code == "ADMISSION").any()
    known = []
    for subject, own in marks.groupby("subject_id"):
        assert own.code.tolist() == ["HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE"] * (len(own) // 2)
        came, left = own.time.to_numpy()[::2], own.time.to_numpy()[1::2]
        assert (came[1:] - left[:-1] >= np.timedelta64(1, "D")).all()
        again = [bool(gap <= np.timedelta64(30, "D")) for gap in came[1:] - left[:-1]]
        known += [(subject, *row) for row in zip(left, [*again, False], strict=True)]
        times = events[events.subject_id == subject].time.to_numpy()
        inside = np.searchsorted(came, times, side="right") - 1
        assert (times <= left[inside]).all()
    labels = pq.read_table(path / "labels/readmission_30d.parquet").to_pandas()
    rows = labels[["subject_id", "prediction_time", "boolean_value"]].itertuples(index=False)
    assert sorted(map(tuple, rows)) == sorted(known)
    assert 0.1 < labels.boolean_value.mean() < 0.9
    counts = marks.groupby("subject_id").size() // 2
    assert set(counts) == {1, 2, 3, 4}


def test_more_admissions_change_nothing_but_the_times(cohort):
    one, many = (make_patient(3, SyntheticOptions(admissions=n)) for n in (1, 5))
    assert one.outcome == many.outcome
    kept = np.isfinite(many.values)
    np.testing.assert_array_equal(one.values, many.values[kept])
    np.testing.assert_array_equal(one.codes, many.codes[kept])
    with pytest.raises(InputError, match="--admissions 0"):
        SyntheticOptions(admissions=0)
