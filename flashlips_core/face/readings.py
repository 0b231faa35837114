"""What is read off the 99 landmarks: the five points, the box, the lips' gap. T frames, L landmarks."""

from __future__ import annotations

import numpy as np

from .points import FIVE, IRISES, MIDDLE_PAIR


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """Eyes, nose tip and mouth corners, as a detector gives them. (..., L, 2) -> (..., 5, 2)"""
    return landmarks[..., list(FIVE), :]


def box_around(landmarks: np.ndarray) -> np.ndarray:
    """(..., L, 2) -> (..., 4) xyxy."""
    return np.concatenate([landmarks.min(-2), landmarks.max(-2)], -1)


def lip_gap(landmarks: np.ndarray) -> np.ndarray:
    """The gap in the middle of the lips over the irises' distance, as ``face.expression.mouth_opening``. (T, L, 2) -> (T,)"""
    (above, below), (left, right) = MIDDLE_PAIR, IRISES
    gap = np.linalg.norm(landmarks[:, below] - landmarks[:, above], axis=-1)
    return gap / np.linalg.norm(landmarks[:, left] - landmarks[:, right], axis=-1).clip(min=1e-6)
