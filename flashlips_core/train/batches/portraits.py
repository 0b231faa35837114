"""Sharp pictures of many people, cut as the editor sees a face: turned so that the eyes are level, the mouth at its place.

N pictures, L = 478 landmarks, S side of a crop in pixels. The folder holds pictures and ``mediapipe.npz`` (``files``, ``people``,
``landmarks_px``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...dataset.store import IRISES, MOUTH_CORNERS
from ...face.crop import EYE_DISTANCE_WEIGHT, SIDE_PER_UNIT
from ...pixels import from_bytes
from ...turned import Square, to_shares, turned_cut
from ...types import FlashLipsError

MOUTH_PLACE = (0.5, 0.625)  # of the square: where ``face.crop.crop_box`` puts a frontal face's mouth
HELD_OUT = 60  # people who are never learnt from


@dataclass(frozen=True)
class Portrait:
    """One labelled picture."""

    path: Path
    person: str
    landmarks: np.ndarray  # (L, 2) pixels


def upright_square(landmarks: np.ndarray) -> Square:
    """The square around MediaPipe's landmarks (L, 2): eyes level, mouth corners at ``MOUTH_PLACE``, sides as ``crop_box`` has."""
    left, right = landmarks[list(IRISES)].astype(float)
    mouth = landmarks[list(MOUTH_CORNERS)].mean(0).astype(float)
    across = right - left
    unit = max(np.linalg.norm(mouth - (left + right) / 2), EYE_DISTANCE_WEIGHT * np.linalg.norm(across))
    roll, side = float(np.arctan2(across[1], across[0])), float(SIDE_PER_UNIT * unit)
    down = np.array([-np.sin(roll), np.cos(roll)])
    centre = mouth - (MOUTH_PLACE[1] - 0.5) * side * down
    return Square(float(centre[0]), float(centre[1]), side, roll)


def cut_bytes(picture: np.ndarray, square: Square, size: int) -> np.ndarray:
    """The square of a picture (H, W, 3) uint8, as (size, size, 3) uint8."""
    return turned_cut(picture, square, size).round().clip(0, 255).astype(np.uint8)


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def read_portraits(folder: str | Path, held_out: int = HELD_OUT) -> tuple[list[Portrait], list[Portrait]]:
    """The pictures to learn from, and those of ``held_out`` people, a share of every set (first folder of a file's name).

    Raises:
        FlashLipsError: there are no labels, or no pictures.
    """
    folder = Path(folder)
    if not (folder / "mediapipe.npz").is_file():
        raise FlashLipsError(f"No mediapipe.npz in {folder}; name a folder of labelled portraits.")
    labels = np.load(folder / "mediapipe.npz")
    rows = [i for i, name in enumerate(labels["files"]) if (folder / str(name)).is_file()]
    portraits = [Portrait(folder / str(labels["files"][i]), str(labels["people"][i]), labels["landmarks_px"][i]) for i in rows]
    if not portraits:
        raise FlashLipsError(f"{folder} has labels but none of their pictures; copy the pictures beside them.")
    kept = _kept_back(portraits, held_out)
    return [p for p in portraits if p.person not in kept], [p for p in portraits if p.person in kept]


def _kept_back(portraits: list[Portrait], count: int) -> set[str]:
    """People of every set in turn, evenly spread over its names, so that small sharp sets are tested as well as large ones."""
    sets: dict[str, set[str]] = {}
    for portrait in portraits:
        sets.setdefault(portrait.path.parent.name, set()).add(portrait.person)
    total, kept = sum(map(len, sets.values())), set()
    for people in sets.values():
        names = sorted(people)
        # Half as the set's share of the people, half the same for each set
        share = round(count * (0.5 * len(names) / total + 0.5 / len(sets)))
        kept |= {names[int(i)] for i in np.linspace(0, len(names) - 1, min(share, len(names) // 2)).round()}
    return kept


def crop_portrait(portrait: Portrait, size: int) -> tuple[Tensor, np.ndarray]:
    """A portrait as the editor sees it, (3, size, size) in [-1, 1], and its landmarks (L, 2) as shares of the crop."""
    square = upright_square(portrait.landmarks)
    crop = cut_bytes(read_picture(portrait.path), square, size)
    return from_bytes(torch.from_numpy(crop)), to_shares(portrait.landmarks, square.box)
