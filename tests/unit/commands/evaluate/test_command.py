"""An evaluation in this process; on Ray, and all it can show, in tests/ray/test_inference.py."""

import contextlib
import dataclasses
import importlib.util
import json
import multiprocessing
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from waiting import GUARD_SECONDS

from ehr_ray.commands.embed import embed
from ehr_ray.commands.evaluate import predicted_splits
from ehr_ray.commands.evaluate.command import evaluate
from ehr_ray.commands.evaluate.predicted_rows import PredictedRows
from ehr_ray.commands.evaluate.predicted_splits import AGAIN, made_by
from ehr_ray.commands.export.card import model_card
from ehr_ray.commands.ingest import ingest
from ehr_ray.commands.train.command import train
from ehr_ray.config.yaml_files import override, read_yaml
from ehr_ray.errors import InputError
from ehr_ray.evaluation.tasks.downstream import Split
from ehr_ray.events.blocks import BlockStore
from ehr_ray.events.code_map import CodeMap, Entry
from ehr_ray.events.labels import read_labels
from ehr_ray.events.patients import cohort_shards
from ehr_ray.events.schema import EVENTS, SPLITS
from ehr_ray.experiment import parse
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.rows import sampled
from ehr_ray.sources.dataset_check import subjects_of
from ehr_ray.storage import lock, runs
from ehr_ray.storage.paths import STAGING
from ehr_ray.train import checkpoint
from ehr_ray.train.predictor import Predictor
from ehr_ray.train.run_model import load_run
from ehr_ray.train.statistics import STATISTICS

ENSEMBLE = Path(__file__).parents[4] / "configs" / "tiny" / "mortality_ensemble.yaml"
CHANGES = {
    "cluster.num_workers": 0,
    "tracking.experiment": None,
    "train.max_steps": 1,
    "evaluation.baselines": False,
    "evaluation.bootstrap": 10,
    "evaluation.hours": [24],
}


@pytest.fixture(scope="module")
def reported(tiny_run, no_ray_starts, tmp_path_factory):
    """A folder with all that an evaluation of the tiny run writes, and the lines it says."""
    folder = tmp_path_factory.mktemp("reported")
    with no_ray_starts():
        return folder, evaluate(
            tiny_run, output=folder, explained=2, label_shares=[0.5], on_ray=False
        )


def test_without_baselines_the_model_is_measured_alone_and_has_its_report(reported):
    folder, lines = reported
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "held_out/auroc" in metrics or "held_out/auroc/undefined" in metrics
    assert not [name for name in metrics if name.startswith("baseline/")]
    assert not (folder / "predictions" / "baselines").exists()
    assert (folder / "report.html").is_file()
    assert (folder / "figures" / "embedding_map.png").is_file()
    assert any(line.startswith("report: ") for line in lines)


def test_an_evaluation_sends_what_it_has_written_and_nothing_of_the_training(
    tiny_run, tmp_path, monkeypatch
):
    """Another machine has gone on with the run, and a process that hangs holds the copy here."""
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    shutil.copytree(tiny_run, tmp_path / "store" / "run")
    uri = f"file://{tmp_path}/store/run"
    copy = runs.fetch_run(uri)
    history = tmp_path / "store" / "run" / "history.parquet"
    history.write_bytes(b"of another machine")
    with lock.exclusive_lock(copy / lock.RUN_LOCK):
        evaluate(uri, on_ray=False, pages=False, task="none")
    assert history.read_bytes() == b"of another machine"
    assert "held_out/embedding/std" in json.loads(
        (tmp_path / "store" / "run" / "metrics.json").read_text()
    )
    assert (tmp_path / "store" / "run" / "embeddings" / "held_out.parquet").is_file()


