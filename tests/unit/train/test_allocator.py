import subprocess
import sys

import pytest

from ehr_ray.train import allocator


def lines_of(code):
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.split()


@pytest.mark.parametrize("name", ["keep_freed_memory", "return_freed_memory"])
def test_it_answers_whether_the_allocator_could_be_told(monkeypatch, name):
    code = (
        f"import torch; from ehr_ray.train.allocator import {name}; "
        f"print({name}(), float(torch.ones(1 << 22).sum()))"
    )
    assert lines_of(code)[1] == str(float(1 << 22))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert getattr(allocator, name)() is False


def test_memory_that_is_returned_is_not_the_process_s_any_more():
    """Blocks of 8 MB beside each other, every second of which is freed: a heap would keep them."""
    code = (
        "import sys, torch; from pathlib import Path; from ehr_ray.train import allocator\n"
        "def held(): return int(Path('/proc/self/statm').read_text().split()[1]) >> 8\n"
        "told = getattr(allocator, '{name}')()\n"
        "blocks = [torch.ones(1 << 21) for _ in range(20)]; before = held()\n"
        "del blocks[::2]; print(told, before - held())"
    )
    kept, returned = (
        lines_of(code.format(name=name)) for name in ("keep_freed_memory", "return_freed_memory")
    )
    if kept[0] == returned[0] == "True":
        assert int(kept[1]) < 20
        assert int(returned[1]) > 60


def test_what_is_there_is_passed_over_once_and_what_is_made_then_is_not():
    code = (
        "import gc; from ehr_ray.train.allocator import pass_over_imports as told\n"
        "told(); frozen = gc.get_freeze_count(); cycle = []; cycle.append(cycle)\n"
        "told(); del cycle\n"
        "print(frozen > 1000, gc.get_freeze_count() == frozen, gc.collect() > 0)"
    )
    assert lines_of(code) == ["True"] * 3
