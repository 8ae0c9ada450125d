import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from ehr_ray.evaluation.suite import SplitPredictions, SuiteInput
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.set_vae.sequence.evaluation import (
    detection,
    stays,
    suite,
    thresholds,
    with_alarms,
)

PATIENTS, SETS = 40, 6
SCORES = ("nelbo", "kl")


def part(seed, shift=0.0, wrong=(3.0, 0.8, 0.0, 2.0, 0.8, 0.0)):
    """Scores of every set, and of one set of each patient made wrong: higher by `wrong`."""
    rng = np.random.default_rng(seed)
    sample = np.repeat(np.arange(PATIENTS), SETS)
    sets = np.tile(np.arange(SETS), PATIENTS)
    chosen = np.arange(PATIENTS) * SETS + rng.integers(0, SETS, PATIENTS)
    clean = {name: rng.normal(size=len(sample)) + shift for name in ("recon", *SCORES)}
    frames = [pd.DataFrame({"sample": sample, "set": sets, "kind": 0, **clean})]
    for kind, more in enumerate(wrong, start=1):
        frame = frames[0].iloc[chosen].assign(kind=kind)
        for name in SCORES:
            noise = rng.normal(size=PATIENTS)
            frame[name] = frame[name] + more * (1 if name == "nelbo" else 0.5) + 0.1 * noise
        frames.append(frame)
    frame = pd.concat(frames).assign(minute=lambda f: 60.0 * f["set"])
    # Patients come in another order in the table of samples than in the entries.
    samples = pa.table(
        {
            "subject_id": 1000 + np.arange(PATIENTS),
            "prediction_time": pa.array(np.full(PATIENTS, 48 * 3600 * 10**6), pa.timestamp("us")),
        }
    )
    shuffled = frame.sample(frac=1.0, random_state=seed)
    table = pa.Table.from_pandas(shuffled.reset_index(drop=True), preserve_index=False)
    return SplitPredictions(samples, {"anomalies": table})


def with_values(part, seed):
    """The same sets with two values each, close to their last ones; wrong ones are far from it."""
    rng = np.random.default_rng(seed)
    sets = part.tables["anomalies"].select(["sample", "set", "kind"]).to_pandas()
    rows = sets.loc[sets.index.repeat(2)].reset_index(drop=True)
    rows["code"] = rows.index % 2
    rows["last"] = rng.normal(size=len(rows))
    rows["value"] = rows["last"] + 0.3 * rng.normal(size=len(rows))
    rows.loc[(rows["kind"] > 0) & (rows["code"] == 1), "value"] += 2.0
    rows["expected"], rows["carried"] = 0.0, False
    table = pa.Table.from_pandas(rows.sample(frac=1.0, random_state=seed), preserve_index=False)
    return SplitPredictions(part.samples, {**part.tables, "values": table})


def given(tmp_path, judged, **fit):
    return SuiteInput(
        split="held_out",
        judged=judged,
        fit=fit,
        model=None,
        vocabulary=Vocabulary(("HR", "pH"), np.ones(2, np.int64), np.zeros(2), np.ones(2)),
        target=tmp_path,
        num_bootstrap=50,
    )


@pytest.fixture
def found(tmp_path):
    return suite(given(tmp_path, part(1), tuning=part(2)))


def recorded(part):
    frame = part.tables["anomalies"].to_pandas()
    return frame[frame["kind"] == 0]


def of_patients(part):
    frame = part.tables["anomalies"].to_pandas()
    return frame.assign(subject_id=1000 + frame["sample"])


def test_thresholds_are_percentiles_of_recorded_sets():
    table = part(2, wrong=(50.0,) * 6)
    limits = thresholds(table.tables["anomalies"].to_pandas())
    clean = recorded(table)
    for name in SCORES:
        for percentile in (95, 99):
            expected = np.quantile(clean[name], percentile / 100)
            assert limits[name, percentile] == pytest.approx(expected)


