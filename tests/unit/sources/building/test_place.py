"""A place of a store that a cohort is to be in, where something else may be, and other machines."""

import errno
import multiprocessing
import os
import signal
import socket
from functools import partial
from pathlib import Path

import pytest

from ehr_ray.cli.main import main
from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError
from ehr_ray.events.schema import RECORD
from ehr_ray.storage import sync
from ehr_ray.storage.paths import COHORT_FOLDERS, STAGING, local

COLUMNS = {"id_column": "id", "time_column": "hours", "time_unit": "hours"}


def tree(path):
    return {
        str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()
    }


def test_two_ingests_into_one_store_exclude_each_other_by_name(tmp_path, store, monkeypatch):
    """The second on another machine, with copies of its own and another input."""
    place = f"--output {store}: {socket.gethostname()} (process {os.getpid()} of "
    refused = []

    def enter(_):
        with monkeypatch.context() as patch:
            patch.setenv(STAGING, str(tmp_path / "elsewhere"))
            with pytest.raises(InputError) as error:
                ingest("synthetic", None, store, options={"patients": 3})
            refused.append(str(error.value))

    ingest("synthetic", None, store, options={"patients": 2}, progress=enter)
    assert refused
    assert all(text.startswith(place) for text in refused)
    assert "is writing it; wait until it has ended" in refused[0]
    ingest("synthetic", None, tmp_path / "here", options={"patients": 2})
    assert tree(tmp_path / "store/c") == tree(tmp_path / "here")
    assert ingest("synthetic", None, store, options={"patients": 2}).reused


