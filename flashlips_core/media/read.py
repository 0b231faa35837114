"""Read video from any file that FFmpeg reads: probe, and upright planar frames one at a time. Sound is read in ``media_listen``.

PyAV 18 crashes when a stream outlives its
container, so a stream is only touched inside the ``with`` that opened its file.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..types import ClipInfo, FlashLipsError, Frame
from .planes import Layout, Orientation, Planes, change_depth, color_of, orientation_of, planar, resample_chroma
from .pyav import READING, fraction
from .sound import sound_streams
from .whole import breaks_off, check_whole

logger = logging.getLogger(__name__)

PACKETS_PROBED = 250  # enough to tell a variable frame rate from a constant one
REORDER_MARGIN = 16  # packets at the end of that stretch that may lack a neighbour in time: H.264's largest delay
MAX_DAMAGED = 1000  # then the demuxer fails without moving on
NO_TIMESTAMPS = 0x80  # FFmpeg's AVFMT_NOTIMESTAMPS: raw streams


def probe(path: str | Path) -> ClipInfo:
    """Describe a clip by its header and first picture. Raises FlashLipsError if there is no readable video."""
    with open_media(path) as container:
        stream = video_stream(container, path)
        stamps = _first_stamps(container, stream)
        time_base, is_counted = fraction(stream.time_base), _is_counted(container)
        seconds = _stream_seconds(container, stream)
        fps = _frame_rate(stream, stamps, seconds)
        num_frames = max(1, stream.frames or round(seconds * fps) or len(stamps))
        sound = [(audio.sample_rate, audio.channels) for audio in sound_streams(container) if audio.sample_rate]
    with open_media(path) as container:
        picture = _first_picture(container, video_stream(container, path), path)
    orientation = orientation_of(picture)
    planes, layout = planar(picture, orientation)
    color_range, colorspace = color_of(picture)
    return ClipInfo(
        path=str(path),
        width=planes[0].shape[1],
        height=planes[0].shape[0],
        fps=fps,
        num_frames=num_frames,
        duration=seconds or num_frames / fps,
        time_base=time_base,
        rotation=orientation.rotation,
        pix_fmt=layout.name,
        color_range=color_range,
        colorspace=colorspace,
        color_primaries=int(picture.color_primaries),
        color_trc=int(picture.color_trc),
        is_variable_rate=not is_counted and _is_variable(stamps, fps * time_base),
        audio_rate=sound[0][0] if sound else None,
        audio_channels=sound[0][1] if sound else None,
    )


def has_picture(path: str | Path) -> bool:
    """Whether a file holds a moving picture; a sound file may have a cover image at most."""
    with open_media(path) as container:
        return any(not stream.disposition & av.stream.Disposition.attached_pic for stream in container.streams.video)


def read_frames(path: str | Path, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
    """Yield frames ``start`` to ``stop`` (exclusive) upright, as coded, with timestamps that only grow.

    A truncated file is an error: at once where its header tells, else after its last readable frame. Damage in the middle
    is stepped over with one warning.
    """
    return read_from(path, start, stop)


def read_from(path: str | Path, start: int = 0, stop: int | None = None, seek_pts: int | None = None) -> Iterator[Frame]:
    """:func:`read_frames` that may jump: ``seek_pts`` is the known timestamp of frame ``start``."""
    with open_media(path) as container:
        stream = video_stream(container, path)
        stream.thread_type = "AUTO"
        can_seek = seek_pts is not None and not _is_counted(container)
        if can_seek:
            with suppress(av.FFmpegError):  # where it ended up shows below
                container.seek(seek_pts, stream=stream, backward=True, any_frame=False)
        step = 1 / (_frame_rate(stream, [], Fraction(0)) * fraction(stream.time_base))
        pictures = _stamped(decode(container, stream, path), step, _is_counted(container))
        first = next(pictures, None)
        if first is None and not can_seek:
            raise FlashLipsError(
                f"{Path(path).name} holds no picture that can be decoded; it is empty or damaged: export it again."
            )
        if not can_seek or (first is not None and first[1] <= seek_pts):
            orientation = orientation_of(first[0])
            wanted = itertools.chain([first], pictures)
            if can_seek:
                wanted = itertools.dropwhile(lambda stamped: stamped[1] < seek_pts, wanted)
            else:
                wanted = itertools.islice(wanted, start, None)
            yield from _frames(itertools.islice(wanted, None if stop is None else max(0, stop - start)), orientation, path)
            return
    logger.debug("%s cannot be entered at pts %s; reading it from the start.", Path(path).name, seek_pts)
    yield from read_from(path, start, stop)


@contextmanager
def open_media(path: str | Path) -> Iterator[av.container.InputContainer]:
    """Open a local file for reading; what FFmpeg says against it becomes one sentence."""
    path = Path(path)
    if path.is_dir() or not path.exists():
        raise FlashLipsError(f"No file at {path}; check the path.")
    try:
        container = av.open(str(path), **READING)
    except (av.FFmpegError, OSError) as error:
        raise FlashLipsError(
            f"{path.name} cannot be read as video or audio ({_reason(error)}); it is damaged or not a media file."
        ) from error
    with container:
        check_whole(container, path)
        yield container


def video_stream(container: av.container.InputContainer, path: str | Path) -> av.VideoStream:
    """The first moving picture of a file; a cover image is none."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    raise FlashLipsError(f"{Path(path).name} has no video stream; choose a file with a picture.")


