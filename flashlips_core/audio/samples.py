"""Decoded sound to 16 kHz mono, and its level. S samples, N rows of 320 samples (20 ms)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import av
import numpy as np
import torch
from torch import Tensor

from ..models.audio_encoder import ROW_SAMPLES
from ..types import AUDIO_PIECE, SAMPLE_RATE, FlashLipsError, Recording

SILENCE_DB = -100.0  # what digital silence is called


def to_mono_16k(audio: Recording) -> Tensor:
    """Average the channels and resample: (S,) float32 at 16 kHz, S = ceil(duration * 16000)."""
    if audio.channels == 0 or audio.sample_rate > 0 and audio.duration == 0:
        raise FlashLipsError("The audio has zero length; choose a file with sound in it.")
    if audio.sample_rate <= 0:
        raise FlashLipsError(f"The audio's sample rate is {audio.sample_rate} Hz; it must be above 0.")
    num_samples = int(audio.duration * audio.sample_rate)
    return _resampled(_mono(audio), num_samples, audio.sample_rate, SAMPLE_RATE)


def check_finite(samples: Tensor) -> None:
    """Refuse NaN and infinite samples."""
    if not samples.isfinite().all():
        raise FlashLipsError("The audio holds NaN or infinite samples; export it again from its source.")


def resample(mono: Tensor, rate: int, to_rate: int = SAMPLE_RATE) -> Tensor:
    """(S,) at ``rate`` Hz -> (ceil(S * to_rate / rate),) at ``to_rate`` Hz; no delay."""
    return _resampled(mono.split(AUDIO_PIECE), len(mono), rate, to_rate)


def _mono(audio: Recording) -> Iterator[Tensor]:
    for piece in audio.pieces():
        mono = piece.float().mean(dim=0)
        check_finite(mono)
        yield mono


def _resampled(pieces: Iterable[Tensor], num_samples: int, rate: int, to_rate: int) -> Tensor:
    """:func:`resample` of a sound that comes in pieces, ``num_samples`` long in all."""
    whole, done = torch.zeros(-(-num_samples * to_rate // rate)), 0
    for piece in pieces if rate == to_rate else _through_resampler(pieces, rate, to_rate):
        piece = piece[: len(whole) - done]  # a resampler gives this many, or a few fewer or more
        whole[done : done + len(piece)] = piece
        done += len(piece)
    return whole


def _through_resampler(pieces: Iterable[Tensor], rate: int, to_rate: int) -> Iterator[Tensor]:
    resampler = av.AudioResampler("flt", "mono", to_rate)
    for piece in pieces:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece.numpy(), dtype=np.float32)[None], "flt", "mono")
        frame.sample_rate = rate
        yield from (torch.from_numpy(out.to_ndarray()[0]) for out in resampler.resample(frame))
    yield from (torch.from_numpy(out.to_ndarray()[0]) for out in resampler.resample(None))


def level_db(samples: Tensor) -> Tensor:
    """Loudness of each row in dB full scale: (S,) -> (ceil(S / 320),), -100 for silence."""
    rows = -(-len(samples) // ROW_SAMPLES)
    padded = torch.nn.functional.pad(samples.float(), (0, rows * ROW_SAMPLES - len(samples)))
    power = padded.reshape(rows, ROW_SAMPLES).square().mean(dim=1)
    return 10 * power.clamp_min(10 ** (SILENCE_DB / 10)).log10()
