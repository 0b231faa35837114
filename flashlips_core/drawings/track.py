"""A face track to look at: pictures spread over the clip with square and points, over a strip of where the face is seen.

T frames. Pictures are (h, w, 3) uint8 RGB of any size; positions in a track are pixels of the clip's frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from ..compose import whole_picture
from ..pixels import to_bytes
from ..turned import to_pixels
from ..types import FaceTrack, FlashLipsError, Frame, Progress

TILE_PX = 320  # longest side of one picture
MARGIN_PX, GAP_PX = 16, 8
HEADER_PX, STRIP_PX, FOOTER_PX = 30, 14, 26
TEXT_PX, NOTE_PX = 15, 13
ASPECT = 1.6  # wished for width / height of the sheet
FINE = 4  # lines and dots are drawn this much larger, then shrunk, which smooths them

GROUND, PANEL, INK, FAINT = (22, 24, 29), (38, 41, 48), (236, 238, 242), (150, 156, 168)
SEEN, LOST, SQUARE = (64, 196, 160), (224, 82, 86), (255, 205, 86)
POINT_COLOURS = ((92, 200, 255), (92, 200, 255), (255, 255, 255), (255, 120, 170), (255, 120, 170))  # eyes, nose, mouth corners


def pick_pictures(
    frames: Iterable[Frame], track: FaceTrack, indices: Sequence[int], progress: Progress | None = None
) -> dict[int, np.ndarray]:
    """Small pictures of the clip's frames at ``indices``, in one pass that stops at the last of them."""
    wanted, last, pictures, count = set(indices), max(indices), {}, 0
    for index, frame in enumerate(frames):
        if (frame.width, frame.height) != (track.width, track.height):
            sizes = f"{track.width}x{track.height} pixels, this one has {frame.width}x{frame.height}"
            raise FlashLipsError(f"The track is of a clip of {sizes}; track this clip, or give the one that was tracked.")
        count = index + 1
        if index in wanted:
            pictures[index] = to_bytes(whole_picture(frame, TILE_PX))
        if progress is not None:
            progress(count, last + 1)
        if index == last:
            return pictures
    raise FlashLipsError(
        f"The clip has {count} frames, the track {len(track)}; track this clip, or give the one that was tracked."
    )


def track_sheet(track: FaceTrack, indices: Sequence[int], pictures: Mapping[int, np.ndarray] | None = None) -> np.ndarray:
    """The sheet as one picture. -> (H, W, 3) uint8.

    Args:
        indices: the frames to show, sorted.
        pictures: theirs; frames without one show square and points on an empty ground.
    """
    from PIL import Image, ImageDraw

    tile = _tile_size(track)
    columns = _columns(len(indices), tile)
    rows = math.ceil(len(indices) / columns)
    width = max(columns * (tile[0] + GAP_PX) - GAP_PX, 2 * TILE_PX)
    strip_top = MARGIN_PX + HEADER_PX + rows * (tile[1] + GAP_PX) + GAP_PX
    size = (width + 2 * MARGIN_PX, strip_top + STRIP_PX + FOOTER_PX + MARGIN_PX)
    sheet = Image.new("RGB", size, GROUND)
    _write_header(ImageDraw.Draw(sheet), track, width)
    left = MARGIN_PX + (width - columns * (tile[0] + GAP_PX) + GAP_PX) // 2
    for place, index in enumerate(indices):
        row, column = divmod(place, columns)
        corner = (left + column * (tile[0] + GAP_PX), MARGIN_PX + HEADER_PX + row * (tile[1] + GAP_PX))
        sheet.paste(_tile(track, index, (pictures or {}).get(index), tile), corner)
    _draw_strip(sheet, track, indices, (MARGIN_PX, strip_top), width)
    return np.array(sheet)


# ---- one frame -------------------------------------------------------------------------------------------------------------


def _tile_size(track: FaceTrack) -> tuple[int, int]:
    factor = TILE_PX / max(track.width, track.height)
    return max(round(track.width * factor), 48), max(round(track.height * factor), 48)


def _columns(count: int, tile: tuple[int, int]) -> int:
    return min(max(round(math.sqrt(count * ASPECT * tile[1] / tile[0])), 1), max(count, 1))


