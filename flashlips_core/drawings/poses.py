"""A pose track to look at: its 12 curves in two groups and the mouth opening over seconds, with the sound behind them.

T frames, N sound rows, P pose numbers (12). Drawn with Pillow, which every place has that ComfyUI runs in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..models.audio_encoder import ROW_HZ
from ..poses.motion import EXPRESSION, MOUTH, resample
from ..types import POSE_DIM, FlashLipsError, LipPoses

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

SIZE = (1024, 512)  # pixels
FINE = 3  # drawn this much larger and averaged, so that lines are smooth
BACK, PANEL, GRID, TEXT, DIM = (22, 24, 29), (30, 33, 40), (52, 57, 68), (226, 230, 238), (142, 150, 166)
SOUND, OTHER, OPENING = (66, 78, 100), (196, 202, 214), (255, 255, 255)
EXPRESSION_ENDS, MOUTH_ENDS = ((92, 170, 255), (110, 235, 190)), ((255, 190, 92), (255, 120, 150))  # first and last curve
LEFT, RIGHT, TOP, BOTTOM, GAP = 122, 18, 40, 32, 10  # pixels around and between the panels
SHARES = (8.0, 4.5, 3.2)  # heights of expression, mouth, opening
EDGE = 0.3  # of a lane, free above the first and below the last curve
QUIET_DB, LOUD_DB = -60.0, -6.0  # from not seen to full height
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600)  # seconds


@dataclass(frozen=True)
class Sheet:
    """The picture under the pen: where seconds lie, and how to draw in the coordinates of the finished picture."""

    draw: ImageDraw.ImageDraw
    font: Callable[[float], ImageFont.FreeTypeFont]
    width: int
    seconds: float  # shown

    def x(self, seconds: np.ndarray | float) -> np.ndarray | float:
        """Where an instant lies."""
        return LEFT + np.asarray(seconds) / self.seconds * (self.width - LEFT - RIGHT)

    def curve(self, y: np.ndarray, colour: tuple[int, int, int], width: float, fps: float) -> None:
        """A value per frame; with several frames per pixel as their mean, over a dim band from lowest to highest."""
        seconds = (np.arange(len(y)) + 0.5) / fps
        if len(y) > 2 * self.width:
            edges = np.linspace(0, len(y), self.width // 2, endpoint=False).astype(int)
            x, lowest, highest = self.x(seconds[edges]), np.minimum.reduceat(y, edges), np.maximum.reduceat(y, edges)
            self.fill(x, lowest, highest, blend(PANEL, colour, 0.35))
            y = np.add.reduceat(y, edges) / np.diff([*edges, len(y)])
            seconds, width = seconds[edges], 0.6 * width
        seconds = np.concatenate([[0], seconds, [self.seconds]])  # the first and last pose are held
        self.line(self.x(seconds), np.concatenate([y[:1], y, y[-1:]]), colour, width)

    def fill(self, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: tuple[int, int, int]) -> None:
        """The area between two curves."""
        if len(x) > 1:
            outline = np.concatenate([np.stack([x, low], 1), np.stack([x, high], 1)[::-1]]) * FINE
            self.draw.polygon(outline.ravel().tolist(), fill=colour)

    def line(self, x: np.ndarray, y: np.ndarray, colour: tuple[int, int, int], width: float) -> None:
        points = np.stack([x, y], 1) * FINE
        if len(points) > 1:
            self.draw.line(points.ravel().tolist(), colour, max(1, round(width * FINE)), joint="curve")

    def box(self, left: float, top: float, right: float, bottom: float, colour: tuple[int, int, int], radius: float = 0) -> None:
        corners = [v * FINE for v in (left, top, right, bottom)]
        self.draw.rounded_rectangle(corners, radius * FINE, fill=colour)

    def text(self, x: float, y: float, words: str, size: float, colour: tuple[int, int, int], anchor: str) -> None:
        self.draw.text((x * FINE, y * FINE), words, font=self.font(size * FINE), fill=colour, anchor=anchor)


def draw_poses(
    poses: LipPoses,
    opening: Callable[[Tensor], Tensor],
    other: LipPoses | None = None,
    level_db: Tensor | None = None,
    size: tuple[int, int] = SIZE,
) -> np.ndarray:
    """The picture, (H, W, 3) uint8 RGB.

    Args:
        opening: Reads the mouth opening of poses (T, P) -> (T,), as ``LipEncoder.opening`` does.
        other: A second track, drawn thin behind the first.
        level_db: Loudness of the sound behind the curves, (N,), a row every 20 ms as ``audio.level_db`` gives it.
        size: Width and height in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not len(poses):
        raise FlashLipsError("There are no poses to show; the sound or the video behind them is empty.")
    image = Image.new("RGB", (size[0] * FINE, size[1] * FINE), BACK)
    length = float(len(poses) / poses.fps)
    sheet = Sheet(ImageDraw.Draw(image), ImageFont.load_default, size[0], length)
    other = None if other is None else resample(other, poses.fps, len(poses))
    unit = (size[1] - TOP - BOTTOM - (len(SHARES) - 1) * GAP) / sum(SHARES)
    heights = [unit * share for share in SHARES]
    tops = [TOP + sum(heights[:i]) + i * GAP for i in range(len(SHARES))]
    _panels(sheet, poses, other, tops, heights, level_db)
    scale = _lanes_per_unit(poses.values.numpy())
    for name, dims, ends, top, height in (
        ("expression", EXPRESSION, EXPRESSION_ENDS, tops[0], heights[0]),
        ("mouth", MOUTH, MOUTH_ENDS, tops[1], heights[1]),
    ):
        _group(sheet, name, poses, other, range(POSE_DIM)[dims], ends, (top, height), scale)
    _opening(sheet, poses, other, opening, tops[2], heights[2])
    return np.asarray(image.reduce(FINE))


