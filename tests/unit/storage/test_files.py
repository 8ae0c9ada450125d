import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr_ray.errors import InputError, RunError
from ehr_ray.storage import files

TABLE = pa.table({"n": np.arange(3000), "text": [f"code {n % 7}" for n in range(3000)]})


def _half(path, error):
    path.write_text("half")
    raise error


def test_a_file_is_replaced_at_once_or_stays(tmp_path):
    path = tmp_path / "new" / "a.txt"
    files.write_text(path, "one")
    with pytest.raises(KeyboardInterrupt), files.new_file(path) as partial:
        _half(partial, KeyboardInterrupt())
    assert path.read_text() == "one"
    files.write_text(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_of_two_who_make_a_first_file_one_s_stays(tmp_path, monkeypatch):
    with files.first_file(tmp_path / "new" / "a") as partial:
        partial.write_text("mine")
        assert not (tmp_path / "new" / "a").exists()
    with files.first_file(tmp_path / "new" / "a") as partial:
        partial.write_text("of another")
    assert (tmp_path / "new" / "a").read_text() == "mine"

    def no_links(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    with files.first_file(tmp_path / "new" / "b") as partial:
        partial.write_text("mine")
    assert (tmp_path / "new" / "b").read_text() == "mine"
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"a", "b"}


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    final = tmp_path / "final"
    with (
        pytest.raises(ValueError, match="half"),
        files.new_folder(final) as partial,
    ):
        _half(partial / "a", ValueError("half"))
    assert list(tmp_path.iterdir()) == []
    with files.new_folder(final, lambda p: p.rename(final)) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "a").write_text("1")
    assert (final / "deep" / "a").read_text() == "1"
    assert list(tmp_path.iterdir()) == [final]


def test_a_folder_appears_behind_a_link_and_where_dots_lead(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to("deep/real")
    (tmp_path / "above").symlink_to("deep")
    for typed, whole in (
        ("a", tmp_path / "a"),
        ("link", tmp_path / "deep" / "real"),
        ("new/../a", tmp_path / "a"),
        ("link/../a", tmp_path / "deep" / "a"),
        ("above/a", tmp_path / "above" / "a"),  # as the other nodes know it
    ):
        assert files.place_of_folder(Path(typed)) == whole


def test_what_a_folder_cannot_appear_in_place_of_is_told_before(tmp_path, monkeypatch):
    folder = tmp_path / "mounted"
    folder.mkdir(mode=0o750)
    inode = folder.stat().st_ino
    for fine in (folder, tmp_path / "new"):
        files.check_replaceable(fine, "--output ")
    assert (folder.stat().st_ino, [*tmp_path.iterdir()]) == (inode, [folder])

    def fails(number):
        def rename(*_):
            raise OSError(number, os.strerror(number))

        return rename

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fails(errno.EBUSY))
        with pytest.raises(InputError, match=r"mounted: a disk or volume is mounted there,"):
            files.check_replaceable(folder, "--output ")
        patch.setattr(os, "rename", fails(errno.EXDEV))  # of a folder of a container's image
        files.check_replaceable(folder, "--output ")
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=r"--output .*mounted: is the folder you stand in,"):
        files.check_replaceable(folder, "--output ")
    folder.rmdir()
    files.check_replaceable(folder, "--output ")


def test_what_a_process_that_has_ended_began_is_removed_and_nothing_else(tmp_path, monkeypatch):
    path, other = tmp_path / "a.parquet", tmp_path / "b.parquet"
    (begun := files.temporary(path)).write_text("of this process")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: ended.pid)
        (left := files.temporary(path)).write_text("half")
        (folder := files.temporary(path)).mkdir()
        (folder / "part").write_text("half")
        (others := files.temporary(other)).write_text("of what nobody asks for")
        patch.setattr("socket.gethostname", lambda: "node-7")
        (away := files.temporary(path)).write_text("of a machine that is not asked")
    (mine := tmp_path / ".a.parquet.notes").write_text("a person's")
    path.write_text("whole")
    files.remove_abandoned([path, tmp_path / "nowhere" / "c.parquet"])
    assert not left.exists()
    assert not folder.exists()
    assert {*tmp_path.iterdir()} == {path, begun, others, away, mine}


