"""What is written to a copy and then sent, and who waits for it."""

import threading

from small_files import content, write

from ehr_ray.storage.copies import held, unsent
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
