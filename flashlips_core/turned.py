"""Resampling between a picture and a turned square in it, by OpenCV: the upright case is ``compose``'s own.

S crop side in pixels. A square is ``x0 y0 x1 y1 roll``: an upright box, then turned about its centre by ``roll`` radians,
clockwise on screen. Luma pixel i covers i to i + 1; a plane's sample may lie elsewhere (``site``) and count for several pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# How many pixels for one of the result shrinking leaves to the warp: an average to the last pixel, then a cubic between pixels,
# would blur twice what a mouth laid over a small face has of detail.
LEFT = 2.0


@dataclass(frozen=True)
class Square:
    """A turned square in luma pixels."""

    x: float  # centre
    y: float
    side: float
    roll: float  # radians

    @staticmethod
    def of(box: Sequence[float]) -> Square:
        """Of ``x0 y0 x1 y1 roll``."""
        x0, y0, x1, y1, roll = (float(v) for v in box)
        return Square((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, roll)

    @property
    def box(self) -> np.ndarray:
        """(5,) ``x0 y0 x1 y1 roll``."""
        half = self.side / 2
        return np.array([self.x - half, self.y - half, self.x + half, self.y + half, self.roll])

    @property
    def axes(self) -> np.ndarray:
        """(2, 2): how far one side to the right, and one down, moves in the picture; columns."""
        cos, sin = math.cos(self.roll), math.sin(self.roll)
        return self.side * np.array([[cos, -sin], [sin, cos]])

    def bounds(self) -> tuple[float, float, float, float]:
        """The upright box around it, xyxy."""
        reach = np.abs(self.axes).sum(1) / 2
        return self.x - reach[0], self.y - reach[1], self.x + reach[0], self.y + reach[1]


@dataclass(frozen=True)
class Grid:
    """Where a plane's samples lie: sample (i, j) at luma (i * step + site), x and y each."""

    step: tuple[int, int] = (1, 1)
    site: tuple[float, float] = (0.5, 0.5)


def to_shares(points: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Where points lie in squares: (0, 0) is the upper left corner, (1, 1) the lower right one.

    Args:
        points: (..., L, 2) pixels.
        squares: (..., 5) ``x0 y0 x1 y1 roll``, or (..., 4) upright ones.

    Returns (..., L, 2).
    """
    centre, side, turn = _frames_of(squares)
    return np.einsum("...lk,...kj->...lj", points - centre[..., None, :], turn) / side[..., None, None] + 0.5


def to_pixels(shares: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """The inverse of :func:`to_shares`: (..., L, 2) shares of squares (..., 5 or 4) to pixels."""
    centre, side, turn = _frames_of(squares)
    return np.einsum("...lk,...jk->...lj", shares - 0.5, turn) * side[..., None, None] + centre[..., None, :]


def _frames_of(squares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres (..., 2), sides (...), and axes (..., 2, 2) whose columns are right and down of each square."""
    squares = np.asarray(squares, dtype=np.float64)
    roll = squares[..., 4] if squares.shape[-1] == 5 else np.zeros(squares.shape[:-1])
    return (squares[..., 0:2] + squares[..., 2:4]) / 2, squares[..., 2] - squares[..., 0], axes_of(roll)


def axes_of(roll: np.ndarray) -> np.ndarray:
    """Right and down of a turned square in the picture, the columns of (..., 2, 2); ``roll`` (...) in radians."""
    cos, sin = np.cos(roll), np.sin(roll)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def turned_cut(plane: np.ndarray, square: Square, size: int, grid: Grid = Grid()) -> np.ndarray:
    """The square out of a plane (H, W) or picture (H, W, C), antialiased; edges are replicated. -> (size, size[, C]) float32."""
    import cv2

    step, site = np.array(grid.step, float), np.array(grid.site)
    matrix = square.axes / size / step[:, None]  # samples per crop pixel
    offset = (np.array([square.x, square.y]) - site) / step - matrix @ np.full(2, (size - 1) / 2)
    shrink = square.side / size / step  # samples per crop pixel along each axis of the plane, were the square upright
    reach = np.abs(matrix).sum(1) * (size - 1) / 2
    centre = offset + matrix @ np.full(2, (size - 1) / 2)
    margin = np.ceil(2 * np.maximum(shrink, 1)) + 1
    height, width = plane.shape[:2]
    x0, x1 = _span(centre[0] - reach[0] - margin[0], centre[0] + reach[0] + margin[0], width)
    y0, y1 = _span(centre[1] - reach[1] - margin[1], centre[1] + reach[1] + margin[1], height)
    region = np.ascontiguousarray(plane[y0:y1, x0:x1], dtype=np.float32)
    region, factor = _shrunk(region, shrink)
    matrix = factor[:, None] * matrix
    offset = factor * (offset - [x0, y0] + 0.5) - 0.5
    return _warped(region, matrix, offset, (size, size), cv2.INTER_CUBIC, cv2.BORDER_REPLICATE)


def turned_back(
    crop: np.ndarray, square: Square, window: tuple[int, int, int, int], grid: Grid = Grid(), is_alpha: bool = False
) -> np.ndarray:
    """A crop at the samples ``left, top, right, bottom`` of a plane. (S, S[, C]) -> (rows, columns[, C]) float32.

    Args:
        is_alpha: 0 outside the square, and linear, which makes nothing below 0; else the crop's edges are replicated.
    """
    import cv2

    left, top, right, bottom = window
    size = crop.shape[0]
    step, site = np.array(grid.step, float), np.array(grid.site)
    inverse = np.linalg.inv(square.axes) * size  # crop pixels per luma pixel
    matrix = inverse * step
    offset = inverse @ (np.array([left, top]) * step + site - [square.x, square.y]) + (size - 1) / 2
    crop = np.ascontiguousarray(crop, dtype=np.float32)
    crop, factor = _shrunk(crop, np.full(2, size / square.side * min(grid.step)))
    matrix, offset = factor[:, None] * matrix, factor * (offset + 0.5) - 0.5
    kernel = cv2.INTER_LINEAR if is_alpha else cv2.INTER_CUBIC
    border = cv2.BORDER_CONSTANT if is_alpha else cv2.BORDER_REPLICATE
    return _warped(crop, matrix, offset, (right - left, bottom - top), kernel, border)


def _span(low: float, high: float, length: int) -> tuple[int, int]:
    """Whole samples from low to high inside an axis; one at its nearest end where it misses the axis."""
    start = min(max(math.floor(low), 0), length - 1)
    return start, max(min(math.ceil(high) + 1, length), start + 1)


def _shrunk(picture: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Averaged to about LEFT pixels for ``steps`` (x, y), where that is a reduction; and its exact factors."""
    import cv2

    height, width = picture.shape[:2]
    sizes = [max(round(length * LEFT / max(step, LEFT)), 1) for length, step in zip((width, height), steps, strict=True)]
    if sizes != [width, height]:
        picture = cv2.resize(picture, sizes, interpolation=cv2.INTER_AREA)
    return picture, np.array(sizes) / [width, height]


def _warped(
    picture: np.ndarray, matrix: np.ndarray, offset: np.ndarray, size: tuple[int, int], kernel: int, border: int
) -> np.ndarray:
    """``picture`` read at matrix @ (x, y) + offset for each pixel of the result, whose size is (width, height)."""
    import cv2

    transform = np.concatenate([matrix, np.asarray(offset, float)[:, None]], 1)
    return cv2.warpAffine(picture, transform, size, flags=kernel | cv2.WARP_INVERSE_MAP, borderMode=border)