def _frames(stamped: Iterator[tuple[av.VideoFrame, int]], orientation: Orientation, path: str | Path) -> Iterator[Frame]:
    size: tuple[int, int] | None = None
    wanted: Layout | None = None
    is_scaled = False
    for picture, pts in stamped:
        color_range, colorspace = color_of(picture)
        size = size or (picture.width, picture.height)
        if (picture.width, picture.height) != size:
            if not is_scaled:
                logger.warning("%s changes its size midway; later frames are scaled to the first one's.", Path(path).name)
            is_scaled = True
            picture = picture.reformat(*size)
        planes, layout = planar(picture, orientation)
        wanted = wanted or layout
        if layout != wanted:
            planes = _same_layout(planes, layout, wanted, path)
        yield Frame(planes, wanted.name, pts, color_range, colorspace)


def _same_layout(planes: Planes, layout: Layout, wanted: Layout, path: str | Path) -> Planes:
    if layout.sampling != wanted.sampling and wanted.sampling != "444":
        raise FlashLipsError(
            f"{Path(path).name} changes from {wanted.name} to {layout.name} midway; convert it to one format first."
        )
    return change_depth(resample_chroma(planes, layout, wanted.sampling), layout.depth, wanted.depth)


def decode(container: av.container.InputContainer, stream: av.stream.Stream, path: str | Path) -> Iterator[av.frame.Frame]:
    """Decode one stream, step over damaged packets, and say once what was lost. A damaged end is an error."""
    count, damaged, packet, frame, ended = 0, 0, None, None, False
    last_pts: int | None = None  # of the packets
    packets = container.demux(stream)
    while not ended:
        try:
            following = next(packets, None)
            ended = following is None
            if not ended and following.size:
                packet = following
                last_pts = max(last_pts or packet.pts or 0, packet.pts or 0)
            frames = [] if ended else following.decode()
        except av.FFmpegError as error:
            damaged += 1
            logger.debug("%s: %s", Path(path).name, error)
            if damaged > MAX_DAMAGED:
                break
            continue
        for frame in frames:
            count += 1
            yield frame
    if packet is not None and count and _ends_damaged(packet, frame, damaged > 0, last_pts):
        pieces = "frames" if stream.type == "video" else "pieces of sound"
        seconds = float((frame.pts - (stream.start_time or 0)) * fraction(stream.time_base)) if frame.pts is not None else 0.0
        raise breaks_off(path, f"only the first {count} {pieces} can be read", seconds)
    if damaged:
        logger.warning("%s is damaged in %d places; what could be decoded is used.", Path(path).name, damaged)


