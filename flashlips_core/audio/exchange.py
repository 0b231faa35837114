"""Encoded audio as other programs hand it around: a dict with the hidden layers of a speech network, to and from AudioFeatures.

N rows (50 a second), D feature size, E emotion numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.audio_encoder import ROW_HZ, ROW_SAMPLES
from ..types import AudioFeatures, FlashLipsError
from .rates import rows_per_pose

log = logging.getLogger(__name__)

OURS, OUR_EMOTION = "flashlips", "flashlips_emotion"  # keys beside the encoder's own in a dict of encoded audio
LAST_LAYER, LAYERS, SAMPLES = "encoded_audio", "encoded_audio_all_layers", "audio_samples"
MOST_MISSING = 2  # rows: networks without padding give one or two fewer than the sound has


def encoded_audio(features: AudioFeatures, num_samples: int) -> dict[str, Any]:
    """Our features as such a dict: one layer, and under a key of our own what others do not know.

    Args:
        num_samples: Of the sound at 16 kHz.
    """
    layer = features.values[None]
    return {LAST_LAYER: layer, LAYERS: [layer], SAMPLES: num_samples, OURS: features}


def with_emotion(encoded: Mapping[str, Any], emotion: Tensor) -> dict[str, Any]:
    """The same, with what an emotion encoder says of the whole sound, (E,)."""
    return {**encoded, OUR_EMOTION: emotion}


def known_features(encoded: Mapping[str, Any]) -> AudioFeatures | None:
    """The features of our own encoders, which say how loud the sound is, or None."""
    return encoded.get(OURS)


def emotion_for(encoded: Mapping[str, Any], emotion_dim: int) -> Tensor | None:
    """The emotion embedding for a pose model that takes one of ``emotion_dim`` numbers (0: none). (E,) or None."""
    emotion = encoded.get(OUR_EMOTION)
    if not emotion_dim:
        return None
    if emotion is None:
        log.warning("This pose model listens to emotion too and goes without; choose an emotion encoder in Encode Audio.")
    elif emotion.shape != (emotion_dim,):
        raise FlashLipsError(
            f"This pose model takes {emotion_dim} emotion numbers, got {emotion.numel()}; choose the emotion encoder it was "
            "trained with."
        )
    return emotion


def features_for(encoded: Mapping[str, Any], kind: str, audio_dim: int) -> AudioFeatures:
    """The features that a pose model asks for, from a dict of encoded audio.

    Args:
        encoded: Ours, which carries features of a known kind, or a list of layers, each (1, N, D), under
            ``encoded_audio_all_layers`` and the number of samples at 16 kHz under ``audio_samples``.
        kind: What the pose model listens to, e.g. "wav2vec2-base:12": the states after layer 12.
        audio_dim: Its audio numbers per pose frame.

    Ours is handed on as it is; the model refuses another kind. Layers are matched by their size and number only: one cannot see
    which network made them. Their loudness is unknown, ``level_db`` is empty.
    """
    if OURS in encoded:
        return encoded[OURS]
    layers, samples = encoded.get(LAYERS), encoded.get(SAMPLES)
    if not isinstance(layers, Sequence) or not len(layers) or not isinstance(samples, int):
        keys = ", ".join(encoded) or "nothing"
        raise FlashLipsError(
            f"This pose model listens to '{kind}', got encoded audio that holds {keys}; use Encode Audio with its encoder."
        )
    return from_layers(layers, samples, kind, audio_dim // rows_per_pose(ROW_HZ))


def from_layers(layers: Sequence[Tensor], num_samples: int, kind: str, dim: int) -> AudioFeatures:
    """The layer that ``kind`` names, padded with its last row to the length of the sound. Each layer (1, N, ``dim``)."""
    _, _, number = kind.rpartition(":")
    batch, rows, width = layers[0].shape
    if not number.isdigit() or int(number) >= len(layers) or width != dim:
        found = f"a network with states 0 to {len(layers) - 1} of {width} numbers"
        raise FlashLipsError(
            f"This pose model listens to '{kind}' ({dim} numbers a row), got the layers of {found}; "
            "use Load Audio Encoder and Encode Audio with the encoder it was trained with."
        )
    if batch != 1:
        raise FlashLipsError(f"The encoded audio holds {batch} sounds; encode one at a time.")
    wanted = -(-num_samples // ROW_SAMPLES)
    if wanted == 0 or rows == 0:
        raise FlashLipsError("The audio has zero length; choose a file with sound in it.")
    if wanted - rows > MOST_MISSING:
        heard, whole = float(rows / ROW_HZ), num_samples / float(ROW_HZ * ROW_SAMPLES)
        raise FlashLipsError(
            f"The encoded audio ends after {heard:g} s of {whole:.1f} s (this encoder hears no more); use FlashLips' "
            "Load Audio Encoder, which hears any length."
        )
    values = layers[int(number)][0].detach().float().cpu()
    index = torch.arange(wanted).clamp(max=rows - 1)
    return AudioFeatures(values[index], ROW_HZ, kind, torch.zeros(0))
