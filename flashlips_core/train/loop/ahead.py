"""Draws the next batch while the device works on this one: a card that waits for a processor is an expensive processor."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Ahead:
    """One batch ahead, in one thread. Batches are functions of their number, so who draws them, and when, changes nothing."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._drawn: tuple[int, Future] | None = None

    def take(self, draw: Callable[[int], Any], number: int, following: int) -> Any:
        """The batch ``number``, and a start on ``following``, which is probably asked for next.

        Raises: What ``draw`` raised for this number; what it raises for the following one is kept until that is asked for.
        """
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="batch")
        own = self._drawn[1] if self._drawn and self._drawn[0] == number else self._thread.submit(draw, number)
        batch = own.result()
        self._drawn = following, self._thread.submit(draw, following)
        return batch
