"""How long each stage of a dub works."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


class StageClock:
    """Seconds of work per stage, added up over threads; waiting for another stage is not counted."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        self._has_events = device is not None and device.type == "cuda"
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time inside as this stage's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._add(stage, time.perf_counter() - start)

    @contextmanager
    def on_device(self, stage: str) -> Iterator[None]:
        """As calling it, for queued device work: CUDA events mark it, :meth:`settle` adds it up."""
        if not self._has_events:
            with self(stage):
                yield
            return
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        stop.record()
        self._pending.append((stage, start, stop))

    def settle(self) -> None:
        """Add up the device work that has been waited for."""
        for stage, start, stop in self._pending:
            stop.synchronize()
            self._add(stage, start.elapsed_time(stop) / 1000)
        self._pending.clear()

    def timed(self, stage: str, items: Iterable) -> Iterator:
        """The same items; the time that each takes to come is this stage's."""
        iterator = iter(items)
        try:
            while True:
                with self(stage):
                    item = next(iterator, None)
                if item is None:
                    return
                yield item
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    def _add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
