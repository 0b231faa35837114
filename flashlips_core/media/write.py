"""Write video: timestamps, colour tags, bit depth and odd sizes as the source has them, sound copied or encoded beside it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from ..checks import check_output
from ..system.files import appearing, writing
from ..types import Audio, ClipInfo, FlashLipsError, Frame, Recording
from .listen import check_audio, open_sound
from .planes import Layout, encodable_layout, parse_layout, to_picture
from .pyav import local
from .read import open_media
from .sound import CopiedSound, EncodedSound, Sound, can_copy, sound_streams

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Container:
    """What a file suffix stands for."""

    format: str  # FFmpeg's muxer
    video: str  # default encoders
    audio: str
    options: tuple[tuple[str, str], ...] = ()


CONTAINERS = {
    ".mp4": Container("mp4", "libx264", "aac", (("movflags", "+faststart"),)),
    ".m4v": Container("mp4", "libx264", "aac", (("movflags", "+faststart"),)),
    ".mov": Container("mov", "libx264", "pcm_s16le", (("movflags", "+faststart"),)),
    ".mkv": Container("matroska", "libx264", "flac"),
    ".webm": Container("webm", "libvpx-vp9", "libopus"),
}
COMMON_TAGS = {"title", "comment", "description", "artist", "date", "copyright", "major_brand", "minor_version", "encoder"}
COMMON_TAGS |= {"compatible_brands"}  # what MP4 has boxes for, and what its muxer writes itself
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")  # x264's
WORST_CRF = 51  # of x264 and x265; VP9 and AV1 count to 63
ODD_SIZES = {"ffv1", "libvpx-vp9", "libsvtav1"}  # encoders that take any size in 4:2:0


def write_video(
    path: str | Path,
    frames: Iterable[Frame],
    like: ClipInfo,
    audio: Recording | None = None,
    keep_audio_from: str | Path | None = None,
    crf: int = 16,
    preset: str = "veryfast",
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
    codec: str | None = None,
) -> None:
    """Encode ``frames`` to ``path``, which appears whole or not at all (``.part`` beside it, then renamed).

    Timestamps and time base stay exact in .mp4 and .mov; Matroska and WebM count milliseconds. The sound is either
    ``audio``, heard from the first frame and cut or padded with silence to the picture's length, or the untouched packets
    of ``keep_audio_from``, or none.

    Args:
        like: the clip the frames come from: rate, time base, colour tags, pixel shape.
        crf: quality, lower = better; 0 is lossless for libx264.
        metadata: tags for the container, such as ``{"comment": "..."}``.
        codec: "libx264", "libx265", "libvpx-vp9", "libsvtav1" or "ffv1"; by default what the suffix stands for.
    """
    path = Path(path)
    container = container_for(path)
    check_output(path, [like.path, keep_audio_from], overwrite=overwrite)
    check_quality(crf, preset)
    _check_sound(audio, keep_audio_from)
    stream = iter(frames)
    first = next(stream, None)
    if first is None:
        raise FlashLipsError(f"There is no frame to write into {path.name}; the source is empty or was cut to nothing.")
    with appearing(path) as part, ExitStack() as files:
        output = files.enter_context(open_output(part, path.name, container, like, metadata or {}))
        video = _add_video(output, codec or container.video, first, like, {"crf": str(crf), "preset": preset})
        start = first.pts * like.time_base - like.clock_start
        sound = sound_beside(output, container.audio, audio, keep_audio_from, like, start, files)
        _mux(output, path.name, video, sound, itertools.chain([first], stream), like)
        with writing(path.name):
            output.close()


def _check_sound(audio: Recording | None, keep_audio_from: str | Path | None) -> None:
    if audio is not None and keep_audio_from is not None:
        raise FlashLipsError("Got both new audio and a file to keep audio from; give one of them.")
    if isinstance(audio, Audio):  # another one has been checked when it was opened
        check_audio(audio)


def _mux(
    output: av.container.OutputContainer,
    name: str,
    video: av.VideoStream,
    sound: Sound | None,
    frames: Iterable[Frame],
    like: ClipInfo,
) -> None:
    """Encode picture and sound side by side, so that the muxer never holds back more than the encoder's delay."""
    layout = parse_layout(video.pix_fmt)
    nominal = max(1, round(1 / (like.fps * like.time_base)))
    offset = round(like.clock_start / like.time_base)
    with writing(name):
        output.start_encoding()
    for frame, following in _with_next(frames):
        _check_size(frame, video)
        picture = to_picture(frame, layout)
        picture.pts, picture.time_base = frame.pts - offset, like.time_base
        picture.duration = following.pts - frame.pts if following else nominal
        picture.color_range, picture.colorspace = frame.color_range, frame.colorspace
        end = (picture.pts + picture.duration) * like.time_base
        with writing(name):
            output.mux(video.encode(picture))
            if sound:
                sound.advance(end)
    with writing(name):
        output.mux(video.encode())
        if sound:
            sound.finish(end)


def _check_size(frame: Frame, video: av.VideoStream) -> None:
    if (frame.width, frame.height) != (video.width, video.height):
        raise FlashLipsError(f"All frames must be {video.width}x{video.height} like the first, got {frame.width}x{frame.height}.")


