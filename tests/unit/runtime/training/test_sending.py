"""Reports on their way to a store, beside what goes on meanwhile."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
import torch
from killed import Killed
from safetensors.torch import load_file
from waiting import wait_until

from ehr_ray.commands.train import command
from ehr_ray.errors import LeaseLostError, RunError, StoreUnavailableError
from ehr_ray.runtime.progress import ProgressFile
from ehr_ray.runtime.training.sending import Sender, sending
from ehr_ray.storage import lease, runs, sync
from ehr_ray.storage.lease import Lease
from ehr_ray.storage.paths import STAGING, local


@pytest.fixture
def uri(tmp_path, monkeypatch):
    """The URI of a run in a folder that serves as a store, and its copy is there."""
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    uri = f"file://{tmp_path}/store/run"
    write(local(uri), "history.parquet", "1")
    write(local(uri), ".progress.jsonl", "line\n")
    return uri


@pytest.fixture
def slow(monkeypatch):
    """Uploads wait for the first event; the second tells that one has begun."""
    go, begun, upload = threading.Event(), threading.Event(), sync.upload

    def waits(*given):
        begun.set()
        go.wait(60)
        upload(*given)

    monkeypatch.setattr(sync, "upload", waits)
    return go, begun


def write(folder, name, text):
    """Write as a run does: in a new file that takes the place of the old one."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(".partial").write_text(text)
    path.with_name(".partial").replace(path)


def stored(uri):
    folder = Path(uri.removeprefix("file://"))
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def sender_of(uri, held=None):
    return Sender(local(uri), local(uri) / ".progress.jsonl", held)


def test_what_a_report_saved_is_sent_whatever_the_steps_after_it_write(uri, slow):
    go, begun = slow
    run = local(uri)
    for name in ("state/1/progress.yaml", "checkpoint/model.safetensors", f"{runs.BEFORE}/a"):
        write(run, name, "first")
    sender = sender_of(uri)
    assert sender.send() == ""
    begun.wait(60)
    write(run, "history.parquet", "longer than it was")
    write(run, "state/2/progress.yaml", "second")
    (run / "state" / "1" / "progress.yaml").unlink()
    with (run / ".progress.jsonl").open("a") as file:
        file.write("another line\n")
    go.set()
    sender.wait()
    first = {
        "history.parquet": "1",
        "state/1/progress.yaml": "first",
        "checkpoint/model.safetensors": "first",
        f"{runs.BEFORE}/a": "first",
        ".progress.jsonl": "line\n",
    }
    assert stored(uri) == first
    assert sender.send() == ""
    sender.finish()
    del first["state/1/progress.yaml"]
    assert stored(uri) == first | {
        "history.parquet": "longer than it was",
        "state/2/progress.yaml": "second",
        ".progress.jsonl": "line\nanother line\n",
    }


def test_what_has_not_changed_is_not_sent_again(uri, monkeypatch):
    sent, upload = [], sync.upload

    def noted(store, source, path):
        sent.append(source.name)
        upload(store, source, path)

    monkeypatch.setattr(sync, "upload", noted)
    sender = sender_of(uri)
    for _ in range(3):
        sender.send()
    sender.finish()
    assert sent.count("history.parquet") == 1


def test_a_report_waits_for_the_one_before_it(uri, slow):
    go, begun = slow
    sender = sender_of(uri)
    sender.send()
    begun.wait(60)
    write(local(uri), "history.parquet", "22")
    second = threading.Thread(target=sender.send)
    second.start()
    second.join(0.5)
    assert second.is_alive()
    assert stored(uri) == {}
    go.set()
    second.join(60)
    sender.wait()
    assert stored(uri)["history.parquet"] == "22"


def test_a_report_that_is_on_its_way_arrives_before_an_error_ends_the_training(uri, slow):
    go, begun = slow
    threading.Timer(0.5, go.set).start()

    def train():
        with sending(local(uri), local(uri) / "p", None) as sender:
            sender.send()
            begun.wait(60)
            raise Killed

    with pytest.raises(Killed):
        train()
    assert stored(uri)["history.parquet"] == "1"


def test_what_the_store_refused_is_told_at_the_next_report_and_sent_with_it(uri, monkeypatch):
    push, errors = runs.push_run, [RunError("the store is away"), KeyError("a defect"), None]

    def fails(*given):
        if error := errors.pop(0):
            raise error
        push(*given)

    monkeypatch.setattr(runs, "push_run", fails)
    sender = sender_of(uri)
    assert sender.send() == ""
    assert sender.send() == "the store is away"
    with pytest.raises(KeyError, match="a defect"):
        sender.send()
    assert sender.send() == ""
    sender.wait()
    assert stored(uri)["history.parquet"] == "1"
    monkeypatch.setattr(runs, "push_run", push)
    monkeypatch.setattr(sync, "upload", lambda *_: fails_at_the_end())
    write(local(uri), "history.parquet", "333")
    with pytest.raises(RunError, match="at the end"):
        sender.finish()


