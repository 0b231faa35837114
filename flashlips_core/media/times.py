"""How many pictures a file holds and when each is shown: by its header where that can be believed, else packet by packet."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from .joins import Joins
from .pyav import fraction
from .sound import sound_streams

logger = logging.getLogger(__name__)

NO_TIMESTAMPS = 0x80  # FFmpeg's AVFMT_NOTIMESTAMPS: raw streams
HIGHEST_RATE = 480  # frames per second: a rate above, as headers may state it, is the tick of a clock
SAME_RATE = 0.02  # rates that differ by less are one
USUAL_RATES = *map(Fraction, (24, 25, 30, 48, 50, 60, 120)), *(Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120))
LONE_PICTURE = Fraction(25)  # any rate will do
ROUNDED = 5e-4  # a measured rate this near to a usual one is that one: stamps may be whole milliseconds


@dataclass(frozen=True)
class Times:
    """When the pictures of a file are shown."""

    fps: Fraction  # on average
    num_frames: int  # that can be read
    seconds: Fraction
    time_base: Fraction
    is_variable: bool
    stamps: tuple[int, ...] | None  # of every picture, in order; None where they are an even grid and their count is stated


def indexed_times(container: av.container.InputContainer, stream: av.VideoStream) -> Times | None:
    """Times by the file's own index of every packet; None where it has none, or its packets must be read to know them."""
    entries = stream.index_entries
    if not stream.frames or len(entries) != stream.frames or any(entry.is_discard for entry in entries):
        return None  # an edit list that shows a part has discarded entries
    tick, seconds = fraction(stream.time_base), _stream_seconds(container, stream)
    stamps = np.array([entry.timestamp for entry in entries], np.int64)  # of decoding: as even or uneven as those of display
    fps = _header_rate(stream, seconds) or _measured(stamps, tick) or LONE_PICTURE
    if len(stamps) > max(container.size, 1) or not is_counted(container) and _is_variable(stamps, fps * tick):
        return None
    return Times(fps, len(stamps), seconds or len(stamps) / fps, tick, False, None)


def is_counted(container: av.container.InputContainer) -> bool:
    """Whether timestamps say nothing: AVI gives them in decoding order, raw streams have none."""
    return container.format.name == "avi" or bool(container.format.flags & NO_TIMESTAMPS)


def timed_streams(container: av.container.InputContainer, stream: av.stream.Stream) -> list[av.stream.Stream]:
    """A stream and those that tell with it where the file's clock jumps: its pictures and sounds."""
    others = [*container.streams.video[:1], *sound_streams(container)[:1]]
    return [stream, *(other for other in others if other.index != stream.index)]


def packet_times(container: av.container.InputContainer, stream: av.VideoStream, path: str | Path) -> Times:
    """Times by the packets, all of them."""
    tick, joins, counted = fraction(stream.time_base), Joins(container, path), is_counted(container)
    fps = _header_rate(stream, _stream_seconds(container, stream))
    shown, count = [], 0
    try:
        for packet in container.demux(timed_streams(container, stream)):
            joins.mend(packet)
            if packet.stream.index == stream.index and packet.size and not packet.is_discard:
                count += 1
                shown += [] if packet.pts is None else [(packet.pts, packet.duration or 0)]
    except av.FFmpegError as error:
        logger.debug("%s: %s", Path(path).name, error)
    if len(joins.jumps) > 1:
        name, places = Path(path).name, len(joins.jumps) - 1
        logger.warning("The clock of %s jumps in %d places; what follows goes on where it ended, without a gap.", name, places)
    if counted or len(shown) < max(2, count // 2):
        fps, count = fps or LONE_PICTURE, max(1, count)
        return Times(fps, count, count / fps, tick, False, None)
    shown.sort()
    every = np.arange(len(shown))
    stamps = np.maximum.accumulate(np.array([pts for pts, _ in shown], np.int64) - every) + every  # they only grow
    measured = _measured(stamps, tick) or fps or LONE_PICTURE
    fps = fps if fps and abs(measured / fps - 1) < SAME_RATE else measured
    seconds = int(stamps[-1] - stamps[0] + (shown[-1][1] or round(1 / (fps * tick)))) * tick
    return Times(fps, len(stamps), seconds, tick, _is_variable(stamps, fps * tick), tuple(stamps.tolist()))


def _header_rate(stream: av.VideoStream, seconds: Fraction) -> Fraction | None:
    """The average rate, or the nominal one where both agree to within a frame over the whole clip (30000/1001)."""
    stated = map(fraction, (stream.average_rate, stream.base_rate))
    average, nominal = (rate if 0 < rate <= HIGHEST_RATE else None for rate in stated)
    if average and nominal and abs(average - nominal) * seconds < 1:
        return nominal
    return average or nominal


def _measured(stamps: np.ndarray, tick: Fraction) -> Fraction | None:
    """Pictures per second by their times; a usual rate where rounding alone may have moved it."""
    if len(stamps) < 2 or stamps[-1] <= stamps[0]:
        return None
    rate = (len(stamps) - 1) / (int(stamps[-1] - stamps[0]) * tick)
    return next((usual for usual in USUAL_RATES if abs(rate / usual - 1) < ROUNDED), rate)


def _stream_seconds(container: av.container.InputContainer, stream: av.VideoStream) -> Fraction:
    """Length of the video: the stream's, Matroska's DURATION tag, or the container's; 0 if none is known."""
    if stream.duration:
        return max(stream.duration, 0) * fraction(stream.time_base)
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    except ValueError:
        return Fraction(max(container.duration or 0, 0), av.time_base)


def _is_variable(stamps: np.ndarray, frames_per_tick: Fraction) -> bool:
    """Whether timestamps leave an even grid by more than rounding, or the whole file's rate differs from these."""
    if len(stamps) < 3:
        return False
    steps = np.diff(stamps)
    if steps.max() - steps.min() > 2:  # ticks; both ends of a step may be rounded
        return True
    return abs(float(steps.mean() * frames_per_tick) - 1) > SAME_RATE
