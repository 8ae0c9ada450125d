"""Block files that are brought: here from another folder, by what a test may see and break."""

import contextlib
import errno
import io
import os
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from ehr_ray.errors import DamagedRowsError, InputError, RowsUnavailableError, RunError
from ehr_ray.events import brought
from ehr_ray.events.block_files import scanned, write_block
from ehr_ray.events.blocks import BlockStore
from ehr_ray.storage import in_place, sync
from ehr_ray.storage.paths import STAGING, local, uri_of


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Four files of four rows in a store; `place.store()` reads copies of them."""
    monkeypatch.setenv(STAGING, str(tmp_path))
    monkeypatch.setattr(brought, "PATIENCE", 0.05)
    monkeypatch.setattr(brought, "PAUSE", 0.01)
    there = [tmp_path / "there" / f"{number}.arrow" for number in range(4)]
    here = [tmp_path / "here" / path.name for path in there]
    for number, path in enumerate(there):
        write_block(path, [{"x": np.full(3, 4 * number + row)} for row in range(4)])
    scanned(there).write(tmp_path / "index")
    place = SimpleNamespace(there=there, here=here, asked=[], fails=[])

    def fetch(path):
        place.asked.append(path.name)
        if place.fails:
            raise place.fails.pop()
        path.parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "there" / path.name, path)
        return path

    place.fetch = fetch
    place.store = lambda index=tmp_path / "index": BlockStore(here, index, fetch)
    return place


def values(rows):
    return [int(row["x"][0]) for row in rows]


def test_a_file_comes_once_when_a_row_of_it_is_wanted(place):
    store = place.store()
    assert len(store) == 16
    assert place.asked == []
    assert values(store.rows([5, 4, 9])) == [5, 4, 9]
    assert values(store.rows([6, 7])) == [6, 7]
    assert sorted(place.asked) == ["1.arrow", "2.arrow"]


def test_without_an_index_all_come_at_once(place):
    store = place.store(None)
    assert len(store) == 16
    assert len(place.asked) == 4
    place.there[0].unlink()
    assert values(store.rows([13])) == [13]


def test_files_of_a_window_come_together_and_the_next_window_s_while_it_is_used(place):
    parts = place.store().read(iter([[np.array([0]), np.array([5])], [np.array([9])], []]))
    assert values(next(parts)) == [0]
    for _ in range(1000):
        if len(place.asked) == 3:
            break
        threading.Event().wait(0.01)
    assert sorted(place.asked) == ["0.arrow", "1.arrow", "2.arrow"]
    assert [values(part) for part in parts] == [[5], [9]]


def test_files_of_what_is_read_next_come_while_the_last_window_is_used(place):
    store, row = place.store(), lambda index: [np.array([index])]
    parts = store.read([row(0), row(4)], iter([row(8), row(12)]))
    assert values(next(parts)) == [0]
    assert sorted(store._brought._wanted) == [0, 1]
    assert values(next(parts)) == [4]
    waited = [store._brought._coming[2].result(60)]  # of what comes next the first window
    assert list(parts) == []
    assert sorted(place.asked) == ["0.arrow", "1.arrow", "2.arrow"]
    assert list(map(values, store.read([row(8)]))) == [[8]]
    assert len(place.asked) == 3
    assert waited[0].size == place.there[2].stat().st_size


def test_of_files_that_are_here_no_window_is_asked_for_before_it_is_read(place):
    asked = []
    store = BlockStore(place.there)
    windows = (asked.append(row) or [np.array([row])] for row in (0, 4))
    parts = store.read(windows, then=iter(lambda: pytest.fail("read next"), None))
    assert values(next(parts)) == [0]
    assert asked == [0]
    assert [values(part) for part in parts] == [[4]]


def test_what_has_not_begun_is_not_brought_once_nobody_wants_it(place, monkeypatch):
    monkeypatch.setattr(brought, "AT_ONCE", 1)
    begun, gate = threading.Event(), threading.Event()

    def fetch(path):
        begun.set()
        gate.wait(60)
        return place.fetch(path)

    files = brought.BroughtFiles(place.here, fetch, lambda _file: None)
    files.want(range(4))
    assert begun.wait(60)
    files.cancel()
    gate.set()
    assert files.get(0).size > 0
    assert files.get(2).size > 0  # and yet it may be asked for
    assert place.asked == ["0.arrow", "2.arrow"]


@pytest.mark.parametrize("failures", [1, 2])
def test_a_store_that_is_away_for_a_moment_is_asked_again(place, failures):
    place.fails += [RunError("no answer")] * failures
    assert values(place.store().rows([5])) == [5]
    assert place.asked == ["1.arrow"] * (failures + 1)


def test_a_store_that_stays_away_is_an_error_of_its_own_and_no_end_of_the_file(place):
    store = place.store()
    place.fails += [RunError("no answer")] * 1000
    with pytest.raises(RowsUnavailableError, match="no answer"):
        store.rows([5])
    place.fails.clear()
    assert values(store.rows([5])) == [5]


def test_what_failed_while_it_was_brought_ahead_is_asked_for_again(place):
    place.fails += [RunError("no answer")] * 1000
    files = brought.BroughtFiles(place.here, place.fetch, lambda _file: None)
    files.want([1])
    assert isinstance(files._coming[1].exception(60), RowsUnavailableError)
    place.fails.clear()
    assert files.get(1).size == place.there[1].stat().st_size


def test_files_that_are_gone_changed_or_damaged_are_told_by_name(place):
    store = place.store()
    place.fails += [InputError("1.arrow: nothing there")]
    with pytest.raises(DamagedRowsError, match=r"1\.arrow: nothing there"):
        store.rows([5])
    write_block(place.there[2], [{"x": np.arange(3)}] * 5)
    with pytest.raises(DamagedRowsError, match=r"2\.arrow: has changed while it was used"):
        store.rows([9])


@pytest.fixture
def far(tmp_path, monkeypatch):
    """Files of eight blocks in a store by URI, and one of a single block; what was read of them."""
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    monkeypatch.setattr(brought, "PATIENCE", 0.05)
    monkeypatch.setattr(brought, "PAUSE", 0.01)
    there = [tmp_path / "there" / f"{number}.arrow" for number in range(3)]
    for number, path in enumerate(there):
        rows = [
            {"x": np.full(1000, 16 * number + row), "n": np.array(row)}
            for row in range(16 if number else 2)
        ]
        write_block(path, rows, chunk=2)
    scanned(there).write(tmp_path / "index")
    far = SimpleNamespace(there=there, asked=[], bytes=0)

    class Counted(io.FileIO):
        def read(self, size=-1):
            found = super().read(size)
            far.bytes += len(found)
            return found

    @contextlib.contextmanager
    def opened(folder, name):
        assert uri_of(folder) == f"file://{tmp_path}/there"
        yield pa.PythonFile(Counted(tmp_path / "there" / name), "r")

    def fetch(path):
        far.asked.append(path.name)
        return sync.fetch(path)

    monkeypatch.setattr(in_place, "opened", opened)
    far.here = [local(f"file://{path}") for path in there]
    far.store = lambda: BlockStore(far.here, tmp_path / "index", fetch)
    return far


def test_of_a_file_of_which_few_blocks_are_wanted_these_alone_travel(far):
    store = far.store()
    asked = [30, 3, 0, 2, 30]
    assert values(store.rows(asked)) == [28 + 16, 1 + 16, 0, 16, 28 + 16]
    assert far.asked == ["0.arrow"]
    assert 2 * 16_000 < far.bytes < 2 * 16_000 + 3000  # a block of each; footers besides
    assert [path.exists() for path in far.here] == [True, False, False]
    rows = store.rows([5])
    assert (int(rows[0]["n"]), rows[0]["x"].base is None) == (3, False)
    with pytest.raises(ValueError, match="read-only"):
        rows[0]["x"][0] = 1
    assert store._blocks.keys() == {0}  # no block is held for one row of it


def test_a_file_comes_whole_where_more_of_it_is_wanted_or_it_is_here(far):
    store = far.store()
    assert values(store.rows([2, 5, 9])) == [16, 19, 23]  # three blocks of eight
    assert far.asked == ["1.arrow"]
    before = far.bytes
    assert values(store.rows([13])) == [27]
    assert (far.asked, far.bytes) == (["1.arrow"], before)
    assert [values(part) for part in store.read([[np.array([20])]])] == [[34]]
    assert far.asked == ["1.arrow", "2.arrow"]  # what is trained on: its other blocks follow


def test_blocks_of_all_ranks_of_a_node_are_no_more_than_the_copy_they_would_share(far, monkeypatch):
    """Of eight blocks each of eight ranks reads one, and of two all read the file once."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    store = far.store()
    assert values(store.rows([2])) == [16]
    assert far.asked == []
    assert values(store.rows([18, 21])) == [32, 35]
    assert far.asked == ["2.arrow"]


