"""Training on a failing disk: one line and nothing lost, with and without Ray."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr_ray.cli.main import main
from ehr_ray.commands.train.command import train
from ehr_ray.errors import InputError, RunError, UserError
from ehr_ray.events.patients import cohort_shards
from ehr_ray.runtime.data.prepared import prepared
from ehr_ray.runtime.tracking import RUN_FILE, Tracked, find_run
from ehr_ray.runtime.training.launch import fit
from ehr_ray.runtime.training.worker import Job
from ehr_ray.train.checkpoint import load
from ehr_ray.train.task import family_of

HERE = {"cluster__num_workers": 0, "train__max_epochs": 1}


def test_a_run_that_cannot_write_its_state_ends_in_one_line(tiny):
    """Ranks end together: tests/unit/train/test_loop.py."""
    experiment = tiny(**HERE)
    experiment.directory.mkdir(parents=True)
    (experiment.directory / "state").write_text("no folder")
    with pytest.raises((UserError, RunError), match=r"tiny/state: (Not a directory|File exists)"):
        train(experiment)
    assert load(experiment.directory).model is not None


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 8
    path.write_bytes(content)


@pytest.mark.ray
def test_rows_that_one_rank_finds_damaged_end_all_of_them(cluster, tiny):
    prepared = train(tiny("prepared", **HERE))
    for block in (prepared.run.parent / ".cache").glob("*/train/[03].arrow"):
        flip(block, 0.5)
    experiment = tiny(cluster__num_workers=2, cluster__max_failures=0)
    with pytest.raises(RunError, match=r"[03]\.arrow: its rows are not those .*; remove it"):
        train(experiment)


@pytest.mark.ray
def test_an_error_that_one_rank_meets_alone_ends_all_of_them_by_its_line(cluster, tiny):
    """The other one waits for it in a sum; nothing is tried again."""

    class Refused:
        """What the first rank alone is told to measure."""

        def bind(self, *_given):
            raise InputError("trial: nothing to rank it by")

    experiment = tiny("alone", cluster__num_workers=2)
    with prepared(experiment, family_of(experiment), on_ray=False) as data:
        run = experiment.directory
        job = Job(experiment, data, run, run / "progress", None, ranking=Refused())
        with pytest.raises(InputError, match=r"^trial: nothing to rank it by$"):
            fit(job)


def test_a_damaged_or_vanished_shard_ends_the_run_by_name(cohort, tiny, tmp_path):
    copy = tmp_path / "cohort"
    shutil.copytree(cohort, copy)
    shard = cohort_shards(copy, "train")[2]
    whole = shard.read_bytes()
    for at in (0.35, 0.4, 0.45):  # one may hit a page's header, where it changes nothing
        flip(shard, at)
    experiment = tiny(data__cohort=copy, **HERE)
    with pytest.raises(InputError, match=r"train/2\.parquet: unreadable.*ingest the cohort again"):
        train(experiment)
    shard.unlink()
    with pytest.raises(InputError, match=r"train/2\.parquet: gone, .* restore what is missing"):
        train(experiment)
    shard.write_bytes(whole)
    assert train(experiment).step > 0


def test_a_flipped_bit_in_the_cache_is_named_and_removing_the_file_mends_it(tiny):
    first = train(tiny(**HERE))
    (block,) = (first.run.parent / ".cache").glob("*/train/3.arrow")
    flip(block, 0.5)
    other = tiny("other", **HERE)
    with pytest.raises(InputError, match=r"3\.arrow: its rows are not those .*; remove it"):
        train(other)
    block.unlink()
    assert train(other).step == first.step


def test_a_damaged_state_is_passed_over_and_the_run_ends_the_same(tiny, caplog):
    plan = {**HERE, "train__max_epochs": 3}
    straight = train(tiny("straight", **plan))
    cut = train(tiny("cut", **plan))
    newest = max((cut.run / "state").iterdir())
    flip(newest / "model.safetensors", 0.9)
    again = train(tiny("cut", **plan))
    assert "going on from the state before it" in caplog.text
    assert (again.resumed_at, again.step) == (straight.step * 2 // 3, straight.step)
    ours, theirs = (load(run).model.state_dict() for run in (again.run, straight.run))
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)


def test_a_run_that_has_ended_and_lost_its_checkpoint_says_so(tiny):
    experiment = tiny(**{"cluster.num_workers": 0})
    run = train(experiment).run
    weights = run / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"damaged .*the run has ended.* or remove .* and train"):
        train(experiment)
    shutil.rmtree(run)
    assert not train(experiment).already_finished
    load(run)


def test_an_output_that_may_not_be_written_is_one_line(cohort, capfd):
    config = str(Path(__file__).parents[2] / "configs" / "tiny" / "set_vae.yaml")
    settings = [f"data.cohort={cohort}", "output=/sys/runs", "cluster.num_workers=0"]
    with pytest.raises(SystemExit):
        main(["train", config, *settings])
    error = capfd.readouterr().err.strip()
    assert error.splitlines()[-1].startswith("ehr-ray: /sys/runs")
    assert "choose a folder that you may write to" in error.splitlines()[-1]
    assert "Traceback" not in error


@settings(max_examples=60, derandomize=True)
@given(st.binary(max_size=40) | st.sampled_from([b"uri: a\nrun_id: b\n", b"uri: 1\nrun_id: 2\n"]))
def test_any_note_of_a_tracked_run_is_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    (folder / RUN_FILE).write_bytes(content)
    try:
        found = find_run(folder)
    except UserError as error:
        found = str(error)
    assert found == Tracked("a", "b") or RUN_FILE in found
