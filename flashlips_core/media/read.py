"""Read video from any file that FFmpeg reads: probe, and upright planar frames one at a time. Sound is read in ``listen``.

PyAV 18 crashes when a stream outlives its container, so a stream is only touched inside the ``with`` that opened its file.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av

from ..types import ClipInfo, FlashLipsError, Frame
from .extras import light_of, say_what_is_lost
from .joins import CLOCK_ANYWHERE, Joins
from .planes import Layout, Orientation, Planes, change_depth, color_of, orientation_of, planar, resample_chroma
from .pyav import READING, fraction, local
from .sound import sound_streams
from .times import indexed_times, is_counted, packet_times, timed_streams
from .webp import TICK, is_animated_webp, webp_pictures, webp_stamps
from .whole import breaks_off, check_whole

logger = logging.getLogger(__name__)

MAX_DAMAGED = 1000  # then the demuxer fails without moving on


def probe(path: str | Path) -> ClipInfo:
    """Describe a clip by its header and first picture; packet by packet where the header does not tell, or cannot be believed.

    Raises FlashLipsError if there is no readable video.
    """
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        stat = None  # open_media says why
    return _probed(str(path), stat and (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=64)
def _probed(path: str, version: object) -> ClipInfo:
    """:func:`probe`; a file is asked once as long as it is the same ``version``."""
    if is_animated_webp(path):
        return _probed_webp(path)
    with open_media(path) as container:
        times = indexed_times(container, video_stream(container, path))
        aspect = fraction(video_stream(container, path).sample_aspect_ratio) or Fraction(1)
        is_broadcast = container.format.flags & CLOCK_ANYWHERE
        start = Fraction(container.start_time or 0, av.time_base) if is_broadcast else Fraction(0)
        sound = [(audio.sample_rate, audio.channels) for audio in sound_streams(container) if audio.sample_rate]
    with open_media(path) as container:
        picture = _first_picture(container, video_stream(container, path), path)
        say_what_is_lost(picture, video_stream(container, path), path)
    if times is None:
        with open_media(path) as container:
            times = packet_times(container, video_stream(container, path), path)
    orientation = orientation_of(picture)
    planes, layout = planar(picture, orientation)
    color_range, colorspace = color_of(picture)
    return ClipInfo(
        path=path,
        width=planes[0].shape[1],
        height=planes[0].shape[0],
        fps=times.fps,
        num_frames=times.num_frames,
        duration=times.seconds,
        time_base=times.time_base,
        rotation=orientation.rotation,
        pix_fmt=layout.name,
        color_range=color_range,
        colorspace=colorspace,
        color_primaries=int(picture.color_primaries),
        color_trc=int(picture.color_trc),
        is_variable_rate=times.is_variable,
        audio_rate=sound[0][0] if sound else None,
        audio_channels=sound[0][1] if sound else None,
        pixel_aspect=1 / aspect if orientation.transpose else aspect,
        clock_start=start,
        light=light_of(picture),
        stamps=times.stamps,
    )


def _probed_webp(path: str) -> ClipInfo:
    stamps, end = webp_stamps(path)
    picture = next(webp_pictures(path))[0]
    planes, layout = planar(picture, Orientation())
    color_range, colorspace = color_of(picture)
    steps = {after - before for before, after in zip(stamps, stamps[1:], strict=False)}
    return ClipInfo(
        path=path,
        width=planes[0].shape[1],
        height=planes[0].shape[0],
        fps=Fraction(len(stamps), end) / TICK,
        num_frames=len(stamps),
        duration=end * TICK,
        time_base=TICK,
        rotation=0,
        pix_fmt=layout.name,
        color_range=color_range,
        colorspace=colorspace,
        color_primaries=colorspace,
        color_trc=colorspace,
        is_variable_rate=len(steps) > 1,
        audio_rate=None,
        audio_channels=None,
        stamps=tuple(stamps),
    )


def has_picture(path: str | Path) -> bool:
    """Whether a file holds a moving picture; a sound file may have a cover image at most."""
    if is_animated_webp(path):
        return True
    with open_media(path) as container:
        return any(not stream.disposition & av.stream.Disposition.attached_pic for stream in container.streams.video)


def read_frames(path: str | Path, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
    """Yield frames ``start`` to ``stop`` (exclusive) upright, as coded, with timestamps that only grow.

    A truncated file is an error: at once where its header tells, else after its last readable frame. Damage in the middle
    is stepped over with one warning.
    """
    return read_from(path, start, stop)


def read_from(
    path: str | Path, start: int = 0, stop: int | None = None, seek_pts: int | None = None, jumps: list | None = None
) -> Iterator[Frame]:
    """:func:`read_frames` that may enter the file in the middle.

    Args:
        seek_pts: the known timestamp of frame ``start``.
        jumps: gets the places where the file's clock jumps; behind the first one it cannot be entered.
    """
    if is_animated_webp(path):
        yield from _frames(itertools.islice(webp_pictures(path), start, stop), Orientation(), path)
        return
    with open_media(path) as container:
        stream = video_stream(container, path)
        stream.thread_type = "AUTO"
        can_seek = seek_pts is not None and not jumps and not is_counted(container)
        if can_seek:
            with suppress(av.FFmpegError):  # where it ended up shows below
                container.seek(seek_pts, stream=stream, backward=True, any_frame=False)
        step = 1 / (probe(path).fps * fraction(stream.time_base))
        pictures = _stamped(decode(container, stream, path, jumps), step, is_counted(container))
        first = next(pictures, None)
        if first is None and not can_seek:
            raise _no_picture(path)
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
    if "\0" in str(path) or path.is_dir() or not path.exists():
        raise FlashLipsError(f"No file at {path}; check the path.")
    try:
        container = av.open(local(path), **READING)
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


def decode(
    container: av.container.InputContainer, stream: av.stream.Stream, path: str | Path, jumps: list | None = None
) -> Iterator[av.frame.Frame]:
    """Decode one stream, step over damaged packets, and say once what was lost. A damaged end is an error.

    Where the file's clock jumps, times go on where they ended, see ``joins``; ``jumps`` then gets the places.
    """
    count, damaged, packet, frame, ended = 0, 0, None, None, False
    last_pts: int | None = None  # of the packets
    packets, joins = container.demux(timed_streams(container, stream)), Joins(container, path)
    while not ended:
        try:
            following = next(packets, None)
            ended = following is None
            if not ended:
                joins.mend(following)
                if jumps is not None:
                    jumps[:] = joins.jumps[1:]
                if following.stream.index != stream.index:
                    continue
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


def _first_picture(container: av.container.InputContainer, stream: av.VideoStream, path: str | Path) -> av.VideoFrame:
    picture = next(decode(container, stream, path), None)
    if picture is None:
        raise _no_picture(path)
    return picture


def _no_picture(path: str | Path) -> FlashLipsError:
    return FlashLipsError(f"{Path(path).name} holds no picture that can be decoded; it is empty or damaged: export it again.")


def picture_start(container: av.container.InputContainer) -> Fraction | None:
    """When the first picture is shown by the header, in seconds; None without any."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic and stream.start_time is not None:
            return stream.start_time * fraction(stream.time_base)
    return None


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
