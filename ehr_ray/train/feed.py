"""Steps on their way to a device: the next one is copied while this one is trained."""

import contextlib
from collections import deque
from collections.abc import Callable, Generator
from functools import partial

import torch

from ehr_ray.family import Batch

Micro = list[Batch]
"""The micro-batches of a step."""
Steps = Generator[Micro, None, None]


def move(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on a device."""
    if device.type == "cpu":
        return batch
    return {k: v.to(device, non_blocking=True) for k, v in pinned(batch, device).items()}


def pinned(batch: Batch, device: torch.device) -> Batch:
    """Return host values where a GPU copies them from while the host goes on."""
    if device.type != "cuda":
        return batch
    return {k: v.pin_memory() if v.is_cpu else v for k, v in batch.items()}


def on_device(steps: Steps, device: torch.device) -> Steps:
    """Yield steps on a device, in order, each copied one step before it is asked for.

    A GPU copies on a stream of its own. On the CPU steps are as they were.
    """
    send: Callable[[Micro], Callable[[], Micro]] = partial(_send, device)
    if device.type == "cuda":
        send = SideStream(device).send
    ahead = 0 if device.type == "cpu" else 1
    underway: deque[Callable[[], Micro]] = deque()
    with contextlib.closing(steps):
        for micro in steps:
            underway.append(send(micro))
            if len(underway) > ahead:
                yield underway.popleft()()
        for arrive in underway:
            yield arrive()


def _send(device: torch.device, micro: Micro) -> Callable[[], Micro]:
    copies = [move(batch, device) for batch in micro]
    return lambda: copies


class SideStream:
    """Copies to a GPU beside what it computes."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def send(self, micro: Micro) -> Callable[[], Micro]:
        """Begin to copy a step; what is returned has the GPU wait for it, and the host for nothing.

        Memory of the copies is not given to the next ones before what computes is done with it.
        """
        with torch.cuda.stream(self._stream):
            copies = [move(batch, self._device) for batch in micro]
            copied = self._stream.record_event()

        def arrive() -> Micro:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(copied)
            for batch in copies:
                for values in batch.values():
                    values.record_stream(computing)
            return copies

        return arrive
