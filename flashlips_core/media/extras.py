"""What a clip carries beside its pictures and sound: tags, languages, chapters, subtitles, HDR's light levels; and what is lost.

FFmpeg's demuxers hand all of it over; an edited clip keeps what its container can hold, and says the rest.
"""

from __future__ import annotations

import logging
import struct
from fractions import Fraction
from pathlib import Path

import av

from .pyav import fraction

logger = logging.getLogger(__name__)

KEPT_TAGS = frozenset(
    "title artist author album album_artist composer date year creation_time genre copyright description synopsis comment "
    "publisher show episode_id network language keywords".split()
)  # of the container; not those of the old encoder and brand, nor places
STREAM_TAGS = ("language", "title", "name", "creation_time")
OWN_HANDLERS = {"VideoHandler", "SoundHandler", "SubtitleHandler"}  # FFmpeg's; others are titles that people see
PQ, HLG = 16, 18  # AVColorTransferCharacteristic of HDR
TOP_LEFT = 2  # HEVC's chroma_sample_loc_type of ITU-R BT.2100 pictures in 4:2:0; PyAV does not tell the stream's own


def merged_tags(source: av.container.InputContainer, given: dict[str, str]) -> dict[str, str]:
    """The source's tags with ``given`` ones over them; a comment goes before the new one."""
    tags = {name: value for name, value in source.metadata.items() if name.lower() in KEPT_TAGS}
    old = next((tags.pop(name) for name in list(tags) if name.lower() == "comment"), "")
    new = given.get("comment", "")
    comment = new if not old or old in new else old if not new or new in old else f"{old} {new}"
    return {**tags, **given} | ({"comment": comment} if comment else {})


def name_like(stream: av.stream.Stream, source: av.stream.Stream) -> None:
    """Give a written stream the language, title and role of its source."""
    tags = {name: source.metadata[name] for name in STREAM_TAGS if name in source.metadata}
    if source.metadata.get("handler_name", "VideoHandler") not in OWN_HANDLERS:
        tags["handler_name"] = source.metadata["handler_name"]
    stream.metadata.update(tags)
    stream.disposition = source.disposition


def keep_chapters(
    source: av.container.InputContainer, output: av.container.OutputContainer, shift: Fraction, end: Fraction
) -> None:
    """The source's chapters, ``shift`` seconds earlier, as far as the clip goes (``end``, in seconds)."""
    kept = []
    for chapter in source.chapters():
        tick = fraction(chapter["time_base"])
        start, stop = max(chapter["start"] * tick - shift, Fraction(0)), min(chapter["end"] * tick - shift, end)
        if start < stop:
            kept.append({**chapter, "start": round(start / tick), "end": round(stop / tick)})
    output.set_chapters(kept)


class CopiedSubtitles:
    """Subtitles of a file, packet by packet, ``shift`` seconds earlier; what lies behind the picture's end is left out."""

    def __init__(self, output: av.container.OutputContainer, source: av.container.InputContainer, shift: Fraction) -> None:
        self.output, self.shift, self.streams = output, shift, {}
        for stream in source.streams.subtitles:
            kind = stream.codec_context.name if stream.codec_context else "unknown"
            if kind not in output.supported_codecs:
                logger.warning("%s cannot hold %s subtitles; they are left out.", output.format.name, kind)
                continue
            self.streams[stream.index] = output.add_stream_from_template(stream)
            name_like(self.streams[stream.index], stream)
        self.packets = source.demux(*source.streams.subtitles) if self.streams else iter(())
        self.waiting = next(self.packets, None)

    def advance(self, end: Fraction) -> None:
        """Mux what starts before ``end`` seconds."""
        while self.waiting is not None:
            packet = self.waiting
            if packet.dts is not None and packet.stream.index in self.streams:
                tick = fraction(packet.time_base)
                if packet.dts * tick - self.shift >= end:
                    return
                ticks = round(self.shift / tick)
                packet.dts, packet.pts = packet.dts - ticks, (packet.dts if packet.pts is None else packet.pts) - ticks
                packet.stream = self.streams[packet.stream.index]
                self.output.mux(packet)
            self.waiting = next(self.packets, None)

    def finish(self, end: Fraction) -> None:
        """Mux the rest, as far as the picture goes."""
        self.advance(end)


def light_of(picture: av.VideoFrame) -> tuple[str, ...]:
    """The mastering display and light levels of an HDR picture, in x265's words."""
    words = []
    for data in picture.side_data:
        raw = bytes(data)
        if data.type.name == "MASTERING_DISPLAY_METADATA" and len(raw) >= 88:
            numbers = struct.unpack("<20i2i", raw[:88])
            values = [Fraction(a, b or 1) for a, b in zip(numbers[0:20:2], numbers[1:20:2], strict=True)]
            red, green, blue, white = ([round(v * 50_000) for v in values[i : i + 2]] for i in (0, 2, 4, 6))
            low, high = (round(v * 10_000) for v in values[8:10])
            points = "".join(
                f"{name}({x},{y})" for name, (x, y) in zip(("G", "B", "R", "WP"), (green, blue, red, white), strict=True)
            )
            if all(numbers[20:]):
                words.append(f"master-display={points}L({high},{low})")
        elif data.type.name == "CONTENT_LIGHT_LEVEL" and len(raw) >= 8:
            words.append("max-cll={},{}".format(*struct.unpack("<2I", raw[:8])))
    return tuple(words)


def say_what_is_lost(picture: av.VideoFrame, stream: av.VideoStream, path: str | Path) -> None:
    """Warn of what a clip has and an edit of it will not have."""
    name, kinds = Path(path).name, {data.type.name for data in picture.side_data}
    if picture.interlaced_frame or stream.codec_context.field_order > 1:
        logger.warning(
            "%s is interlaced, and is written as whole pictures; deinterlace it first: 'ffmpeg -i %s -vf bwdif OUT'.", name, name
        )
    if has_alpha(picture, stream):
        logger.warning("%s is transparent in places; that is not kept, and what lies there is shown.", name)
    if kinds & {"DOVI_RPU_BUFFER", "DOVI_METADATA", "DYNAMIC_HDR_PLUS", "DYNAMIC_HDR_VIVID"}:
        logger.warning(
            "%s has HDR settings for each scene (Dolby Vision, HDR10+); those are not kept, the picture's own are.", name
        )
    if has_crop(path):
        logger.warning("%s asks players to cut its edges off (a 'clap' box); all of the picture is edited and written.", name)


def has_alpha(picture: av.VideoFrame, stream: av.VideoStream) -> bool:
    """Whether a clip has transparency: in its pixels, or in a second picture beside each, as WebM has it."""
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    return tags.get("alpha_mode") == "1" or picture.format.name != "pal8" and any(c.is_alpha for c in picture.format.components)


def has_crop(path: str | Path, head: int = 1 << 20) -> bool:
    """Whether an MP4 or MOV file states a clean aperture. Its index, which says so, lies at either end."""
    with Path(path).open("rb") as file:
        start = file.read(head)
        if start[4:8] not in (b"ftyp", b"moov", b"wide", b"mdat"):
            return False
        file.seek(max(0, Path(path).stat().st_size - head))
        return any(b"\0\0\0\x28clap" in part for part in (start, file.read()))
