"""Save a finished clip: its packets copied into another container, or encoded again; with its own sound or another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from fractions import Fraction
from pathlib import Path

import av

from ..checks import check_output
from ..stream import counted, prefetch
from ..system.files import appearing, writing
from ..types import ClipInfo, FlashLipsError, Frame, Progress, Recording
from .extras import keep_chapters, name_like
from .joins import Joins
from .pyav import fraction
from .read import open_media, probe, read_frames, video_stream
from .sound import Sound
from .times import timed_streams
from .webp import is_animated_webp
from .write import CONTAINERS, container_for, open_output, sound_beside, write_video

ENCODERS = {"h264": "libx264", "h265": "libx265", "vp9": "libvpx-vp9", "av1": "libsvtav1", "ffv1": "ffv1"}
PRESET = "fast"


def save_clip(
    source: str | Path,
    out: str | Path,
    codec: str = "copy",
    crf: int = 18,
    audio: Recording | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    show: Callable[[Frame], None] | None = None,
) -> None:
    """Write ``source`` as ``out``, which appears whole or not at all; tags of the source are kept.

    Args:
        codec: "copy" moves the coded pictures as they are, or one of ENCODERS.
        crf: quality where it is encoded, lower = better.
        audio: other sound, heard from the first frame on, cut or padded to the picture; None keeps the source's packets.
        show: gets each frame that is encoded again, for a preview.
    """
    clip = probe(source)
    tags = dict(metadata or {})
    if not is_animated_webp(source):
        with open_media(source) as container:
            tags = {**container.metadata, **tags}
    elif codec == "copy":
        raise FlashLipsError(
            f"The pictures of {Path(source).name} cannot be copied into a video; choose a codec to encode them with."
        )
    if codec == "copy":
        copy_clip(source, out, audio, tags, progress)
        return
    if codec not in ENCODERS:
        raise FlashLipsError(f"Unknown codec '{codec}'; choose copy, {', '.join(ENCODERS)}.")
    with closing(prefetch(read_frames(source))) as frames:
        shown = counted(frames, clip.num_frames, progress, show)
        keep = source if audio is None else None
        write_video(out, shown, clip, audio, keep, crf, PRESET, tags, codec=ENCODERS[codec], extras_from=source)


def copy_clip(
    source: str | Path,
    out: str | Path,
    audio: Recording | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Move the coded pictures of ``source`` into another file, bit for bit."""
    out = Path(out)
    clip, kind = probe(source), container_for(out)
    check_output(out, [source])
    with appearing(out) as part, ExitStack() as files:
        media = files.enter_context(open_media(source))
        output = files.enter_context(open_output(part, out.name, kind, clip, metadata or {}))
        pictures, shift = video_stream(media, source), clip.clock_start
        stream = _copied_stream(output, pictures, clip, out.suffix)
        name_like(stream, pictures)
        keep_chapters(media, output, shift, clip.duration)
        start = (pictures.start_time or 0) * fraction(pictures.time_base) - shift
        kept = source if audio is None else None  # a second reading place: both streams at their own pace
        sound = sound_beside(output, kind.audio, audio, kept, clip, start, files)
        packets = counted(_growing(_coded_pictures(media, pictures, clip, shift)), clip.num_frames, progress)
        _mux_copies(output, out.name, stream, packets, sound, start)
        with writing(out.name):
            output.close()


def _mux_copies(
    output: av.container.OutputContainer,
    name: str,
    stream: av.VideoStream,
    packets: Iterator[av.Packet],
    sound: Sound | None,
    start: Fraction,
) -> None:
    """Write coded pictures and, beside them, the sound, which ends with the last picture."""
    end = start
    for packet in packets:
        tick = fraction(packet.time_base)
        dts, end = packet.dts * tick, max(end, (packet.pts + (packet.duration or 0)) * tick)
        packet.stream = stream
        with writing(name):
            output.mux(packet)
            if sound:
                sound.advance(dts)
    with writing(name):
        if sound:
            sound.finish(end)


def _copied_stream(output: av.container.OutputContainer, pictures: av.VideoStream, clip: ClipInfo, suffix: str) -> av.VideoStream:
    """The output's stream for these coded pictures, if its container holds their kind."""
    codec = pictures.codec_context.codec
    if not {codec.name, codec.canonical_name} & output.supported_codecs:
        raise FlashLipsError(
            f"{suffix} cannot hold {codec.canonical_name} video as it is; choose another container, or a codec to encode it with."
        )
    stream = output.add_stream_from_template(pictures, opaque=True)  # by its decoder: some kinds have no encoder here
    stream.codec_context.framerate = clip.fps.limit_denominator(1_001_000)  # else Matroska takes a tick of the clock for a frame
    return stream


def _coded_pictures(
    media: av.container.InputContainer, stream: av.VideoStream, clip: ClipInfo, shift: Fraction
) -> Iterator[av.Packet]:
    """The stream's packets, ``shift`` seconds earlier, each with its decoding time.

    Matroska keeps none, and FFmpeg leaves those of the first packets open where pictures are reordered: they are counted back
    from the first one that is known.
    """
    tick = fraction(stream.time_base)
    step, back = max(1, round(1 / (clip.fps * tick))), round(shift / tick)
    waiting: list[av.Packet] = []
    joins = Joins(media, clip.path)
    for packet in media.demux(timed_streams(media, stream)):
        joins.mend(packet)
        if packet.size == 0 or packet.stream.index != stream.index:  # the demuxer's flush packet, or sound
            continue
        if packet.pts is None:
            raise FlashLipsError(
                f"The pictures in {Path(clip.path).name} have no times and cannot be copied; choose a codec to encode them with."
            )
        packet.pts -= back
        waiting.append(packet)
        if packet.dts is not None:
            yield from _counted_back(waiting, packet.dts - back, step)
            waiting.clear()
    yield from _counted_back(waiting, min((packet.pts for packet in waiting), default=0), step)


def _counted_back(packets: list[av.Packet], last: int, step: int) -> Iterator[av.Packet]:
    """Packets whose decoding times end at ``last``, a frame apart."""
    for place, packet in enumerate(packets):
        packet.dts = last - (len(packets) - 1 - place) * step
        yield packet


def _growing(packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """Packets whose decoding times grow, as containers want it: equal ones, as some cameras write them, are a tick apart."""
    last = None
    for packet in packets:
        if last is not None and packet.dts <= last:
            packet.dts = last + 1
        last = packet.dts
        packet.pts = max(packet.pts, last)
        yield packet


def suffix_like(source: str | Path) -> str:
    """The suffix of the container that a file has, .mp4 where it is none that is written here."""
    suffix = Path(source).suffix.lower()
    if suffix in CONTAINERS:
        return suffix
    with open_media(source) as media:
        names = media.format.name.split(",")
    return ".mkv" if "matroska" in names else ".mp4"
