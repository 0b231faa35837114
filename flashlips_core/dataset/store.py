"""Training data: which clips there are, where their faces are, what their lips do, and their crops ready for the networks.

N frames of all clips one after another, L landmarks. Landmark files are what MediaPipe gives for a folder of clips (``ids``,
``num_frames``, ``found``, ``blendshapes``, ``landmarks_px_x32``, ``landmark_index``).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..face.crop import crop_box, smooth_boxes
from ..face.motion import IRISES, MOUTH_CORNERS, NOSE_TIP
from ..pixels import from_bytes
from ..turned import to_shares
from ..types import FlashLipsError, Progress

log = logging.getLogger(__name__)

CROP_PX = 256
STORED_MARGIN = 1.25  # stored crops are this much wider than the editor's, so that augmentation can shift and turn them
FACE_REGION = (-0.125, -0.125, 1.125, 1.125)  # of a stored face crop, as shares of the editor's square: left, top, right, bottom
HEAD = "head"  # how the names of rendered heads begin, and nobody else's


@dataclass(frozen=True)
class Clip:
    """One labelled clip."""

    id: str  # "s1/train/bbaf2n"
    speaker: str
    path: str
    found: np.ndarray  # (T,) bool
    landmarks: np.ndarray  # (T, L, 2) float32 pixels
    blendshapes: np.ndarray  # (T, 52) float32
    points: np.ndarray  # (T, 5, 2) float32: eyes, nose tip, mouth corners
    split: str = "train"  # that alone is learnt from; or "val", "test"
    has_voice: bool = False  # there is sound that belongs to the lips

    def __len__(self) -> int:
        return len(self.found)

    @functools.cached_property
    def boxes(self) -> np.ndarray:
        """(T, 4) stabilised crop squares, as at inference."""
        return smooth_boxes(crop_box(self.points), self.found, Fraction(25), "smooth")


def load_clips(landmark_file: str | Path, folder: str | Path, prefix: str = "") -> list[Clip]:
    """The clips of a landmark file whose videos lie under ``folder``; names without a folder are searched in its subfolders."""
    labels = np.load(landmark_file)
    index = list(labels["landmark_index"])
    ends = np.cumsum(labels["num_frames"])
    landmarks = labels["landmarks_px_x32"].astype(np.float32) / 32
    five = np.stack([landmarks[:, index.index(i)] for i in (*IRISES, NOSE_TIP, *MOUTH_CORNERS)], 1)
    paths = {p.relative_to(folder).with_suffix("").as_posix(): p for p in Path(folder).rglob("*.mp4")}
    by_stem = {p.stem: p for p in paths.values()}
    clips = []
    for name, start, stop in zip(labels["ids"], ends - labels["num_frames"], ends, strict=True):
        path = paths.get(str(name), by_stem.get(Path(str(name)).name))
        if path is None or not labels["found"][start:stop].any():
            log.warning("left out %s: %s", name, "no video" if path is None else "no face")
            continue
        relative = path.relative_to(folder)
        speaker = prefix or relative.parent.name
        clips.append(
            Clip(
                f"{prefix or 'grid_people'}/{relative.with_suffix('').as_posix()}",
                speaker,
                str(path),
                labels["found"][start:stop],
                landmarks[start:stop],
                labels["blendshapes"][start:stop].astype(np.float32),
                five[start:stop],
                split=relative.parts[0],
            )
        )
    if not clips:
        raise FlashLipsError(f"No clip of {landmark_file} has its video under {folder}; check both paths.")
    return clips


def read_crops(clip: Clip, every: int, size: int, region: tuple[float, float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """The region of every n-th frame that has a face. Returns (n, size, size, 3) uint8 RGB and the frames' indices."""
    crops, frames = [], []
    with av.open(clip.path) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index >= len(clip):
                break
            if index % every == 0 and clip.found[index]:
                crops.append(_cut_region(frame.to_ndarray(format="rgb24"), clip.boxes[index], size, region))
                frames.append(index)
    return np.stack(crops), np.array(frames)