def fails_at_the_end():
    raise RunError("at the end")


@pytest.mark.parametrize("error", [None, Killed])
def test_what_a_report_was_sent_from_is_removed_however_the_training_ends(uri, error):
    run = local(uri)

    def train():
        with sending(run, run / ".progress.jsonl", None) as sender:
            sender.send()
            assert (run / runs.SENDING).exists()
            if error:
                raise error

    if error:
        with pytest.raises(error):
            train()
    else:
        train()
    assert stored(uri)["history.parquet"] == "1"
    assert not (run / runs.SENDING).exists()


def refuses(monkeypatch, errors):
    """Let the store refuse the next pushes of a run, each by its error."""
    push = runs.push_run

    def fails(*given):
        if errors:
            raise errors.pop(0)
        push(*given)

    monkeypatch.setattr(runs, "push_run", fails)


def test_who_waits_for_a_report_hears_whether_it_has_arrived(uri, monkeypatch):
    sender = sender_of(uri)
    assert sender.wait()
    refuses(monkeypatch, [RunError("away")])
    sender.send()
    assert not sender.wait()
    assert sender.send() == "away"
    assert sender.wait()
    lost = sender_of(uri, Lease(uri, "gone"))
    lost.send()
    for call in (lost.wait, lost.send):
        with pytest.raises(LeaseLostError, match="took over this run"):
            call()


def test_without_hard_links_too_who_waits_hears_whether_a_report_has_arrived(uri, monkeypatch):
    def refused(*_):
        raise OSError("no hard links")

    monkeypatch.setattr(os, "link", refused)
    refuses(monkeypatch, [RunError("away")])
    sender = sender_of(uri)
    assert sender.send() == "away"
    assert not sender.wait()
    assert sender.send() == ""
    assert sender.wait()


def test_the_end_of_a_run_is_sent_again_while_the_store_is_away(uri, monkeypatch):
    monkeypatch.setattr("ehr_ray.runtime.training.sending.RETRY", 0.01)
    refuses(monkeypatch, [StoreUnavailableError("away")] * 3)
    sender_of(uri).finish()
    assert stored(uri)["history.parquet"] == "1"
    monkeypatch.setattr("ehr_ray.runtime.training.sending.EXPIRY", 0.05)
    refuses(monkeypatch, [StoreUnavailableError("away")] * 1000)
    with pytest.raises(StoreUnavailableError, match="away"):
        sender_of(uri).finish()


def test_without_hard_links_a_report_is_waited_for(uri, monkeypatch):
    def refused(*_):
        raise OSError("no hard links")

    monkeypatch.setattr(os, "link", refused)
    sender = sender_of(uri)
    assert sender.send() == ""
    assert stored(uri)["history.parquet"] == "1"
    monkeypatch.setattr(runs, "push_run", lambda *_: fails_at_the_end())
    assert sender.send() == "at the end"


def test_nothing_is_written_to_a_run_that_another_machine_took_over(uri):
    sender = sender_of(uri, Lease(uri, "gone"))
    assert sender.send() == ""
    with pytest.raises(LeaseLostError, match="took over this run"):
        sender.send()
    with pytest.raises(LeaseLostError, match="took over this run"):
        sender_of(uri, Lease(uri, "gone")).finish()
    assert stored(uri) == {}


def test_a_run_in_a_folder_is_sent_nowhere(tmp_path):
    write(tmp_path, "history.parquet", "1")
    with sending(tmp_path, tmp_path / ".progress.jsonl", None) as sender:
        assert sender.send() == ""
        sender.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["history.parquet"]


@pytest.fixture
def experiment(tiny_experiment, synthetic_cohort, tmp_path):
    """A run of eight steps with a report after each second one: experiment(output)."""

    def build(output):
        changes = {"cluster.num_workers": 0, "tracking.experiment": None, "name": "run"}
        changes |= {"train.max_steps": 8, "train.max_epochs": 50, "train.report_steps": 2}
        changes |= {"data.cache_dir": str(tmp_path / "cache"), "output": str(output)}
        return tiny_experiment("set_vae", changes)

    return build


