"""The lips come to rest where the sound holds no speech.

T frames, N feature rows. Frame k stands for the instant (k + 1/2) / fps, feature row n for (n + 1/2) / rate_hz.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from ..types import AudioFeatures, LipPoses
from .motion import at_rows

QUIET_DB = -60.0  # dB full scale: nothing below counts as speech, however quiet the clip


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
) -> Tensor:
    """How much each feature row belongs to speech, (N,) in [0, 1].

    Args:
        threshold_db: Speech ends below this level, relative to the clip's speech level.
        hysteresis_db: It begins only this much higher.
        attack_s: The gate starts to open this long before the sound, as lips do.
        hold_s: Pauses up to this long, the closures of p and t among them, stay open.
        release_s: Then it takes this long to shut.
    """
    level = features.level_db
    low = max(speech_level_db(level) + threshold_db, QUIET_DB)
    is_speech = _hysteresis(level, low, low + hysteresis_db)
    rate = float(features.rate_hz)
    since, until = _rows_since(is_speech), _rows_since(is_speech.flip(0)).flip(0)
    closing = 1 - (since - hold_s * rate) / max(release_s * rate, 1.0)
    opening = 1 - until / max(attack_s * rate, 1.0)
    return torch.maximum(closing, opening).clamp(0, 1)


def silence_gate(poses: LipPoses, features: AudioFeatures, rest: Tensor, **settings: float) -> LipPoses:
    """Bring the lips to ``rest`` (12,) where the sound holds no speech; ``settings`` are those of :func:`speech_gate`."""
    if not len(features.level_db):
        return poses
    weight = gate_of_frames(features, len(poses), poses.fps, **settings)[:, None]  # T 1
    return replace(poses, values=torch.lerp(rest.to(poses.values).expand_as(poses.values), poses.values, weight))


def gate_of_frames(features: AudioFeatures, num_frames: int, fps: Fraction, **settings: float) -> Tensor:
    """:func:`speech_gate` at the instants of frames, (T,); the sound holds at least one row."""
    times = (torch.arange(num_frames, dtype=torch.float64) + 0.5) * float(features.rate_hz / fps) - 0.5
    return at_rows(speech_gate(features, **settings)[:, None], times, cubic=False)[:, 0]


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