def test_a_file_comes_whole_to_who_asks_for_its_rows_again(far):
    store = far.store()
    for _ in range(2):
        assert values(store.rows([3], again=True)) == [1 + 16]
        assert (far.asked, far.bytes) == (["1.arrow"], 0)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "has changed while it was used"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "unreadable"),
        (lambda path: path.write_bytes(flipped(path)), "its rows are not those that were written"),
    ],
    ids=["cut", "zeros", "flipped"],
)
def test_blocks_that_travel_alone_are_checked_too(far, damage, told):
    store = far.store()
    damage(far.there[1])
    with pytest.raises(DamagedRowsError, match=rf"1\.arrow: {told}"):
        store.rows([3])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[content.index((17).to_bytes(8, "little") * 2)] ^= 1
    return content


@pytest.mark.parametrize("failures", [1, 1000])
def test_a_store_that_is_away_is_asked_for_blocks_again(far, failures, monkeypatch):
    store, opened = far.store(), in_place.opened
    fails = [RunError("no answer")] * failures

    def failing(*names):
        if fails:
            raise fails.pop()
        return opened(*names)

    monkeypatch.setattr(in_place, "opened", failing)
    if failures == 1:
        assert values(store.rows([3])) == [17]
        return
    with pytest.raises(RowsUnavailableError, match="no answer"):
        store.rows([3])


