"""Write video: timestamps, colour tags, bit depth and odd sizes as the source has them, sound copied or encoded beside it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from ..checks import check_output
from ..system.files import appearing, writing
from ..types import Audio, ClipInfo, FlashLipsError, Frame, Recording
from .extras import HLG, PQ, TOP_LEFT, CopiedSubtitles, keep_chapters, merged_tags, name_like
from .listen import check_audio, open_sound
from .planes import Layout, encodable_layout, parse_layout, to_picture
from .pyav import local
from .read import open_media, video_stream
from .sound import CopiedSound, EncodedSound, Sound, can_copy, sound_streams
from .webp import is_animated_webp

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
    extras_from: str | Path | None = None,
    is_exact: bool | None = None,
) -> None:
    """Encode ``frames`` to ``path``, which appears whole or not at all.

    Unless it is to be lossless, what is written is what players open: 4:2:0, in 8 bits H.264, in 10 bits HEVC; odd sizes get a
    pixel more.

    Timestamps and time base stay exact in .mp4 and .mov; Matroska and WebM count milliseconds. The sound is either
    ``audio``, heard from the first frame and cut or padded with silence to the picture's length, or the untouched packets
    of ``keep_audio_from``, or none.

    Args:
        like: the clip the frames come from: rate, time base, colour tags, pixel shape, HDR's light levels; and its length, as far
            as chapters and subtitles are kept.
        crf: quality, lower = better; 0 is lossless.
        metadata: tags for the container, such as ``{"comment": "..."}``.
        codec: "libx264", "libx265", "libvpx-vp9", "libsvtav1" or "ffv1"; by default what suffix and depth stand for.
        is_exact: keep layout, depth and size of the frames; by default where it is to be lossless.
        extras_from: the file whose tags, languages, chapters and subtitles are kept.
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
        has_extras = extras_from is not None and not is_animated_webp(extras_from)
        extras = files.enter_context(open_media(extras_from)) if has_extras else None
        tags = dict(metadata or {}) if extras is None else merged_tags(extras, dict(metadata or {}))
        output = files.enter_context(open_output(part, path.name, container, like, tags))
        codec = codec or ("libx265" if container.video == "libx264" and first.bit_depth > 8 and crf else container.video)
        keeps_all = crf == 0 if is_exact is None else is_exact
        video = _add_video(output, path.name, codec, first, like, (crf, preset), keeps_all)
        start = first.pts * like.time_base - like.clock_start
        sounds = [sound_beside(output, container.audio, audio, keep_audio_from, like, start, files)]
        if extras is not None:
            name_like(video, video_stream(extras, extras_from))
            keep_chapters(extras, output, like.clock_start, start + like.duration)
            sounds.append(CopiedSubtitles(output, extras, like.clock_start))
        _mux(output, path.name, video, [sound for sound in sounds if sound], itertools.chain([first], stream), like)
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
    sounds: Sequence[Sound],
    frames: Iterable[Frame],
    like: ClipInfo,
) -> None:
    """Encode picture and sound side by side, so that the muxer never holds back more than the encoder's delay."""
    layout, size, frames = parse_layout(video.pix_fmt), (video.width, video.height), _same_size(frames)
    nominal = max(1, round(1 / (like.fps * like.time_base)))
    offset = round(like.clock_start / like.time_base)
    with writing(name):
        output.start_encoding()
    for frame, following in _with_next(frames):
        picture = to_picture(frame, layout, size)
        picture.pts, picture.time_base = frame.pts - offset, like.time_base
        picture.duration = following.pts - frame.pts if following else nominal
        picture.color_range, picture.colorspace = frame.color_range, frame.colorspace
        end = (picture.pts + picture.duration) * like.time_base
        with writing(name):
            output.mux(video.encode(picture))
            for sound in sounds:
                sound.advance(end)
    with writing(name):
        output.mux(video.encode())
        for sound in sounds:
            sound.finish(end)


