"""Read a training set: stream its samples shard by shard, or look frames up as the editor's data wants them.

n frames with a face among the T of a sample, S side of a stored crop.
"""

from __future__ import annotations

import io
import json
import tarfile
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import IterableDataset, get_worker_info

from ..pixels import from_bytes
from ..types import FlashLipsError
from .build import FORMAT, VERSION

FEWEST_FACES = 4  # frames with landmarks: in fewer a sample has no pairs of mouths to learn from

Opener = Callable[[str], BinaryIO]
"""From a shard's path to a stream of its bytes, read front to back: ``open`` of a file, or of an object storage's client."""


@dataclass(frozen=True)
class Sample:
    """One stretch of one face; pictures stay compressed until they are asked for."""

    key: str
    about: dict[str, Any]  # "identity", "source", "person", "start", "num_frames", "frames" (n), "crop_px", "measures"
    labels: dict[str, Tensor]  # n rows each: "poses", "opening", "points", "boxes", "references", maybe "landmarks", "latents"
    samples: Tensor | None  # (T * 640,) at 16 kHz, None where the video has no sound
    jpegs: tuple[bytes, ...]  # n

    def __len__(self) -> int:
        return len(self.jpegs)

    def crops(self, rows: Sequence[int] | None = None) -> Tensor:
        """Stored crops of some rows, all by default. -> (K, 3, S, S) in [-1, 1]."""
        return to_crops([self.jpegs[i] for i in (range(len(self)) if rows is None else rows)])


