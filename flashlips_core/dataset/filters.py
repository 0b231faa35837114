"""What a stretch of a face must be worth to be kept: measures, their limits, and the reason in words where one is missed.

T frames at 25 per second.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from ..audio import level_db
from ..face.crop import local_linear
from ..measures import best_correlation
from ..models.audio_encoder import ROW_SAMPLES
from ..types import SAMPLE_RATE
from .scenes import RATE, Candidate

FRAME_SAMPLES = int(SAMPLE_RATE / RATE)
# Mouth and sound are compared between these deviations in frames. Slower motion is the rhythm of sentences, which takes of one
# script share: on 45 GRID clips the right sound beats another clip's in 82 % of pairs so, in 64 % with motion up to 15 frames.
FINE, COARSE = 0.5, 3.0
LOUDNESS_RANGE_DB = 40.0  # below the clip's loudest frames; quieter is the room
SEARCHED_LAG = 12  # frames: further away a short clip matches by chance
STILL = 0.003  # deviation of the fine opening, in eye distances: GRID's talkers have 0.007 and up, a frozen picture 0.0001
# A shifted sound must fit this much better before the clip counts as shifted, at 3 s; chance shrinks with the root of the length.
# Of GRID's clips (3 s) 1 % are so lost, and with the limits below 64 % of those moved by 6 or 8 frames found; joined to 9 s 94 %.
LAG_MARGIN, LAG_MARGIN_S = 0.2, 3.0


@dataclass(frozen=True)
class Limits:
    """What is kept."""

    min_face_px: float = 96.0  # side of the editor's square in the video's pixels; GRID's are 130 to 190
    min_sharpness: float = 12.0  # variance of the Laplacian, see Measures
    max_missing: float = 0.1  # share of frames without the face
    min_seconds: float = 2.0
    max_seconds: float = 10.0  # longer stretches are parted, not dropped
    # Correlation of mouth motion and loudness. With 0.2, of GRID's clips (3 s) 5 % are lost and 39 % of those with another
    # clip's sound found out; of three clips joined (9 s) none are lost and 78 % found out.
    min_sync: float = 0.2
    max_lag: int = 3  # frames that sound and mouth may be apart
    keep_silent: bool = False  # keep videos without sound: the editor and the lip encoder learn from them too


@dataclass(frozen=True)
class Measures:
    """What was measured of one candidate; None: not measured, since an earlier limit was missed or there is no sound."""

    seconds: float
    face_px: float  # median side of the editor's square in the video's pixels
    missing: float  # share of frames
    sharpness: float | None = None  # median over frames of the variance of the grey Laplacian in the square at 256 px
    has_sound: bool = True
    sync: float | None = None  # highest correlation of mouth opening and loudness within the allowed lags
    best_sync: float | None = None  # highest within SEARCHED_LAG
    lag: int | None = None  # where that is, in frames; positive: the mouth is late

    def as_dict(self) -> dict:
        """For JSON, rounded to what the numbers are worth."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def first_measures(candidate: Candidate, has_sound: bool) -> Measures:
    """What the track alone tells."""
    track = candidate.track
    side = (track.boxes[:, 2] - track.boxes[:, 0])[track.present]
    return Measures(candidate.seconds, float(np.median(side)), float(1 - track.present.mean()), has_sound=has_sound)


def missed(measures: Measures, limits: Limits) -> str:
    """The first limit that is missed, as a reason; "" where all are met."""
    m = measures
    if m.seconds < limits.min_seconds:
        return "too short"
    if m.face_px < limits.min_face_px:
        return "face too small"
    if m.missing > limits.max_missing:
        return "face missing too often"
    if not m.has_sound and not limits.keep_silent:
        return "no sound"
    if m.sharpness is not None and m.sharpness < limits.min_sharpness:
        return "blurred"
    margin = LAG_MARGIN * math.sqrt(LAG_MARGIN_S / m.seconds)
    if m.sync is not None and abs(m.lag) > limits.max_lag and m.best_sync >= max(m.sync + margin, limits.min_sync):
        return "sound and mouth out of step"
    if m.sync is not None and m.sync < limits.min_sync:
        return "sound does not belong to the mouth"
    return ""


REASONS = {
    "too short": ("seconds", "min_seconds"),
    "face too small": ("face_px", "min_face_px"),
    "face missing too often": ("missing", "max_missing"),
    "no sound": ("has_sound", "keep_silent"),
    "blurred": ("sharpness", "min_sharpness"),
    "sound and mouth out of step": ("lag", "max_lag"),
    "sound does not belong to the mouth": ("sync", "min_sync"),
}
"""Reason -> the measure and the limit that it comes from."""


def sync_of(opening: np.ndarray, present: np.ndarray, samples: Tensor, max_lag: int) -> tuple[float, float, int]:
    """How well a mouth fits a sound: Measures' ``sync``, ``best_sync`` and ``lag``.

    Args:
        opening: (T,) mouth opening in any unit; rows that are not ``present`` are not read.
        samples: The sound of these frames at 16 kHz; missing ends count as silence.
    """
    level = loudness(samples, len(opening))
    mouth = np.where(present, _band(np.where(present, opening, 0.0), present), math.nan)
    sound = _band(level, np.ones(len(level), bool))
    if np.nanstd(mouth) < STILL:
        return 0.0, 0.0, 0  # what little such a mouth moves is noise, which fits any sound by chance
    best, lag = best_correlation(mouth, sound, SEARCHED_LAG)
    return best_correlation(mouth, sound, max_lag)[0], best, lag


def loudness(samples: Tensor, num_frames: int) -> np.ndarray:
    """dB full scale of each frame's sound, floored below the loudest. -> (T,)."""
    wanted = num_frames * FRAME_SAMPLES
    sound = torch.nn.functional.pad(samples[:wanted], (0, max(0, wanted - len(samples))))
    power = 10 ** (level_db(sound).double().view(num_frames, FRAME_SAMPLES // ROW_SAMPLES) / 10)
    level = 10 * power.mean(1).log10().numpy()
    return np.maximum(level, np.quantile(level, 0.95) - LOUDNESS_RANGE_DB)


def _band(curve: np.ndarray, present: np.ndarray) -> np.ndarray:
    fine, coarse = (local_linear(curve[:, None].astype(np.float64), present, sigma)[:, 0] for sigma in (FINE, COARSE))
    return fine - coarse
