import json
import time

from waiting import wait_until

from ehr_ray.runtime import progress
from ehr_ray.runtime.progress import ProgressFile, Table, following
from ehr_ray.storage.paths import STAGING, local
from ehr_ray.storage.sync import names_in, push

ROW = {
    "step": 4,
    "epoch": 1.0,
    "seconds": 2.0,
    "lr": 0.001,
    "train/objective": 0.75,
    "val/objective": 0.5,
}


class Shown:
    """A screen that keeps what it was given."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)

    def step(self, step, total):
        self.said.append((step, total))


def wait_for(screen, count):
    wait_until(lambda: len(screen.said) >= count, lambda: screen.said)


def test_what_a_worker_here_appends_is_shown_and_the_file_goes(tmp_path):
    path, screen = tmp_path / "run" / ".progress.jsonl", Shown()
    with following(path, screen):
        ProgressFile(path).lines(["first"])
        wait_for(screen, 1)
        with path.open("a") as file:
            file.write('{"lines": ["half')  # the rest of a line comes later
        time.sleep(0.3)
        with path.open("a") as file:
            file.write(' a line"]}\nof another process that was killed"]}\n')
        ProgressFile(path).report(ROW, "val/objective")
        ProgressFile(path).step(5, 8)
    assert screen.said[:2] == ["first", "half a line"]
    assert screen.said[2].split() == ["epoch", "step", "train/objective", "val/objective", "time"]
    assert screen.said[3].split() == ["1", "4", "0.75", "0.5", "2", "s"]
    assert screen.said[4] == (5, 8)
    assert not path.exists()


def test_what_a_worker_elsewhere_stores_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "AWAY_SECONDS", 0.1)
    uri = f"file://{tmp_path}/store/run/.progress.jsonl"
    screen = Shown()
    monkeypatch.setenv(STAGING, str(tmp_path / "worker"))
    theirs = local(uri)
    ProgressFile(theirs).lines(["first"])
    monkeypatch.setenv(STAGING, str(tmp_path / "driver"))
    with following(local(uri), screen):
        stored = tmp_path / "store" / "run" / ".progress.jsonl"
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_text(theirs.read_text())
        wait_for(screen, 1)
        ProgressFile(theirs).report(ROW, "val/objective")
        stored.write_text(theirs.read_text())
    assert screen.said[0] == "first"
    assert screen.said[2].split()[:2] == ["1", "4"]
    assert len(screen.said) == 3
    assert not stored.exists()


def test_a_hidden_file_is_stored_where_it_is_asked_for_itself(tmp_path, monkeypatch):
    monkeypatch.setenv(STAGING, str(tmp_path / "copies"))
    uri = f"file://{tmp_path}/store/.progress.jsonl"
    ProgressFile(local(uri)).lines(["first"])
    push(f"file://{tmp_path}/store")
    assert names_in(uri) == set()
    push(uri)
    assert names_in(uri) == {""}


def test_reports_are_a_table_with_one_header_and_the_metric_that_selects(tmp_path):
    lines = []
    table = Table(lines.append)
    path = tmp_path / ".progress.jsonl"
    for epoch in (1, 2):
        row = {**ROW, "epoch": epoch, "step": 400 * epoch, "val/auroc": 0.8123}
        ProgressFile(path).report(row, "val/auroc")
    for line in path.read_text().splitlines():
        table.add(json.loads(line)["report"])
    titles = ["epoch", "step", "train/objective", "val/objective", "val/auroc", "time"]
    assert lines[0].split() == titles
    assert [line.split()[:2] for line in lines[1:]] == [["1", "400"], ["2", "800"]]
    assert lines[1].split()[4] == "0.8123"
    assert len({len(line) for line in lines}) == 1  # columns stand below their titles


def test_reports_with_other_columns_get_a_header_of_their_own():
    lines = []
    table = Table(lines.append)
    for name in ("val/objective", "val/value", "val/value"):
        table.add({"epoch": 1, "step": 4, "seconds": 2.0, name: 0.5})
    assert [("epoch" in line) for line in lines] == [True, False, True, False, False]
