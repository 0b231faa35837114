"""Which videos there are, who is in them, and in which split they belong: by identity, so that nobody is in two splits."""

from __future__ import annotations

import csv
import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..types import FlashLipsError

SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv", ".wmv", ".3gp"}
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Source:
    """One video to make samples of."""

    id: str  # path below the folder that all given videos share, that folder's name first: the same on every machine
    path: Path
    identity: str
    split: str

    @property
    def key(self) -> str:
        """A name without dots, unique among the sources: readers of tar shards take a dot for the end of a key."""
        stem = "".join(c if c.isalnum() and c.isascii() else "_" for c in Path(self.id).stem)[:40]
        return f"{stem}-{hashlib.sha256(self.id.encode()).hexdigest()[:10]}"


def find_sources(
    videos: Sequence[str | Path], identity: str = "folder", val: float = 0.05, test: float = 0.05, seed: int = 0
) -> list[Source]:
    """The videos that files, folders (searched to their depth) and globs name, sorted by id.

    Args:
        identity: "folder": the name of a video's folder; "file": every video is a person of its own; or a CSV file with the
            columns path and identity, and where it has one, split.
        val, test: Shares of the identities; drawn by a hash of seed and identity, so another video moves nobody.
    """
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise FlashLipsError(f"The shares for val ({val:g}) and test ({test:g}) must be 0 or more and leave some to train on.")
    paths = _paths(videos)
    base = Path(os.path.commonpath([path.parent for path in paths]))
    ids = sorted((path.relative_to(base.parent).as_posix(), path) for path in paths)
    if identity in ("folder", "file"):
        who = {key: (path.parent.name if identity == "folder" else key, "") for key, path in ids}
    else:
        who = _from_csv(Path(identity), ids)
    sources = [Source(key, path, who[key][0], who[key][1] or split_of(who[key][0], val, test, seed)) for key, path in ids]
    _check_splits(sources)
    return sources


def split_of(identity: str, val: float, test: float, seed: int) -> str:
    """Where a hash of seed and identity falls: below ``test``, below ``test + val``, or beyond."""
    place = int(hashlib.sha256(f"{seed}:{identity}".encode()).hexdigest()[:13], 16) / 16**13
    return "test" if place < test else "val" if place < test + val else "train"


def _paths(videos: Sequence[str | Path]) -> list[Path]:
    """Existing video files, each once; links keep their own names, by which people sort videos into folders."""
    found: dict[Path, Path] = {}  # by the file that is meant
    for given in videos:
        path = Path(given).expanduser()
        if path.is_dir():
            matches = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
        elif path.is_file():
            matches = [path]
        else:
            matches = [p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file()]
        if not matches:
            raise FlashLipsError(f"No videos at {given}; name video files, folders that hold some, or a pattern in quotes.")
        for match in sorted(Path(os.path.abspath(p)) for p in matches):
            target = match.resolve()
            found[target] = min(found.get(target, match), match)
    if not found:
        raise FlashLipsError("No videos were named; name video files, folders that hold some, or a pattern in quotes.")
    return sorted(found.values())


def _from_csv(file: Path, ids: Sequence[tuple[str, Path]]) -> dict[str, tuple[str, str]]:
    """Identity and split ("" where none is given) of each video; paths in the file are absolute or relative to it."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            rows = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise FlashLipsError(
            f"The identities '{file}' are neither 'folder', 'file' nor a CSV file that can be read ({reason}); choose one."
        ) from error
    if rows and not {"path", "identity"} <= rows[0].keys():
        raise FlashLipsError(f"{file.name} lacks the columns path and identity; name them in its first line.")
    table = {(file.parent / (row["path"] or "")).resolve(): row for row in rows}
    who = {}
    for key, path in ids:
        row = table.get(path.resolve())
        if row is None or not row["identity"]:
            raise FlashLipsError(f"{file.name} names no identity for {path.name}; add a line with its path and identity.")
        split = row.get("split") or ""
        if split and split not in SPLITS:
            raise FlashLipsError(f"{file.name} puts {path.name} into '{split}'; choose {', '.join(SPLITS)}, or leave it empty.")
        who[key] = (row["identity"], split)
    return who


def _check_splits(sources: Sequence[Source]) -> None:
    home: dict[str, str] = {}
    for source in sources:
        if home.setdefault(source.identity, source.split) != source.split:
            both = f"'{home[source.identity]}' and '{source.split}'"
            raise FlashLipsError(f"The identity '{source.identity}' is in {both}; give all its videos one split.")
    if "train" not in home.values():
        raise FlashLipsError(
            f"None of the {len(home)} identities falls into 'train'; choose another seed, or smaller shares for val and test."
        )