def _cut_region(image: np.ndarray, box: np.ndarray, size: int, region: tuple[float, float, float, float]) -> np.ndarray:
    height, width, _ = image.shape
    side, ticks = float(box[2] - box[0]), (torch.arange(size) + 0.5) / size
    x = (float(box[0]) + side * (region[0] + (region[2] - region[0]) * ticks)) / width * 2 - 1
    y = (float(box[1]) + side * (region[1] + (region[3] - region[1]) * ticks)) / height * 2 - 1
    grid = torch.stack([x.expand(size, size), y[:, None].expand(size, size)], -1)[None]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    crop = F.grid_sample(pixels, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return crop[0].round_().clamp_(0, 255).byte().permute(1, 2, 0).numpy()


def is_head(speaker: str) -> bool:
    """Whether this is a rendered head."""
    return speaker.startswith(HEAD)


def has_store(folder: str | Path) -> bool:
    """Whether a whole :class:`CropStore` lies there."""
    return (Path(folder) / "table.npz").is_file()


class CropStore:
    """Crops of many clips as one memory-mapped file, with their landmarks in the coordinates of the editor's square."""

    def __init__(self, folder: str | Path):
        table = np.load(Path(folder) / "table.npz")
        self.clip_of: np.ndarray = table["clip_of"]  # (N,) index into the arrays below
        self.frame_of: np.ndarray = table["frame_of"]  # (N,) frame within the clip
        self.landmarks: np.ndarray = table["landmarks"]  # (N, L, 2) crop coordinates
        self.clip_ids: np.ndarray = table["clip_ids"]
        self.speakers: np.ndarray = table["speakers"]  # one per clip
        self.images = np.load(Path(folder) / "crops.npy", mmap_mode="r")  # (N, size, size, 3) uint8

    def __len__(self) -> int:
        return len(self.clip_of)

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """Crops as (B, 3, size, size) float in [-1, 1]."""
        return from_bytes(torch.from_numpy(np.stack([self.images[i] for i in rows])).to(device))

    @staticmethod
    def build(
        clips: list[Clip],
        folder: str | Path,
        every: int = 2,
        size: int = CROP_PX,
        region: tuple[float, float, float, float] = FACE_REGION,
        progress: Progress | None = None,
    ) -> CropStore:
        """Decode, crop and store the clips' videos."""

        def cut(clip: Clip) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            crops, frames = read_crops(clip, every, size, region)
            return crops, frames, to_shares(clip.landmarks[frames], clip.boxes[frames])

        total = sum(int(c.found[::every].sum()) for c in clips)
        return CropStore.write(clips, map(cut, clips), folder, total, size, progress)

    @staticmethod
    def write(
        clips: list[Clip],
        parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
        folder: str | Path,
        total: int,
        size: int,
        progress: Progress | None = None,
    ) -> CropStore:
        """Store crops clip by clip; an interrupted build leaves no usable table, so it is simply run again.

        Args:
            parts: of each clip the crops (n, size, size, 3) uint8, their frames (n,) and landmarks (n, L, 2) in crop coordinates.
            total: frames of all clips together.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        images = np.lib.format.open_memmap(folder / "crops.npy", "w+", np.uint8, (total, size, size, 3))
        clip_of, frame_of, landmarks, start = [], [], [], 0
        for index, (crops, frames, points) in enumerate(parts):
            images[start : start + len(crops)] = crops
            clip_of.append(np.full(len(frames), index))
            frame_of.append(frames)
            landmarks.append(points)
            start += len(crops)
            if progress is not None:
                progress(index + 1, len(clips))
        if start != total:
            raise FlashLipsError(f"The clips hold {start} frames where their labels promise {total}; rebuild the labels.")
        images.flush()
        np.savez(
            folder / "table.npz",
            clip_of=np.concatenate(clip_of),
            frame_of=np.concatenate(frame_of),
            landmarks=np.concatenate(landmarks).astype(np.float32),
            clip_ids=[c.id for c in clips],
            speakers=[c.speaker for c in clips],
        )
        return CropStore(folder)
