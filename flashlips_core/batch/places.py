"""Where files are: a path, or an address that fsspec knows (``s3://bucket/clip.mp4``). Work is always done on local files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ..system.files import appearing, writing
from ..types import FlashLipsError


def is_address(place: str) -> bool:
    """Whether this is no path of this machine."""
    return "://" in place


def below(folder: str, name: str) -> str:
    """The place of ``name`` (with "/" between folders) in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_address(folder) else str(Path(folder, name))


def exists(place: str) -> bool:
    """Whether there is a file or folder."""
    if not is_address(place):
        return Path(place).exists()
    files, path = _files(place)
    return bool(_asked(place, files.exists, path))


def stamp(place: str) -> list[str]:
    """What changes with a file: its size and time, or what a store has in place of a time; empty where there is none."""
    if not is_address(place):
        path = Path(place)
        found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] * path.exists()
        return [text for file in found for text in (str(file.stat().st_size), str(file.stat().st_mtime_ns))]
    files, path = _files(place)
    info = _asked(place, files.info, path)
    return [
        str(info.get(name)) for name in ("size", "mtime", "LastModified", "ETag", "etag", "updated", "created") if name in info
    ]


def read(place: str) -> bytes:
    """A small file."""
    if not is_address(place):
        return Path(place).read_bytes()
    files, path = _files(place)
    return _asked(place, files.cat_file, path)


def write(place: str, data: bytes) -> None:
    """A small file; its folders are made."""
    if not is_address(place):
        with writing(place):
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            with appearing(place) as part:
                part.write_bytes(data)
        return
    files, path = _files(place)
    _asked(place, files.makedirs, files._parent(path), exist_ok=True)
    _asked(place, files.pipe_file, path, data)


def fetched(place: str, folder: Path) -> Path:
    """The file on this machine: itself, or a copy in ``folder`` under its own name, made once."""
    if not is_address(place):
        return Path(place)
    files, path = _files(place)
    copy = folder / hashlib.sha256(place.encode()).hexdigest()[:12] / path.rsplit("/", 1)[-1]
    if not copy.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        part = copy.with_name("part")
        _asked(place, files.get_file, path, str(part))
        part.replace(copy)
    return copy


def put(file: Path, place: str) -> None:
    """Move a finished local file to its place."""
    if not is_address(place):
        with writing(place):
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)
        return
    files, path = _files(place)
    _asked(place, files.makedirs, files._parent(path), exist_ok=True)
    _asked(place, files.put_file, str(file), path)
    file.unlink()


def _files(place: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and its path there."""
    from fsspec.core import url_to_fs

    return _asked(place, url_to_fs, place)


def _asked(place: str, ask: Any, *args: Any, **named: Any) -> Any:
    """What a store answers; what it says against it, or the lack of its package, in one sentence."""
    try:
        return ask(*args, **named)
    except ImportError as error:  # each kind of store has a package of its own, and fsspec's message names it
        raise FlashLipsError(f"{place} cannot be reached: {error}.") from error
    except (OSError, ValueError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        raise FlashLipsError(f"{place} cannot be used ({reason}); check the address and your rights there.") from error