def test_thresholds_come_from_tuning_and_not_from_what_is_judged(tmp_path):
    tuning = part(2)
    usual, drifted = (
        suite(given(tmp_path, part(1, shift), tuning=tuning)).metrics for shift in (0.0, 10.0)
    )
    clean = recorded(tuning)
    for name in SCORES:
        for p in (95, 99):
            assert usual[f"anomaly/{name}/p{p}"] == pytest.approx(np.percentile(clean[name], p))
            assert usual[f"anomaly/{name}/p{p}"] == drifted[f"anomaly/{name}/p{p}"]
            assert drifted[f"held_out/anomaly/{name}/alarm_rate_p{p}"] == 1.0
    assert 0.01 < usual["held_out/anomaly/nelbo/alarm_rate_p95"] < 0.12


def test_alarm_rates_of_tuning_itself_are_the_percentiles(tmp_path):
    tuning = part(2)
    metrics = suite(given(tmp_path, tuning, tuning=tuning)).metrics
    for name in SCORES:
        at = f"held_out/anomaly/{name}/alarm_rate"
        assert metrics[f"{at}_p95"] == pytest.approx(0.05, abs=1 / (PATIENTS * SETS))
        assert metrics[f"{at}_p99"] == pytest.approx(0.01, abs=1 / (PATIENTS * SETS))


def test_detection_equals_sklearn_over_the_same_sets_and_its_interval_holds_it():
    frame = of_patients(part(1))
    limits = thresholds(frame)
    metrics = detection(frame, limits, num_bootstrap=200)
    key = ["sample", "set"]
    for number, kind in ((1, "resampled"), (2, "shifted"), (3, "swapped"), (4, "foreign")):
        wrong = frame[frame["kind"] == number]
        right = recorded(part(1)).merge(wrong[key], on=key)
        assert len(right) == len(wrong) == PATIENTS
        for name in SCORES:
            scores = np.concatenate([right[name], wrong[name]])
            expected = roc_auc_score(np.repeat([0, 1], PATIENTS), scores)
            at = f"{name}/{kind}/auroc"
            assert metrics[at] == pytest.approx(expected)
            assert metrics[f"{at}/low"] <= metrics[at] <= metrics[f"{at}/high"]
            caught = (wrong[name] > limits[name, 99]).mean()
            assert metrics[f"{name}/{kind}/alarmed_p99"] == pytest.approx(caught)
    assert metrics["nelbo/resampled/auroc"] > 0.9
    assert metrics["nelbo/swapped/auroc"] == pytest.approx(0.5, abs=0.1)


def test_ties_count_half():
    frame = of_patients(part(1, wrong=(0.0,)))
    frame[list(SCORES)] = 1.0
    metrics = detection(frame, thresholds(frame), num_bootstrap=10)
    assert metrics["nelbo/resampled/auroc"] == 0.5
    assert metrics["nelbo/resampled/alarmed_p95"] == 0.0


def test_detection_repeats_and_its_interval_follows_the_seed():
    frame = of_patients(part(1))
    limits = thresholds(frame)
    first, again, other = (
        detection(frame, limits, seed=seed, num_bootstrap=50) for seed in (0, 0, 1)
    )
    assert first == again
    assert first["nelbo/shifted/auroc"] == other["nelbo/shifted/auroc"]
    assert first["nelbo/shifted/auroc/low"] != other["nelbo/shifted/auroc/low"]


def test_the_scores_and_alarms_of_every_set_are_written(found, tmp_path):
    table = pq.read_table(tmp_path / "anomalies" / "held_out.parquet")
    assert table.column_names == [
        "subject_id",
        "prediction_time",
        "set",
        "minute",
        "nelbo",
        "recon",
        "kl",
        "alarm_nelbo_p95",
        "alarm_nelbo_p99",
        "alarm_kl_p95",
        "alarm_kl_p99",
    ]
    assert table.schema.field("alarm_nelbo_p95").type == pa.bool_()
    assert table.schema.field("subject_id").type == pa.int64()
    assert pa.types.is_timestamp(table.schema.field("prediction_time").type)
    assert table.num_rows == PATIENTS * SETS
    frame, clean = table.to_pandas(), recorded(part(1))
    clean = clean.assign(subject_id=1000 + clean["sample"])
    both = frame.merge(clean, on=["subject_id", "set"], suffixes=("", "_given"))
    assert len(both) == PATIENTS * SETS
    np.testing.assert_array_equal(both["nelbo"], both["nelbo_given"])
    limit = found.metrics["anomaly/nelbo/p95"]
    np.testing.assert_array_equal(frame["alarm_nelbo_p95"], frame["nelbo"] > limit)
    assert list((tmp_path / "anomalies").iterdir()) == [tmp_path / "anomalies/held_out.parquet"]
    assert found.artifacts == ("anomalies",)


