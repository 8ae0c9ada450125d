"""The verb `tune` refuses what cannot be searched, in one line, before anything starts."""

from pathlib import Path

import pytest

from ehr_ray.cli.main import main

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs" / "tiny" / "set_vae.yaml"


def refused(capsys, cohort, tmp_path, *changes):
    given = ["tune", TINY, f"data.cohort={cohort}", f"output={tmp_path}", *changes]
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in given])
    assert exit_.value.code == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1, message
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["tune.method=guess"], "tune.method"),
        (["tune.trails=3"], "did you mean trials?"),
        (["search.train.lr=3"], "search.train.lr: not a search domain"),
        (["search.train.lr=null"], "search: nothing to vary"),
        (["search.model.latnt=[4,8]"], "search.model.latnt: 4 makes no valid config"),
        (["search.cluster.num_workers=[1,2]"], "cannot vary between trials"),
        (["search.model.width=default", "search.model.heads=default"], "search.model.heads"),
        (["tune.scheduler=pbt", "cluster.num_workers=2"], "cluster.num_workers=1 only"),
        (["tune.scheduler=pbt", "output=s3://b/runs"], "a folder that all nodes share"),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_one_line(
    changes, message, capsys, synthetic_cohort, tmp_path
):
    assert message in refused(capsys, synthetic_cohort, tmp_path, *changes)
    assert not list(tmp_path.glob("*/trials"))


def test_a_missing_cohort_is_named(capsys, tmp_path):
    assert "no such folder" in refused(capsys, tmp_path / "none", tmp_path)


def test_ranking_by_a_probe_needs_labels(capsys, synthetic_cohort, tmp_path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(synthetic_cohort, bare)
    shutil.rmtree(bare / "labels")
    assert "set tune.rank=metric" in refused(capsys, bare, tmp_path, "tune.rank=probe")


def test_a_folder_of_something_else_is_left_alone(capsys, synthetic_cohort, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("mine")
    message = refused(capsys, synthetic_cohort, tmp_path, "name=mine")
    assert "holds something else than a search" in message
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["note.txt"]


def test_what_can_never_run_leaves_no_folder(capsys, synthetic_cohort, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    given = ["tune", TINY, f"data.cohort={synthetic_cohort}", f"output={tmp_path}", "name=big"]
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in [*given, "cluster.cpus_per_worker=5000"]])
    assert exit_.value.code == 2
    assert "5000 = 5000 CPUs" in capsys.readouterr().err
    assert not (tmp_path / "big").exists()


def test_a_pipeline_is_no_config_of_a_search(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["tune", str(ROOT / "configs" / "tiny" / "event_pipeline.yaml")])
    assert exit_.value.code == 2
    assert "a pipeline of stages" in capsys.readouterr().err
