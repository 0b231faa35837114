"""What a timeline in the browser shows of a pose track, packed small: js/timeline_data.js unpacks it.

T frames. Long rows of numbers are base64 of int16 (poses, shares of ``scale``) or uint8 (the rest, shares of 255).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..audio.samples import SILENCE_DB
from ..types import SAMPLE_RATE, AudioFeatures, LipPoses
from .operations import Surroundings
from .shapes import NAMED, NAMES, shape
from .silence import gate_of_frames

VERSION = 1
ENVELOPE_HZ = 100


@dataclass(frozen=True)
class Heard:
    """How loud the sound behind a track is."""

    level: np.ndarray  # (N,) float32 in [0, 1], of the loudest
    rate_hz: Fraction


def heard_in(samples: Tensor) -> Heard:
    """The highest sample of each hundredth of a second. (S,) at 16 kHz."""
    row = SAMPLE_RATE // ENVELOPE_HZ
    padded = torch.nn.functional.pad(samples.float(), (0, -len(samples) % row))
    return Heard(_of_loudest(padded.reshape(-1, row).abs().amax(1).numpy()), Fraction(ENVELOPE_HZ))


def heard_by(features: AudioFeatures) -> Heard | None:
    """The same from what an audio encoder kept; None where that is nothing."""
    if not len(features.level_db):
        return None
    level = np.where(features.level_db.numpy() <= SILENCE_DB, 0, 10 ** (features.level_db.numpy() / 20))
    return Heard(_of_loudest(level), features.rate_hz)


def timeline(poses: LipPoses, around: Surroundings, heard: Heard | None, speech: AudioFeatures | None) -> dict[str, Any]:
    """The track before the operations, as JSON.

    Args:
        heard: what is drawn behind the curves.
        speech: tells where speech is; ``around.features`` where that is wired, since only then a run can close lips by it.
    """
    values = poses.values.numpy()
    scale = max(float(np.abs(values).max(initial=0)), 1e-3)
    gate = None if speech is None or not len(speech.level_db) else gate_of_frames(speech, len(poses), poses.fps).numpy()
    return {
        "version": VERSION,
        "fps": [poses.fps.numerator, poses.fps.denominator],
        "scale": scale,
        "poses": _packed(np.round(values / scale * 32767), np.int16),
        "rest": around.rest.tolist(),
        "gate": None if gate is None else _packed(np.round(gate * 255), np.uint8),
        "is_gated": gate is not None and around.features is not None,
        "level": None if heard is None else _packed(np.round(heard.level * 255), np.uint8),
        "level_hz": None if heard is None else float(heard.rate_hz),
        "curves": _curves(),
        "sound": None,
    }


def _curves() -> list[dict[str, Any]]:
    """What the mouth does on screen, then the numbers one by one."""
    shapes = {name: shape(name) for name in NAMES}
    return [
        {"name": name, "group": None if name in NAMED else "numbers", "usual": found.usual, "bias": found.bias}
        | {"weights": found.weights.tolist(), "direction": found.direction.tolist()}
        for name, found in shapes.items()
    ]


def _of_loudest(level: np.ndarray) -> np.ndarray:
    return (level / max(float(level.max(initial=0)), 1e-6)).astype(np.float32)


def _packed(values: np.ndarray, dtype: type) -> str:
    little = np.ascontiguousarray(values.astype(dtype)).astype(np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode("ascii")
