"""What the mouth does on screen, read from poses and put into them: opening, width, and the 12 numbers one by one.

Lengths are shares of the distance of the irises. tests/measure_pose_numbers.py prints these tables and what they rest on.
Opening is the bundled lip encoder's own reading, width what the landmark network sees on decoded edits of the bundled clip. The
rest of what it sees there (corners, thickness of the lips) goes along with these two. T frames, P pose numbers (12).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import POSE_DIM

# name: weights of the reading, its bias, the direction that raises it by 1, its deviation in the clip's speech
_MEASURED = {
    "opening": (
        (0.0533, 0.0033, -0.0525, -0.0118, -0.0043, -0.0138, -0.0099, -0.0019, 0.0053, -0.0066, 0.0022, -0.0002),
        0.0797,
        (9.7297, -6.1858, -9.4397, -1.8749, -0.6090, 3.5659, 1.6929, -4.8738, -5.3028, -8.5957, 3.7289, -6.8638),
        0.055,
    ),
    "width": (
        (-0.0025, -0.0143, -0.0027, -0.0187, -0.0073, -0.0063, -0.0005, -0.0072, 0.0135, -0.0014, 0.0069, 0.0156),
        0.7425,
        (-7.7831, -8.7222, -1.5400, -19.0083, -5.4991, -4.2051, -3.9751, 2.9141, 15.9533, 8.0511, -2.3120, 16.6933),
        0.015,
    ),
}
NAMED = tuple(_MEASURED)
NUMBERS = tuple(f"number {dim}" for dim in range(POSE_DIM))
NAMES = (*NAMED, *NUMBERS)


@dataclass(frozen=True)
class Shape:
    """One thing that a mouth does."""

    weights: Tensor  # (P,)
    bias: float
    direction: Tensor  # (P,) raises it by 1, as poses of speech do, and leaves the other named one
    usual: float  # its deviation in speech

    def read(self, values: Tensor) -> Tensor:
        """How far it is done, (T, P) -> (T,)."""
        return values @ self.weights + self.bias

    def moved(self, values: Tensor, wanted: Tensor) -> Tensor:
        """Poses (T, P) that do it as far as is ``wanted`` (T,)."""
        return values + (wanted - self.read(values))[:, None] * self.direction


def shape(name: str) -> Shape:
    """By one of ``NAMES``."""
    if name in _MEASURED:
        weights, bias, direction, usual = _MEASURED[name]
        return Shape(torch.tensor(weights), bias, torch.tensor(direction), usual)
    row = torch.eye(POSE_DIM)[NUMBERS.index(name)]
    return Shape(row, 0.0, row, 1.0)
