"""One process at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..types import FlashLipsError


@contextmanager
def alone_with(path: str | Path, lock: str | Path) -> Iterator[None]:
    """Hold ``path`` against other processes; the system lets go of it when this one dies.

    Args:
        lock: a file that stands for it while it is held.
    Raises:
        FlashLipsError: another process is at it, or the lock cannot be written.
    """
    lock = Path(lock)
    holder = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        holder.acquire(timeout=0)
    except Timeout as error:
        raise FlashLipsError(f"Another process is writing {path} right now; wait for it, or choose another name.") from error
    except OSError as error:
        raise FlashLipsError(f"Cannot write into {lock.parent} ({error.strerror}); choose another folder.") from error
    try:
        yield
    finally:
        holder.release()
        with suppress(OSError):  # on Windows somebody may just be trying it
            lock.unlink(missing_ok=True)
