"""Time and memory on the device that a measurement runs on."""

from __future__ import annotations

import gc
import math
import time

import torch

from ..measures import peak_resident_bytes

TOO_LATE = "not measured: out of time"  # the note of what was not begun


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def end_of(within_s: float | None) -> float:
    """When the time is over on the clock of ``time.monotonic``; never where there is no limit."""
    return math.inf if within_s is None else time.monotonic() + within_s


def forget_peak(device: torch.device) -> None:
    """Begin to watch the memory anew, where that can be: on CUDA cards."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float | None:
    """Most memory held by tensors since :func:`forget_peak` on a CUDA card, else by the process since it began."""
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes()
    return None if peak is None else peak / 1e9
