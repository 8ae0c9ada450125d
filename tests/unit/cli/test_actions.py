"""The verbs on phrases, and pipelines, without Ray."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from ehr_ray.cli.main import main
from ehr_ray.commands.train.command import train
from ehr_ray.commands.train.pipeline import load_pipeline
from ehr_ray.errors import ConfigError, InputError, UserError
from ehr_ray.experiment import load
from ehr_ray.runtime.text_embedding import as_before, with_phrases

TINY = Path(__file__).parents[3] / "configs" / "tiny"


@pytest.fixture
def common(synthetic_cohort, tmp_path):
    here = {"output": tmp_path / "runs", "tracking.experiment": "null", "cluster.num_workers": 0}
    return [f"data.cohort={synthetic_cohort}", *(f"{k}={v}" for k, v in here.items())]


def phrases_of(folder):
    return pq.read_table(folder / "phrases.parquet")["phrase"].to_pylist()


def test_phrases_writes_one_table_and_export_one_file_a_patient(common, synthetic_cohort, tmp_path):
    main(["phrases", str(TINY / "event_decoder.yaml"), *common])
    (folder,) = (tmp_path / "runs" / ".cache").glob("phrases-*")
    table = load_file(folder / "table.safetensors")["table"]
    assert len(table) == len(phrases_of(folder))
    out = tmp_path / "pt"
    arguments = ["export-pt", str(TINY / "event_decoder.yaml"), *common, "--output", str(out)]
    main(arguments)
    rows = list(csv.DictReader((out / "subjects.csv").open()))
    assert len(rows) == len(list(out.rglob("*.pt"))) == 60
    assert {p.name for p in out.iterdir() if p.is_dir()} == {"train", "tuning", "held_out"}
    content = torch.load(out / "train" / "patient_0.pt", weights_only=True)
    ids = content["token_ids"]
    assert (ids.dtype, content["embeddings"].dtype) == (torch.int64, torch.float32)
    np.testing.assert_array_equal(content["embeddings"].numpy(), table[ids.numpy()])
    words = list(csv.DictReader((out / "vocab.csv").open()))
    assert [(int(row["token"]), row["str"]) for row in words] == [*enumerate(phrases_of(folder))]
    labels = pq.read_table(synthetic_cohort / "labels" / "outcome.parquet").to_pandas()
    first = next(r for r in rows if (r["split"], r["file"]) == ("train", "patient_0.pt"))
    mine = labels[labels.subject_id == int(first["subject_id"])]
    assert int(content["label"]) == int(mine.boolean_value.iloc[0])
    with pytest.raises(SystemExit):  # files of two exports would mix
        main(arguments)


def test_an_export_in_float16_holds_the_same_numbers_in_half_the_space(common, tmp_path):
    command = ["export-pt", str(TINY / "event_decoder.yaml"), *common, "--output"]
    main([*command, str(tmp_path / "whole")])
    main([*command, str(tmp_path / "half"), "--float16"])
    name = "train/patient_0.pt"
    whole, half = (torch.load(tmp_path / f / name, weights_only=True) for f in ("whole", "half"))
    assert half["embeddings"].dtype == torch.float16
    torch.testing.assert_close(
        half["embeddings"].float(), whole["embeddings"], rtol=2e-3, atol=1e-4
    )
    assert torch.equal(half["token_ids"], whole["token_ids"])


def test_an_export_names_a_patient_without_label(common, synthetic_cohort, tmp_path, capsys):
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    for name in ("data", "metadata"):
        (cohort / name).symlink_to(synthetic_cohort / name)
    labels = pq.read_table(synthetic_cohort / "labels" / "outcome.parquet")
    (cohort / "labels").mkdir()
    pq.write_table(labels.slice(1), cohort / "labels" / "outcome.parquet")
    changes = [*common, f"data.cohort={cohort}", "--output"]
    command = ["export-pt", str(TINY / "event_decoder.yaml"), *changes]
    with pytest.raises(SystemExit):
        main([*command, str(tmp_path / "a")])
    error = capsys.readouterr().err
    assert re.search(r"subject \d+ of the file has no label", error)
    assert "--skip-unlabelled" in error
    main([*command, str(tmp_path / "b"), "--skip-unlabelled"])
    assert len(list((tmp_path / "b").rglob("*.pt"))) == 59


def test_phrases_of_another_config_are_refused_with_the_first_that_differs(
    common, synthetic_vocabulary, tmp_path
):
    main(["phrases", str(TINY / "event_decoder.yaml"), *common])
    (folder,) = (tmp_path / "runs" / ".cache").glob("phrases-*")
    same = load(TINY / "event_decoder.yaml", [*common, f"model.phrases={folder}"])
    found = with_phrases(same, synthetic_vocabulary, on_ray=False)
    assert found.model.embedding_dim == 64
    texts = phrases_of(folder)
    ids = np.arange(len(texts), dtype=np.int32)
    changed = pa.table({"id": ids, "phrase": [*texts[:3], "other", *texts[4:]]})
    pq.write_table(changed, folder / "phrases.parquet")
    with pytest.raises(InputError, match="id 3 is 'other' there"):
        with_phrases(same, synthetic_vocabulary, on_ray=False)
    gone = load(TINY / "event_decoder.yaml", [*common, f"model.phrases={tmp_path}/none"])
    with pytest.raises(InputError, match="drop the key and training makes them"):
        with_phrases(gone, synthetic_vocabulary, on_ray=False)


def test_a_resumed_run_keeps_the_phrases_it_began_with(common, tmp_path):
    experiment = load(TINY / "event_decoder.yaml", [*common, "model.embedding_dim=null"])
    run = experiment.directory
    assert as_before(run, experiment) == experiment
    run.mkdir(parents=True)
    model = {"phrases": "/somewhere", "embedding_dim": 384}
    (run / "experiment.yaml").write_text(yaml.safe_dump({"model": model}))
    again = as_before(run, experiment).model
    assert (again.phrases, again.embedding_dim) == ("/somewhere", 384)


def test_a_pipeline_trains_each_stage_from_the_one_before(common, tmp_path, capsys):
    stages = yaml.safe_load((TINY / "event_pipeline.yaml").read_text())["stages"]
    assert [next(iter(stage)) for stage in stages] == ["phrases", "train", "train", "evaluate"]
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"stages": stages[:-1]}))  # evaluation needs Ray
    for name in ("event_decoder.yaml", "event_encoder.yaml"):
        (tmp_path / name).symlink_to(TINY / name)
    command = ["train", str(path), *common, "train.max_steps=2"]
    main(command)
    runs = tmp_path / "runs"
    assert (runs / "tiny_event_decoder" / "checkpoint").is_dir()
    stored = yaml.safe_load((runs / "tiny_event_encoder" / "experiment.yaml").read_text())
    assert stored["init_from"] == str(runs / "tiny_event_decoder")
    capsys.readouterr()
    main(command)
    assert capsys.readouterr().err.count("already trained") == 2


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "a list of stages"),
        ([{"fly": "event_decoder.yaml"}], "stage 1 must name one config"),
        ([{"trian": "event_decoder.yaml"}], r"or be ingest: SOURCE; did you mean train\?"),
        ([{"train": "event_decoder.yaml"}] * 2, "two stages train a run of one name"),
        ([{"train": "event_decoder.yaml", "model.arch": "rnn"}], "model.arch"),
        (
            [{"train": "event_decoder.yaml", "tune.grid_points": 9}],
            "train tiny_event_decoder: tune.grid_points=9: does nothing with",
        ),
        ([{"ingest": "synthetic"}], "a cohort alone is no pipeline"),
        ([{"ingest": "synthetic", "patience": 3}, {"train": "event_decoder.yaml"}], "--patience"),
        (
            [{"train": "event_decoder.yaml"}, {"ingest": "synthetic"}],
            "stage 2 must name one config",
        ),
    ],
)
def test_a_bad_pipeline_is_refused_before_it_starts(stages, message, tmp_path):
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"stages": stages}))
    (tmp_path / "event_decoder.yaml").write_text((TINY / "event_decoder.yaml").read_text())
    with pytest.raises(UserError, match=message):
        load_pipeline(path)
    with pytest.raises(ConfigError, match="every stage has its own"):
        load_pipeline(TINY / "event_pipeline.yaml", ["name=x"])


def test_what_all_stages_share_may_do_nothing_in_one_of_them_and_not_in_all():
    path = TINY / "event_pipeline.yaml"
    stages = load_pipeline(path, ["task.focal_gamma=3", "task.loss=focal", "task.name=o"]).stages
    assert stages[2].experiment.task.focal_gamma == 3
    with pytest.raises(ConfigError, match=r"tune\.grid_points=9: does nothing with"):
        load_pipeline(path, ["tune.grid_points=9"])
    with pytest.raises(ConfigError, match=r"ingest\.seed: .* has no stage ingest"):
        load_pipeline(path, ["ingest.seed=3"])


def test_checkpoints_are_kept_every_n_steps(common, tmp_path):
    changes = ["train.max_steps=5", "train.keep_steps=2", "train.max_epochs=3"]
    trained = train(load(TINY / "event_decoder.yaml", [*common, *changes]))
    kept = sorted(p.name for p in (trained.run / "checkpoints").iterdir())
    assert kept == ["00000002", "00000004"]
    assert (trained.run / "checkpoints" / kept[0] / "model.safetensors").is_file()
    assert [p.name for p in trained.run.glob(".checkpoint*")] == [".checkpoint.old"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--folds", "1"], "crossval.folds: "),
        # YAML would make `no` a truth value, which is no name.
        (
            ["--variants", "no_gate,no"],
            "crossval.chosen (--variants) no: no such variant; ",
        ),
        (["--task", "outcome,other"], "other"),
        (["--members", "0"], "crossval.members: "),
    ],
)
def test_options_of_a_cross_validation_win_over_the_config(common, capsys, options, said):
    given = ["crossval.folds=3", "crossval.chosen=[no_gate]", "crossval.tasks=[outcome]"]
    with pytest.raises(SystemExit) as exit_:
        main(["crossval", str(TINY / "hcat.yaml"), *common, *given, *options])
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


WRITING = {
    "quickstart": ["--output", "{place}"],
    "ingest": ["--source", "synthetic", "--output", "{place}"],
    "expand": ["{cohort}", "--output", "{place}"],
    "export-pt": ["{event_decoder}", "data.cohort={cohort}", "--output", "{place}"],
    "prepare": ["{vitals_vae}", "data.cohort={cohort}", "--export", "{place}"],
    "evaluate": ["{run}", "--output", "{place}"],
    "embed": ["{run}", "--cohort", "{cohort}", "--output", "{place}"],
    "export": ["{run}", "{place}"],
    "benchmark": ["--output", "{place}"],
    **{
        verb: ["{vitals_vae}", "data.cohort={cohort}", "output={place}"]
        for verb in ("train", "tune", "crossval", "phrases")
    },
}


@pytest.mark.parametrize("verb", WRITING)
@pytest.mark.parametrize("inside", [False, True])
def test_a_place_to_write_that_is_a_file_or_in_one_is_refused_at_once(
    verb, inside, synthetic_cohort, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    taken = tmp_path / "taken"
    taken.write_text("mine")
    place = taken / "new" if inside else taken
    if verb in ("prepare", "benchmark") and not inside:  # they write a file
        place = tmp_path / "run"
    given = {name: str(TINY / f"{name}.yaml") for name in ("event_decoder", "vitals_vae")}
    given |= {"place": str(place), "cohort": str(synthetic_cohort), "run": "run"}
    with pytest.raises(SystemExit) as ended:
        main([verb, *(word.format(**given) for word in WRITING[verb])])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.count("\n") == 1
    assert "; name a " in said
    assert taken.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "taken"]


@pytest.mark.parametrize(
    "words", [["labels", "task.yaml", "--cohort", "no"], ["expand", "no", "--output", "new"]]
)
def test_a_cohort_that_is_a_file_is_refused_at_once(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no").write_text("")
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "no: is a file, where a folder is wanted; make it with" in capsys.readouterr().err


def test_no_verb_writes_among_the_files_of_the_cohort_that_it_reads(
    tiny_run, synthetic_cohort, tmp_path, capsys, monkeypatch
):
    cohort = shutil.copytree(synthetic_cohort, tmp_path / "c")
    inside, run = str(cohort / "data" / "train" / "exp"), str(tiny_run)
    sets, events = str(TINY / "set_vae.yaml"), str(TINY / "event_decoder.yaml")
    vitals, of = str(TINY / "vitals_vae.yaml"), f"data.cohort={cohort}"
    before = {path: path.read_bytes() for path in cohort.rglob("*.*")}
    monkeypatch.chdir(tmp_path)
    for command in (
        ["expand", "c", "--output", inside],
        ["embed", run, "--cohort", "c", "--output", inside],
        ["embed", run, "--cohort", "c", "--output", f"{inside}.parquet"],
        ["evaluate", run, "--cohort", "c", "--output", inside],
        ["evaluate", run, "--output", str(synthetic_cohort / "labels" / "exp")],
        ["export", run, str(synthetic_cohort / "labels" / "exp")],
        ["export-pt", events, of, "--output", inside],
        ["prepare", vitals, of, "--export", f"{inside}.h5"],
        ["prepare", sets, of, f"data.cache_dir={inside}"],
        ["phrases", events, of, f"output={inside}"],
        ["train", sets, of, f"output={inside}"],
        ["tune", sets, of, f"output={inside}"],
        ["crossval", sets, of, f"output={inside}"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(command)
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert ended.value.code == 2, (command, said)
        assert re.search("lies in (data|labels)/ of the cohort", said), (command, said)
    assert {path: path.read_bytes() for path in cohort.rglob("*.*")} == before