def _panels(
    sheet: Sheet,
    poses: LipPoses,
    other: LipPoses | None,
    tops: list[float],
    heights: list[float],
    level_db: Tensor | None,
) -> None:
    """Header, panels, sound and time axis: everything behind the curves."""
    frames = "1 frame" if len(poses) == 1 else f"{len(poses)} frames"
    words = f"{frames}, {float(poses.fps):.5g} fps, {len(poses) / float(poses.fps):.2f} s"
    sheet.text(LEFT, TOP / 2, "Lip poses", 15, TEXT, "lm")
    sheet.text(LEFT + 82, TOP / 2 + 0.5, words, 13, DIM, "lm")
    _legend(sheet, other is not None, level_db is not None)
    for top, height in zip(tops, heights, strict=True):
        sheet.box(LEFT, top, sheet.width - RIGHT, top + height, PANEL, 4)
        if level_db is not None:
            _sound(sheet, level_db, top, height)
    bottom = tops[-1] + heights[-1]
    step = next((t for t in TICKS if sheet.seconds / t <= 12), TICKS[-1])
    for tick in np.arange(0, sheet.seconds + 1e-9, step):
        x = float(sheet.x(tick))
        for top, height in zip(tops, heights, strict=True):
            sheet.line(np.array([x, x]), np.array([top, top + height]), GRID, 0.5)
        anchor = "lt" if tick == 0 else "rt" if x > sheet.width - RIGHT - 12 else "mt"
        sheet.text(x, bottom + 7, f"{tick:g} s", 12, DIM, anchor)


def _legend(sheet: Sheet, has_other: bool, has_sound: bool) -> None:
    x = sheet.width - RIGHT
    for is_shown, words, colour, thickness in ((has_sound, "sound", SOUND, 9), (has_other, "other track", OTHER, 1.2)):
        if is_shown:
            sheet.text(x, TOP / 2 + 0.5, words, 13, DIM, "rm")
            x -= sheet.draw.textlength(words, sheet.font(13 * FINE)) / FINE + 8
            sheet.line(np.array([x - 22, x]), np.array([TOP / 2, TOP / 2]), colour, thickness)
            x -= 42


