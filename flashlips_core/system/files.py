"""Files that appear whole or not at all, and what a disk says against them in one sentence."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..types import FlashLipsError

LONGEST_NAME = 255  # bytes: what file systems take
_MARK_BYTES = len(".12345678.part")


@contextmanager
def appearing(path: str | Path) -> Iterator[Path]:
    """Where to write a file that becomes ``path`` when it is whole; what was written until a stop is removed.

    Each call has a temporary file of its own beside ``path``: where two write one name, the last whole file stays.

    Raises:
        FlashLipsError: the place cannot be written.
    """
    path = Path(path)
    with writing(path.name):
        part = _new_file(path)
    try:
        yield part
        with writing(path.name):
            os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _new_file(path: Path) -> Path:
    """An empty file beside ``path`` that nobody else has, with the rights that a new file gets."""
    stem = os.fsencode(path.name)[: LONGEST_NAME - _MARK_BYTES].decode(errors="ignore")
    while True:
        part = path.with_name(f"{stem}.{secrets.token_hex(4)}.part")
        try:
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        return part


@contextmanager
def writing(name: str) -> Iterator[None]:
    """Turn what FFmpeg or the disk says against writing ``name`` into one sentence."""
    try:
        yield
    except OSError as error:  # FFmpeg's errors are of this kind
        raise cannot_write(name, error) from error


def cannot_write(name: str | Path, error: Exception) -> FlashLipsError:
    """The sentence for an error while ``name`` is written: it says what to do about this very cause."""
    reason = str(getattr(error, "strerror", None) or error).splitlines()[0]
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT):
        advice = "the disk is full: free some space or choose another folder"
    elif code == errno.EFBIG:
        advice = "the file is larger than this disk or account allows: choose another folder, or a higher --crf"
    elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "permission denied: choose another folder"
    elif code == errno.ENAMETOOLONG:
        advice = f"the name is too long, {LONGEST_NAME} bytes are the most: choose a shorter one"
    elif code in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        advice = f"{reason}: name a file in a folder that exists"
    elif code == errno.ENOMEM:
        advice = "out of memory: close other programs, or choose smaller media"
    else:
        advice = f"{reason}: choose another container, codec or setting"
    return FlashLipsError(f"Writing {name} failed: {advice}.")