def _ends_damaged(packet: av.Packet, frame: av.frame.Frame, is_damaged: bool, last_pts: int | None) -> bool:
    """Whether the last packet is cut short, or could not be decoded, or only in part."""
    if packet.is_corrupt:
        return True
    if not isinstance(frame, av.VideoFrame):
        return False  # MP3 and AAC files may end in tags
    is_missing = is_damaged and frame.pts is not None and last_pts is not None and frame.pts < last_pts
    return is_missing or frame.is_corrupt


def _stamped(pictures: Iterator[av.VideoFrame], step: Fraction, is_counted: bool) -> Iterator[tuple[av.VideoFrame, int]]:
    """Pair pictures with timestamps that only grow; missing ones are counted on at the frame rate."""
    pts: int | None = None
    for index, picture in enumerate(pictures):
        if is_counted:
            pts = round(index * step)
        elif pts is None:
            pts = picture.pts or 0
        else:
            pts = max(pts + 1, picture.pts if picture.pts is not None else pts + round(step))
        yield picture, pts


def _is_counted(container: av.container.InputContainer) -> bool:
    """Whether timestamps say nothing: AVI gives them in decoding order, raw streams have none."""
    return container.format.name == "avi" or bool(container.format.flags & NO_TIMESTAMPS)


def _first_picture(container: av.container.InputContainer, stream: av.VideoStream, path: str | Path) -> av.VideoFrame:
    picture = next(decode(container, stream, path), None)
    if picture is None:
        raise FlashLipsError(f"{Path(path).name} holds no picture that can be decoded; it is empty or damaged: export it again.")
    return picture


def _first_stamps(container: av.container.InputContainer, stream: av.VideoStream) -> list[int]:
    """Timestamps of the first packets in order of time."""
    stamps: list[int] = []
    try:
        for packet in itertools.islice(container.demux(stream), PACKETS_PROBED):
            if packet.pts is not None:
                stamps.append(packet.pts)
    except av.FFmpegError:
        logger.debug("The header's neighbourhood is damaged; %d timestamps read.", len(stamps))
    return sorted(stamps)[: max(2, len(stamps) - REORDER_MARGIN) if len(stamps) == PACKETS_PROBED else None]


def _frame_rate(stream: av.VideoStream, stamps: list[int], seconds: Fraction) -> Fraction:
    """The average rate, or the nominal one where both agree to within a frame over the whole clip (30000/1001)."""
    average, nominal = map(fraction, (stream.average_rate, stream.base_rate))
    if average and nominal and abs(average - nominal) * seconds < 1:
        return nominal
    if average or nominal:
        return average or nominal
    if len(stamps) > 1 and stamps[-1] > stamps[0]:
        return (len(stamps) - 1) / ((stamps[-1] - stamps[0]) * fraction(stream.time_base))
    return Fraction(25)  # a single picture: any rate will do


def _stream_seconds(container: av.container.InputContainer, stream: av.VideoStream) -> Fraction:
    """Length of the video: the stream's, Matroska's DURATION tag, or the container's; 0 if none is known."""
    if stream.duration:
        return stream.duration * fraction(stream.time_base)
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    except ValueError:
        return Fraction(container.duration or 0, av.time_base)


def _is_variable(stamps: list[int], frames_per_tick: Fraction) -> bool:
    """Whether timestamps leave an even grid by more than rounding, or the whole file's rate differs from its beginning's."""
    if len(stamps) < 3:
        return False
    steps = np.diff(stamps)
    if steps.max() - steps.min() > 2:  # ticks; both ends of a step may be rounded
        return True
    return abs(float(steps.mean() * frames_per_tick) - 1) > 0.02


def picture_start(container: av.container.InputContainer) -> Fraction | None:
    """When the first picture is shown by the header, in seconds; None without any."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic and stream.start_time is not None:
            return stream.start_time * fraction(stream.time_base)
    return None


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
