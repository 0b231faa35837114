"""Feature rows of an audio encoder, 50 a second or another number, laid out for pose frames, 25 a second.

N rows, D feature size, G rows side by side in a pose frame.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

POSE_RATE = Fraction(25)  # poses per second of every pose model; resampled to the clip's own rate later


def features_at_pose_rate(values: Tensor, rate_hz: Fraction) -> Tensor:
    """Rows of an audio encoder gathered per pose frame: (N, D) -> (ceil(25 N / rate), G * D).

    G = rate / 25, rounded, rows are laid side by side: pairs at 50 Hz. Rates that are no multiple of 25 are
    interpolated linearly; beyond the last row, the last row is repeated.
    """
    num_frames = -(-len(values) * POSE_RATE // Fraction(rate_hz))
    return gather(values, rate_hz, range(0, num_frames), 0)


def rows_per_pose(rate_hz: Fraction) -> int:
    """Encoder rows laid side by side in one pose frame: 2 for 50 Hz."""
    return max(1, round(Fraction(rate_hz) / POSE_RATE))


def row_position(rate_hz: Fraction, frame: int, part: int) -> Fraction:
    """Where part 0..G-1 of a pose frame lies among the encoder's rows."""
    return Fraction(rate_hz) / POSE_RATE * (frame + Fraction(part, rows_per_pose(rate_hz)))


def frames_ready(num_rows: int, rate_hz: Fraction) -> int:
    """Pose frames whose every part lies on rows that have arrived."""
    parts = rows_per_pose(rate_hz)
    frame = Fraction(num_rows - 1) * POSE_RATE / Fraction(rate_hz) - Fraction(parts - 1, parts)
    return max(0, math.floor(frame) + 1)


def gather(values: Tensor, rate_hz: Fraction, frames: range, first_row: int) -> Tensor:
    """Pose rows for ``frames``; ``values`` begins at the encoder's row ``first_row``."""
    parts = rows_per_pose(rate_hz)
    step = Fraction(rate_hz) / (POSE_RATE * parts)
    numerator = np.arange(frames.start * parts, frames.stop * parts, dtype=np.int64) * step.numerator
    low, rest = np.divmod(numerator, step.denominator)
    last = len(values) - 1
    low_rows = torch.from_numpy(low - first_row).clamp(max=last)
    high_rows = torch.from_numpy(low - first_row + (rest > 0)).clamp(max=last)
    share = torch.from_numpy((rest / step.denominator).astype(np.float32))[:, None]
    return torch.lerp(values[low_rows], values[high_rows], share).reshape(len(frames), -1)