def test_a_task_is_learned_from_few_labels(reported, synthetic_patients):
    folder, lines = reported
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 <= metrics["held_out/labels/0.5/auroc"] <= 1
    half = len(synthetic_patients["train"]) / 2  # one label a patient
    assert abs(metrics["held_out/labels/0.5/n"] - half) <= 1
    assert any(line.startswith("few labels, AUROC by share") for line in lines)
    assert "By share of labels" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"label_shares": [0.5, 1.5]}, "--label-shares 0.5,1.5: a share .* at most 1"),
        ({"label_shares": [0.5], "task": "none"}, "needs a task"),
    ],
)
def test_shares_of_labels_that_are_none_are_refused(tiny_run, tmp_path, given, said):
    with pytest.raises(InputError, match=said):
        evaluate(tiny_run, output=tmp_path, on_ray=False, **given)


def test_a_run_trained_with_labels_is_not_asked_how_many_it_needs(with_statistics, tmp_path):
    with pytest.raises(InputError, match=r"was trained with labels; .* task\.label_ratio"):
        evaluate(with_statistics, output=tmp_path, label_shares=[0.1], on_ray=False)


FEW = 6
"""Patients of a sample in the tests below, fewer than any split has."""


@pytest.fixture(scope="module")
def in_shards(tmp_path_factory):
    """A cohort of 32 train, 17 tuning and 11 held-out patients in several shards each."""
    path = tmp_path_factory.mktemp("cohorts") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ehr_ray.sources.building.shards.ROWS_PER_SHARD", 150)
        ingest("synthetic", None, path, splits="0.5,0.25,0.25", options={"patients": 60}, cpus=1)
    assert all(len(list((path / "data" / split).iterdir())) > 2 for split in SPLITS)
    return path


def scored_sizes(monkeypatch):
    """Return a list that gets the rows whose wide columns are made arrays, each time they are."""
    sizes = []
    init = Split.__post_init__

    def counted(split):
        sizes.append(len(split.subject_id))
        init(split)

    monkeypatch.setattr(Split, "__post_init__", counted)
    return sizes


def ids_of(path):
    return pq.read_table(path)["subject_id"].to_pylist()


@pytest.mark.parametrize("split", ["held_out", "tuning", "train"])
def test_what_is_fitted_on_and_held_is_a_bounded_share_of_each_split(
    in_shards, few_at_a_time, tmp_path, monkeypatch, split
):
    held, said = scored_sizes(monkeypatch), []
    evaluate(
        few_at_a_time,
        split=split,
        output=tmp_path,
        label_shares=[0.5],
        on_ray=False,
        pages=False,
        say=said.append,
    )
    ids = {
        name: [i for shard in cohort_shards(in_shards, name) for i in subjects_of(shard).tolist()]
        for name in SPLITS
    }
    chosen = {
        name: [i for i in of if sampled(i, FEW / len(of))] for name, of in ids.items()
    }  # one label a patient
    assert all(0 < len(chosen[name]) < len(of) for name, of in ids.items())
    for name in {"train", "tuning"} - {split}:
        assert ids_of(tmp_path / "embeddings" / f"{name}.parquet") == chosen[name]
        line = f"% of the {name} patients (evaluation.fit_patients)"
        assert any(line in told for told in said)
    # All that is judged is answered and written, shard by shard.
    assert ids_of(tmp_path / "embeddings" / f"{split}.parquet") == ids[split]
    assert ids_of(tmp_path / "predictions" / f"{split}.parquet") == ids[split]
    largest = max(len(subjects_of(shard)) for shard in cohort_shards(in_shards, split))
    assert max(held) <= max(largest, *map(len, chosen.values())) < len(ids[split])
    assert not list((few_at_a_time / ".parts").glob("held_out-*/"))


