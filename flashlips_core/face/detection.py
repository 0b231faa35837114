"""One face in one picture, as detectors and landmarks hand it on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Detection:
    """One face in one picture, in its pixels."""

    box: np.ndarray  # (4,) float32 xyxy
    points: np.ndarray  # (5, 2) float32
    score: float  # in [0, 1]
    landmarks: np.ndarray | None = None  # (99, 2) float32, see ``landmarks``; None where nobody has looked

    def scaled(self, factor: float) -> Detection:
        """The same face in a picture ``factor`` times as large."""
        landmarks = None if self.landmarks is None else self.landmarks * np.float32(factor)
        return Detection(self.box * np.float32(factor), self.points * np.float32(factor), self.score, landmarks)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two xyxy boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))
