from contextlib import contextmanager

import pytest
import torch

from ehr_ray.train import feed
from ehr_ray.train.feed import SideStream, on_device


def steps(count, log=None):
    for number in range(count):
        if log is not None:
            log.append(f"read {number}")
        yield [{"x": torch.full((2,), number)}]


def test_on_the_cpu_steps_are_as_they_were_and_none_is_taken_ahead():
    log = []
    fed = on_device(steps(3, log), torch.device("cpu"))
    next(fed)
    assert log == ["read 0"]
    fed.close()


class FakeStream:
    """What the feed asks of a CUDA stream, written down."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def record_event(self):
        number = sum(line.startswith("copied") for line in self.log)
        self.log.append(f"copied {number}")
        return f"copied {number}"

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event}")


@pytest.fixture
def log(monkeypatch):
    """A GPU's streams by fakes: what the host asks of them, in order."""
    log = []
    side, computing = FakeStream("side", log), FakeStream("computing", log)

    @contextmanager
    def stream(chosen):
        log.append(f"on {chosen.name}")
        yield
        log.append("off")

    class Copy(torch.Tensor):
        def record_stream(self, kept):
            log.append(f"kept for {kept.name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: side)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: computing)
    monkeypatch.setattr(
        feed, "move", lambda batch, _: {k: v.as_subclass(Copy) for k, v in batch.items()}
    )
    return log


def test_a_gpu_computes_a_step_while_the_next_is_copied_and_waits_for_its_own_alone(log):
    fed = on_device(steps(3, log), torch.device("cuda", 0))
    ((batch,), began) = next(fed), list(log)
    assert batch["x"].tolist() == [0, 0]
    sent = ["on side", "copied {}", "off"]
    assert began == [
        *("read 0", *(part.format(0) for part in sent)),
        *("read 1", *(part.format(1) for part in sent)),
        *("computing waits for copied 0", "kept for computing"),
    ]
    assert [int(batch["x"][0]) for (batch,) in fed] == [1, 2]
    waits = [line for line in log if "waits" in line]
    assert waits == [f"computing waits for copied {number}" for number in range(3)]


def test_a_side_stream_has_nobody_wait_before_the_copies_are_used(log):
    arrive = SideStream(torch.device("cuda", 0)).send([{"x": torch.ones(1)}])
    assert not [line for line in log if "waits" in line]
    arrive()
    assert log[-2:] == ["computing waits for copied 0", "kept for computing"]


def test_closing_the_feed_closes_the_steps():
    source = steps(3)
    fed = on_device(source, torch.device("cpu"))
    next(fed)
    fed.close()
    assert next(source, None) is None
