"""Read the sound of a file at its own rate: whole, or in pieces, so that an hour of it takes no more memory than a second.

Sample 0 is heard with the first picture where the file has video: sound that starts later is led in by silence, sound that
starts earlier loses its head. Holes in the timestamps become silence, so that picture and sound never drift apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from ..types import AUDIO_PIECE, Audio, FlashLipsError
from .pyav import fraction
from .read import decode, open_media, picture_start
from .sound import sound_streams

GAP_S = Fraction(1, 10)  # a hole in the sound longer than this becomes silence, a shorter one is clock jitter


@dataclass(frozen=True)
class SoundFile:
    """The first sound of a file, decoded anew whenever it is heard; :func:`open_sound` makes one."""

    path: str
    sample_rate: int  # Hz
    channels: int
    num_samples: int
    skipped: int = 0  # samples of the file before the first one

    @property
    def duration(self) -> Fraction:
        return Fraction(self.num_samples, self.sample_rate)

    def pieces(self) -> Iterator[Tensor]:
        """The sound from its start, as decoded: (channels, n) float32 each."""
        left = self.skipped
        for samples, _ in _decoded(self.path):
            if samples.shape[1] > left:
                yield torch.from_numpy(samples[:, left:])
            left = max(0, left - samples.shape[1])


def open_sound(path: str | Path) -> SoundFile:
    """The first sound of a file, once all of it has been heard and found sane; only its length is kept."""
    sound, name = SoundFile(str(path), sample_rate=0, channels=0, num_samples=0), Path(path).name
    for samples, rate in _decoded(path):
        _check_numbers(torch.from_numpy(samples), name)
        sound = SoundFile(str(path), rate, samples.shape[0], sound.num_samples + samples.shape[1])
    if sound.num_samples == 0:
        raise _no_sound(name)
    return sound


def sound_rate(path: str | Path) -> int:
    """Samples per second of the first sound of a file, by its header."""
    with open_media(path) as container:
        return _sound_stream(container, path).sample_rate


def load_audio(path: str | Path) -> Audio:
    """Decode the first audio stream at its own rate and channels, all of it."""
    decoded = list(_decoded(path))
    if not decoded:
        raise _no_sound(Path(path).name)
    samples, rate = np.concatenate([samples for samples, _ in decoded], axis=1), decoded[0][1]
    return check_audio(Audio(torch.from_numpy(samples), rate), Path(path).name)


def check_audio(audio: Audio, name: str = "The audio") -> Audio:
    """Return ``audio`` if it can be used, else raise FlashLipsError."""
    if audio.samples.ndim != 2 or audio.samples.shape[-1] == 0 or audio.sample_rate <= 0:
        raise _no_sound(name)
    _check_numbers(audio.samples, name)
    return audio


def sound_start(sound: av.AudioFrame) -> Fraction:
    """When a decoded piece of sound starts, in seconds; 0 where nothing says so."""
    return Fraction(0) if sound.pts is None else sound.pts * fraction(sound.time_base)


def _decoded(path: str | Path) -> Iterator[tuple[np.ndarray, int]]:
    """(channels, n) float32 piece by piece, each with the sample rate in Hz."""
    with open_media(path) as container:
        stream = _sound_stream(container, path)
        origin = picture_start(container)
        resampler, written, rate, layout = None, 0, 0, None
        for sound in decode(container, stream, path):
            if layout is None:
                rate, layout = sound.sample_rate, sound.layout
                origin = sound_start(sound) if origin is None else origin
            gap = round((sound_start(sound) - origin) * rate) - written if sound.pts is not None else 0
            if gap > GAP_S * rate or (written == 0 and gap > 0):
                yield from ((np.zeros((layout.nb_channels, count), np.float32), rate) for count in _in_pieces(gap))
                written += gap
            # Packed: PyAV gives a planar picture of eight channels nine planes, and reads beyond the last
            resampler = resampler or av.AudioResampler("flt", layout, rate)
            if (sound.sample_rate, sound.layout.name, sound.layout.nb_channels) != (rate, layout.name, layout.nb_channels):
                raise FlashLipsError(f"{Path(path).name} changes its audio format midway; convert its sound to one format first.")
            sound.pts = None
            parts = [part.to_ndarray().reshape(-1, layout.nb_channels) for part in resampler.resample(sound)]
            samples = np.ascontiguousarray(np.concatenate(parts).T) if parts else np.zeros((layout.nb_channels, 0), np.float32)
            late = -gap if written == 0 and gap < 0 else 0
            written += max(0, samples.shape[1] - late)
            yield samples[:, late:], rate


def _in_pieces(count: int) -> Iterator[int]:
    """Sizes that add up to ``count``, each small."""
    for start in range(0, count, AUDIO_PIECE):
        yield min(AUDIO_PIECE, count - start)


def _sound_stream(container: av.container.InputContainer, path: str | Path) -> av.AudioStream:
    streams = sound_streams(container)
    if not streams:
        raise FlashLipsError(f"{Path(path).name} has no audio stream that can be decoded; choose a file with such sound.")
    return streams[0]


def _check_numbers(samples: Tensor, name: str) -> None:
    if not torch.isfinite(samples).all():
        raise FlashLipsError(f"{name} holds samples that are not numbers (NaN or infinite); export it again.")


def _no_sound(name: str) -> FlashLipsError:
    return FlashLipsError(f"{name} has no sound in it (zero length); choose a longer recording.")
