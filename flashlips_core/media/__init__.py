"""Video and sound files, in and out: what the rest of the library imports.

``read`` opens, probes and decodes pictures, ``listen`` sound; ``times`` and ``joins`` know when they are shown; ``write`` encodes
and muxes with the help of ``sound``; ``fit`` fits a clip to the length of its sound; ``planes`` knows pixel layouts.
"""

from __future__ import annotations

from .fit import FramePlan, LengthMode, plan_frames, read_planned, shown_seconds
from .listen import SoundFile, check_audio, load_audio, open_sound, sound_rate
from .read import has_picture, probe, read_frames
from .write import CONTAINERS, check_quality, write_video

__all__ = [
    "CONTAINERS",
    "FramePlan",
    "LengthMode",
    "SoundFile",
    "check_audio",
    "check_quality",
    "has_picture",
    "load_audio",
    "open_sound",
    "plan_frames",
    "probe",
    "read_frames",
    "read_planned",
    "shown_seconds",
    "sound_rate",
    "write_video",
]
