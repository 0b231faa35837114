"""What is read off the 99 landmarks: the five points, the box, the lips' gap. T frames, L landmarks."""

from __future__ import annotations

import numpy as np

from .head_shape import INNER_PAIRS, IRISES, MOUTH_CORNERS, NOSE_TIP, OUTER_EYES

FIVE = (*IRISES, NOSE_TIP, *MOUTH_CORNERS)  # in the order of a detector's points


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """Eyes, nose tip and mouth corners, as a detector gives them. (..., L, 2) -> (..., 5, 2)"""
    return landmarks[..., list(FIVE), :]


def box_around(landmarks: np.ndarray) -> np.ndarray:
    """(..., L, 2) -> (..., 4) xyxy."""
    return np.concatenate([landmarks.min(-2), landmarks.max(-2)], -1)


def lip_gap(landmarks: np.ndarray) -> np.ndarray:
    """Mean gap of the inner lips over the distance of the outer eye corners. (T, L, 2) -> (T,)"""
    gaps = [np.linalg.norm(landmarks[:, a] - landmarks[:, b], axis=-1) for a, b in INNER_PAIRS]
    left, right = OUTER_EYES
    return np.mean(gaps, axis=0) / np.linalg.norm(landmarks[:, left] - landmarks[:, right], axis=-1).clip(min=1e-6)
