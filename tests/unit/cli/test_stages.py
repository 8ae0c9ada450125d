"""A verb of one experiment, and the stages of a pipeline, without Ray."""

import json
from pathlib import Path

import pytest
import yaml

from ehr_ray.cli.main import main
from ehr_ray.cli.stages import train_run
from ehr_ray.commands.train.command import Trained
from ehr_ray.experiment import load
from ehr_ray.runtime.screen import Screen

TINY = Path(__file__).parents[3] / "configs" / "tiny"


def test_a_pipeline_may_begin_with_its_cohort(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set_vae.yaml").symlink_to(TINY / "set_vae.yaml")
    path = tmp_path / "pipeline.yaml"
    first = {"ingest": "synthetic", "patients": 20, "splits": "0.6,0.2,0.2"}
    path.write_text(yaml.safe_dump({"stages": [first, {"train": "set_vae.yaml"}]}))
    command = ["train", str(path), "data.cohort=made/here", "ingest.seed=5", "train.max_steps=1"]
    command += ["tracking.experiment=null", "cluster.num_workers=0"]
    main(command)
    record = json.loads((tmp_path / "made" / "here" / "metadata" / "ingest.json").read_text())
    assert (sum(record["summary"]["subjects"].values()), record["seed"]) == (20, 5)
    assert (tmp_path / "runs" / "tiny_set_vae" / "checkpoint").is_dir()
    said = capsys.readouterr().err
    assert "1/2 ingest synthetic" in said
    assert "2/2 train tiny_set_vae" in said


@pytest.mark.parametrize(
    ("after", "finished", "judged"),
    [(True, False, True), (True, True, False), (False, False, False)],
)
def test_training_may_end_with_an_evaluation(
    capsys, tmp_path, monkeypatch, after, finished, judged
):
    run = tmp_path / "runs" / "tiny_set_vae"
    run.mkdir(parents=True)
    (run / "metrics.json").write_text("{}")
    trained = Trained(run, 3, 0.5, 0, finished)
    monkeypatch.setattr("ehr_ray.commands.train.command.train", lambda *_, **__: trained)
    monkeypatch.setattr(
        "ehr_ray.commands.evaluate.command.evaluate", lambda *_, **__: ["it was judged"]
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cohort").mkdir()
    choice = f"evaluation.after_training={str(after).lower()}"
    train_run(load(TINY / "set_vae.yaml", ["data.cohort=cohort", choice]), Screen(), verbose=False)
    said = capsys.readouterr()
    assert ("it was judged" in said.out + said.err) == judged
    assert ("next: ehr-ray evaluate" in said.out + said.err) == (not judged)
