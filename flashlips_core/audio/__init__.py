"""Sound: to 16 kHz, how loud it is, and the encoders that turn it into feature rows."""

from __future__ import annotations

from .emotion import EmotionEncoder, is_classifier, load_emotion_encoder
from .encoders import LogMelEncoder, MelConvAudioEncoder, load_audio_encoder
from .exchange import emotion_for, encoded_audio, features_for, known_features, with_emotion
from .samples import level_db, to_mono_16k
from .windows import AudioEncoder, AudioStream, WindowPlan

__all__ = [
    "AudioEncoder",
    "AudioStream",
    "EmotionEncoder",
    "LogMelEncoder",
    "MelConvAudioEncoder",
    "WindowPlan",
    "emotion_for",
    "encoded_audio",
    "features_for",
    "is_classifier",
    "known_features",
    "level_db",
    "load_audio_encoder",
    "load_emotion_encoder",
    "to_mono_16k",
    "with_emotion",
]