def _same_size(frames: Iterable[Frame]) -> Iterator[Frame]:
    size = None
    for frame in frames:
        size = size or (frame.width, frame.height)
        if (frame.width, frame.height) != size:
            raise FlashLipsError(f"All frames must be {size[0]}x{size[1]} like the first, got {frame.width}x{frame.height}.")
        yield frame


def _add_video(
    output: av.container.OutputContainer,
    name: str,
    codec: str,
    first: Frame,
    like: ClipInfo,
    quality: tuple[int, str],
    is_exact: bool,
) -> av.VideoStream:
    options, is_exact = _encoder_options(codec, *quality, like), is_exact or codec == "ffv1"
    try:
        formats = [f.name for f in av.codec.Codec(codec, "w").video_formats or []]
        stream = output.add_stream(codec, rate=like.fps.limit_denominator(1_001_000), options=options)
    except (av.FFmpegError, ValueError) as error:
        raise FlashLipsError(f"{codec} cannot be written into {name} ({error}); choose libx264 and .mp4.") from error
    source, width, height = parse_layout(first.pix_fmt), first.width, first.height
    is_even = codec in ODD_SIZES or not (width % 2 or height % 2)
    layout = encodable_layout(source, formats, is_exact, is_even)
    if not is_even and not is_exact:
        width, height = width + width % 2, height + height % 2
    _warn_of_change(source, layout, codec, first, (width, height))
    stream.width, stream.height, stream.pix_fmt = width, height, layout.name
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


def _encoder_options(codec: str, crf: int, preset: str, like: ClipInfo) -> dict[str, str]:
    if codec in ("libx264", "libx265"):
        # Without B-frames decoding times are display times, and the container's length of an uneven clip is exact.
        options = {"crf": str(crf), "preset": preset} | ({"bf": "0"} if like.is_variable_rate else {})
        return options | ({"x265-params": ":".join(_x265_words(crf, like))} if codec == "libx265" else {})
    if like.light:
        logger.warning("%s is written without the mastering display and light levels of HDR; .mp4 and .mkv keep them.", codec)
    if codec == "libvpx-vp9":
        return {"crf": str(crf), "b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1"}
    if codec == "libsvtav1":
        return {"crf": str(crf), "preset": "8"}
    if codec == "ffv1":
        return {"level": "3", "slicecrc": "1"}
    raise FlashLipsError(f"Unknown video encoder '{codec}'; choose libx264, libx265, libvpx-vp9, libsvtav1 or ffv1.")


def _x265_words(crf: int, like: ClipInfo) -> list[str]:
    is_hdr = like.color_trc in (PQ, HLG)
    words = ["log-level=error", *like.light] + (["hdr10-opt=1", "repeat-headers=1"] if like.color_trc == PQ else [])
    return words + ([f"chromaloc={TOP_LEFT}"] if is_hdr else []) + (["lossless=1"] if crf == 0 else [])


def _warn_of_change(source: Layout, layout: Layout, codec: str, first: Frame, size: tuple[int, int]) -> None:
    if layout.depth < source.depth:
        logger.warning(
            "The picture is rounded from %d bits to the %d that %s and players take.", source.depth, layout.depth, codec
        )
    if layout.sampling == "420" != source.sampling:
        logger.warning(
            "The picture's colours (%s) are halved to %s, which players open; --crf 0 keeps them.", source.name, layout.name
        )
    elif layout.sampling != source.sampling:
        logger.warning(
            "%s is written as %s to keep its exact size; some hardware players show 4:2:0 only.", source.name, layout.name
        )
    if size != (first.width, first.height):
        logger.warning(
            "The picture is written as %dx%d, its last pixels repeated: players open no odd sizes; --crf 0 keeps %dx%d.",
            *size, first.width, first.height,
        )  # fmt: skip


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
    if kept is not None and not is_animated_webp(kept):
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
