"""Sound: to 16 kHz, how loud it is, and the encoders that turn it into feature rows."""

from __future__ import annotations

from .emotion import EmotionEncoder, load_emotion_encoder
from .encoders import AudioEncoder, AudioStream, LogMelEncoder, MelConvAudioEncoder, WindowPlan, load_audio_encoder
from .samples import level_db, to_mono_16k

__all__ = [
    "AudioEncoder",
    "AudioStream",
    "EmotionEncoder",
    "LogMelEncoder",
    "MelConvAudioEncoder",
    "WindowPlan",
    "level_db",
    "load_audio_encoder",
    "load_emotion_encoder",
    "to_mono_16k",
]
