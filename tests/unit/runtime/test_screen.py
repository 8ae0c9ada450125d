import re
import sys

from ehr_ray.runtime.screen import Screen


class Terminal:
    """Standard error that says it is a terminal of 100 columns."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True

    def fileno(self):
        return 2


def on_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("os.get_terminal_size", lambda _: type("Size", (), {"columns": 100}))
    return terminal, Screen()


def test_steps_on_a_terminal_are_a_bar_with_the_time_left(monkeypatch):
    terminal, screen = on_terminal(monkeypatch)
    clock = iter([0.0, 10.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    screen.step(10, 110)
    screen.step(60, 110)  # 5 steps a second, 50 to go
    shown = terminal.text.split("\r\x1b[K")[-1]
    assert "60/110" in shown
    assert re.search(r"55%\|.*\| .*<00:10", shown)
    assert len(shown) <= 80


def test_a_resumed_run_is_timed_by_its_own_steps(monkeypatch):
    terminal, screen = on_terminal(monkeypatch)
    clock = iter([0.0, 100.0, 100.0, 102.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    for step in (1, 90, 50, 52):  # workers were lost at 90, and went on from 50
        screen.step(step, 60)
    assert "<00:08" in terminal.text.split("\r\x1b[K")[-1]


def test_without_a_terminal_only_lines_that_stay_are_printed(capsys):
    screen = Screen()
    screen.passing("embedded 1/3")
    screen.step(1, 2)
    screen.say("done")
    assert capsys.readouterr().err == "done\n"


def test_a_line_that_stays_replaces_the_passing_one(monkeypatch):
    terminal, screen = on_terminal(monkeypatch)
    screen.passing("embedded 1/3")
    screen.say("done")
    assert terminal.text.endswith("embedded 1/3\r\x1b[Kdone\n")


def test_without_a_terminal_a_passing_line_a_minute_shows_that_something_goes_on(
    monkeypatch, capsys
):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    screen = Screen()
    for at in (10, 61, 70, 100, 125):
        now[0] = float(at)
        screen.passing(f"embedded {at}/130")
    assert capsys.readouterr().err == "embedded 61/130\nembedded 125/130\n"


def test_a_terminal_that_was_not_told_its_width_shows_whole_lines(monkeypatch):
    terminal, screen = on_terminal(monkeypatch)
    monkeypatch.setattr("os.get_terminal_size", lambda _: type("Size", (), {"columns": 0}))
    screen.passing("embedded 1/10")
    assert terminal.text.endswith("embedded 1/10")


def test_a_start_is_told_on_a_terminal_where_its_imports_are_still_to_come(monkeypatch, capsys):
    for name in ("ray", "torch"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    Screen().starting("train")
    assert capsys.readouterr().err == ""
    terminal, screen = on_terminal(monkeypatch)
    screen.starting("train")
    assert terminal.text.endswith("train: starting, a few seconds")
    monkeypatch.setitem(sys.modules, "ray", None)
    terminal, screen = on_terminal(monkeypatch)
    screen.starting("train")
    assert terminal.text == ""