def test_of_patients_with_several_labels_as_few_rows_are_fitted_on_and_held(
    in_shards, few_at_a_time, tmp_path
):
    often = in_shards / "labels" / "often.parquet"
    labels = pq.read_table(often.with_name("outcome.parquet"))
    place = labels.schema.get_field_index("prediction_time")
    later = pc.add(labels["prediction_time"], pa.scalar(60_000_000, pa.duration("us")))
    twice = [labels, labels.set_column(place, labels.schema.field(place), later)]
    pq.write_table(pa.concat_tables(twice).sort_by("subject_id"), often)
    try:
        evaluate(few_at_a_time, task="often", output=tmp_path, on_ray=False, pages=False)
    finally:
        often.unlink()
    for name in ("train", "tuning"):
        ids = [i for shard in cohort_shards(in_shards, name) for i in subjects_of(shard).tolist()]
        chosen = [i for i in ids if sampled(i, FEW / (2 * len(ids)))]
        assert ids_of(tmp_path / "embeddings" / f"{name}.parquet") == [*np.repeat(chosen, 2)]


@pytest.fixture(scope="module")
def few_at_a_time(in_shards, tiny_experiment, tmp_path_factory):
    """A run that is evaluated with samples of few patients."""
    changes = {
        **CHANGES,
        "data.cohort": str(in_shards),
        "output": str(tmp_path_factory.mktemp("runs")),
        **{f"evaluation.{name}_patients": FEW for name in ("fit", "max", "hour")},
    }
    return train(tiny_experiment("set_vae", changes)).run


def test_rows_judged_shard_by_shard_get_the_answers_of_rows_judged_at_once(
    in_shards, tiny_experiment, tmp_path, monkeypatch
):
    changes = {
        **CHANGES,
        "data.cohort": str(in_shards),
        "evaluation.baselines": True,
        "evaluation.hours": [],
        "output": str(tmp_path / "runs"),
    }
    run = train(tiny_experiment("set_vae", changes)).run
    evaluate(run, output=tmp_path / "once", on_ray=False, pages=False)
    monkeypatch.setattr(PredictedRows, "whole", False)
    evaluate(run, output=tmp_path / "shards", on_ray=False, pages=False)
    assert not list((run / ".parts").glob("held_out-*/"))
    once, by_shard = (
        json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("once", "shards")
    )
    assert by_shard == pytest.approx(once, abs=1e-9, nan_ok=True)
    names = [p.relative_to(tmp_path / "once") for p in (tmp_path / "once").rglob("*.parquet")]
    assert len(names) > 20
    for name in names:
        one, other = (pd.read_parquet(tmp_path / n / name) for n in ("once", "shards"))
        pd.testing.assert_frame_equal(one, other, rtol=1e-9)


def made_by_module(folder, text, part):
    """What a family's tables are made by where one function stands in a module of this text."""
    module = folder / "own_rows.py"
    module.write_bytes(text)
    spec = importlib.util.spec_from_file_location("own_rows", module)
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    family = get_family("set_vae")
    if part in ("transform", "predict"):
        changed = dataclasses.replace(family, **{part: own.rows})
    else:
        value = {"own": own.rows} if part == "outputs" else own.rows
        shown = dataclasses.replace(family.evaluation, **{part: value})
        changed = dataclasses.replace(family, evaluation=shown)
    return json.dumps(made_by(changed)).encode()


def test_a_transform_in_a_module_of_another_encoding_has_a_key(tmp_path):
    text = "# coding: latin-1\nNAME = '{}'\n\n\ndef rows():\n    pass\n"
    found = [
        made_by_module(tmp_path, text.format(word).encode("latin-1"), "transform")
        for word in ("Größe", "Grüße")
    ]
    assert found[0] != found[1]


@pytest.mark.parametrize("part", ["predict", "latents", "reconstruct", "outputs"])
def test_tables_are_made_anew_where_the_code_that_makes_them_is_another(part, tmp_path):
    """An evaluation that ended by an error goes on from its tables, after an upgrade too."""
    found = [
        made_by_module(tmp_path, f"def rows():\n    return {value}\n".encode(), part)
        for value in (1, 2)
    ]
    assert found[0] != found[1]


