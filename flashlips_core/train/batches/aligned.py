"""Clips of moving faces, cut through turned squares that follow the head: eyes level, the mouth at its place.

T frames, L landmarks. Stores are ``CropStore``s whose landmarks are shares of the turned square; crops are wider than the
editor's by ``STORED_MARGIN``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from ...dataset.store import IRISES, MOUTH_CORNERS, STORED_MARGIN, Clip, CropStore
from ...face.crop import CENTRE_SIGMA_S, SIDE_SIGMA_S, local_linear
from ...face.points import LANDMARKS
from ...turned import Square, to_shares
from ...types import Progress
from .portraits import cut_bytes, upright_square

FPS = 25  # of GRID; other clips' rates are near enough for a smoothing
OF_99 = {number: place for place, number in enumerate(LANDMARKS)}
NEEDED = (*IRISES, *MOUTH_CORNERS)


def aligned_squares(landmarks: np.ndarray, found: np.ndarray) -> list[Square]:
    """A square for every frame, smooth in time: the side must not breathe with the syllables. (T, 99, 2) pixels, (T,) bool."""
    full = np.zeros((478, 2))
    rows = np.zeros((len(found), 5))  # x y side sin cos
    for frame in np.flatnonzero(found):
        full[list(NEEDED)] = landmarks[frame, [OF_99[i] for i in NEEDED]]
        square = upright_square(full)
        rows[frame] = square.x, square.y, square.side, np.sin(square.roll), np.cos(square.roll)
    moved = local_linear(rows, found, CENTRE_SIGMA_S * FPS)
    moved[:, 2] = local_linear(rows[:, 2:3], found, SIDE_SIGMA_S * FPS)[:, 0]
    return [Square(float(x), float(y), float(side), float(np.arctan2(s, c))) for x, y, side, s, c in moved]


def wider(square: Square, margin: float = STORED_MARGIN) -> Square:
    """The same place, ``margin`` times as large."""
    return dataclasses.replace(square, side=square.side * margin)


def build_aligned(clips: list[Clip], folder: str | Path, size: int, progress: Progress | None = None) -> CropStore:
    """Cut every frame with a face of all clips, in wide turned squares of ``size`` px."""

    def cut(clip: Clip) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        squares, crops, frames = aligned_squares(clip.landmarks, clip.found), [], []
        for index, picture in enumerate(_pictures(clip)):
            if clip.found[index]:
                crops.append(cut_bytes(picture, wider(squares[index]), size))
                frames.append(index)
        boxes = np.stack([squares[i].box for i in frames])
        return np.stack(crops), np.array(frames), to_shares(clip.landmarks[frames], boxes)

    total = sum(int(clip.found.sum()) for clip in clips)
    return CropStore.write(clips, map(cut, clips), folder, total, size, progress)


def _pictures(clip: Clip) -> Iterator[np.ndarray]:
    with av.open(clip.path) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index >= len(clip):
                return
            yield frame.to_ndarray(format="rgb24")