def _sound(sheet: Sheet, level_db: Tensor, top: float, height: float) -> None:
    """Loudness as a silhouette around the middle of a panel."""
    level = np.clip((level_db.numpy() - QUIET_DB) / (LOUD_DB - QUIET_DB), 0, 1)
    seconds = (np.arange(len(level)) + 0.5) / float(ROW_HZ)
    inside = seconds <= sheet.seconds
    step = max(1, int(inside.sum()) // (2 * sheet.width))
    x, reach = sheet.x(seconds[inside])[::step], level[inside][::step] * height / 2
    sheet.fill(x, top + height / 2 - reach, top + height / 2 + reach, blend(PANEL, SOUND, 0.4))


def _group(
    sheet: Sheet,
    name: str,
    poses: LipPoses,
    other: LipPoses | None,
    dims: range,
    ends: tuple[tuple[int, int, int], tuple[int, int, int]],
    place: tuple[float, float],
    scale: float,
) -> None:
    """One panel of curves, each in a lane around its own median."""
    top, height = place
    lane = height / (len(dims) + 2 * EDGE)
    sheet.text(12, top + 1, name, 13, TEXT, "lt")
    sheet.text(12, top + 18, f"{len(dims)} numbers", 11, DIM, "lt")
    for row, dim in enumerate(dims):
        middle = top + (row + 0.5 + EDGE) * lane
        colour = blend(*ends, row / max(len(dims) - 1, 1))
        centre = float(np.median(poses.values[:, dim].numpy()))
        sheet.text(LEFT - 10, middle, str(dim), 12, colour, "rm")
        sheet.line(np.array([LEFT, sheet.width - RIGHT]), np.array([middle, middle]), GRID, 0.5)
        for track, ink, width in ((other, OTHER, 1.0), (poses, colour, 1.7)):
            if track is not None:
                y = middle - (track.values[:, dim].numpy() - centre) * scale * lane
                sheet.curve(np.clip(y, top + 1.5, top + height - 1.5), ink, width, float(poses.fps))


def _opening(
    sheet: Sheet, poses: LipPoses, other: LipPoses | None, opening: Callable[[Tensor], Tensor], top: float, height: float
) -> None:
    """The mouth opening, filled from closed upwards."""
    fps = float(poses.fps)
    curves = [opening(track.values).float().cpu().numpy() for track in (poses, other) if track is not None]
    highest = max(0.05, *(float(curve.max()) for curve in curves))
    sheet.text(12, top + 1, "opening", 13, TEXT, "lt")
    sheet.text(12, top + 20, "lip gap over", 11, DIM, "lt")
    sheet.text(12, top + 34, "eye distance", 11, DIM, "lt")
    floor, usable = top + height - 5, height - 14
    for value in (0.0, highest):
        sheet.text(LEFT - 10, floor - value / highest * usable, f"{value:.2f}" if value else "0", 11, DIM, "rm")
    heights = [floor - np.clip(curve / highest, -0.04, 1) * usable for curve in curves]
    if len(poses) <= 2 * sheet.width:
        seconds = (np.arange(len(poses)) + 0.5) / fps
        sheet.fill(sheet.x(seconds), heights[0], np.full(len(poses), floor), (92, 98, 114))
    for y, ink, width in list(zip(heights, (OPENING, OTHER), (1.7, 1.0), strict=False))[::-1]:
        sheet.curve(y, ink, width, fps)


def _lanes_per_unit(values: np.ndarray) -> float:
    """One scale for all curves, so that they can be compared: nearly every value lies within its lane and half of the next."""
    spread = np.abs(values - np.median(values, axis=0))
    return 0.75 / max(float(np.quantile(spread, 0.98)), 0.5)


def blend(first: tuple[int, int, int], last: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    """A colour between two."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first, last, strict=True))
