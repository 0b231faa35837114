"""Decoded sound to 16 kHz mono, and its level. S samples, N rows of 320 samples (20 ms)."""

from __future__ import annotations

import av
import numpy as np
import torch
from torch import Tensor

from ..models.audio_encoder import ROW_SAMPLES
from ..types import SAMPLE_RATE, Audio, FlashLipsError

CHUNK = 1 << 16  # samples given to the resampler at a time
SILENCE_DB = -100.0  # what digital silence is called


def to_mono_16k(audio: Audio) -> Tensor:
    """Average the channels and resample: (S,) float32 at 16 kHz, S = ceil(duration * 16000)."""
    if audio.samples.shape[-1] == 0 or audio.samples.shape[0] == 0:
        raise FlashLipsError("The audio has zero length; choose a file with sound in it.")
    if audio.sample_rate <= 0:
        raise FlashLipsError(f"The audio's sample rate is {audio.sample_rate} Hz; it must be above 0.")
    mono = audio.samples.float().mean(dim=0)
    check_finite(mono)
    return resample(mono, audio.sample_rate)


def check_finite(samples: Tensor) -> None:
    """Refuse NaN and infinite samples."""
    if not samples.isfinite().all():
        raise FlashLipsError("The audio holds NaN or infinite samples; export it again from its source.")


def resample(mono: Tensor, rate: int, to_rate: int = SAMPLE_RATE) -> Tensor:
    """(S,) at ``rate`` Hz -> (ceil(S * to_rate / rate),) at ``to_rate`` Hz; no delay."""
    if rate == to_rate:
        return mono.contiguous()
    resampler = av.AudioResampler("flt", "mono", to_rate)
    samples = np.ascontiguousarray(mono.numpy(), dtype=np.float32)[None]
    pieces: list[np.ndarray] = []
    for start in range(0, samples.shape[1], CHUNK):
        frame = av.AudioFrame.from_ndarray(samples[:, start : start + CHUNK], "flt", "mono")
        frame.sample_rate = rate
        pieces += [out.to_ndarray()[0] for out in resampler.resample(frame)]
    pieces += [out.to_ndarray()[0] for out in resampler.resample(None)]
    length = -(-samples.shape[1] * to_rate // rate)
    out = np.zeros(length, np.float32)  # the resampler gives this many, or a few fewer or more
    found = np.concatenate(pieces)[:length]
    out[: len(found)] = found
    return torch.from_numpy(out)


def level_db(samples: Tensor) -> Tensor:
    """Loudness of each row in dB full scale: (S,) -> (ceil(S / 320),), -100 for silence."""
    rows = -(-len(samples) // ROW_SAMPLES)
    padded = torch.nn.functional.pad(samples.float(), (0, rows * ROW_SAMPLES - len(samples)))
    power = padded.reshape(rows, ROW_SAMPLES).square().mean(dim=1)
    return 10 * power.clamp_min(10 ** (SILENCE_DB / 10)).log10()
