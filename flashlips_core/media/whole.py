"""Whether a file is all there: told by sizes and places that its header states exactly, never by an estimated duration.

Containers made for broken links (.ts, raw streams, unfinished .mkv) state none; there, only the last packets can tell.
"""

from __future__ import annotations

from pathlib import Path

import av

from ..types import FlashLipsError
from .pyav import fraction
from .sound import sound_streams

HEAD_BYTES = 4096  # enough for Matroska's first header
SIZE_UNKNOWN = 0x7FFF0000  # RIFF sizes from here on are what recorders write that could not go back and fill them in
SLACK_BYTES = 8  # some RIFF writers count their own first eight bytes, or a padding byte
EBML_HEADER, MATROSKA_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def check_whole(container: av.container.InputContainer, path: Path) -> None:
    """Raise FlashLipsError if the file ends before its own header says."""
    size = path.stat().st_size
    if "mp4" in container.format.name.split(","):
        for stream in (*container.streams.video, *sound_streams(container)):
            _check_index(stream, size, path)
        return
    stated = _stated_bytes(path)
    if stated is not None and stated > size + SLACK_BYTES:
        raise breaks_off(path, f"{size} of {stated} bytes are there")


def breaks_off(path: str | Path, what: str, seconds: float = 0.0) -> FlashLipsError:
    """The error for a truncated file. ``seconds``: how long the part is that can be read, if that is known."""
    name = Path(path).name
    keep = f", or keep the readable part with 'ffmpeg -i {name} -t {seconds:.2f} OUT'" if seconds > 0 else ""
    return FlashLipsError(f"{name} breaks off: {what}; download or export it again{keep}.")


def _check_index(stream: av.stream.Stream, size: int, path: Path) -> None:
    """Look whether the places of all packets lie inside the file, by the last one's."""
    entries = stream.index_entries
    if len(entries) == 0 or entries[-1].pos + entries[-1].size <= size:
        return
    there = sum(entry.pos + entry.size <= size for entry in entries)
    seconds = float((stream.duration or 0) * fraction(stream.time_base)) * there / len(entries)
    what = "frames" if stream.type == "video" else "packets of sound"
    raise breaks_off(path, f"{there} of {len(entries)} {what} can be read", seconds)


def _stated_bytes(path: Path) -> int | None:
    """The length that a RIFF (.avi, .wav) or Matroska (.mkv, .webm) file states; None where it states none."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(b"RIFF"):
        size = int.from_bytes(head[4:8], "little")
        return size + 8 if 0 < size < SIZE_UNKNOWN else None
    if not head.startswith(EBML_HEADER):
        return None
    size, place = _ebml_size(head, len(EBML_HEADER))
    segment = place + (size or 0)
    if size is None or head[segment : segment + 4] != MATROSKA_SEGMENT:
        return None
    size, place = _ebml_size(head, segment + 4)
    return None if size is None else place + size


def _ebml_size(head: bytes, place: int) -> tuple[int | None, int]:
    """An element's size (None: unknown, as live streams have it) and where its content starts."""
    first = head[place] if place < len(head) else 0
    length = 9 - first.bit_length()  # leading zero bits say how many bytes follow
    if first == 0 or place + length > len(head):
        return None, place
    bits = 7 * length
    value = int.from_bytes(head[place : place + length], "big") & ((1 << bits) - 1)
    return (None if value == (1 << bits) - 1 else value), place + length