def test_two_machines_with_one_process_id_write_to_different_temporary_files(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    here = {files.temporary(path) for _ in range(100)}
    monkeypatch.setattr("socket.gethostname", lambda: "node/7")
    there = files.temporary(path)
    assert len(here) == 100
    assert there.parent == tmp_path
    assert there.name.startswith(f".a.txt.node-7-{os.getpid()}-")
    assert there not in here


def test_what_is_renamed_into_place_is_on_the_disk_first(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    files.write_bytes(tmp_path / "a", b"1")
    assert order == ["fsync", "replace", "fsync"]


def test_of_nested_writes_the_outermost_names_the_path():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(RunError, match=r"^--output o: ") as error,
        files.writes("--output o"),
        files.writes("deep inside"),
    ):
        raise full
    assert error.value.__cause__ is full


@pytest.mark.parametrize("code", sorted(files.REMEDIES))
def test_what_the_disk_refuses_names_path_reason_and_remedy(tmp_path, code):
    with pytest.raises(RunError) as error, files.new_file(tmp_path / "a"):
        raise OSError(code, os.strerror(code))
    assert str(error.value) == (
        f"{tmp_path / 'a'}: {os.strerror(code)}; {files.REMEDIES[code]}, "
        "then run the same command again"
    )


def test_a_full_device_and_a_place_that_is_no_folder_are_one_line(tmp_path):
    with (
        pytest.raises(RunError, match="/dev/full: No space left on device; free space there"),
        files.writes("/dev/full"),
    ):
        Path("/dev/full").write_text("x" * 100_000)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"Not a directory|File exists"):
        files.write_text(tmp_path / "file" / "a", "x")


def test_a_limit_on_size_ends_a_parquet_file_in_one_line(tmp_path):
    code = (
        "import resource, signal, sys; from pathlib import Path; import pyarrow as pa\n"
        "from ehr_ray.storage import files; from ehr_ray.errors import RunError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try: files.write_parquet(pa.table({'a': range(100_000)}), Path(sys.argv[1]))\n"
        "except RunError as error: print(error)"
    )
    path = tmp_path / "a.parquet"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert "File too large" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, derandomize=True)
@given(st.data())
def test_no_damage_of_a_table_written_here_goes_unseen(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    files.write_parquet(TABLE, path, compression="zstd")
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        # The pages: what follows them, the footer, has no checksum of its own.
        end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        content[data.draw(st.integers(0, end - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        assert files.read_parquet(path).equals(TABLE)
    except InputError as error:
        problem = str(error)
    else:
        return
    assert problem.startswith(f"{path}: unreadable, damaged or cut short (")
    assert problem.endswith("; restore it")
    assert "\n" not in problem


def test_a_missing_table_and_a_missing_column_are_told_apart(tmp_path):
    with pytest.raises(InputError, match=r"a\.parquet: no such file; ask for it"):
        files.read_parquet(tmp_path / "a.parquet", remedy="ask for it")
    pq.write_table(TABLE, tmp_path / "a.parquet")
    assert files.read_parquet(tmp_path / "a.parquet", ["n"]).equals(TABLE.select(["n"]))


def test_a_file_system_without_fsync_of_folders_is_no_failure(tmp_path, monkeypatch):
    def unknown(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unknown)
    files.write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"


def test_a_file_written_in_pieces_is_that_of_its_rows(tmp_path, monkeypatch):
    rows = pa.table({"id": range(1000), "name": [str(i % 7) for i in range(1000)]})
    monkeypatch.setattr(files, "GROUP_ROWS", 300)
    files.write_parquet(rows, tmp_path / "whole.parquet", row_group_size=300)
    for size in (1, 299, 300, 301, 1000):
        pieces = (rows.slice(start, size) for start in range(0, 1000, size))
        files.write_parquet_pieces(pieces, rows.schema, tmp_path / "pieces.parquet")
        assert (tmp_path / "pieces.parquet").read_bytes() == (
            tmp_path / "whole.parquet"
        ).read_bytes()
    files.write_parquet_pieces([], rows.schema, tmp_path / "none.parquet")
    assert files.read_parquet(tmp_path / "none.parquet").equals(rows.slice(0, 0))
