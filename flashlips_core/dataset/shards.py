"""Shards: tar archives of about 256 MB, each a mix of people, that webdataset, ``tar`` and this library read.

Tar, not safetensors: a sample is pictures, sound and tables, which a tar keeps as the files they are (JPEG, WAV, safetensors,
JSON), so that anybody can look into them; it is read front to back through a pipe or from object storage with no index; and
Python's own tarfile writes it. A sample is the run of members that share the name before the first dot:

    <key>.json          who, where from, measures, the frames that have a picture
    <key>.safetensors   labels, one row per picture
    <key>.wav           16 kHz mono, 16 bit; absent where the video has no sound
    <key>.0000.jpg ...  crops, by their frame in the sample
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..types import FlashLipsError, Progress

END_BLOCKS = 2 * 512  # zeros that end a tar


@dataclass(frozen=True)
class ShardPlan:
    """Which samples a shard holds, in order."""

    name: str  # "train-00003.tar"
    split: str
    keys: tuple[str, ...]


class WriteError(FlashLipsError):
    """The disk would not take it: nothing that leaving out one video could mend."""


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """A file that appears whole or not at all; what the disk says against it becomes one sentence."""
    part = path.with_name(path.name + ".part")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())  # a name must not outlive its bytes when the power fails
            part.replace(path)
        except BaseException:
            if part.is_file():
                part.unlink()
            raise
    except OSError as error:
        raise WriteError(
            f"Cannot write {path} ({error.strerror or error}); make room there or choose another folder, then run it again: "
            "what is done is kept."
        ) from error


def write_json(path: Path, value: object) -> None:
    """Sorted and indented, so that equal values are equal files."""
    write_whole(path, lambda file: file.write((json.dumps(value, indent=1, sort_keys=True) + "\n").encode()))


def sample_bytes(key: str, files: Mapping[str, bytes]) -> bytes:
    """The members of one sample, as they stand in a shard. ``files``: suffix after the key -> content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for suffix, content in files.items():
            member = tarfile.TarInfo(f"{key}.{suffix}")  # no time, no owner: equal samples are equal bytes
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        length = archive.offset
    return buffer.getvalue()[:length]


def plan_shards(samples: Sequence[tuple[str, str, int]], shard_bytes: int, seed: int) -> list[ShardPlan]:
    """Lay (key, split, bytes) into shards of about ``shard_bytes``, in an order drawn by a hash, so that each is a mix."""
    plans = []
    for split in sorted({s for _, s, _ in samples}):
        own = sorted((_order(seed, key), key, size) for key, s, size in samples if s == split)
        groups: list[list[str]] = []
        filled = shard_bytes
        for _, key, size in own:
            if filled + size > shard_bytes and (filled >= shard_bytes or filled + size - shard_bytes > shard_bytes - filled):
                groups.append([])
                filled = 0
            groups[-1].append(key)
            filled += size
        plans += [ShardPlan(f"{split}-{i:05d}.tar", split, tuple(keys)) for i, keys in enumerate(groups)]
    return plans


def pack(plan: Sequence[ShardPlan], made: Mapping[str, Path], out: Path, progress: Progress | None = None) -> None:
    """Write the shards that are not there yet; a sample's own file goes once its shard is whole, which bounds the disk's use."""
    for done, shard in enumerate(plan, 1):
        if not (out / shard.name).is_file():

            def write(file: BinaryIO, keys: tuple[str, ...] = shard.keys) -> None:
                for key in keys:
                    file.write(made[key].read_bytes())
                file.write(bytes(END_BLOCKS))

            write_whole(out / shard.name, write)
        for key in shard.keys:
            made[key].unlink(missing_ok=True)
        if progress is not None:
            progress(done, len(plan))


def _order(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()
