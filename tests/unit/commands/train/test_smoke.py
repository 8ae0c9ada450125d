from pathlib import Path

import pytest

from ehr_ray.cli.main import main
from ehr_ray.commands.train import smoke as command
from ehr_ray.commands.train.smoke import STEPS
from ehr_ray.errors import RunError

TINY = Path(__file__).parents[4] / "configs" / "tiny"


@pytest.fixture
def arguments(synthetic_cohort, tmp_path):
    common = (f"data.cohort={synthetic_cohort}", f"output={tmp_path}", "cluster.num_workers=0")
    return lambda config: ["train", str(TINY / config), *common, "--smoke"]


def test_a_smoke_test_trains_some_steps_by_the_chamfer_distance_alone_and_keeps_none(
    arguments, tmp_path, capsys
):
    for _ in range(2):  # the second does not find that it was done already
        main(arguments("set_vae_chamfer.yaml"))
        said = capsys.readouterr().err
        assert f"tiny_set_vae_chamfer: {STEPS} steps and a validation in " in said
    assert [path.name for path in tmp_path.iterdir()] == [".cache"]


def test_the_folder_of_one_that_fails_is_removed_too(arguments, tmp_path, monkeypatch):
    def failing(experiment, *_):
        experiment.directory.mkdir(parents=True)
        raise RunError("no memory")

    monkeypatch.setattr(command, "train_run", failing)
    with pytest.raises(SystemExit):
        main(arguments("set_vae.yaml"))
    assert not list(tmp_path.iterdir())


def test_a_pipeline_is_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments("event_pipeline.yaml"))
    assert "--smoke tries one run" in capsys.readouterr().err
