"""What is written to a copy and then sent, and who waits for it."""

import threading

from small_files import content, write

from ehr_ray.storage import sync
from ehr_ray.storage.copies import held, unsent
from ehr_ray.storage.paths import local
from ehr_ray.storage.sync import fetch, push


def test_what_is_written_and_sent_in_one_block_is_not_removed_between(store):
    folder, uri = store
    write(folder, a="1")
    copy = fetch(uri)
    other = threading.Thread(target=fetch, args=(uri,))
    with unsent(uri):
        write(copy, metrics="new")
        other.start()
        other.join(0.3)
        assert other.is_alive()
        assert fetch(f"{uri}/a").read_text() == "1"
        with unsent(copy):
            push(uri)
    other.join()
    assert content(copy) == content(folder) == {"a": "1", "metrics": "new"}
    with unsent(folder):  # a path has no copy
        pass


def test_a_thread_holds_a_path_twice_and_another_waits(tmp_path):
    order = []

    def wait():
        with held(tmp_path):
            order.append("second")

    other = threading.Thread(target=wait)
    with held(tmp_path):
        with held(tmp_path):
            other.start()
        other.join(0.3)  # the inner block has given nothing back
        order.append("first")
    other.join()
    assert order == ["first", "second"]


def test_no_fetch_takes_what_is_unsent_whatever_folder_it_is_of(store):
    folder, uri = store
    write(folder, runs__a__history="1", runs__a__b__c="1")
    copy = fetch(uri)
    with unsent(f"{uri}/runs/a"):
        write(copy, runs__a__history="22", runs__a__new="22", runs__a__b__c="22")
        for below in ("", "/runs"):
            in_another_thread(lambda below=below: fetch(f"{uri}{below}"))
        push(f"{uri}/runs/a")
    assert content(folder) == content(copy) == {
        "runs/a/history": "22", "runs/a/new": "22", "runs/a/b/c": "22"
    }  # fmt: skip
    write(folder, runs__a__history="333")
    assert content(fetch(uri))["runs/a/history"] == "333"


def test_a_fetch_that_waits_for_another_fetch_takes_all(store):
    folder, uri = store
    write(folder, runs__a="1")
    with held(local(f"{uri}")):  # as a fetch of the folder above, of another process
        in_another_thread(lambda: fetch(f"{uri}/runs"))
    assert content(local(uri)) == {"runs/a": "1"}


def test_what_is_in_a_folder_that_is_unsent_comes_whole_once_that_is_sent(store):
    folder, uri = store
    write(folder, fine__history="1", fine__state__1="1", metrics="old")
    fetch(f"{uri}/fine")
    write(folder, fine__history="22", fine__state__2="22")
    other = threading.Thread(target=fetch, args=(f"{uri}/fine",))
    with unsent(uri):
        write(local(uri), metrics="new")
        other.start()
        other.join(0.3)
        assert other.is_alive()
        push(f"{uri}/metrics")
    other.join(60)
    assert content(local(f"{uri}/fine")) == {"history": "22", "state/1": "1", "state/2": "22"}


def test_what_is_written_to_be_sent_during_a_fetch_is_not_set_back(store, monkeypatch):
    folder, uri = store
    write(folder, a__history="1")
    copy = local(uri)

    def objects(*place):
        found = sync_objects(*place)
        thread.start()
        ready.wait(60)
        return found

    def writes():
        with unsent(f"{uri}/a"):
            write(copy, a__history="22")
            ready.set()
            done.wait(60)
            push(f"{uri}/a")

    sync_objects, ready, done = sync.objects, threading.Event(), threading.Event()
    thread = threading.Thread(target=writes)
    with monkeypatch.context() as patch:
        patch.setattr(sync, "objects", objects)
        fetch(uri)
    done.set()
    thread.join(60)
    assert content(folder) == content(copy) == {"a/history": "22"}


def test_who_holds_what_is_unsent_fetches_it_himself(store):
    folder, uri = store
    write(folder, a="1", b="1")
    with unsent(uri):
        assert content(fetch(uri)) == {"a": "1", "b": "1"}


def in_another_thread(function):
    other = threading.Thread(target=function)
    other.start()
    other.join(60)
    assert not other.is_alive()
