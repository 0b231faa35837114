"""What Edit Lip Poses sends the browser for its timeline: a file in ComfyUI's temp folder, and the sound to play."""

from __future__ import annotations

import hashlib
import io as streams
import json
import wave
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..flashlips_core.audio import level_db, to_mono_16k
from ..flashlips_core.poses.operations import Surroundings
from ..flashlips_core.poses.timeline import heard_by, heard_in, timeline
from ..flashlips_core.types import SAMPLE_RATE, AudioFeatures, LipPoses
from . import bridge

RESULT = "flashlips_timeline"  # what js/timeline.js looks for
LEVEL_HZ = Fraction(50)  # rows of level_db


def timeline_ui(poses: LipPoses, around: Surroundings, audio: dict | None) -> dict[str, Any]:
    """The track before the operations, for the widget; ``audio`` is what it draws and plays."""
    heard, speech, sound = None, around.features, None
    if audio is not None:
        samples = to_mono_16k(bridge.audio_of(audio))
        heard, sound = heard_in(samples), _saved(_wave(samples), ".wav")
        if speech is None:
            speech = AudioFeatures(torch.zeros(0, 0), LEVEL_HZ, "", level_db(samples))
    elif speech is not None:
        heard = heard_by(speech)
    about = timeline(poses, around, heard, speech) | {"sound": sound}
    return {RESULT: [_saved(json.dumps(about).encode(), ".json")]}


def _saved(content: bytes, suffix: str) -> dict[str, str]:
    """The file as the server's /view finds it. The same content is one file, however often the node runs."""
    path = bridge.temp_path(suffix).with_name(f"flashlips-{hashlib.sha256(content).hexdigest()[:24]}{suffix}")
    if not path.is_file():
        part = bridge.temp_path(".part")
        part.write_bytes(content)
        part.replace(path)
    return {"filename": path.name, "subfolder": "", "type": "temp"}


def _wave(samples: Tensor) -> bytes:
    """(S,) at 16 kHz as a file that browsers play."""
    whole = streams.BytesIO()
    with wave.open(whole, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples.clamp(-1, 1) * 32767).round().short().numpy().tobytes())
    return whole.getvalue()
