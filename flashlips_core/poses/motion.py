"""Edit lip poses in time: resample, gain, smooth, shift, gate in silence, mix. Pure functions from LipPoses to LipPoses.

T frames, N feature rows. Frame k stands for the instant (k + 1/2) / fps, feature row n for (n + 1/2) / rate_hz. Before the
first and after the last frame the pose is held.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import POSE_DIM, AudioFeatures, FlashLipsError, LipPoses

EXPRESSION = slice(0, 8)  # the lip encoder's main vector
MOUTH = slice(8, POSE_DIM)  # its residual from the mouth crop
RANGE_QUANTILES = (0.02, 0.98)  # between which a mouth is said to move
WIDENED = 0.2  # of the range that a person shows: so much further the mouth may open
SPEECH_RANGE = 0.05  # of the eyes' distance: a mouth that moves less is not speaking, and its range says nothing
QUIET_DB = -60.0  # dB full scale: nothing below counts as speech, however quiet the clip


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
    return LipPoses(_at(poses.values, times), fps)


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
    return _at(poses.values, times_s.double() * float(poses.fps) - 0.5)


def shift(poses: LipPoses, seconds: float | Fraction) -> LipPoses:
    """Move the motion later (positive) or earlier (negative); the clip keeps its length."""
    times = torch.arange(len(poses), dtype=torch.float64) - float(seconds * poses.fps)
    return replace(poses, values=_at(poses.values, times))


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


def mix(first: LipPoses, second: LipPoses, amount: float | Tensor, frames: range | None = None) -> LipPoses:
    """From ``first`` (0) to ``second`` (1).

    Args:
        amount: One number, or a mask: (T,) per frame, (12,) per pose number as (1, 12), or (T, 12).
        frames: Where to mix; outside it ``first`` stays.
    """
    if first.fps != second.fps or len(first) != len(second):
        raise FlashLipsError(
            f"Poses to mix differ: {len(first)} frames at {first.fps} fps, {len(second)} at {second.fps}; resample one first."
        )
    weight = torch.as_tensor(amount, dtype=torch.float32)
    weight = weight[:, None] if weight.ndim == 1 else weight
    try:
        weight = weight.expand(len(first), POSE_DIM).clone()
    except RuntimeError as error:
        raise FlashLipsError(
            f"The mixing mask has shape {tuple(weight.shape)}; ({len(first)},) or ({len(first)}, {POSE_DIM}) is needed."
        ) from error
    if frames is not None:
        inside = torch.zeros(len(first), 1)
        inside[max(frames.start, 0) : max(frames.stop, 0)] = 1
        weight = weight * inside
    return replace(first, values=torch.lerp(first.values, second.values, weight))


def speech_level_db(level_db: Tensor) -> float:
    """How loud the speech of a clip is: the level that only its loudest twentieth exceeds, in dB full scale."""
    return torch.quantile(level_db, 0.95).item() if len(level_db) else QUIET_DB


def speech_gate(
    features: AudioFeatures,
    threshold_db: float = -32.0,
    hysteresis_db: float = 6.0,
    attack_s: float = 0.12,
    hold_s: float = 0.16,
    release_s: float = 0.2,
    speech_db: float | None = None,
) -> Tensor:
    """How much each feature row belongs to speech, (N,) in [0, 1].

    Args:
        threshold_db: Speech ends below this level, relative to the clip's speech level.
        hysteresis_db: It begins only this much higher.
        attack_s: The gate starts to open this long before the sound, as lips do.
        hold_s: Pauses up to this long, the closures of p and t among them, stay open.
        release_s: Then it takes this long to shut.
        speech_db: The clip's speech level in dB full scale; measured where not given.
    """
    level = features.level_db
    speech = speech_level_db(level) if speech_db is None else speech_db
    low = max(speech + threshold_db, QUIET_DB)
    is_speech = _hysteresis(level, low, low + hysteresis_db)
    rate = float(features.rate_hz)
    since, until = _rows_since(is_speech), _rows_since(is_speech.flip(0)).flip(0)
    closing = 1 - (since - hold_s * rate) / max(release_s * rate, 1.0)
    opening = 1 - until / max(attack_s * rate, 1.0)
    return torch.maximum(closing, opening).clamp(0, 1)


def silence_gate(poses: LipPoses, features: AudioFeatures, rest: Tensor, **settings: float) -> LipPoses:
    """Bring the lips to ``rest`` (12,) where the sound holds no speech; ``settings`` are those of :func:`speech_gate`."""
    gate = speech_gate(features, **settings)
    if not len(gate):
        return poses
    times = (torch.arange(len(poses), dtype=torch.float64) + 0.5) * float(features.rate_hz / poses.fps) - 0.5
    weight = _at(gate[:, None], times, cubic=False)  # T 1
    return replace(poses, values=torch.lerp(rest.to(poses.values).expand_as(poses.values), poses.values, weight))


def _hysteresis(level: Tensor, low: float, high: float) -> Tensor:
    """True from where ``level`` reaches ``high`` until it falls below ``low``. (N,) -> (N,) bool."""
    index = torch.arange(len(level))
    switched = (level >= high) | (level < low)
    last = torch.where(switched, index, -1).cummax(0).values  # the row that decided last, -1 before any
    return (last >= 0) & (level >= high)[last.clamp_min(0)]


def _rows_since(is_speech: Tensor) -> Tensor:
    """Rows since the last True, 0 on it, very many before the first."""
    index = torch.arange(len(is_speech))
    return (index - torch.where(is_speech, index, -(10**6)).cummax(0).values).float() if len(is_speech) else index.float()


def _at(values: Tensor, times: Tensor, cubic: bool = True) -> Tensor:
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
