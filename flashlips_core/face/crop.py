"""The square that the editor sees around a face, and how it stays still.

T frames. Points are image-left eye, image-right eye, nose tip, image-left and image-right mouth corner; boxes are xyxy; pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

from ..types import FlashLipsError

logger = logging.getLogger(__name__)

Stabilise = Literal["auto", "fixed", "fixed-size", "smooth", "none"]

# The unit of a face is the larger of eye-to-mouth and 1.2 eye distances: nodding shortens the first, turning the second.
EYE_DISTANCE_WEIGHT = 1.2
CENTRE_BELOW_EYES = 0.65  # units from the eyes towards the mouth: the mouth lies at 0.625 of the crop, the closed chin at 0.84
SIDE_PER_UNIT = 2.8  # about 1.4 times a detector's box

CENTRE_SIGMA_S = 0.12  # follows a head that nods twice a second, removes the detector's frame-to-frame noise
SIDE_SIGMA_S = 0.5  # a speaking mouth moves its own corners; the scale must not breathe with the syllables
FIXED_SPREAD = 0.05  # "auto": a centre that stays within this share of the side keeps one box
SIDE_SPREAD = 0.12  # "auto": a side that changes less than this keeps one size


def crop_box(points: np.ndarray) -> np.ndarray:
    """Square crop around five points. (..., 5, 2) pixels -> (..., 4) float32 xyxy."""
    points = np.asarray(points, dtype=np.float64)
    eyes = points[..., 0:2, :].mean(-2)
    down = points[..., 3:5, :].mean(-2) - eyes
    length = np.linalg.norm(down, axis=-1, keepdims=True)
    eye_distance = np.linalg.norm(points[..., 1, :] - points[..., 0, :], axis=-1, keepdims=True)
    unit = np.maximum(length, EYE_DISTANCE_WEIGHT * eye_distance)
    centre = eyes + CENTRE_BELOW_EYES * unit * down / np.maximum(length, 1e-6)
    half = SIDE_PER_UNIT / 2 * unit
    return np.concatenate([centre - half, centre + half], -1).astype(np.float32)


def smooth_boxes(
    boxes: np.ndarray,
    present: np.ndarray,
    fps: Fraction,
    mode: Stabilise = "smooth",
    cuts: Sequence[int] = (),
    steadiness: float = 1.0,
) -> np.ndarray:
    """Take the shake out of squares without delay; each scene on its own. (T, 4) xyxy or (T, 5) with roll, float32 both.

    Args:
        present: (T,) bool; other rows of ``boxes`` are not read, and come back as the nearest present box of their scene.
        mode: "smooth" moves, turns and scales softly; "fixed-size" keeps the scene's median side and moves softly; "fixed" keeps
            one square per scene, for a head that hardly moves; "auto" picks the stillest of these that fits each scene; "none".
        cuts: frames at which a new scene starts.
        steadiness: How much longer than usual the smoothing reaches in time; below 1 for points that shake less.
    """
    if mode not in ("auto", "fixed", "fixed-size", "smooth", "none"):
        raise FlashLipsError(f"Unknown stabilisation '{mode}'; choose auto, fixed, fixed-size, smooth or none.")
    present = np.asarray(present, dtype=bool)
    if not present.any():
        raise FlashLipsError("No face in any frame; pick a clip with a visible face, or lower the detection threshold.")
    boxes = np.asarray(boxes, dtype=np.float64)
    squares = np.stack([boxes[:, [0, 2]].mean(1), boxes[:, [1, 3]].mean(1), boxes[:, 2] - boxes[:, 0]], 1)
    squares = np.concatenate([squares, boxes[:, 4:]], 1)  # T (x y side), and the roll where there is one
    result = np.zeros_like(squares)
    seen = np.zeros_like(present)
    for start, stop in scenes(len(boxes), cuts):
        if present[start:stop].any():
            result[start:stop] = _smooth_scene(squares[start:stop], present[start:stop], float(fps) * steadiness, mode)
            seen[start:stop] = True
    result = result[nearest_present(seen)]
    half = result[:, 2:3] / 2
    return np.concatenate([result[:, :2] - half, result[:, :2] + half, result[:, 3:]], 1).astype(np.float32)


def scenes(num_frames: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """(start, stop) of each scene, given the frames at which new scenes start."""
    edges = [0, *sorted({int(c) for c in cuts if 0 < c < num_frames}), num_frames]
    return list(zip(edges[:-1], edges[1:], strict=True))


def nearest_present(present: np.ndarray) -> np.ndarray:
    """For each row the index of the nearest present one (the earlier of two). (T,) bool -> (T,) int."""
    index = np.flatnonzero(present)
    rows = np.arange(len(present))
    after = np.searchsorted(index, rows).clip(max=len(index) - 1)
    before = (after - 1).clip(min=0)
    return np.where(np.abs(rows - index[before]) <= np.abs(index[after] - rows), index[before], index[after])


def _smooth_scene(squares: np.ndarray, present: np.ndarray, fps: float, mode: Stabilise) -> np.ndarray:
    squares = squares.copy()
    squares[present, 3:] = np.unwrap(squares[present, 3:], axis=0)
    known = squares[present]
    median = np.median(known, axis=0)
    spread = np.quantile(np.abs(known - median), 0.98, axis=0)  # 98 %: a stray detection is not motion
    spread[:3] /= median[2]
    spread[3:] /= 2  # a turn moves what lies half a side from the centre
    if mode == "auto":
        still = spread[[*range(2), *range(3, len(spread))]].max() <= FIXED_SPREAD
        mode = "smooth" if spread[2] > SIDE_SPREAD else "fixed" if still else "fixed-size"
    if mode == "fixed":
        if spread[:2].max() > 3 * FIXED_SPREAD:
            moved = 100 * spread[:2].max()
            logger.warning("The face moves by %.0f %% of its box while the box is fixed; 'smooth' follows it.", moved)
        return np.broadcast_to(median, squares.shape)
    nearest = nearest_present(present)
    if mode == "none":
        return squares[nearest]
    result = squares.copy()
    result[present] = _without_outliers(known)
    moving = [0, 1, *range(3, squares.shape[1])]  # place and roll
    result[:, moving] = local_linear(result[:, moving], present, CENTRE_SIGMA_S * fps)
    result[:, 2] = median[2] if mode == "fixed-size" else local_linear(result[:, 2:], present, SIDE_SIGMA_S * fps)[:, 0]
    return result[nearest]


def _without_outliers(values: np.ndarray) -> np.ndarray:
    """Median of 5 in time, which drops up to two stray detections in a row and leaves steady motion alone. (N, C)."""
    if len(values) < 3:
        return values
    padded = np.pad(values, ((2, 2), (0, 0)), mode="reflect", reflect_type="odd")
    return np.median(np.stack([padded[i : i + len(values)] for i in range(5)]), axis=0)


def local_linear(values: np.ndarray, present: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian-weighted local straight line through the present rows: no phase, no lag or sag at the ends. (T, C) -> (T, C).

    ``sigma`` in frames. Rows without a present one within 3 sigma keep their value.
    """
    radius = max(int(3 * sigma), 1)
    offset = np.arange(-radius, radius + 1)
    weight = np.exp(-0.5 * (offset / max(sigma, 1e-3)) ** 2)
    flags = present.astype(np.float64)
    middle = values[present].mean(0)

    def total(power: int, signal: np.ndarray) -> np.ndarray:
        kernel = (weight * offset**power)[::-1]
        return np.convolve(np.pad(signal, radius), kernel, mode="valid")

    s0, s1, s2 = (total(p, flags) for p in range(3))
    determinant = s0 * s2 - s1**2
    steady = determinant > 1e-6 * np.maximum(s0 * s2, 1e-12)
    result = np.array(values, dtype=np.float64)
    for c in range(values.shape[1]):
        signal = np.where(present, values[:, c] - middle[c], 0.0)
        t0, t1 = total(0, signal), total(1, signal)
        line = (s2 * t0 - s1 * t1) / np.where(steady, determinant, 1)
        mean = t0 / np.maximum(s0, 1e-12)
        result[:, c] = np.where(steady, line + middle[c], np.where(s0 > 1e-9, mean + middle[c], values[:, c]))
    return result