def test_a_report_has_a_table_of_figures_and_a_line(found):
    (table,) = found.sections.values()
    assert len(table.rows) == 2 * (6 + 1)
    assert "0.9" in table.rows[0][1]
    assert found.figures.keys() == found.captions.keys() == {"alarms", "detection"}
    assert all(isinstance(figure, Figure) for figure in found.figures.values())
    (line,) = found.lines
    assert line.startswith("alarms: AUROC of NELBO")
    assert f"{found.metrics['held_out/anomaly/nelbo/resampled/auroc']:.3f}" in line


def test_the_stays_with_most_alarms_are_drawn_with_their_alarms_marked():
    clean = recorded(part(1)).assign(subject_id=lambda f: f["sample"])
    clean.loc[clean["subject_id"] == 7, "kl"] = 99.0
    limits = thresholds(clean)
    figure = stays(with_alarms(clean, limits), limits, count=2)
    first, _ = figure.axes
    assert first.get_title(loc="left") == f"stay 1: {sum(first.lines[1].get_ydata() > 0)} alarms"
    np.testing.assert_array_equal(first.lines[0].get_xdata(), np.arange(SETS))


def test_the_most_surprising_value_is_a_score_and_names_its_variable(tmp_path):
    fit = {name: with_values(part(seed), seed) for name, seed in (("train", 2), ("tuning", 3))}
    judged = with_values(part(1), 1)
    found = suite(given(tmp_path, judged, **fit))
    for kind in ("resampled", "shifted_measured", "swapped_measured"):
        assert found.metrics[f"held_out/anomaly/surprise/{kind}/auroc"] > 0.95
    assert 0.01 < found.metrics["held_out/anomaly/surprise/alarm_rate_p95"] < 0.12
    (table,) = found.sections.values()
    assert len(table.rows) == 3 * (6 + 1)
    assert "largest surprise of a value" in found.lines[0]
    frame = pq.read_table(tmp_path / "anomalies/held_out.parquet").to_pandas()
    assert set(frame["variable"]) == {"HR", "pH"}
    alarmed = frame["surprise"] > found.metrics["anomaly/surprise/p99"]
    assert (frame["alarm_surprise_p99"] == alarmed).all()


def test_what_is_usual_is_learned_from_train_and_not_from_what_is_judged(tmp_path):
    fit = {name: with_values(part(seed), seed) for name, seed in (("train", 2), ("tuning", 3))}
    judged = with_values(part(1), 1)
    odd = judged.tables["values"].to_pandas().assign(value=lambda f: 10 * f["value"])
    tables = {**judged.tables, "values": pa.Table.from_pandas(odd, preserve_index=False)}
    usual, strange = (
        suite(given(tmp_path, SplitPredictions(judged.samples, t), **fit)).metrics
        for t in (judged.tables, tables)
    )
    assert usual["anomaly/surprise/p95"] == strange["anomaly/surprise/p95"]
    assert strange["held_out/anomaly/surprise/alarm_rate_p95"] > 0.9


def test_a_family_without_scores_has_no_part_in_it(tmp_path):
    nothing = SplitPredictions(part(1).samples, {})
    found = suite(given(tmp_path, nothing, tuning=part(2)))
    assert not found.metrics
    assert not found.figures
    assert not list(tmp_path.iterdir())


def test_without_tuning_the_judged_split_gives_the_thresholds(tmp_path):
    judged = part(1)
    metrics = suite(given(tmp_path, judged)).metrics
    expected = np.percentile(recorded(judged)["nelbo"], 95)
    assert metrics["anomaly/nelbo/p95"] == pytest.approx(expected)


def test_one_patient_alone_varies_with_nobody():
    frame = of_patients(part(1)).assign(subject_id=7)
    metrics = detection(frame, thresholds(frame), num_bootstrap=10)
    for end in ("/low", "/high"):
        assert metrics[f"nelbo/shifted/auroc{end}"] == metrics["nelbo/shifted/auroc"]
