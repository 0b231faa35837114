"""Other renditions of a voice by torchaudio: faster or slower, in a room, in noise. For training alone; dubbing needs none of it.

Only ``torchaudio.functional`` is used, whose Python parts work beside any torch (requirements-speech.txt). S samples at 16 kHz.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from ...types import SAMPLE_RATE, FlashLipsError

SPEEDS = (0.85, 1.18)  # with the pitch, as a tape would
ROOM_S = (0.1, 0.6)  # time in which a room's echo falls by 60 dB: from a furnished office to a hall
ECHO = (0.1, 0.8)  # energy of the echo beside the direct sound
NOISE_DB = (5.0, 40.0)  # signal over noise


def functional() -> ModuleType:
    """``torchaudio.functional``, or one sentence about how to get it."""
    try:
        import torchaudio.functional
    except ImportError as error:
        raise FlashLipsError(
            "Other renditions of a voice need torchaudio; install it with "
            "'pip install --no-deps -r requirements-speech.txt', which leaves your torch alone."
        ) from error
    return torchaudio.functional


def faster(samples: Tensor, speed: float) -> Tensor:
    """Played at another speed, (S,) -> (about S / speed,); speeds are taken in hundredths."""
    return functional().speed(samples[None], SAMPLE_RATE, round(speed, 2))[0][0]


def in_a_room(samples: Tensor, echo: Tensor) -> Tensor:
    """With the echo, (S,) and (E,) -> (S,): the direct sound stays where it was and as loud."""
    direct = torch.zeros_like(echo)
    direct[0] = 1.0
    return functional().fftconvolve(samples, direct + echo)[: len(samples)]


def echo_of(random: np.random.Generator, seconds: float, energy: float) -> Tensor:
    """Noise that falls by 60 dB within ``seconds``, without the direct sound, of the given energy."""
    length = int(seconds * SAMPLE_RATE)
    tail = random.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)
    tail[0] = 0.0
    return torch.from_numpy(tail * np.sqrt(energy / np.square(tail).sum())).float()


def in_noise(samples: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """(S,) with (S,) of noise, ``snr_db`` below the sound. Silence stays silent."""
    if not samples.any() or not noise.any():
        return samples
    return functional().add_noise(samples, noise, torch.tensor(snr_db))


def rendition(samples: np.ndarray, random: np.random.Generator, speeds: tuple[float, float] = SPEEDS) -> tuple[np.ndarray, float]:
    """One rendition of a voice, and the speed at which it was played. (S,) float32 -> (S',) float32"""
    speed = round(float(np.exp(random.uniform(*np.log(speeds)))), 2)
    sound = faster(torch.from_numpy(samples), speed)
    if random.random() < 0.5:
        sound = in_a_room(sound, echo_of(random, random.uniform(*ROOM_S), random.uniform(*ECHO)))
    if random.random() < 0.5:
        noise = torch.from_numpy(random.standard_normal(len(sound)).astype(np.float32))
        sound = in_noise(sound, noise, float(random.uniform(*NOISE_DB)))
    return (sound / sound.abs().amax().clamp_min(1.0)).numpy(), speed
