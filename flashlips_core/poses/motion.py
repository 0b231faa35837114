"""Edit lip poses in time: resample, gain, smooth, shift, mix. Pure functions from LipPoses to LipPoses.

T frames. Frame k stands for the instant (k + 1/2) / fps. Before the first and after the last frame the pose is held.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import POSE_DIM, FlashLipsError, LipPoses

EXPRESSION = slice(0, 8)  # the lip encoder's main vector
MOUTH = slice(8, POSE_DIM)  # its residual from the mouth crop
RANGE_QUANTILES = (0.02, 0.98)  # between which a mouth is said to move
WIDENED = 0.2  # of the range that a person shows: so much further the mouth may open
SPEECH_RANGE = 0.05  # of the eyes' distance: a mouth that moves less is not speaking, and its range says nothing


def resample(poses: LipPoses, fps: Fraction, num_frames: int | None = None) -> LipPoses:
    """The same motion at another frame rate; ``num_frames`` cuts it, or holds the last pose."""
    if fps <= 0:
        raise FlashLipsError(f"Frames per second must be above 0, got {fps}.")
    if num_frames is None:
        num_frames = round(len(poses) * fps / poses.fps)
    if fps == poses.fps and num_frames == len(poses):
        return poses
    ratio = float(poses.fps / fps)
    times = (torch.arange(num_frames, dtype=torch.float64) + 0.5) * ratio - 0.5
    return LipPoses(at_rows(poses.values, times), fps)


def frame_rate(fps: float) -> Fraction:
    """The exact rate that a number with a few decimals means: 29.97 is 30000/1001."""
    if not (math.isfinite(fps) and fps > 0):
        raise FlashLipsError(f"Frames per second must be above 0, got {fps}.")
    ntsc = Fraction(max(round(fps * 1.001), 1) * 1000, 1001)
    if fps != round(fps) and abs(float(ntsc) - fps) < 0.005:  # 23.976, 23.98, 29.97, 59.94
        return ntsc
    return Fraction(fps).limit_denominator(1000)


def fill_absent(values: Tensor, present: np.ndarray) -> Tensor:
    """Rows that are not ``present`` from their neighbours in time, linearly. (T, D), (T,) bool with one True at least."""
    known = np.flatnonzero(present)
    columns = [np.interp(np.arange(len(values)), known, column[known]) for column in values.numpy().T]
    return torch.from_numpy(np.stack(columns, 1)).float()


def spread(poses: LipPoses, count: int) -> Tensor:
    """Up to ``count`` poses, evenly spread over the track: what a pose model takes as sources. -> (K, 12)."""
    rows = (torch.arange(min(count, len(poses))) + 0.5) * len(poses) / max(min(count, len(poses)), 1)
    return poses.values[rows.long()]


def at_times(poses: LipPoses, times_s: Tensor) -> Tensor:
    """The pose at each instant, for clips whose frames are not evenly spaced. (K,) seconds -> (K, 12)."""
    return at_rows(poses.values, times_s.double() * float(poses.fps) - 0.5)


def shift(poses: LipPoses, seconds: float | Fraction) -> LipPoses:
    """Move the motion later (positive) or earlier (negative); the clip keeps its length."""
    times = torch.arange(len(poses), dtype=torch.float64) - float(seconds * poses.fps)
    return replace(poses, values=at_rows(poses.values, times))


def gain(poses: LipPoses, expression: float = 1.0, mouth: float = 1.0, rest: Tensor | None = None) -> LipPoses:
    """Exaggerate (above 1) or damp (below 1) the motion around ``rest`` (12,), by default the mean pose, 0."""
    centre = torch.zeros(POSE_DIM) if rest is None else rest
    factor = torch.ones(POSE_DIM)
    factor[EXPRESSION], factor[MOUTH] = expression, mouth
    return replace(poses, values=centre + factor * (poses.values - centre))


def fit_to_range(poses: LipPoses, asked: np.ndarray, seen: np.ndarray, rest: Tensor) -> LipPoses:
    """The same motion, made smaller where it would open the mouth further than the person does.

    A mouth that no frame shows must be invented, which no editor does well. The widest openings asked for come down to the widest
    seen and a fifth of the seen range more; a motion that fits already, and a clip in which nobody speaks, are left alone.

    Args:
        asked: (T,) the opening that each pose asks for.
        seen: (N,) openings of the person's own frames, of the same kind.
        rest: (12,) pose of the mouth at rest, from which motion is measured.
    """
    low, high = np.quantile(seen, RANGE_QUANTILES)
    if high - low < SPEECH_RANGE:
        return poses
    widest, closed = np.quantile(asked, RANGE_QUANTILES[1]), np.quantile(asked, RANGE_QUANTILES[0])
    wanted = min(widest - closed, (1 + WIDENED) * (high - low))
    return gain(poses, wanted / (widest - closed), wanted / (widest - closed), rest) if wanted < widest - closed else poses


def smooth(poses: LipPoses, seconds: float) -> LipPoses:
    """Average over time with a Gaussian whose standard deviation is ``seconds``; 0 changes nothing."""
    if seconds < 0:
        raise FlashLipsError(f"Smoothing must be 0 s or more, got {seconds}.")
    sigma = seconds * float(poses.fps)
    if sigma < 0.05 or len(poses) < 2:
        return poses
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    padded = F.pad(poses.values.T[:, None], (reach, reach), mode="replicate")  # 12 1 T+2r
    return replace(poses, values=F.conv1d(padded, (kernel / kernel.sum())[None, None])[:, 0].T.contiguous())


def mix(first: LipPoses, second: LipPoses, amount: float | Tensor) -> LipPoses:
    """From ``first`` (0) to ``second`` (1).

    Args:
        amount: One number, or a mask: (T,) per frame, (12,) per pose number as (1, 12), or (T, 12).
    """
    if first.fps != second.fps or len(first) != len(second):
        raise FlashLipsError(
            f"Poses to mix differ: {len(first)} frames at {first.fps} fps, {len(second)} at {second.fps}; resample one first."
        )
    weight = torch.as_tensor(amount, dtype=torch.float32)
    weight = weight[:, None] if weight.ndim == 1 else weight
    try:
        weight = weight.expand(len(first), POSE_DIM)
    except RuntimeError as error:
        raise FlashLipsError(
            f"The mixing mask has shape {tuple(weight.shape)}; ({len(first)},) or ({len(first)}, {POSE_DIM}) is needed."
        ) from error
    return replace(first, values=torch.lerp(first.values, second.values, weight))


def at_rows(values: Tensor, times: Tensor, cubic: bool = True) -> Tensor:
    """Values at fractional rows, ends held: (T, D), (K,) -> (K, D); Catmull-Rom keeps peaks where linear would blunt them."""
    if not len(values):
        raise FlashLipsError("There are no poses to read; the sound or the video behind them is empty.")
    times = times.clamp(0, len(values) - 1)
    base = times.floor().long()
    t = (times - base).to(values.dtype)[:, None]
    p0, p1, p2, p3 = (values[(base + offset).clamp(0, len(values) - 1)] for offset in (-1, 0, 1, 2))
    if not cubic:
        return torch.lerp(p1, p2, t)
    return p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
