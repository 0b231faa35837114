"""FlashLips: change the lips of a talking person in a video, in one pass per frame.

The public names; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "LipSync": "pipeline",
    "Report": "pipeline",
    "FaceTrack": "types",
    "LipPoses": "types",
    "AudioFeatures": "types",
    "FlashLipsError": "types",
    "SamplerSettings": "poses.sampling",
    "probe": "media",
    "read_frames": "media",
    "write_video": "media",
    "load_codec": "codec",
    "load_audio_encoder": "audio",
    "load_detector": "face.detect",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