@pytest.mark.parametrize(
    ("number", "told", "kind"),
    [
        (errno.ENOSPC, "No space left on device; free space there", RowsUnavailableError),
        (errno.EIO, "Input/output error; check the disk", RowsUnavailableError),
        (errno.ESTALE, "Stale file handle; mount that folder anew", RowsUnavailableError),
        (errno.EACCES, "Permission denied; choose a folder", DamagedRowsError),
    ],
)
@pytest.mark.parametrize("step", ["fetch", "room", "ranges"])
def test_what_a_disk_refuses_is_told_with_the_path_and_never_as_it_comes(
    step, number, told, kind, place, monkeypatch
):
    """A disk that is full, or away, is asked again."""

    def fails(*_):
        raise OSError(number, os.strerror(number))

    store = place.store()
    if step == "fetch":
        monkeypatch.setattr(store._brought, "_fetch", fails)
    if step == "room":
        monkeypatch.setattr(brought, "is_short", fails)
    if step == "ranges":
        monkeypatch.setattr(in_place, "opened", fails)
    path = place.here[1]
    asked = {
        "fetch": lambda: store.rows([5], again=True),
        "room": lambda: store.rows([5], again=True),
        "ranges": lambda: store._brought.batches(1, [0]),
    }
    with pytest.raises(kind, match=f"^{path}: {told}") as caught:
        asked[step]()
    assert "\n" not in str(caught.value)


@pytest.fixture
def full(monkeypatch):
    """A disk without room for a further file."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=10))


@pytest.mark.usefixtures("full")
def test_copies_used_longest_ago_make_room_and_are_brought_and_checked_again(place):
    other = place.store()
    assert values(other.rows([0, 5])) == [0, 5]
    store = place.store()
    for row in (0, 5, 9):
        assert values(store.rows([row])) == [row]
    assert [path.exists() for path in place.here] == [False, False, True, False]
    assert values(store.rows([0])) == [0]
    assert values(other.rows([1, 6])) == [1, 6]  # by its own mappings
    content = bytearray(place.there[1].read_bytes())
    content[content.index((5).to_bytes(8, "little") * 3)] = 6
    place.there[1].write_bytes(content)
    with pytest.raises(DamagedRowsError, match="its rows are not those that were written"):
        store.rows([5])


@pytest.mark.usefixtures("full")
def test_copies_that_nobody_here_used_make_room_first(place):
    for number in (2, 3):
        place.fetch(place.here[number])  # as rows that were made on this node
    store = place.store()
    assert values(store.rows([0])) == [0]
    assert [path.exists() for path in place.here] == [True, False, False, False]
    assert values(store.rows([9])) == [9]


@pytest.mark.usefixtures("full")
def test_files_of_the_window_in_use_and_of_the_next_stay(place):
    windows = [[np.array([row]) for row in (0, 4, 1, 5, 2, 6)], [np.array([8, 12])]] * 2
    assert sum(map(values, place.store().read(windows)), []) == 2 * [0, 4, 1, 5, 2, 6, 8, 12]
    assert len(place.asked) == 4  # four are two windows: none was brought twice


def test_on_a_disk_with_room_all_stay(place):
    store = place.store()
    for row in (0, 5, 9, 13, 1):
        store.rows([row])
    assert len(place.asked) == 4
