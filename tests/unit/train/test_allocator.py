import subprocess
import sys

from ehr_ray.train.allocator import keep_freed_memory


def test_keeping_freed_memory_answers_whether_it_could(monkeypatch):
    code = (
        "import torch; from ehr_ray.train.allocator import keep_freed_memory; "
        "print(keep_freed_memory(), float(torch.ones(1 << 22).sum()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split()[1] == str(float(1 << 22))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
