"""Folders of embedded events, a file a patient, read as a cohort and trained on."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from ehr_ray.cli.main import main
from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import ConfigError, InputError
from ehr_ray.experiment import load
from ehr_ray.runtime.data.dataset import vocabulary_of
from ehr_ray.runtime.text_embedding import with_phrases
from ehr_ray.sources.building import metadata
from ehr_ray.train.embedded_source import code_of, read_embedded

TINY = Path(__file__).parents[3] / "configs" / "tiny"
WORDS = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def write(path, tokens, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = torch.tensor(tokens, dtype=torch.int64)
    whole = {"embeddings": WORDS[ids], "token_ids": ids, "label": torch.tensor(0), **content}
    torch.save({key: value for key, value in whole.items() if value is not None}, path)


@pytest.fixture
def folder(tmp_path):
    """Ten patients to train on and some of both other splits, in the published layout."""
    for number in range(10):
        label = torch.tensor(number % 2)
        write(tmp_path / "pt" / "train" / f"patient_{number}.pt", [0, 1 + label, 3], label=label)
    for split in ("val", "test"):
        for number in range(2):
            path = tmp_path / "pt" / split / f"patient_{number}.pt"
            write(path, [0, 1 + number, 4, 4], label=torch.tensor(number))
    return tmp_path / "pt"


def made(folder, **options):
    output = folder.parent / "cohort"
    ingest("embedded-pt", folder, output, options=options, cpus=1)
    return output


def events_of(cohort):
    return pd.concat(map(pd.read_parquet, sorted((cohort / "data").rglob("*.parquet"))))


def vectors_of(cohort):
    table = pq.read_table(cohort / "metadata" / "vectors.parquet").to_pydict()
    return dict(zip(table["code"], np.float32(table["vector"]), strict=True))


def test_an_event_is_its_vector_in_its_place(folder):
    cohort = made(folder)
    events, vectors = events_of(cohort), vectors_of(cohort)
    names = pd.read_parquet(cohort / "metadata" / "subject_ids.parquet")
    assert len(names) == 14, "a patient_0 of each folder is another patient"
    (one,) = names[names.name == "test/patient_1"].subject_id
    mine = events[events.subject_id == one].sort_values("time")
    np.testing.assert_array_equal([vectors[c] for c in mine.code], WORDS[[0, 2, 4, 4]].numpy())
    labels = pd.read_parquet(cohort / "labels" / "label.parquet").set_index("subject_id")
    assert labels.boolean_value[one]
    assert labels.prediction_time[one] == mine.time.max()
    assert len(vectors) == 5
    splits = pd.read_parquet(cohort / "metadata" / "subject_splits.parquet")
    assert splits.split.value_counts().to_dict() == {"train": 10, "tuning": 2, "held_out": 2}


def test_folders_of_splits_may_have_capitals_and_others_lose_nobody(folder):
    (folder / "test").rename(folder / "Test")
    splits = pd.read_parquet(made(folder) / "metadata" / "subject_splits.parquet")
    assert (splits["split"] == "held_out").sum() == 2
    (folder / "Test").rename(folder / "eval")
    with pytest.raises(InputError, match=r"--input .*: eval/ has files of patients and is no"):
        ingest("embedded-pt", folder, folder.parent / "eval", cpus=1)


def test_the_event_transformer_trains_on_these_vectors(folder, tmp_path, capsys):
    cohort = made(folder)
    out = [f"output={tmp_path}/runs", "tracking.experiment=null", "cluster.num_workers=0"]
    model = ["model.gaps=none", "model.embedding_dim=null", "task.name=label", "train.max_epochs=1"]
    main(["train", str(TINY / "event_encoder.yaml"), f"data.cohort={cohort}", *out, *model])
    (place,) = (tmp_path / "runs" / ".cache").glob("phrases-*")
    table = load_file(place / "table.safetensors")["table"].numpy()
    known = sorted(code for code in vectors_of(cohort) if not code.startswith("TOKEN//4-"))
    np.testing.assert_array_equal(table, [vectors_of(cohort)[code] for code in known])
    assert "10 train and 2 tuning rows, 4 codes" in capsys.readouterr().err
    assert (tmp_path / "runs" / "tiny_event_encoder" / "checkpoint").is_dir()


def config_of(cohort, *changes):
    plain = ["model.gaps=none", "model.embedding_dim=null", f"output={cohort.parent}/runs"]
    return load(TINY / "event_encoder.yaml", [f"data.cohort={cohort}", *plain, *changes])


def test_an_event_that_train_lacks_is_read_where_no_count_is_asked_for(folder):
    config = config_of(made(folder), "data.min_code_count=0")
    vocabulary = vocabulary_of(config.cohort, config.data.min_code_count)
    found = with_phrases(config, vocabulary, on_ray=False)
    assert found.model.embedding_dim == 8
    assert len(load_file(Path(found.model.phrases) / "table.safetensors")["table"]) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.gaps=own", r"^data\.cohort=.*'15 to 60 minutes later' did not; .*gaps=none"),
        ("model.embedding_dim=64", r"^model\.embedding_dim=64: .* have 8; drop"),
    ],
)
def test_phrases_without_a_vector_are_refused(folder, change, message):
    config = config_of(made(folder), change)
    with pytest.raises(ConfigError, match=message):
        with_phrases(config, vocabulary_of(config.cohort, 1), on_ray=False)


def test_what_export_pt_writes_is_read_back_with_whose_it_is(synthetic_cohort, tmp_path):
    out = tmp_path / "pt"
    common = [f"data.cohort={synthetic_cohort}", f"output={tmp_path}/runs", "cluster.num_workers=0"]
    main(["export-pt", str(TINY / "event_decoder.yaml"), *common, "--output", str(out)])
    cohort = made(out)
    events, vectors = events_of(cohort), vectors_of(cohort)
    row = next(csv.DictReader((out / "subjects.csv").open()))
    content = torch.load(out / row["split"] / row["file"], weights_only=True)
    mine = events[events.subject_id == int(row["subject_id"])].sort_values("time")
    np.testing.assert_array_equal([vectors[c] for c in mine.code], content["embeddings"].numpy())
    tokens = [int(code.split("//")[1].split("-")[0]) for code in mine.code]
    assert tokens == content["token_ids"].tolist()
    before = pd.read_parquet(synthetic_cohort / "labels" / "outcome.parquet")
    after = pd.read_parquet(cohort / "labels" / "label.parquet")
    both = before.merge(after, on="subject_id")
    assert len(both) == len(before)
    assert (both.boolean_value_x == both.boolean_value_y).all()


def test_labels_are_classes_or_numbers_where_that_is_said(folder):
    write(folder / "train" / "patient_0.pt", [0, 1], label=torch.tensor(2))
    with pytest.raises(InputError, match=r"label 2 is not 0 or 1; say --label-kind"):
        made(folder)
    classes = pd.read_parquet(made(folder, label_kind="classes") / "labels" / "label.parquet")
    assert sorted(classes.categorical_value.unique()) == ["0", "1", "2"]


def test_files_without_token_ids_and_label_are_read_by_their_vectors(tmp_path):
    write(tmp_path / "pt" / "7.pt", [0, 1, 0], token_ids=None, label=None)
    cohort = made(tmp_path / "pt")
    events = events_of(cohort).sort_values("time")
    assert set(events.subject_id) == {7}
    assert events.code.tolist() == [code_of(None, WORDS[i].numpy()) for i in (0, 1, 0)]
    assert not (cohort / "labels").exists()


class Opened:
    """What runs code where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_that_would_run_code_is_refused_and_runs_none(folder, tmp_path, capsys):
    torch.save({"embeddings": WORDS, "label": Opened(tmp_path / "ran")}, folder / "train" / "a.pt")
    arguments = ["ingest", "--source", "embedded-pt", "--input", str(folder), "--cpus", "1"]
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--output", str(tmp_path / "cohort")])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train/a.pt: no file of tensors that torch reads by weights_only" in line
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([WORDS], "no tensor `embeddings`"),
        ({"embeddings": WORDS[0]}, r"embeddings are torch.float32 \(8,\), not floats of \[N, D\]"),
        ({"embeddings": WORDS.long()}, "not floats"),
        ({"embeddings": WORDS / 0}, "no finite number"),
        ({"embeddings": WORDS, "token_ids": torch.arange(4)}, r"token_ids are int64 \(4,\)"),
        ({"embeddings": WORDS, "label": torch.tensor([0, 1])}, "not one number"),
        ({"embeddings": WORDS, "label": "yes"}, "not one number"),
    ],
)
def test_what_is_no_such_dict_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=message):
        read_embedded(tmp_path / "x.pt")


