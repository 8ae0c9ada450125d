"""Items made by threads ahead of who needs them, in their order."""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, TypeVar

POLL_SECONDS = 0.2
"""How soon a thread that waits for room sees that nobody reads any more."""
_END = object()
Item = TypeVar("Item")
Made = TypeVar("Made")


def made_ahead(
    make: Callable[[Item], Made], items: Generator[Item, None, None], threads: int = 1
) -> Generator[Made, None, None]:
    """Yield `make(item)` of each item, in order.

    Threads take the items one after the other and make them side by side, `threads + 1` ahead of
    those in the making at most. What `make` or `items` raises is raised in the item's place. Once
    it has ended or is closed no thread is left, and the items are closed.
    """
    ready: queue.Queue[Future[Any]] = queue.Queue(threads + 1)
    reading, closed = threading.Lock(), threading.Event()

    def work() -> None:
        item: Any = None
        while item is not _END and not closed.is_set():
            promise: Future[Any] = Future()
            with reading:  # so that promises stand in line as items do
                try:
                    item = _END if closed.is_set() else next(items, _END)
                except BaseException as error:
                    promise.set_exception(error)
                put(promise)
            if promise.done():
                return
            try:
                promise.set_result(_END if item is _END else make(item))
            except BaseException as error:
                promise.set_exception(error)

    def put(promise: Future[Any]) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(promise, timeout=POLL_SECONDS)
                return

    workers = [threading.Thread(target=work, name="loader", daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        while (value := ready.get().result()) is not _END:
            yield value
    finally:
        closed.set()
        for worker in workers:
            worker.join()
        items.close()  # a stream ends with its reader
