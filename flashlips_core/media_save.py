"""Save a finished clip: its packets copied into another container, or encoded again; with its own sound or another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from fractions import Fraction
from pathlib import Path

import av

from .media_read import open_media, probe, read_frames, video_stream
from .media_sound import CopiedSound, EncodedSound, can_copy
from .media_write import CONTAINERS, check_target, container_for, open_output, write_video, writing
from .stream import prefetch
from .types import Audio, FlashLipsError, Frame, Progress

ENCODERS = {"h264": "libx264", "h265": "libx265", "vp9": "libvpx-vp9", "av1": "libsvtav1", "ffv1": "ffv1"}
PRESET = "fast"


def save_clip(
    source: str | Path,
    out: str | Path,
    codec: str = "copy",
    crf: int = 18,
    audio: Audio | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write ``source`` as ``out``, which appears whole or not at all; tags of the source are kept.

    Args:
        codec: "copy" moves the coded pictures as they are, or one of ENCODERS.
        crf: quality where it is encoded, lower = better.
        audio: other sound, heard from the first frame on, cut or padded to the picture; None keeps the source's packets.
    """
    clip = probe(source)
    with open_media(source) as container:
        tags = {**container.metadata, **(metadata or {})}
    if codec == "copy":
        copy_clip(source, out, audio, tags, progress)
        return
    if codec not in ENCODERS:
        raise FlashLipsError(f"Unknown codec '{codec}'; choose copy, {', '.join(ENCODERS)}.")
    with closing(prefetch(read_frames(source))) as frames:
        shown = _counted(frames, clip.num_frames, progress)
        keep = None if audio else source
        write_video(out, shown, clip, audio, keep, crf, PRESET, tags, codec=ENCODERS[codec])


def copy_clip(
    source: str | Path,
    out: str | Path,
    audio: Audio | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Move the coded pictures of ``source`` into another file, bit for bit."""
    out = Path(out)
    clip, kind = probe(source), container_for(out)
    check_target(out, [source], overwrite=True)
    part = out.with_name(out.name + ".part")
    try:
        with ExitStack() as files:
            media = files.enter_context(open_media(source))
            pictures = video_stream(media, source)
            output = files.enter_context(open_output(part, kind, clip, metadata or {}))
            codec = pictures.codec_context.codec.canonical_name
            if pictures.codec_context.codec.name not in output.supported_codecs and codec not in output.supported_codecs:
                raise FlashLipsError(
                    f"{out.suffix} cannot hold {codec} video as it is; choose mkv, or a codec to encode it with."
                )
            stream = output.add_stream_from_template(pictures)
            start = (pictures.start_time or 0) * pictures.time_base
            sound = _sound_of(source, output, kind.audio, audio, start, files)
            done, end = 0, start
            for packet in media.demux(pictures):
                if packet.dts is None:  # the demuxer's flush packet
                    continue
                end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                dts, packet.stream = packet.dts * packet.time_base, stream
                done += 1
                with writing(out.name):
                    output.mux(packet)
                    if sound:
                        sound.advance(dts)
                if progress is not None:
                    progress(min(done, clip.num_frames), clip.num_frames)
            with writing(out.name):
                if sound:
                    sound.finish(end)
                output.close()
        with writing(out.name):
            part.replace(out)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _sound_of(
    source: str | Path, output: av.container.OutputContainer, codec: str, audio: Audio | None, start: Fraction, files: ExitStack
) -> CopiedSound | EncodedSound | None:
    if audio is not None:
        return EncodedSound(output, audio, codec, start)
    media = files.enter_context(open_media(source))  # a second reading place: both streams at their own pace
    if not media.streams.audio:
        return None
    if can_copy(media, output):
        return CopiedSound(output, media, None, Fraction(0))
    from .media_read import load_audio

    return EncodedSound(output, load_audio(source), codec, start)


def suffix_like(source: str | Path) -> str:
    """The suffix of the container that a file has, .mp4 where it is none that is written here."""
    suffix = Path(source).suffix.lower()
    if suffix in CONTAINERS:
        return suffix
    with open_media(source) as media:
        names = media.format.name.split(",")
    return ".mkv" if "matroska" in names else ".mp4"


def _counted(frames: Iterator[Frame], total: int, progress: Progress | None) -> Iterator[Frame]:
    for done, frame in enumerate(frames, 1):
        yield frame
        if progress is not None:
            progress(min(done, total), total)
