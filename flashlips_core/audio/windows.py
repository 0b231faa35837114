"""How every audio encoder hears a clip: window by window, so that a stream gives what the whole clip gives.

Row n stands for samples 320 n .. 320 n + 319. Whatever the encoder, a row depends on a window of sound that is fixed by its
absolute position (sound outside the clip is silence). S samples, N rows, D dims.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.audio_encoder import ROW_HZ, ROW_SAMPLES
from ..types import AudioFeatures, FlashLipsError, Progress
from .samples import check_finite, level_db


@dataclass(frozen=True)
class WindowPlan:
    """In rows: ``hop`` rows are made at a time, from a window that reaches ``before`` and ``after`` them.

    ``is_fixed`` says that the network hears its whole window (attention, normalisation over time): windows then start at
    multiples of ``hop`` and are never shorter. Otherwise ``before`` and ``after`` cover all that a row depends on.
    """

    hop: int
    before: int
    after: int
    is_fixed: bool

    @property
    def length(self) -> int:
        return self.before + self.hop + self.after


class AudioEncoder(Protocol):
    """What the pipeline needs of an encoder."""

    kind: str
    dim: int
    rate_hz: Fraction

    def encode(self, samples: Tensor, progress: Progress | None = None) -> AudioFeatures: ...

    def stream(self) -> AudioStream: ...


class WindowedEncoder:
    """The part that all encoders share; a subclass says how it hears one window."""

    kind: str
    dim: int
    rate_hz: Fraction = ROW_HZ
    plan: WindowPlan
    margin: tuple[int, int] = (0, 0)  # samples needed beyond the window's rows, to the left and right (negative: fewer)

    def hear(self, window: Tensor, inside: tuple[int, int]) -> Tensor:
        """One window of samples -> its (rows, D) without ``before`` and ``after``; ``inside`` bounds the clip's own samples."""
        raise NotImplementedError

    def stream(self) -> AudioStream:
        """A fresh stream: push samples, take the rows that have become final."""
        return AudioStream(self)

    def encode(self, samples: Tensor, progress: Progress | None = None) -> AudioFeatures:
        """The features of a whole clip, (S,) -> ceil(S / 320) rows; ``progress`` counts samples."""
        if len(samples) == 0:
            raise FlashLipsError("The audio has zero length; choose a file with sound in it.")
        stream, parts, done = self.stream(), [], 0
        first = (self.plan.hop + self.plan.after) * ROW_SAMPLES + max(self.margin[1], 0)  # what one hop needs, then hop by hop
        while done < len(samples):
            stop = min(done + (self.plan.hop * ROW_SAMPLES if done else first), len(samples))
            parts.append(stream.push(samples[done:stop]))
            done = stop
            if progress is not None:
                progress(done, len(samples))
        parts.append(stream.flush())
        return AudioFeatures(
            torch.cat([p.values for p in parts]), self.rate_hz, self.kind, torch.cat([p.level_db for p in parts])
        )


class AudioStream:
    """Samples in, final rows out; remembers only the sound that later rows need."""

    def __init__(self, encoder: WindowedEncoder):
        self.encoder = encoder
        self._samples = torch.zeros(0)
        self._first = 0  # absolute index of the first sample kept
        self._row = 0  # the next row to give
        self._is_over = False

    def push(self, samples: Tensor) -> AudioFeatures:
        """Hear more sound, (S,) float32 at 16 kHz, any length; returns the rows that no later sound can change."""
        self._refuse_more()
        if samples.ndim != 1:
            raise FlashLipsError(
                f"Audio must be mono, (samples,), got {tuple(samples.shape)}; convert it with to_mono_16k first."
            )
        check_finite(samples)
        self._samples = torch.cat([self._samples, samples.detach().float().cpu()])
        plan, right = self.encoder.plan, self.encoder.margin[1]
        ready = (self._end - max(right, 0)) // ROW_SAMPLES - plan.after  # rows before this one have all their sound
        return self._make(ready if not plan.is_fixed else ready // plan.hop * plan.hop)

    def flush(self) -> AudioFeatures:
        """The sound is over: the remaining rows. The stream takes no more."""
        self._refuse_more()
        self._is_over = True
        return self._make(-(-self._end // ROW_SAMPLES))

    @property
    def _end(self) -> int:
        return self._first + len(self._samples)

    def _refuse_more(self) -> None:
        if self._is_over:
            raise FlashLipsError("This audio stream has ended; start a new one with encoder.stream().")

    def _make(self, stop: int) -> AudioFeatures:
        """Rows up to ``stop``, hop by hop."""
        encoder, values, levels = self.encoder, [torch.zeros(0, self.encoder.dim)], [torch.zeros(0)]
        while self._row < stop:
            rows = min(encoder.plan.hop, stop - self._row)
            length = encoder.plan.hop if encoder.plan.is_fixed else rows
            values.append(self._hear(self._row, length)[:rows])
            low = self._row * ROW_SAMPLES - self._first
            levels.append(level_db(self._samples[low : low + rows * ROW_SAMPLES]))
            self._row += rows
        self._forget()
        return AudioFeatures(torch.cat(values), encoder.rate_hz, encoder.kind, torch.cat(levels))

    def _hear(self, row: int, rows: int) -> Tensor:
        plan, (left, right) = self.encoder.plan, self.encoder.margin
        low = (row - plan.before) * ROW_SAMPLES - left
        high = (row + rows + plan.after) * ROW_SAMPLES + right
        start, stop = max(low, 0), min(high, self._end)
        inside = self._samples[start - self._first : stop - self._first] if stop > start else self._samples[:0]
        window = F.pad(inside, (start - low, high - low - (start - low) - len(inside)))
        with torch.inference_mode():
            values = self.encoder.hear(window, (start - low, start - low + len(inside)))
        return values.float().cpu().clone()

    def _forget(self) -> None:
        keep = (self._row - self.encoder.plan.before) * ROW_SAMPLES - max(self.encoder.margin[0], 0)
        drop = min(keep - self._first, len(self._samples))
        if drop > 0:
            self._samples = self._samples[drop:].clone()
            self._first += drop
