"""Sound files out of nothing."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from toy_dubs import SteadyFace, make_poses, make_track, model_folder, planes_of  # noqa: F401


def write_wave(path: Path, samples: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.astype(np.int16).tobytes())
    return path