def test_tables_are_made_anew_where_the_vocabulary_of_the_weights_is_another(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")

    def kept():
        evaluate(run, output=tmp_path / "results", task="none", on_ray=False, pages=False)
        return {path.name for path in (run / ".parts").glob("train-*")}

    before = kept()
    assert kept() == before
    codes = run / "checkpoint" / "vocabulary.parquet"
    pq.write_table(pq.read_table(codes), codes)
    assert kept() > before


def test_an_evaluation_that_waits_for_another_says_so_once(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.0)
    other, told = contextlib.ExitStack(), []
    other.enter_context(lock.exclusive_lock(tiny_run / ".parts" / ".lock"))
    monkeypatch.setattr(
        predicted_splits.log, "warning", lambda line: told.append(line) or other.close()
    )
    evaluate(tiny_run, output=tmp_path, on_ray=False, pages=False)
    assert told == [f"{tiny_run}: another evaluate of this run is embedding; waiting until it has"]


def hold_until_another_waits(uri, held, told):
    predict = predicted_splits.predict_parts

    def hold(*given, **options):
        held.set()
        assert AGAIN in told.get()
        predict(*given, **options)

    predicted_splits.predict_parts = hold  # in a process of its own
    evaluate(uri, on_ray=False, pages=False)


def wait_for_another(uri, held, told):
    assert held.wait(GUARD_SECONDS)
    lock.SILENT_SECONDS, predicted_splits.log.warning = 0.0, told.put
    evaluate(uri, on_ray=False, pages=False)
    told.put("ended")


def results_of(folder):
    paths = [folder / "metrics.json", *folder.glob("*/*.parquet")]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def test_of_two_evaluations_of_a_run_in_a_store_the_second_waits_and_both_end_well(
    few_at_a_time, tmp_path, monkeypatch
):
    """What the judged split is told lies by shard, in the run, until all of it is written."""
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    store = tmp_path / "store"
    for name in ("alone", "both"):
        shutil.copytree(few_at_a_time, store / name, ignore=lambda *_: {".parts"})
    evaluate(f"file://{store}/alone", on_ray=False, pages=False)
    context = multiprocessing.get_context("fork")
    given = (f"file://{store}/both", context.Event(), context.SimpleQueue())
    both = [
        context.Process(target=target, args=given)
        for target in (hold_until_another_waits, wait_for_another)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]
    assert results_of(store / "both") == results_of(store / "alone")
    assert Path("predictions/held_out.parquet") in results_of(store / "both")
    assert not [*(store / "both" / ".parts").glob("held_out-*/")]


def test_without_pages_metrics_and_predictions_are_the_same(tiny_run, reported, tmp_path):
    lines = evaluate(
        tiny_run, output=tmp_path / "bare", label_shares=[0.5], on_ray=False, pages=False
    )
    for name in ("metrics.json", "predictions/held_out.parquet"):
        assert (tmp_path / "bare" / name).read_bytes() == (reported[0] / name).read_bytes()
    assert {p.name for p in (tmp_path / "bare").iterdir()} == {
        "anomalies",
        "metrics.json",
        "predictions",
        "embeddings",
        "probes",
    }
    assert not any(line.startswith("report: ") for line in lines)


def test_its_own_cohort_by_another_path_is_scored_the_same(
    tiny_run, reported, synthetic_cohort, tmp_path
):
    (tmp_path / "link").symlink_to(synthetic_cohort)
    evaluate(tiny_run, cohort=tmp_path / "link", output=tmp_path / "out", on_ray=False, pages=False)
    name = "predictions/held_out.parquet"
    assert (tmp_path / "out" / name).read_bytes() == (reported[0] / name).read_bytes()


STATISTICS_TASK = {"name": "outcome", "hidden": 4, "statistics": {"windows": [12, 48]}}


@pytest.fixture(scope="module")
def with_statistics(tiny_experiment, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    changes = {**CHANGES, "task": STATISTICS_TASK, "output": str(output)}
    return train(tiny_experiment("set_vae", changes)).run


def cut_at_labels(patients, cohort):
    labels = read_labels(cohort, "outcome").cuts()
    return [p.until(int(t)) for p in patients for t in labels.get(p.subject_id, ())]


def test_statistics_are_those_of_the_prediction_time_in_training_and_after(
    with_statistics, synthetic_cohort, synthetic_patients, tmp_path
):
    predictor = Predictor.of(checkpoint.load(with_statistics))
    tuning = predictor.rows(cut_at_labels(synthetic_patients["tuning"], synthetic_cohort))
    store = BlockStore(sorted((with_statistics.parent / ".cache").glob("*/tuning/*.arrow")))
    trained = {int(row["subject_id"]): row for row in store.rows(range(len(store)))}
    assert len(tuning) == len(trained) > 0
    for row in tuning:
        np.testing.assert_array_equal(trained[int(row["subject_id"])][STATISTICS], row[STATISTICS])
    evaluate(with_statistics, output=tmp_path, explained=1, on_ray=False, pages=False)
    assert (tmp_path / "explanations" / "held_out.parquet").is_file()
    held_out = cut_at_labels(synthetic_patients["held_out"], synthetic_cohort)
    (outputs,) = predictor.over_patients(held_out, size=1000)
    logit = dict(zip((p.subject_id for p in held_out), outputs["logit"].tolist(), strict=True))
    told = pq.read_table(tmp_path / "predictions" / "held_out.parquet").to_pydict()
    order = np.argsort([logit[subject] for subject in told["subject_id"]])
    assert len(set(logit.values())) > 1
    assert (np.diff(np.array(told["predicted_boolean_probability"])[order]) > -1e-5).all()


def test_other_windows_make_other_rows_and_another_dropout_does_not(
    with_statistics, tiny_experiment, tmp_path
):
    cache = Path(shutil.copytree(with_statistics.parent / ".cache", tmp_path / "cache"))
    before = set(cache.iterdir())

    def made(name, **statistics):
        task = {**STATISTICS_TASK, "statistics": {**STATISTICS_TASK["statistics"], **statistics}}
        changes = {
            **CHANGES,
            "task": task,
            "output": str(tmp_path / "runs"),
            "data.cache_dir": str(cache),
        }
        train(tiny_experiment("set_vae", {**changes, "name": name}))
        return set(cache.iterdir()) - before

    assert not made("dropout", dropout=0.2)
    assert made("windows", windows=[24])


def test_an_ensemble_is_what_metrics_and_predictions_are_of_on_any_cohort(
    synthetic_cohort, tmp_path
):
    changes = {
        **CHANGES,
        "data.cohort": str(synthetic_cohort),
        "evaluation.baselines": True,
        "evaluation.hours": [],
        "output": str(tmp_path),
    }
    run = train(parse(override(read_yaml(ENSEMBLE), changes))).run
    shutil.copytree(synthetic_cohort, tmp_path / "copy" / "elsewhere")
    places = {
        "own": evaluate(run, output=tmp_path / "own", on_ray=False, pages=False),
        "elsewhere": evaluate(
            run,
            cohort=tmp_path / "copy" / "elsewhere",
            output=tmp_path / "elsewhere",
            on_ray=False,
            pages=False,
        ),
    }
    told = []
    for place, lines in places.items():
        assert any(line.startswith("This ensemble") for line in lines)
        metrics = json.loads((tmp_path / place / "metrics.json").read_text())
        assert any(name.startswith("baseline/network/held_out/") for name in metrics)
        rows = [
            pq.read_table(tmp_path / place / "predictions" / name / "held_out.parquet")
            for name in ("", "baselines/network", "baselines/average_rich")
        ]
        ours, network, beside = (r["predicted_boolean_probability"].to_numpy() for r in rows)
        logits = [np.log(p) - np.log1p(-p) for p in (network, beside)]
        order = np.argsort(np.mean(logits, 0), kind="stable")
        assert (np.diff(ours[order]) > -1e-5).all()
        assert not np.allclose(ours, network)
        told.append(ours)
    np.testing.assert_array_equal(*told)  # the other cohort is the same: nothing was refitted on it
    events = pq.read_table(next((synthetic_cohort / "data" / "held_out").iterdir()))
    model = load_run(run)
    with pytest.warns(UserWarning, match="it answers by the network alone"):
        model.predict(events)
    card = " ".join(model_card(model, "outcome", {}).split())
    assert "it answers by the network alone" in card


@pytest.fixture(scope="module")
def abroad(tiny_run, tmp_path_factory):
    """The run's cohort with other names and units, and the map back."""
    cohort = checkpoint.load(tiny_run).experiment.cohort
    other = tmp_path_factory.mktemp("other") / "abroad"
    shutil.copytree(cohort, other)
    codes = checkpoint.load(tiny_run).vocabulary.codes
    table = pq.read_table(other / "metadata" / "codes.parquet")
    names = ["HOSPITAL//1", "HOSPITAL//2", *table["code"].to_pylist()[2:]]
    table = table.set_column(0, "code", pa.array(names, pa.string()))
    pq.write_table(table, other / "metadata" / "codes.parquet")
    there = CodeMap({code: Entry(f"theirs//{code}", 10.0, -3.0) for code in codes})
    for shard in (other / "data").rglob("*.parquet"):
        events = there.apply(pq.ParquetFile(shard).read().cast(EVENTS))[0]
        ids = np.unique(events["subject_id"].to_numpy())
        place = [f"HOSPITAL//{1 + i % 2}" for i in ids]
        static = pa.table([ids, [None] * len(ids), place, [None] * len(ids)], schema=EVENTS)
        events = pa.concat_tables([static, events]).sort_by([("subject_id", "ascending")])
        pq.write_table(events, shard)
    back = other.with_name("back.csv")
    rows = [f'"theirs//{code}","{code}",0.1,0.3' for code in codes]
    back.write_text("\n".join(["code,to,scale,offset", *rows, "never,never,1,0"]))
    return other, back


def test_another_cohort_is_judged_in_the_names_and_units_of_the_runs_own(
    tiny_run, abroad, tmp_path
):
    other, back = abroad
    evaluate(tiny_run, output=tmp_path / "own", on_ray=False, pages=False)
    how = {"code_map": str(back), "recalibrate": 0.4, "on_ray": False, "pages": False}
    lines = evaluate(tiny_run, cohort=other, output=tmp_path / "out", **how)
    own, found = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("own", "out"))
    assert 0.9 < found["held_out/known_events"] < 1  # of hospitals it knows nothing
    assert found["held_out/auroc"] == pytest.approx(own["held_out/auroc"], abs=1e-3)
    assert found["held_out/brier"] == pytest.approx(own["held_out/brier"], abs=1e-3)
    assert [line for line in lines if "does not know 1 of" in line and line.endswith("never")]
    assert not list((tiny_run / ".parts").glob("mapped-*"))
    # Of few patients there may be none of one class to refit on, which is told.
    assert [line for line in lines if "refitted on" in line or "cannot be fitted on" in line]
    assert any(name.startswith("held_out/subgroups/hospital/") for name in found)
    assert not any(name.startswith("held_out/subgroups/hospital/") for name in own)
    with pytest.raises(InputError, match=r"knows 0\.0% of"):
        evaluate(tiny_run, cohort=other, output=tmp_path / "no", on_ray=False)


def test_hospitals_that_are_left_out_are_told_on_the_screen_and_in_the_results(
    tiny_run, abroad, tmp_path, monkeypatch
):
    monkeypatch.setattr("ehr_ray.commands.evaluate.predicted_splits.MAX_PLACES", 1)
    other, back = abroad
    lines = evaluate(tiny_run, cohort=other, output=tmp_path, code_map=str(back), on_ray=False)
    (note,) = [line for line in lines if "subgroups by hospital: the 1 of 2 with the most" in line]
    assert note.removeprefix("note: ") in (tmp_path / "results.md").read_text()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert len([key for key in metrics if re.match("held_out/subgroups/hospital/./n$", key)]) == 1


def test_rows_before_all_events_of_a_patient_are_counted(tiny_run, reported, tmp_path):
    early = tmp_path / "early"
    shutil.copytree(checkpoint.load(tiny_run).experiment.cohort, early)
    moved = 0
    for path in sorted((early / "labels").rglob("*.parquet")):
        table = pq.read_table(path)
        time = table["prediction_time"].to_pylist()
        time[::2] = [one.replace(year=one.year - 9) for one in time[::2]]
        moved += len(time[::2])
        place = table.column_names.index("prediction_time")
        pq.write_table(table.set_column(place, "prediction_time", pa.array(time)), path)
    assert moved
    lines = evaluate(tiny_run, cohort=early, output=tmp_path / "out", on_ray=False)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    count = int(metrics["held_out/rows_without_events"])
    rows = len(pq.read_table(tmp_path / "out" / "predictions" / "held_out.parquet"))
    assert 0 < count < rows
    (note,) = [line for line in lines if f"{count} of {rows} rows have no timed event" in line]
    assert note.removeprefix("note: ") in (tmp_path / "out" / "results.md").read_text()
    folder, told = reported
    assert "rows_without_events" not in (folder / "metrics.json").read_text()
    assert not [line for line in told if "no timed event" in line]


@pytest.mark.parametrize(
    ("share", "message"),
    [(1.0, "--recalibrate 1.0: not a share"), (0.5, "--recalibrate 0.5: needs another cohort")],
)
def test_a_share_that_cannot_be_refitted_on_is_refused(tiny_run, tmp_path, share, message):
    with pytest.raises(InputError, match=message):
        evaluate(tiny_run, recalibrate=share, output=tmp_path, on_ray=False)


def test_a_code_map_of_the_runs_own_cohort_or_of_other_data_is_refused(tiny_run, abroad, tmp_path):
    with pytest.raises(InputError, match="--code-map eicu: the run's own cohort has its codes"):
        evaluate(tiny_run, code_map="eicu", output=tmp_path, on_ray=False)
    with pytest.raises(InputError, match="--code-map eicu: no event has any of its"):
        evaluate(tiny_run, cohort=abroad[0], code_map="eicu", output=tmp_path, on_ray=False)


def test_another_cohort_is_embedded_in_the_names_and_units_of_the_runs_own(
    tiny_run, abroad, tmp_path
):
    other, back = abroad
    own = checkpoint.load(tiny_run).experiment.cohort
    rows = embed(tiny_run, own, tmp_path / "own.parquet", on_ray=False)
    how = {"code_map": str(back), "on_ray": False}
    assert embed(tiny_run, other, tmp_path / "file.parquet", **how) == rows
    assert embed(tiny_run, other, tmp_path / "folder", **how) == rows
    tables = [
        pq.read_table(tmp_path / name).sort_by("subject_id")
        for name in ("own.parquet", "file.parquet")
    ]
    first, second = (np.stack(table["embedding"].to_numpy()) for table in tables)
    assert second == pytest.approx(first, abs=1e-2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "file.parquet",
        "folder",
        "own.parquet",
    ]


def test_the_highest_risks_are_explained_where_that_is_asked_for(tiny_run, reported):
    folder, _ = reported
    told = pq.read_table(folder / "predictions" / "held_out.parquet").to_pylist()
    told.sort(key=lambda row: -row["predicted_boolean_probability"])
    effects = pq.read_table(folder / "explanations" / "held_out.parquet").to_pandas()
    assert list(effects["subject_id"].unique()) == [row["subject_id"] for row in told[:2]]
    assert effects["log_odds"].abs().max() > 0
    codes = set(checkpoint.load(tiny_run).vocabulary.codes)
    assert set(effects["code"].dropna()) <= codes
    page = (folder / "report.html").read_text()
    assert (folder / "figures" / "attribution_2.png").is_file()
    assert not (folder / "figures" / "attribution_3.png").exists()
    for number, row in enumerate(told[:2], start=1):
        outcome = "yes" if row["boolean_value"] else "no"
        risk = f"{row['predicted_boolean_probability']:.0%}"
        assert f"Patient {number}: risk {risk}, outcome {outcome}" in page
    assert "What the highest risks were read from" in (folder / "results.md").read_text()


@pytest.mark.parametrize(
    ("count", "task", "message"),
    [(-1, None, "--explain -1: give a number"), (2, "none", "--explain 2: needs a task")],
)
def test_what_cannot_be_explained_is_refused(tiny_run, tmp_path, count, task, message):
    with pytest.raises(InputError, match=message):
        evaluate(tiny_run, task=task, output=tmp_path, explained=count, on_ray=False)


@pytest.mark.parametrize("verb", [evaluate, embed])
def test_a_share_of_known_events_that_is_none_is_refused(tiny_run, tmp_path, verb):
    given = {"cohort": checkpoint.load(tiny_run).experiment.cohort, "output": tmp_path / "new"}
    with pytest.raises(InputError, match="--min-known-events 2: not a share between 0 and 1"):
        verb(tiny_run, **given, min_known_events=2, on_ray=False)


def test_a_run_is_judged_on_real_stays_of_many_hospitals(tiny_run, shared, tmp_path):
    """Trained on other data, judged on eICU's hourly variables by the map that is shipped."""
    hourly = pd.read_parquet(shared("eicu_demo") / "hourly.parquet")
    stays = pd.read_csv(shared("eicu_demo") / "stays.csv")
    stays = stays[stays["unit_hours"] >= 48].sort_values(["hospital_death", "stay"])
    stays = pd.concat([stays.head(60), stays.tail(30)])  # the last of them died
    events = hourly[hourly["stay"].isin(stays["stay"]) & ~(hourly["hour"] >= 48)]
    begun = pd.DataFrame({"stay": stays["stay"], "hour": 0, "variable": "ADMISSION"})
    placed = stays.assign(hour=np.nan, variable="HOSPITAL//" + stays["hospital"].astype(str))
    parts = [events, begun, placed[["stay", "hour", "variable"]]]
    pd.concat(parts).to_csv(tmp_path / "events.csv", index=False)
    died = stays.assign(hour=48, outcome=stays["hospital_death"])
    died[["stay", "hour", "outcome"]].to_csv(tmp_path / "labels.csv", index=False)
    columns = {
        "id_column": "stay",
        "time_column": "hour",
        "code_column": "variable",
        "value_column": "value",
        "time_unit": "hours",
        "labels": str(tmp_path / "labels.csv"),
        "label_columns": "outcome",
    }
    cohort = tmp_path / "eicu"
    made = ingest(
        "table", tmp_path / "events.csv", cohort, options=columns, splits="all:held_out", cpus=1
    )
    assert made.labels["outcome"].labels == 90
    assert made.subjects["held_out"] == 90
    how = {"code_map": "eicu", "recalibrate": 0.5, "on_ray": False, "pages": False}
    lines = evaluate(tiny_run, cohort=cohort, output=tmp_path / "out", task="outcome", **how)
    assert any(line.startswith("calibration in the other cohort: slope ") for line in lines)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["held_out/n"] == 90
    assert 0.5 < found["held_out/known_events"] < 0.9  # made-up patients have fewer variables
    assert found["held_out/auroc/low"] <= found["held_out/auroc"] <= found["held_out/auroc/high"]
    assert any(name.startswith("held_out/subgroups/hospital/") for name in found)