def _add_video(
    output: av.container.OutputContainer, codec: str, first: Frame, like: ClipInfo, options: dict[str, str]
) -> av.VideoStream:
    options = _encoder_options(codec, options, like)
    try:
        formats = [f.name for f in av.codec.Codec(codec, "w").video_formats or []]
        stream = output.add_stream(codec, rate=like.fps.limit_denominator(1_001_000), options=options)
    except (av.FFmpegError, ValueError) as error:
        raise FlashLipsError(
            f"{codec} cannot be written into {Path(output.name).stem} ({error}); choose libx264 and .mp4."
        ) from error
    source = parse_layout(first.pix_fmt)
    layout = encodable_layout(source, first.width, first.height, formats, codec in ODD_SIZES)
    _warn_of_change(source, layout, codec)
    stream.width, stream.height, stream.pix_fmt = first.width, first.height, layout.name
    stream.time_base = stream.codec_context.time_base = like.time_base
    context = stream.codec_context
    if codec == "libx265":
        context.codec_tag = "hvc1"  # QuickTime refuses FFmpeg's own choice, hev1
    context.color_range, context.colorspace = first.color_range, first.colorspace
    context.color_primaries, context.color_trc = like.color_primaries, like.color_trc
    if like.pixel_aspect != 1:
        context.sample_aspect_ratio = like.pixel_aspect
    context.thread_type = "AUTO"
    return stream


def _encoder_options(codec: str, options: dict[str, str], like: ClipInfo) -> dict[str, str]:
    if codec in ("libx264", "libx265"):
        # Without B-frames decoding times are display times, and the container's length of an uneven clip is exact.
        return options | ({"bf": "0"} if like.is_variable_rate else {})
    if codec == "libvpx-vp9":
        return {"crf": options["crf"], "b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1"}
    if codec == "libsvtav1":
        return {"crf": options["crf"], "preset": "8"}
    if codec == "ffv1":
        return {"level": "3", "slicecrc": "1"}
    raise FlashLipsError(f"Unknown video encoder '{codec}'; choose libx264, libx265, libvpx-vp9, libsvtav1 or ffv1.")


def _warn_of_change(source: Layout, layout: Layout, codec: str) -> None:
    if layout.depth < source.depth:
        logger.warning("%s takes at most %d bits here; the picture is rounded from %d bits.", codec, layout.depth, source.depth)
    if layout.sampling != source.sampling:
        logger.warning(
            "%s is written as %s to keep its exact size; some hardware players show 4:2:0 only.", source.name, layout.name
        )


def sound_beside(
    output: av.container.OutputContainer,
    codec: str,
    audio: Recording | None,
    kept: str | Path | None,
    like: ClipInfo,
    start: Fraction,
    files: ExitStack,
) -> Sound | None:
    """``audio`` from ``start`` seconds on, or the sound of the file ``kept`` as it is where the container holds it, or none.

    The sound of the clip itself keeps its place beside the picture, that of another file starts with it.
    """
    if kept is not None:
        source = files.enter_context(open_media(kept))
        if not sound_streams(source):
            return None
        if can_copy(source, output):
            is_own = Path(kept).resolve() == Path(like.path).resolve()
            return CopiedSound(output, source, None if is_own else start, like.clock_start if is_own else Fraction(0))
        logger.warning("%s cannot hold the sound of %s as it is; it is encoded again.", output.format.name, Path(kept).name)
        audio = open_sound(kept)
    return None if audio is None else files.enter_context(closing(EncodedSound(output, audio, codec, start)))


def check_quality(crf: int, preset: str) -> None:
    """Refuse a quality or a preset that encoders do not have."""
    if not 0 <= crf <= WORST_CRF:
        raise FlashLipsError(f"The quality (crf) is a number from 0, lossless, to {WORST_CRF}, the smallest file; got {crf}.")
    if preset not in PRESETS:
        raise FlashLipsError(f"Unknown preset '{preset}'; choose one of {', '.join(PRESETS)}.")


def container_for(path: Path) -> Container:
    """The container that a file's suffix stands for."""
    container = CONTAINERS.get(path.suffix.lower())
    if container is None:
        raise FlashLipsError(f"Cannot write '{path.name}': the suffix must be one of {', '.join(CONTAINERS)}.")
    return container


@contextmanager
def open_output(
    part: Path, name: str, container: Container, like: ClipInfo, metadata: Mapping[str, str]
) -> Iterator[av.container.OutputContainer]:
    """A new file of this kind with its tags, which becomes ``name``."""
    options = dict(container.options)
    if container.format in ("mp4", "mov"):
        if not COMMON_TAGS.issuperset(metadata):
            options["movflags"] += "+use_metadata_tags"  # else other names are dropped
        # A start later than 0 is stored in the movie's own ticks: as fine as the video's, so that it stays exact.
        options["movie_timescale"] = str(like.time_base.denominator)
    with writing(name):
        output = av.open(local(part), "w", format=container.format, options=options)
    output.metadata.update(metadata)
    try:
        yield output
        with writing(name):
            output.close()
    except BaseException:
        with suppress(Exception):  # the end of a file that is thrown away cannot be written either
            output.close()
        raise


def _with_next(frames: Iterable[Frame]) -> Iterator[tuple[Frame, Frame | None]]:
    previous = None
    for frame in frames:
        if previous is not None:
            yield previous, frame
        previous = frame
    if previous is not None:
        yield previous, None
