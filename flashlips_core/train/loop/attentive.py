"""Asks in the middle of long computations whether they are still wanted: a training step takes seconds on a slow machine."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from ...types import Waiting

EVERY_S = 0.2


class _Attentive(TorchDispatchMode):
    """Sees every operation of this thread, those of a backward pass too, and changes none of them."""

    def __init__(self, waiting: Waiting, every_s: float) -> None:
        super().__init__()
        self.waiting, self.every_s, self.next_s = waiting, every_s, time.monotonic() + every_s

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if time.monotonic() >= self.next_s:
            self.waiting()
            self.next_s = time.monotonic() + self.every_s
        return func(*args, **(kwargs or {}))


def attentive(waiting: Waiting | None, every_s: float = EVERY_S) -> contextlib.AbstractContextManager:
    """Call ``waiting`` between the operations inside, at most every ``every_s`` seconds; what it raises ends them.

    Each operation passes through Python, which costs a few per cent of a small network's step on a CPU.
    """
    return contextlib.nullcontext() if waiting is None else _Attentive(waiting, every_s)