def _tile(track: FaceTrack, index: int, picture: np.ndarray | None, size: tuple[int, int]) -> Any:
    """One frame with its square, points and number; pale where the face is absent."""
    from PIL import Image, ImageDraw, ImageOps

    is_seen = bool(track.present[index])
    tile = Image.new("RGB", size, PANEL)
    if picture is not None:
        tile = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
    if is_seen:
        marks = _marks(track, index, size)
        tile.paste(marks, (0, 0), marks)
    elif picture is not None:
        tile = Image.blend(ImageOps.grayscale(tile).convert("RGB"), Image.new("RGB", size, GROUND), 0.55)
    _pill(tile, (6, size[1] - 6), f"frame {index}  \u00b7  {_clock(index / track.fps)}", (0, 0, 0), "lb")
    if not is_seen:
        ImageDraw.Draw(tile).rectangle((0, 0, size[0] - 1, size[1] - 1), outline=LOST, width=2)
        _pill(tile, (size[0] // 2, size[1] // 2), "no face", LOST, "mm")
    return tile


def _marks(track: FaceTrack, index: int, size: tuple[int, int]) -> Any:
    """Square and points on a clear ground, smooth. -> RGBA image."""
    from PIL import Image, ImageDraw

    layer = Image.new("RGBA", (size[0] * FINE, size[1] * FINE), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    scale = np.array([size[0] / track.width, size[1] / track.height]) * FINE
    square = track.squares[index]
    corners = to_pixels(np.array([[0, 0], [1, 0], [1, 1], [0, 1]]), square) * scale
    outline = [tuple(corner) for corner in corners[[0, 1, 2, 3, 0, 1]].tolist()]  # past the start, so that its corner is joined
    for width, colour in ((4, (0, 0, 0, 130)), (2, (*SQUARE, 255))):  # a dark rim keeps the line visible on any picture
        draw.line(outline, fill=colour, width=width * FINE, joint="curve")
    radius = float(np.clip((square[2] - square[0]) * scale[0] / FINE / 45, 1.5, 4)) * FINE
    for (x, y), colour in zip((track.points[index] * scale).tolist(), POINT_COLOURS, strict=True):
        for r, fill in ((radius + FINE, (0, 0, 0, 170)), (radius, (*colour, 255))):
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    return layer.resize(size, Image.Resampling.BOX)


def _pill(image: Any, at: tuple[int, int], text: str, ground: tuple[int, int, int], anchor: str) -> None:
    """Text on a rounded ground; ``anchor`` "lb" places its lower left corner, "mm" its middle."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(image)
    width, height = round(draw.textlength(text, _font(NOTE_PX))) + 16, NOTE_PX + 8
    left, top = (at[0], at[1] - height) if anchor == "lb" else (at[0] - width // 2, at[1] - height // 2)
    image.paste(ground, (left, top), _rounded(width, height))
    draw.text((left + width / 2, top + height / 2), text, INK, _font(NOTE_PX), anchor="mm")


def _rounded(width: int, height: int) -> Any:
    """A bar with round ends as a mask, smooth. -> L image."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (width * FINE, height * FINE), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, width * FINE - 1, height * FINE - 1), height * FINE // 2, fill=255)
    return mask.resize((width, height), Image.Resampling.BOX)


# ---- the whole clip --------------------------------------------------------------------------------------------------------


def _write_header(draw: Any, track: FaceTrack, width: int) -> None:
    seen = int(track.present.sum())
    sides = track.boxes[track.present, 2] - track.boxes[track.present, 0]
    left = f"{len(track)} frames  \u00b7  {float(track.fps):.5g} per second  \u00b7  {track.width} x {track.height}"
    right = f"face in {seen} of {len(track)} frames"
    if seen:
        low, high = round(float(sides.min())), round(float(sides.max()))
        right += f"  \u00b7  square {low} px" if low == high else f"  \u00b7  square {low} to {high} px"
    draw.text((MARGIN_PX, MARGIN_PX), left, INK, _font(TEXT_PX))
    draw.text((MARGIN_PX + width, MARGIN_PX), right, SEEN if seen == len(track) else LOST, _font(TEXT_PX), anchor="ra")


def _draw_strip(sheet: Any, track: FaceTrack, indices: Sequence[int], at: tuple[int, int], width: int) -> None:
    """The clip's time from left to right: where the face is seen, where it is lost, and the frames shown above."""
    from PIL import Image, ImageDraw

    draw = ImageDraw.Draw(sheet)
    left, top = at
    seen = presence(track.present, width)
    colours = np.where(seen[:, None], SEEN, LOST).astype(np.uint8)
    bar = Image.fromarray(np.repeat(colours[None], STRIP_PX, 0))
    sheet.paste(bar, (left, top), _rounded(width, STRIP_PX))
    for index in indices:
        x = left + round((index + 0.5) * width / len(track))
        draw.line((x, top - 3, x, top + STRIP_PX + 2), INK, 2)
    under = top + STRIP_PX + 8
    draw.text((left, under), _clock(Fraction(0)), FAINT, _font(NOTE_PX))
    draw.text((left + width, under), _clock(len(track) / track.fps), FAINT, _font(NOTE_PX), anchor="ra")
    _write_legend(sheet, left + width // 2, under)


def presence(present: np.ndarray, width: int) -> np.ndarray:
    """Whether every frame that falls into a column of the strip has the face. (T,) bool -> (width,) bool."""
    edges = np.arange(width + 1) * len(present) / width
    first = edges[:-1].astype(int)
    after = np.maximum(np.ceil(edges[1:] - 1e-9).astype(int), first + 1)
    lost = np.concatenate([[0], np.cumsum(~np.asarray(present, bool))])
    return lost[after] == lost[first]


def _write_legend(sheet: Any, middle: int, top: int) -> None:
    from PIL import ImageDraw

    draw, font = ImageDraw.Draw(sheet), _font(NOTE_PX)
    entries = (("face", SEEN), ("no face: the frame stays as it is", LOST), ("frames shown", INK))
    widths = [round(draw.textlength(text, font)) + 36 for text, _ in entries]
    x = middle - sum(widths) // 2
    for (text, colour), step in zip(entries, widths, strict=True):
        sheet.paste(colour, (x, top + 2), _rounded(10, 10))
        draw.text((x + 15, top), text, FAINT, font)
        x += step


def _clock(seconds: Fraction) -> str:
    """Minutes, seconds and hundredths."""
    hundredths = round(seconds * 100)
    return f"{hundredths // 6000}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"


@lru_cache(maxsize=4)
def _font(size: int) -> Any:
    """Pillow's own letters, at this size where it can scale them."""
    from PIL import ImageFont

    return ImageFont.load_default(size=size)
