"""Copies of runs in a store, on `file://` URIs; what a run sends: unit/runtime/training."""

import contextlib

from small_files import content, shown, write

from ehr_ray.storage import lock, runs, sync
from ehr_ray.storage.lock import exclusive_lock
from ehr_ray.storage.paths import local
from ehr_ray.storage.sync import fetch


def test_a_run_that_another_process_trains_here_is_left_as_it_is(store):
    folder, uri = store
    write(folder, checkpoint__weights="1", history="1")
    copy = runs.fetch_run(uri)
    ahead = {"checkpoint/weights": "22", "history": "22", "state/2/weights": "22"}
    write(copy, checkpoint__weights="22", history="22", state__2__weights="22")
    with exclusive_lock(copy / lock.RUN_LOCK):  # as of another process
        assert shown(runs.fetch_run(uri)) == shown(fetch(f"{uri}/checkpoint").parent) == ahead
    with lock.run_lock(copy):  # who trains it has it from its store
        assert shown(runs.fetch_run(uri)) == {"checkpoint/weights": "1", "history": "1"}
    write(copy, history="333")
    assert content(runs.fetch_run(uri))["history"] == "1"


def test_a_training_that_begins_during_a_fetch_keeps_its_report(store, monkeypatch):
    folder, uri = store
    write(folder, history="1", checkpoint__weights="1")
    copy, objects = runs.fetch_run(uri), sync.objects

    def begins(*place):
        found = objects(*place)
        training.enter_context(exclusive_lock(copy / lock.RUN_LOCK))
        write(copy, history="22", state__1="22")
        return found

    with contextlib.ExitStack() as training:
        with monkeypatch.context() as patch:
            patch.setattr(sync, "objects", begins)
            fetch(uri)
        found = {"history": "22", "state/1": "22", "checkpoint/weights": "1"}
        assert shown(copy) == found


def test_a_search_s_lock_holds_none_of_its_runs(store):
    folder, uri = store
    write(folder, trials__0__history="1")
    with lock.search_lock(local(uri)):
        assert content(runs.fetch_run(f"{uri}/trials/0")) == {"history": "1"}
