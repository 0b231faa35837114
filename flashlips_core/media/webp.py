"""Animated WebP, which FFmpeg does not read: its pictures by Pillow, as a decoder would give them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

from ..types import FlashLipsError

TICK = Fraction(1, 1000)  # seconds: WebP counts milliseconds
NOMINAL_MS = 100  # what browsers show a picture for that states no time
ANIMATION = 0x02  # the flag in its extended header


def is_animated_webp(path: str | Path) -> bool:
    """Whether a file is a WebP of more than one picture, by its first bytes."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(21)
    except (OSError, ValueError):  # open_media says why
        return False
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20] & ANIMATION)


def webp_pictures(path: str | Path) -> Iterator[tuple[av.VideoFrame, int]]:
    """The pictures as RGB, each with its pts in milliseconds."""
    for image, start, _ in _images(path):
        yield av.VideoFrame.from_image(image.convert("RGB")), start


def webp_stamps(path: str | Path) -> tuple[list[int], int]:
    """When each picture is shown and the whole ends, in milliseconds."""
    stamps, end = [], 0
    for _, start, shown in _images(path):
        stamps.append(start)
        end = start + shown
    return stamps, end


def _images(path: str | Path) -> Iterator[tuple]:
    """(image, start, duration), the latter in milliseconds."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            start = 0
            for index in range(image.n_frames):
                image.seek(index)
                image.load()
                shown = int(image.info.get("duration") or NOMINAL_MS)
                yield image, start, shown
                start += shown
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise FlashLipsError(f"{Path(path).name} cannot be read as animated WebP ({error}); export it again.") from error
