"""The sound beside a written picture: packets copied as they are, or samples encoded; both advance with the picture."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from typing import Protocol

import av
import numpy as np

from ..types import Recording
from .extras import name_like
from .joins import Joins
from .pyav import fraction

logger = logging.getLogger(__name__)

# AAC's sampling_frequency_index table (ISO/IEC 14496-3, 1.6.3.4); Opus always runs at 48 kHz here
RATES = {"aac": (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000), "libopus": (48000,)}
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
WIDER = {("libopus", "4.0"): "quad", ("libopus", "5.0"): "5.1", ("libopus", "6.1"): "7.1"}  # Opus lacks or mixes up the first
BITS_PER_CHANNEL = 96_000  # per second, for AAC and Opus: 192 kbit/s in stereo
CHUNK_S = Fraction(1)  # samples are handed to the encoder in pieces no longer than this


class Sound(Protocol):
    """What is muxed beside the picture."""

    def advance(self, end: Fraction) -> None:
        """Mux everything heard before ``end`` seconds."""

    def finish(self, end: Fraction) -> None:
        """Mux the rest; the picture ends at ``end`` seconds."""


def sound_streams(container: av.container.InputContainer) -> list[av.AudioStream]:
    """The sound streams that FFmpeg knows; a phone's spatial sound beside the plain one is none."""
    return [stream for stream in container.streams.audio if stream.codec_context is not None]


def can_copy(source: av.container.InputContainer, output: av.container.OutputContainer) -> bool:
    """Whether every audio stream of ``source`` fits into ``output`` without encoding."""
    return all(stream.codec_context.codec.name in output.supported_codecs for stream in sound_streams(source))


class CopiedSound:
    """All audio streams of a file, packet by packet.

    ``start`` is when the file's own beginning (its first picture, else its first sound) is to be heard; None keeps its
    clock, less ``shift`` seconds.
    """

    def __init__(
        self, output: av.container.OutputContainer, source: av.container.InputContainer, start: Fraction | None, shift: Fraction
    ) -> None:
        self.output = output
        self.delay = -shift if start is None else start - _file_start(source)
        self.streams = {stream.index: output.add_stream_from_template(stream) for stream in sound_streams(source)}
        for stream in sound_streams(source):
            name_like(self.streams[stream.index], stream)
        self.packets = self._shifted(source)
        self.waiting: av.Packet | None = None

    def advance(self, end: Fraction) -> None:
        self.waiting = self.waiting or next(self.packets, None)
        while self.waiting is not None and self.waiting.dts * fraction(self.waiting.time_base) < end:
            self.output.mux(self.waiting)
            self.waiting = next(self.packets, None)

    def finish(self, end: Fraction) -> None:
        del end  # packets are all kept: a copy has the source's length
        while (packet := self.waiting or next(self.packets, None)) is not None:
            self.waiting = None
            self.output.mux(packet)

    def _shifted(self, source: av.container.InputContainer) -> Iterator[av.Packet]:
        """The packets at their new places; decoding times that do not grow, as damage leaves them, are made to."""
        joins, last = Joins(source, source.name), {}
        for packet in source.demux([*sound_streams(source), *source.streams.video[:1]]):
            joins.mend(packet)
            index = packet.stream.index
            if packet.dts is None or index not in self.streams:  # the demuxer's flush packet, a damaged one, or a picture
                continue
            ticks = round(self.delay / fraction(packet.time_base))
            packet.dts = last[index] = max(packet.dts + ticks, last.get(index, packet.dts + ticks - 1) + 1)
            packet.pts = packet.dts if packet.pts is None else max(packet.pts + ticks, packet.dts)
            packet.stream = self.streams[index]
            yield packet


class EncodedSound:
    """Samples encoded at their own rate and channel count, from ``start`` seconds to the picture's end.

    The sound is read as the picture advances; :meth:`close` lets go of its file.
    """

    def __init__(self, output: av.container.OutputContainer, audio: Recording, codec: str, start: Fraction) -> None:
        self.output, self.audio, self.start, self.written = output, audio, start, 0
        self.pieces, self.waiting = audio.pieces(), np.zeros((audio.channels, 0), np.float32)  # read, not yet encoded
        rate = _encoder_rate(codec, audio.sample_rate)
        if audio.channels not in LAYOUTS:
            logger.warning("%d audio channels are mixed down to one; 8 are the most that are written.", audio.channels)
        self.layout = LAYOUTS.get(audio.channels, "mono")
        layout = WIDER.get((codec, self.layout), self.layout)
        self.stream = output.add_stream(codec, rate=rate, layout=layout)
        self.stream.time_base = Fraction(1, rate)
        if codec in ("aac", "libopus"):
            self.stream.bit_rate = BITS_PER_CHANNEL * self.stream.layout.nb_channels
        self.resampler = av.AudioResampler(self.stream.format, layout, rate)

    def advance(self, end: Fraction) -> None:
        rate = self.audio.sample_rate
        stop = round((end - self.start) * rate)
        while self.written < stop:
            self._encode(min(stop - self.written, int(CHUNK_S * rate)))

    def finish(self, end: Fraction) -> None:
        self.advance(end)
        for sound in self.resampler.resample(None):
            self.output.mux(self.stream.encode(sound))
        self.output.mux(self.stream.encode(None))

    def close(self) -> None:
        """Stop reading."""
        self.pieces.close()

    def _next(self, count: int) -> np.ndarray:
        """(channels, count) samples; past the end of the sound they are silence."""
        parts, missing = [self.waiting], count - self.waiting.shape[1]
        while missing > 0 and (piece := next(self.pieces, None)) is not None:
            parts.append(piece.numpy())
            missing -= piece.shape[1]
        samples = np.concatenate(parts, axis=1)
        self.waiting = samples[:, count:]
        return np.pad(samples[:, :count], ((0, 0), (0, max(0, missing))))

    def _encode(self, count: int) -> None:
        """Encode the next ``count`` samples."""
        samples = self._next(count).clip(-1, 1)
        if len(samples) not in LAYOUTS:
            samples = samples.mean(0, keepdims=True)
        packed = np.ascontiguousarray(samples.T, np.float32).reshape(1, -1)  # see listen: not planar
        sound = av.AudioFrame.from_ndarray(packed, "flt", self.layout)
        sound.sample_rate = self.audio.sample_rate
        sound.time_base = Fraction(1, self.audio.sample_rate)
        sound.pts = round(self.start * self.audio.sample_rate) + self.written
        self.written += count
        for part in self.resampler.resample(sound):
            self.output.mux(self.stream.encode(part))


def _encoder_rate(codec: str, rate: int) -> int:
    """The encoder's own rate nearest above ``rate``; most take any."""
    rates = RATES.get(codec, (rate,))
    nearest = min((option for option in rates if option >= rate), default=max(rates))
    if nearest != rate:
        logger.warning("%s has no %d Hz; the sound is resampled to %d Hz.", codec, rate, nearest)
    return nearest


def _file_start(source: av.container.InputContainer) -> Fraction:
    for stream in [*source.streams.video, *sound_streams(source)]:
        if not stream.disposition & av.stream.Disposition.attached_pic and stream.start_time is not None:
            return stream.start_time * fraction(stream.time_base)
    return Fraction(0)