def test_an_ingest_into_a_store_takes_over_from_one_that_was_killed(tmp_path, store):
    def killed():
        ingest("synthetic", None, store, options={"patients": 2}, progress=kill)

    def kill(line):
        if line == "fitting codes on train":
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [*(tmp_path / "store/c/.lease").iterdir()]
    ingest("synthetic", None, store, options={"patients": 2})
    ingest("synthetic", None, tmp_path / "here", options={"patients": 2})
    assert tree(tmp_path / "store/c") == tree(tmp_path / "here")


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder with a space, in which commands are given: a bad input, and a good one of 1 stay."""
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    folder = tmp_path / "my data"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("bad.csv").write_text("id,hours,item,numeric_value\n1,1,HR,80\n")
    Path("good.csv").write_text("id,hours,code,numeric_value\n1,1,HR,80\n")
    return folder


def said_of(capsys, name, place):
    """Ingest a table by its name into a place; return the exit code and the line on the error."""
    columns = ("--id-column", "id", "--time-column", "hours", "--time-unit", "hours")
    words = ["ingest", "--source", "table", "--input", name, "--output", str(place), *columns]
    try:
        main([*words, "--cpus", "1"])
    except SystemExit as end:
        return end.code, capsys.readouterr().err
    return 0, ""


def test_an_ingest_above_another_cohort_is_refused_and_leaves_it(shelf, capsys):
    store = f"file://{shelf}/cohorts"
    assert said_of(capsys, "bad.csv", store)[0] == 2
    assert tree(shelf / "cohorts") == {}
    assert said_of(capsys, "good.csv", f"{store}/p12")[0] == 0
    before = tree(shelf / "cohorts")
    assert "p12/metadata/codes.parquet" in before
    for name in ("good.csv", "bad.csv"):
        code, line = said_of(capsys, name, store)
        assert (code, tree(shelf / "cohorts")) == (2, before)
        assert f"--output {store}: holds something else, p12; choose another place" in line


@pytest.mark.parametrize(
    "other", ["runs/a/model.safetensors", "note.txt", "p12/data/train/0.parquet"]
)
def test_what_came_beside_an_interrupted_ingest_is_not_taken_for_its_own(shelf, other):
    store = f"file://{shelf}/c"
    sync.mark(store)
    path = shelf / "c" / other
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    name = other.partition("/")[0]
    with pytest.raises(InputError, match=f"/c: holds something else, {name}; choose another"):
        ingest("table", "good.csv", store, options=COLUMNS, cpus=1)
    assert tree(shelf / "c") == {sync.MARK: b"", other: b"mine"}


@pytest.mark.parametrize("folder", COHORT_FOLDERS)
def test_a_cohort_in_a_folder_of_an_interrupted_one_s_name_is_not_its_own(shelf, capsys, folder):
    store = f"file://{shelf}/c"
    sync.mark(store)
    assert said_of(capsys, "good.csv", f"{store}/{folder}")[0] == 0
    before = tree(shelf / "c")
    code, line = said_of(capsys, "good.csv", store)
    assert (code, tree(shelf / "c")) == (2, before)
    assert f"--output {store}: holds something else, {folder}/" in line


@pytest.mark.parametrize("folder", COHORT_FOLDERS)
def test_a_cohort_that_another_machine_writes_into_it_meanwhile_stays(shelf, monkeypatch, folder):
    store, mark, marked = f"file://{shelf}/c", sync.mark, []
    other = shelf / "c" / folder
    names = ("data/train/0.parquet", "metadata/ingest.json", "labels/a.parquet")

    def and_theirs(place):
        mark(place)
        marked.append(place)
        for name in names if len(marked) == 2 else ():  # before it is made whole
            (other / name).parent.mkdir(parents=True, exist_ok=True)
            (other / name).write_bytes(b"theirs")

    monkeypatch.setattr(sync, "mark", and_theirs)
    ingest("table", "good.csv", store, options=COLUMNS, cpus=1)
    assert len(marked) == 2
    assert all((other / name).read_bytes() == b"theirs" for name in names)
    assert (shelf / "c" / RECORD).is_file()


@pytest.mark.parametrize("input_", ["bad.csv", "good.csv"])
def test_what_others_write_below_while_an_ingest_runs_stays(shelf, monkeypatch, input_):
    """A training's run within the cohort's folder, here and in its store."""
    store, real = f"file://{shelf}/c", sync.mark
    own = {"runs/a/experiment.yaml": b"mine", "runs/a/state/1/progress.yaml": b"mine"}

    def mark(place):
        real(place)
        for folder in (shelf / "c", local(store)):
            for name, content in own.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)

    monkeypatch.setattr(sync, "mark", mark)
    read = partial(ingest, "table", input_, store, options=COLUMNS, cpus=1)
    if input_ == "bad.csv":
        with pytest.raises(InputError, match="code"):
            read()
        made = {}
    else:
        read()
        ingest("table", input_, shelf / "here", options=COLUMNS, cpus=1)
        made = tree(shelf / "here")
    assert tree(shelf / "c") == made | own
    assert own.items() <= tree(local(store)).items()


def test_bad_input_leaves_the_mark_of_a_cohort_that_is_not_whole(shelf):
    store, old = f"file://{shelf}/c", shelf / "c" / "labels" / "old.parquet"
    sync.mark(store)
    old.parent.mkdir()
    old.write_text("of an ingest that was killed")
    with pytest.raises(InputError, match="code"):
        ingest("table", "bad.csv", store, options=COLUMNS, cpus=1)
    assert sync.unfinished(store)
    ingest("table", "good.csv", store, options=COLUMNS, cpus=1)
    ingest("table", "good.csv", shelf / "here", options=COLUMNS, cpus=1)
    assert tree(shelf / "c") == tree(shelf / "here")


def test_a_bucket_alone_is_no_place_of_a_cohort():
    with pytest.raises(InputError, match="--output s3://hospital/: names a bucket alone; give a"):
        ingest("synthetic", None, "s3://hospital/", options={"patients": 5}, cpus=1)


@pytest.fixture
def walked(shelf):
    """A folder of one table, and a link to it."""
    (shelf / "in").mkdir()
    (shelf / "good.csv").rename(shelf / "in" / "good.csv")
    (shelf / "link").symlink_to("in")
    return shelf


@pytest.mark.parametrize(
    ("input_", "output"),
    [
        ("in", "in/out"),
        ("in", "{}/in/a/out"),
        ("{}/in", "link/out"),
        ("link", "in/out"),
        ("in", "else/../in/out"),
        (".", "cohorts/mine"),
        ("file://{}/in", "file://{}/in/out"),
        ("file://{}/link", "{}/in/out"),
        ("in", "file://{}/link/out"),
        ("s3://hospital/in", "s3://hospital/in/out"),
        ("s3://hospital/in/", "s3://hospital//in/out?region=x"),
    ],
)
def test_a_cohort_in_a_folder_whose_files_are_all_read_is_refused_before_any_work(
    walked, capsys, input_, output
):
    before = tree(walked)
    code, said = said_of(capsys, *(name.format(walked) for name in (input_, output)))
    (line,) = said.splitlines()
    assert code == 2
    assert "lies in --input " in line
    assert "of which it would be read as a part; choose a folder outside" in line
    assert tree(walked) == before
    assert not (walked / "copies").exists()


@pytest.mark.parametrize("output", ["in", "link", "in/../in", "file://{}/in", "file://{}/link"])
def test_the_input_itself_is_no_place_for_its_cohort(walked, output):
    before = tree(walked)
    for source, columns in (("table", COLUMNS), ("physionet2012", {})):
        with pytest.raises(InputError, match=r"--output .*: is --input itself; choose another"):
            ingest(source, "in", output.format(walked), options=columns, cpus=1)
    assert tree(walked) == before


@pytest.mark.parametrize("folder", ["data", "data/train", "labels"])
def test_a_cohort_in_a_dataset_is_refused_where_it_would_be_of_it(shelf, folder):
    ingest("table", "good.csv", "a", options=COLUMNS, cpus=1)
    with pytest.raises(InputError, match=r"lies in --input a/(data|labels), of which it would be"):
        ingest("meds", "a", f"a/{folder}/b", cpus=1)
    assert ingest("meds", "a", "a/b", cpus=1).events == ingest("meds", "a", "b", cpus=1).events
    assert ingest("meds", "a", "a/b", cpus=1).reused


def test_a_cohort_beside_files_that_are_known_by_their_names_has_its_place(shelf, write_stays):
    write_stays(shelf, {1: ["00:01,HR,80"], 2: ["00:01,HR,90"]})
    made = ingest("physionet2012", ".", "cohorts/p12", cpus=1)
    assert made.events == 4
    assert ingest("physionet2012", ".", "cohorts/p12", cpus=1).reused
    assert ingest("physionet2012", ".", "cohorts/other", cpus=1).events == made.events


@pytest.mark.parametrize("output", [".", "new/..", "mounted", "to_mounted"])
def test_where_no_cohort_can_appear_an_ingest_is_refused_before_any_work(
    tmp_path, monkeypatch, capsys, output
):
    folder = tmp_path / "empty"
    folder.mkdir()
    (tmp_path / "mounted").mkdir()
    monkeypatch.chdir(tmp_path if "mounted" in output else folder)
    (tmp_path / "to_mounted").symlink_to("mounted")
    real = os.rename

    def rename(source, target):
        if Path(source) == tmp_path / "mounted":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as end:
        main(["ingest", "--source", "synthetic", "--patients", "3", "--output", output])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert "name a folder in it" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("output", ["link", "new/../link", "link/../real"])
def test_a_link_to_an_empty_folder_is_filled_and_known_again(tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    made = ingest("synthetic", None, output, options={"patients": 3}, cpus=1)
    assert made.cohort == tmp_path / "real"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "link" / RECORD).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
    for again in (output, "real", "link"):
        assert ingest("synthetic", None, again, options={"patients": 3}, cpus=1).reused


def test_a_finished_cohort_is_known_where_another_could_not_appear(tmp_path, monkeypatch):
    ingest("synthetic", None, tmp_path / "c", options={"patients": 3}, cpus=1)
    monkeypatch.chdir(tmp_path / "c")
    assert ingest("synthetic", None, ".", options={"patients": 3}, cpus=1).reused