def test_a_crash_loses_at_most_one_report_and_no_bit_of_the_weights(
    experiment, forked, tmp_path, monkeypatch
):
    """The process ends a step after a report that is on its way, and another machine goes on."""
    monkeypatch.setenv(STAGING, str(tmp_path / "other"))
    whole = command.train(experiment(tmp_path / "runs")).run
    output = f"file://{tmp_path}/store"
    given = experiment(output)
    assert forked(dies_while_it_sends, tmp_path / "first", 1, given, 4) == [9]
    assert "state/000000000002/progress.yaml" in sync.names_in(f"{output}/run")
    assert "state/000000000004/progress.yaml" not in sync.names_in(f"{output}/run")
    trained = command.train(given)
    assert (trained.resumed_at, trained.step) == (2, 8)
    for folder in ("checkpoint", "state/000000000008"):
        ours, theirs = (load_file(r / folder / "model.safetensors") for r in (trained.run, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    columns = ["step", "train/objective", "val/objective"]
    ours, theirs = (pd.read_parquet(r / "history.parquet")[columns] for r in (trained.run, whole))
    pd.testing.assert_frame_equal(ours, theirs)


def dies_while_it_sends(staging, _rank, _world, given, report):
    """Train until the step after a report whose upload never ends."""
    os.environ[STAGING] = str(staging)
    begun, upload = threading.Event(), sync.upload

    def stuck(store, source, path):
        if f"state/{report:012d}" in path:
            begun.set()
            threading.Event().wait()
        upload(store, source, path)

    def step(_self, done, _total):
        if done == report + 1:
            begun.wait(60)
            os._exit(9)

    sync.upload, ProgressFile.step = stuck, step
    command.train(given)


def test_a_second_machine_is_refused_and_the_first_ends_where_it_was_taken_over(
    experiment, tmp_path, monkeypatch
):
    output = f"file://{tmp_path}/store"
    given, run = experiment(output), f"{output}/run"
    monkeypatch.setenv(STAGING, str(tmp_path / "first"))
    refused = []

    def step(_self, done, _total):
        if done == 3 and not refused:
            with pytest.raises(RunError, match="trains this run; wait until") as error:
                command.train(given)
            refused.append(str(error.value))
        if done == 5:  # as if this machine had been away for long
            claims = lease.Claims(run)
            for name in claims.times():
                claims.remove(name)
            claims.write("b", {"state": lease.HOLDS, "host": "other", "user": "u", "pid": 1})

    monkeypatch.setattr(ProgressFile, "step", step)
    with pytest.raises(LeaseLostError, match=rf"{run}: other \(process 1 of u"):
        command.train(given)
    assert len(refused) == 1
    names = sync.names_in(run)
    assert "state/000000000004/progress.yaml" in names
    assert "state/000000000006/progress.yaml" not in names
    assert [*lease.Claims(run).times()] == ["b"]


LOOKS = "import sys; from ehr_ray.storage.runs import fetch_run; fetch_run(sys.argv[1])"


def test_who_looks_at_a_run_takes_nothing_that_is_on_its_way(experiment, tmp_path, monkeypatch):
    """Another process of this machine reads the run while each of its reports is being sent."""
    monkeypatch.setenv(STAGING, str(tmp_path / "here"))
    whole = command.train(experiment(f"file://{tmp_path}/alone")).run
    output = f"file://{tmp_path}/store"
    push_run, looked = runs.push_run, []

    def sent(run, source=None):
        if source is not None:
            subprocess.run([sys.executable, "-c", LOOKS, f"{output}/run"], check=True)
            looked.append(source)
        push_run(run, source)

    monkeypatch.setattr(runs, "push_run", sent)
    run = command.train(experiment(output)).run
    assert len(looked) > 1
    there = sync.fetch(f"{output}/run")
    assert there == run
    columns = ["step", "train/objective", "val/objective"]
    ours, theirs = (pd.read_parquet(r / "history.parquet")[columns] for r in (there, whole))
    pd.testing.assert_frame_equal(ours, theirs)
    names = ("checkpoint/model.safetensors", "state/000000000008/model.safetensors")
    assert all((there / name).read_bytes() == (whole / name).read_bytes() for name in names)


def test_losing_the_race_for_a_run_starts_no_training(experiment, tmp_path, monkeypatch):
    """What another machine finished while this one waited for its lease is what there is."""
    output = f"file://{tmp_path}/store"
    given = experiment(output)
    monkeypatch.setenv(STAGING, str(tmp_path / "first"))
    take = lease.Claim.take

    def later(claim, say):
        monkeypatch.setattr(lease.Claim, "take", take)
        monkeypatch.setenv(STAGING, str(tmp_path / "second"))
        assert command.train(given).step == 8
        monkeypatch.setenv(STAGING, str(tmp_path / "first"))
        take(claim, say)

    monkeypatch.setattr(lease.Claim, "take", later)
    trained = command.train(given)
    assert (trained.step, trained.already_finished) == (8, True)
    wait_until(lambda: not lease.Claims(f"{output}/run").times())
