"""Published judges, built to the names in their own files: nothing else goes by their scores' names."""

from __future__ import annotations

from pathlib import Path

from ...types import FlashLipsError


def find(folder: Path | None, patterns: tuple[str, ...], what: str) -> Path:
    """The first file in ``folder`` by order of the patterns, or a sentence that says what to put where."""
    found = [] if folder is None else [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    if not found:
        where = "a folder and name it with --weights" if folder is None else str(folder)
        raise FlashLipsError(f"put {' or '.join(patterns)} ({what}) in {where}")
    return found[0]
