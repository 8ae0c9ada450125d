"""One machine a run: on `file://`, whose claims are files, and on S3, whose times are seconds."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from waiting import wait_until

from ehr_ray.errors import LeaseLostError, RunError, StoreUnavailableError
from ehr_ray.storage import lease, sync
from ehr_ray.storage.lease import leased
from ehr_ray.storage.paths import STAGING, local

HOLDS = """
import os, signal, sys
from ehr_ray.storage.lease import leased
with leased(sys.argv[1], print):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The URI of a run in a folder that serves as a store; claims die within a second or so."""
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    monkeypatch.setattr(lease, "EXPIRY", 1.5)
    monkeypatch.setattr(lease, "RENEWAL", 0.2)
    monkeypatch.setattr(lease, "POLL", 0.05)
    return f"file://{tmp_path}/store/run"


@pytest.fixture
def elsewhere(monkeypatch):
    """Claim from another machine: within `elsewhere("name")` this process is one there."""

    def move(host):
        monkeypatch.setattr(lease, "machine", lambda: host)
        monkeypatch.setattr("socket.gethostname", lambda: host)

    return move


def claims(run):
    folder = Path(run.removeprefix("file://"), ".lease")
    return {path.name: path for path in folder.glob("[!.]*")}


def test_the_second_is_refused_by_the_name_of_the_first(run, elsewhere):
    said = []
    elsewhere("first")
    with leased(run, said.append) as held:
        held.check()
        elsewhere("second")
        with pytest.raises(RunError) as refused, leased(run, said.append):
            pass
        held.check()
        assert [*claims(run)] == [held.name]
    text = str(refused.value)
    assert f"{run}: first (process {os.getpid()} of " in text
    assert text.endswith("trains this run; wait until it has ended, or give this one another name")
    assert "since 20" in text
    assert len(said) == 1
    assert "waiting to see whether first (process" in said[0]


def test_a_process_of_this_machine_is_refused_at_once_and_one_that_has_ended_taken_over(
    run, monkeypatch
):
    monkeypatch.setattr(lease, "EXPIRY", 1e6)
    monkeypatch.setattr(lease, "RENEWAL", 1e6)
    silent = []
    with (
        leased(run, silent.append),
        pytest.raises(RunError, match="trains this run"),
        leased(run, silent.append),
    ):
        pass
    done = subprocess.run([sys.executable, "-c", HOLDS, run], check=False)
    assert done.returncode == -9
    assert len(claims(run)) == 1
    with leased(run, silent.append) as held:
        assert [*claims(run)] == [held.name]
    assert not silent


def test_another_process_of_the_same_number_is_not_the_one_that_held_the_run(run, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRY", 1e6)
    with leased(run, print) as held:
        file = claims(run)[held.name]
        left = json.loads(file.read_text()) | {"started": "1"}
    file.write_text(json.dumps(left))
    with leased(run, print):
        assert len(claims(run)) == 1


def test_a_process_of_another_user_that_is_not_seen_is_dead_when_its_claim_expires(
    run, monkeypatch
):
    """As where /proc is mounted with hidepid=2."""
    started = lease.started
    with leased(run, print) as held:
        file = claims(run)[held.name]
        left = json.loads(file.read_text())
        monkeypatch.setattr(lease, "_user", lambda: "other")
        monkeypatch.setattr(lease, "started", lambda pid: "" if pid == left["pid"] else "1")
        with pytest.raises(RunError, match="trains this run"), leased(run, print):
            pass
        assert [*claims(run)] == [held.name]
        held.check()
    monkeypatch.setattr(lease, "started", started)
    file.write_text(json.dumps(left | {"pid": 2**22 + 1}))  # it was killed
    began = time.monotonic()
    with leased(run, print) as mine:
        assert [*claims(run)] == [mine.name]
    assert time.monotonic() - began > 1


def test_a_machine_that_is_dead_is_replaced_when_its_claim_expires(run, elsewhere):
    elsewhere("first")
    with leased(run, print) as held:
        file = claims(run)[held.name]
        left = file.read_text()
    file.write_text(left)  # its machine lost power
    elsewhere("second")
    began, said = time.monotonic(), []
    with leased(run, said.append) as mine:
        assert [*claims(run)] == [mine.name]
    assert time.monotonic() - began > 1
    assert len(said) == 1


def test_what_is_no_claim_is_in_the_way_until_it_would_have_expired(run):
    with leased(run, print) as held:
        folder = claims(run)[held.name].parent
    (folder / "0").write_text("not a claim")
    began = time.monotonic()
    with leased(run, print) as held:
        assert [*claims(run)] == [held.name]
    assert time.monotonic() - began > 1


def test_a_claim_that_is_replaced_while_it_is_read_is_read_again(run, monkeypatch):
    with leased(run, print) as held:
        texts, loads = ["", '{"state"'], json.loads
        monkeypatch.setattr(json, "loads", lambda text: loads(texts.pop() if texts else text))
        held.check()
        assert not texts


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_it_is_given_back_however_the_training_ends(run, error):
    try:
        with leased(run, print):
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert not claims(run)


@pytest.mark.parametrize("known", ["here", ""])
def test_of_many_that_begin_at_once_one_holds_the_run(known, run, elsewhere, monkeypatch):
    """Whether they know each other for processes of one machine, or not."""
    monkeypatch.setattr(lease, "EXPIRY", 60.0)  # a busy machine is no dead one
    elsewhere(known)
    for _ in range(3):
        held, refused, release = [], [], threading.Event()
        together = threading.Barrier(6)

        def begin(held=held, refused=refused, release=release, together=together):
            together.wait()
            try:
                with leased(run, lambda _line: None) as mine:
                    held.append(mine.name)
                    release.wait(60)
            except RunError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=begin) for _ in range(6)]
        for thread in threads:
            thread.start()
        wait_until(lambda refused=refused: len(refused) == 5)
        assert len(held) == 1
        release.set()
        for thread in threads:
            thread.join()
        assert not claims(run)


def test_a_machine_that_was_away_finds_its_run_taken_over(run, elsewhere, monkeypatch):
    elsewhere("first")
    monkeypatch.setattr(lease, "RENEWAL", 1e6)
    with leased(run, print) as held:
        elsewhere("second")
        with leased(run, print) as other:
            with pytest.raises(LeaseLostError) as lost:
                pickle.loads(pickle.dumps(held)).check()
            other.check()
    assert f"{run}: second (process" in str(lost.value)
    assert "took over this run" in str(lost.value)


@pytest.fixture
def asleep(run, elsewhere):
    """The claim of a machine that held the run, and has not renewed it for too long."""

    def claim():
        elsewhere("first")
        first = lease.Claim(run)
        first.take(print)
        time.sleep(lease.EXPIRY)
        return first

    return claim


def test_who_awakes_after_it_was_taken_over_gives_way(run, elsewhere, asleep):
    first = asleep()
    elsewhere("second")
    second = lease.Claim(run)
    second.take(print)
    with pytest.raises(LeaseLostError):
        first.renew()
    assert [*claims(run)] == [second.name]
    second.renew()
    lease.Lease(run, second.name).check()


def test_who_was_away_and_was_not_missed_goes_on(run, asleep):
    first = asleep()
    first.renew()
    lease.Lease(run, first.name).check()


def lost(run, claim):
    """Whether a claim is lost, and stays so."""
    for call in (claim.renew, claim.renew, lease.Lease(run, claim.name).check):
        with pytest.raises(LeaseLostError, match="another machine took over"):
            call()
    return not claims(run)


def test_a_claim_that_was_removed_is_not_written_again(run):
    first = lease.Claim(run)
    first.take(print)
    claims(run)[first.name].unlink()
    assert lost(run, first)


def test_who_awakes_after_another_trained_the_run_and_left_has_lost_it(run, elsewhere, asleep):
    first = asleep()
    elsewhere("second")
    with leased(run, print):
        pass
    assert lost(run, first)


def test_a_claim_that_is_removed_while_it_is_asked_for_anew_is_lost(run, monkeypatch):
    first = lease.Claim(run)
    first.take(print)
    time.sleep(lease.EXPIRY)
    write = lease.Claims.write

    def removed(there, name, content):
        write(there, name, content)
        if content["state"] == lease.ASKS:
            there.remove(name)

    monkeypatch.setattr(lease.Claims, "write", removed)
    assert lost(run, first)


def test_what_the_store_kept_from_being_asked_is_asked_at_the_next_renewal(
    run, monkeypatch, asleep
):
    first = asleep()
    other = lease.Claims(run)
    other.write("b", {"state": lease.HOLDS, "host": "second"})

    def away(*_):
        raise OSError("no route")

    with monkeypatch.context() as patch:
        patch.setattr(lease.Claims, "read", away)
        with pytest.raises(StoreUnavailableError, match="no route"):
            first.renew()
    other.write("b", {"state": lease.HOLDS, "host": "second"})
    with pytest.raises(LeaseLostError):
        first.renew()
    assert [*claims(run)] == ["b"]


@pytest.mark.parametrize("stop", [0.05, 60.0])
def test_a_renewal_that_outlasts_the_training_leaves_no_claim(run, monkeypatch, stop):
    """Whether its end is waited for, or not for so long."""
    monkeypatch.setattr(lease, "STOP", stop)
    begun, go, write = threading.Event(), threading.Event(), lease.Claims.write

    def slow(there, name, content):
        if threading.current_thread().name == "lease":
            begun.set()
            go.wait(60)
        write(there, name, content)

    monkeypatch.setattr(lease.Claims, "write", slow)
    with leased(run, print):
        begun.wait(60)
        (renewing,) = [t for t in threading.enumerate() if t.name == "lease"]
        if stop > 1:
            threading.Timer(0.3, go.set).start()
    go.set()
    renewing.join(60)
    assert not renewing.is_alive()
    assert not claims(run)


def test_nothing_is_written_once_a_claim_was_withdrawn(run):
    claim = lease.Claim(run)
    claim.take(print)
    there = lease.Claims(run)
    claim.withdraw()
    with pytest.raises(LeaseLostError, match="given back"):
        claim.write(there, lease.HOLDS)
    assert not claims(run)


def test_a_store_that_is_away_ends_no_renewals(run, monkeypatch):
    ask, away = lease.filesystem, threading.Event()

    def filesystem(uri):
        if away.is_set():
            raise OSError("no route")
        return ask(uri)

    monkeypatch.setattr(lease, "filesystem", filesystem)
    with leased(run, print) as held:
        away.set()
        with pytest.raises(RunError, match="the store answered no route"):
            held.check()
        time.sleep(1)
        away.clear()
        written = claims(run)[held.name].stat().st_mtime_ns
        wait_until(lambda: claims(run)[held.name].stat().st_mtime_ns > written)
        wait_until(lambda: passes(held))  # it was away for long enough to ask anew


def passes(held):
    try:
        held.check()
    except RunError:
        return False
    return True


def test_a_claim_is_no_part_of_the_run(run):
    with leased(run, print):
        assert sync.names_in(run) == set()
        assert sync.fetch(run, missing_ok=True) == local(run)
        assert not local(run).exists()


def test_a_run_in_a_folder_has_a_lock_and_no_lease(tmp_path):
    with leased(tmp_path / "run", print) as held:
        assert held is None
    assert not (tmp_path / "run").exists()


def test_in_a_bucket_as_in_a_folder(bucket, elsewhere, monkeypatch, tmp_path):
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    monkeypatch.setattr(lease, "EXPIRY", 6.0)
    monkeypatch.setattr(lease, "RENEWAL", 1.0)
    monkeypatch.setattr(lease, "POLL", 0.5)
    run = "s3://hospital/leased/run"
    elsewhere("first")
    with leased(run, print) as held:
        elsewhere("second")
        with pytest.raises(RunError, match=r"first .* trains this run"), leased(run, print):
            pass
        held.check()
        monkeypatch.setattr(lease, "RENEWAL", 1e6)
        time.sleep(1.5)
        with leased(run, print) as mine:
            mine.check()
            with pytest.raises(LeaseLostError, match="second"):
                held.check()
    assert sync.names_in(run) == set()
