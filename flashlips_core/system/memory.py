"""Batches on a device whose memory may run out: once more at half the size, then a sentence that says what to do."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable

import torch
from torch import Tensor

from ..types import FlashLipsError

log = logging.getLogger(__name__)


class WithinMemory:
    """Runs work on batches of rows, ``batch`` at once; out of memory, once more at half of it, which then stays."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def __call__(self, work: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> tuple[Tensor, ...]:
        """What ``work`` returns for all of the rows; each of its tensors has one row per row given."""
        try:
            return self._in_parts(work, rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        half = self.batch // 2
        if half == 0:
            raise FlashLipsError("Out of memory with a single frame; use a smaller model or crop, or device 'cpu'.")
        log.warning("Out of memory with %d frames at once; going on with %d, which is slower.", self.batch, half)
        self.batch = half
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            return self._in_parts(work, rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = f"Out of memory, also with {half} frames at once; choose a smaller batch, a smaller model or device 'cpu'."
            raise FlashLipsError(message) from error

    def _in_parts(self, work: Callable[..., tuple[Tensor, ...]], rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        done = [work(*part) for part in zip(*(tensor.split(self.batch) for tensor in rows), strict=True)]
        return tuple(torch.cat(tensors) for tensors in zip(*done, strict=True))


# What allocators and libraries say, in lower case: CUDA, ROCm, MPS and glibc; torch's and oneDNN's on a CPU; cuBLAS and cuDNN;
# FFmpeg and numpy; and what a limit on address space (``ulimit -v``) makes of threads and libraries.
_WORDS = re.compile(
    r"out of memory|out-of-memory|(can't|cannot|could not|couldn't|unable to|failed to|fail to) (be )?(allocate|map segment)"
    r"|not enough memory|insufficient memory|memory allocation (failed|failure)|bad_alloc|alloc_failed|allocation failed"
    r"|failed to create a memory|could not create a memory|can't start new thread|insufficient resources"
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether this is memory running out, on any device: some errors have a class for it, the others only words.

    An error that hides another is judged by that one too.
    """
    while error is not None:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        if isinstance(error, (RuntimeError, OSError, ImportError)) and _WORDS.search(str(error).lower()):
            return True
        error = error.__cause__ or error.__context__
    return False