class ShardReader(IterableDataset):
    """Samples of one split, epoch after epoch in another order, from disk or from anything that can be read front to back.

    Shards are shuffled by seed and epoch, then samples within a buffer of ``shuffle``: what is held is that many samples, still
    compressed. Processes and the workers of a ``DataLoader`` share the shards out; where there are fewer shards than readers,
    each reads all and takes its share of the samples. Readers' shares differ a little in size.

    Args:
        folders: One set or several of the same kind: folders with ``index.json``.
        shuffle: 1 keeps the order within the shards.
        process, processes: Which of how many processes this is.
        opener: Opens a shard's path; None reads files.
    """

    def __init__(
        self,
        folders: str | Path | Sequence[str | Path],
        split: str = "train",
        seed: int = 0,
        shuffle: int = 16,
        process: int = 0,
        processes: int = 1,
        opener: Opener | None = None,
    ) -> None:
        if not 0 <= process < processes or shuffle < 1:
            raise FlashLipsError(
                f"Process {process} of {processes} with a buffer of {shuffle} samples cannot be; processes count from 0, and a "
                "buffer holds at least one."
            )
        names = [folders] if isinstance(folders, (str, Path)) else folders
        self.shards = [str(Path(f) / s["name"]) for f in names for s in read_index(f)["shards"] if s["split"] == split]
        if not self.shards:
            raise FlashLipsError(f"No samples for '{split}' in {', '.join(map(str, names))}; choose another split or set.")
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0
        self.process, self.processes = process, processes
        self.opener: Opener = opener or _open_file

    def __iter__(self) -> Iterator[Sample]:
        """One epoch, the one that ``epoch`` says; set it before each."""
        worker = get_worker_info()
        workers, own = (worker.num_workers, worker.id) if worker else (1, 0)
        reader, readers = self.process * workers + own, self.processes * workers
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.shards))
        has_enough = len(order) >= readers
        stream = self._stream([self.shards[i] for i in (order[reader::readers] if has_enough else order)])
        if not has_enough:
            stream = (sample for place, sample in enumerate(stream) if place % readers == reader)
        yield from _shuffled((parse(*s) for s in stream), self.shuffle, np.random.default_rng([self.seed, self.epoch, reader]))

    def _stream(self, shards: Sequence[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
        for shard in shards:
            with self.opener(shard) as file:
                yield from read_members(file, shard)


def read_index(folder: str | Path) -> dict[str, Any]:
    """What ``index.json`` of a set says."""
    path = Path(folder) / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FlashLipsError(f"No finished training set in {folder}; build it with 'data build', or run that again.") from error
    except ValueError as error:
        raise FlashLipsError(f"{path} is damaged; build the set again.") from error
    if index.get("format") != FORMAT or index.get("version") != VERSION:
        raise FlashLipsError(f"{folder} holds a set of another version; build it again, or update FlashLips.")
    return index


def read_members(file: BinaryIO, name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, suffix -> content) of each sample of a shard, in order; reads front to back."""
    key, files = "", {}
    try:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                own, _, suffix = member.name.partition(".")
                if own != key and files:
                    yield key, files
                    files = {}
                key = own
                files[suffix] = archive.extractfile(member).read()
    except (tarfile.TarError, EOFError) as error:
        raise _damaged(name, error) from error
    if files:
        yield key, files


def parse(key: str, files: dict[str, bytes]) -> Sample:
    """A sample from its members."""
    try:
        about = json.loads(files["json"])
        jpegs = tuple(files[f"{row:04d}.jpg"] for row in about["frames"])
        return Sample(key, about, load(files["safetensors"]), _sound(files["wav"]) if "wav" in files else None, jpegs)
    except (KeyError, ValueError) as error:
        raise _damaged(f"The sample {key}", error) from error


def to_crops(jpegs: Sequence[bytes]) -> Tensor:
    """JPEG files of one size -> (K, 3, S, S) in [-1, 1]."""
    return from_bytes(np.stack([np.array(Image.open(io.BytesIO(jpeg))) for jpeg in jpegs]))


class ShardCrops:
    """The frames of one split by number, for ``train.batches.frames.encode_looks``: what it reads of a ``CropStore``.

    Only frames with landmarks, of samples with some. Pictures are read from the shards when they are asked for; tables are held.

    Args:
        largest: Side in pixels to which larger crops are shrunk; None gives them as they are stored.

    Raises:
        FlashLipsError: The set has no landmarks, or no such frames.
    """

    def __init__(self, folder: str | Path, split: str = "train", largest: int | None = None) -> None:
        self.folder, self.largest = Path(folder), largest
        tables: dict[str, list[np.ndarray]] = {"clip_of": [], "frame_of": [], "landmarks": []}
        self._places: list[Place] = []  # of each frame's JPEG
        ids, speakers = [], []
        for table in read_tables(folder, split):
            rows = table.rows_with_landmarks()
            if len(rows) < FEWEST_FACES:
                continue
            tables["clip_of"].append(np.full(len(rows), len(ids)))
            tables["frame_of"].append(np.array(table.about["frames"])[rows])
            tables["landmarks"].append(table.labels["landmarks"].numpy()[rows])
            self._places += [table.pictures[i] for i in rows]
            ids.append(table.about["key"])
            speakers.append(table.about["identity"])
        if not ids:
            raise FlashLipsError(f"No face was found in the '{split}' samples of {folder}; build it from other videos.")
        self.clip_ids, self.speakers = np.array(ids), np.array(speakers)
        self.clip_of, self.frame_of, self.landmarks = (np.concatenate(parts) for parts in tables.values())

    def __len__(self) -> int:
        return len(self.clip_of)

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """Crops as (B, 3, S, S) float in [-1, 1]."""
        crops = to_crops([self._places[i].read() for i in rows]).to(device)
        if self.largest is None or crops.shape[-1] <= self.largest:
            return crops
        return F.interpolate(crops, size=(self.largest, self.largest), mode="bicubic", antialias=True).clamp(-1, 1)


@dataclass(frozen=True)
class Place:
    """Where a file lies within a shard on this disk."""

    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with _open_file(str(self.shard)) as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class SampleTable:
    """A sample without its pictures and sound, which are read where they lie."""

    folder: Path  # of the set
    about: dict[str, Any]  # as Sample's
    labels: dict[str, Tensor]  # as Sample's, without "latents"
    pictures: tuple[Place, ...]  # n
    sound: Place | None

    def rows_with_landmarks(self) -> np.ndarray:
        """Which of the n frames have landmarks. Raises FlashLipsError where the set was built without any."""
        if "landmarks" not in self.labels:
            raise FlashLipsError(
                f"{self.folder} was built without landmarks, which this stage needs; build it again with --landmarker."
            )
        return np.flatnonzero(self.labels["landmarks_found"].numpy())

    def samples(self) -> Tensor | None:
        """(T * 640,) at 16 kHz, None where the video has no sound."""
        return None if self.sound is None else _sound(self.sound.read())


def read_tables(folder: str | Path, split: str | None = None) -> Iterator[SampleTable]:
    """The samples of one split, or of all, of a set on this disk, in the order in which they are stored."""
    if split is None:
        shards = [Path(folder) / shard["name"] for shard in read_index(folder)["shards"]]
    else:
        shards = [Path(shard) for shard in ShardReader(folder, split).shards]
    for shard in shards:
        yield from _tables(Path(folder), shard)


def _tables(folder: Path, shard: Path) -> Iterator[SampleTable]:
    try:
        with tarfile.open(shard) as archive:
            found: dict[str, dict[str, tarfile.TarInfo]] = {}
            for member in archive:
                key, _, suffix = member.name.partition(".")
                found.setdefault(key, {})[suffix] = member
            for members in found.values():
                about = json.loads(archive.extractfile(members["json"]).read())
                labels = load(archive.extractfile(members["safetensors"]).read())
                labels.pop("latents", None)  # most of the bytes
                pictures = tuple(_place(shard, members[f"{row:04d}.jpg"]) for row in about["frames"])
                yield SampleTable(folder, about, labels, pictures, _place(shard, members["wav"]) if "wav" in members else None)
    except (OSError, tarfile.TarError, KeyError) as error:
        raise _damaged(str(shard), error) from error


def _place(shard: Path, member: tarfile.TarInfo) -> Place:
    return Place(shard, member.offset_data, member.size)


def _open_file(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise FlashLipsError(f"The shard {path} cannot be opened ({error.strerror}); build the set again.") from error


def _damaged(name: str, error: Exception) -> FlashLipsError:
    return FlashLipsError(f"{name} is damaged ({str(error) or type(error).__name__}); copy or build the set again.")


def _sound(content: bytes) -> Tensor:
    with wave.open(io.BytesIO(content)) as file:
        return torch.from_numpy(np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32767)


def _shuffled(samples: Iterator[Sample], size: int, random: np.random.Generator) -> Iterator[Sample]:
    """The same samples, each drawn from the ``size`` that are held."""
    held: list[Sample] = []
    for sample in samples:
        held.append(sample)
        if len(held) == size:
            yield held.pop(int(random.integers(size)))
    while held:
        yield held.pop(int(random.integers(len(held))))