def test_a_file_that_was_cut_short_is_no_error_of_the_disk(tmp_path):
    write(tmp_path / "1.pt", [0, 1, 2])
    whole = (tmp_path / "1.pt").read_bytes()
    (tmp_path / "1.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="no file of tensors that torch reads"):
        read_embedded(str(tmp_path / "1.pt"))


def test_half_precision_and_plain_numbers_are_read(tmp_path):
    torch.save({"embeddings": WORDS.bfloat16(), "label": 1}, tmp_path / "x.pt")
    patient = read_embedded(tmp_path / "x.pt")
    assert (patient.vectors.dtype, patient.label, patient.tokens) == (np.float32, 1.0, None)


def test_embeddings_of_two_widths_and_too_many_are_refused(folder, monkeypatch):
    monkeypatch.setattr(metadata, "MOST_VECTORS", 4)
    with pytest.raises(InputError, match="more than 4 different embeddings"):
        made(folder)
    monkeypatch.undo()
    write(folder / "train" / "b.pt", [0], embeddings=torch.ones(1, 3))
    with pytest.raises(InputError, match=r"of 8 numbers, and those of train/b.pt are of 3"):
        made(folder)
    (folder / "train" / "b.pt").rename(folder / "b.pt")  # a unit of its own
    with pytest.raises(InputError, match="embeddings of 3 and of 8 numbers"):
        made(folder)


def test_a_file_that_nobody_is_said_to_own_is_named(folder):
    (folder / "subjects.csv").write_text("split,file,subject_id\ntrain,patient_0.pt,12\n")
    with pytest.raises(InputError, match=r"subjects.csv does not say whose test/patient_0.pt is"):
        made(folder)
    (folder / "subjects.csv").write_text("split,file,subject_id\ntrain,patient_0.pt,12\ntest\n")
    with pytest.raises(InputError, match=r"subjects.csv: row 3 lacks one of split, file"):
        made(folder)
