"""Work on streams: batches, and a bounded look-ahead thread. Nothing here holds a whole clip."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_END = object()
WAITING_S = 0.1  # how often a consumer with nothing to do says so


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items; the last one may be shorter."""
    if size < 1:
        raise ValueError(f"A batch needs at least one item, got size {size}.")
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def prefetch(items: Iterable[T], depth: int = 16, waiting: Callable[[], None] | None = None) -> Iterator[T]:
    """Run ``items`` in a thread, at most ``depth`` items ahead of the consumer.

    What the source raises is raised here, after the items before it. When the consumer stops early (``close``, an
    exception, the end of its loop), the thread ends and the source is closed before this returns. ``waiting`` is called in the
    consumer's thread while there is nothing for it.
    """
    if depth < 1:
        raise ValueError(f"Prefetching needs a depth of at least 1, got {depth}.")
    ready: queue.Queue[tuple[object, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()
    worker = threading.Thread(target=_pump, args=(items, ready, stopped), name="flashlips-prefetch", daemon=True)
    worker.start()
    try:
        while True:
            item, error = _taken(ready, waiting)
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        _drain(ready)  # frees a worker that waits for room
        worker.join()


def awaited(items: Iterable[T], waiting: Callable[[], None] | None = None) -> Iterator[T]:
    """The same items, ``waiting`` called before each."""
    for item in items:
        if waiting is not None:
            waiting()
        yield item


def counted(
    items: Iterable[T], total: int, progress: Callable[[int, int], None] | None = None, show: Callable[[T], None] | None = None
) -> Iterator[T]:
    """The same items; each one that the consumer is done with is shown, then counted."""
    for done, item in enumerate(items, 1):
        yield item
        if show is not None:
            show(item)
        if progress is not None:
            progress(min(done, total), total)


def _pump(items: Iterable[T], ready: queue.Queue, stopped: threading.Event) -> None:
    """The thread: fill the queue until the source ends, fails or nobody wants more."""
    last: tuple[object, BaseException | None] = (_END, None)
    try:
        iterator = iter(items)
        try:
            for item in iterator:
                ready.put((item, None))
                if stopped.is_set():
                    break
        finally:
            if hasattr(iterator, "close"):
                iterator.close()
    except BaseException as error:  # noqa: BLE001 - it belongs to the consumer's thread, Ctrl-C and interrupts included
        last = (_END, error)
    if not stopped.is_set():
        ready.put(last)


def _taken(ready: queue.Queue, waiting: Callable[[], None] | None) -> tuple[object, BaseException | None]:
    while waiting is not None:
        try:
            return ready.get(timeout=WAITING_S)
        except queue.Empty:
            waiting()
    return ready.get()


def _drain(ready: queue.Queue) -> None:
    while True:
        try:
            ready.get_nowait()
        except queue.Empty:
            return
