"""Crop out of a YUV frame, alpha from the latents, crop back into the YUV frame: where the edit meets the clip.

What is blended, and how, is said in three places: :class:`AlphaSettings` here (how much of the edited crop is pasted),
``editing.REDRAWN`` (what of the frame's own detail shines through an edit), ``retrieval.lay`` (another mouth over the frame's).

B batch, S crop side in pixels, N box side in pixels. A box is ``xyxy``, or ``xyxy roll``: then it is a square that is turned
about its centre by ``roll`` radians, clockwise on screen. Upright resampling is two small matrix products per plane, so that a
box may lie between pixels and leave the picture, and only its own pixels are ever converted; turned squares go through
``turned``. Everything outside alpha keeps its bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .turned import Grid, Square, turned_back, turned_cut
from .types import FlashLipsError, Frame

# Luma weights of red and blue by FFmpeg's AVColorSpace number (ITU-T H.273, table 4).
LUMA_WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087)}
LUMA_WEIGHTS |= {9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
HD_HEIGHT = 577  # untagged pictures from here on are BT.709, smaller ones BT.601, as players assume
FULL_RANGE = 2  # AVCOL_RANGE_JPEG
SMALLEST_ALPHA = 1 / 512  # below half a step of 8 bits even between black and white


@dataclass(frozen=True)
class AlphaSettings:
    """How much a latent must change to count as edited. Scaled latents have a deviation near 1."""

    low: float = 0.05  # mean |difference| over channels: nothing is pasted below, after smoothing
    high: float = 0.20  # everything is pasted above
    grow: int = 1  # cells added around, so that the soft edge lies outside the changed pixels
    border: int = 2  # cells over which alpha falls to 0 at the crop's border


# ---- crop out --------------------------------------------------------------------------------------------------------------


def cut(frame: Frame, box: Sequence[float], size: int) -> Tensor:
    """The box as RGB, resized with antialiasing; edges are replicated where it leaves the picture.

    Returns (3, size, size) float32 in [-1, 1].
    """
    return _resampled(frame, box, size, size)


def whole_picture(frame: Frame, longest_side: int) -> Tensor:
    """All of a frame as small RGB of its own shape, never enlarged, antialiased. -> (3, h, w) float32 in [-1, 1]."""
    factor = min(1.0, longest_side / max(frame.width, frame.height))
    height, width = (max(round(side * factor), 1) for side in (frame.height, frame.width))
    return _resampled(frame, (0, 0, frame.width, frame.height), height, width)


def _resampled(frame: Frame, box: Sequence[float], height: int, width: int) -> Tensor:
    x0, y0, x1, y1 = checked_box(box)
    if is_turned(box):
        square, grids = Square.of(box), _grids(frame)
        turned = [turned_cut(plane, square, width, grid) for plane, grid in zip(frame.planes, grids, strict=True)]
        return _to_rgb(torch.from_numpy(np.stack(turned)), frame)
    planes = []
    for plane, (shift_x, shift_y) in zip(frame.planes, _shifts(frame), strict=True):
        rows, row_start, row_stop = sampling(y0, y1, height, plane.shape[0], shift_y, is_cosited=False)
        columns, column_start, column_stop = sampling(x0, x1, width, plane.shape[1], shift_x, is_cosited=True)
        region = torch.from_numpy(plane[row_start:row_stop, column_start:column_stop].astype(np.float32))
        planes.append(rows @ region @ columns.T)
    return _to_rgb(torch.stack(planes), frame)


def cut_batch(frames: Sequence[Frame], boxes: np.ndarray, size: int) -> Tensor:
    """:func:`cut` for each frame and its box. -> (B, 3, size, size) float32, channels_last."""
    crops = torch.stack([cut(frame, box, size) for frame, box in zip(frames, boxes, strict=True)])
    return crops.contiguous(memory_format=torch.channels_last)


# ---- alpha -----------------------------------------------------------------------------------------------------------------


def alpha_from_latents(z_source: Tensor, z_edited: Tensor, size: int, settings: AlphaSettings = AlphaSettings()) -> Tensor:
    """Where the edit changed the latents: in [0, 1], exactly 0 where it did not. (B, 4, h, w) twice -> (B, 1, size, size)."""
    difference = (z_edited.float() - z_source.float()).abs().mean(1, keepdim=True)  # B 1 h w
    ramp = ((_blur(difference) - settings.low) / (settings.high - settings.low)).clamp(0, 1)
    alpha = ramp * ramp * (3 - 2 * ramp)  # smoothstep
    if settings.grow:
        alpha = F.max_pool2d(alpha, 2 * settings.grow + 1, stride=1, padding=settings.grow)
    alpha = _blur(alpha) * _border_fade(*alpha.shape[-2:], settings.border).to(alpha.device)
    return F.interpolate(alpha, size=(size, size), mode="bilinear", align_corners=False).clamp(0, 1)


def _blur(x: Tensor) -> Tensor:
    """Binomial 3x3 with replicated edges. (B, 1, h, w)."""
    kernel = x.new_tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])[None, None] / 16
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel)


def _border_fade(height: int, width: int, cells: int) -> Tensor:
    """1 inside, falling to 0 in the outermost cells: a change that reaches the crop's border must leave no seam. (h, w)."""
    rows, columns = (torch.arange(n).minimum(torch.arange(n - 1, -1, -1)) / max(cells, 1e-6) for n in (height, width))
    return rows.clamp(0, 1)[:, None] * columns.clamp(0, 1)


def changed_region(alpha: Tensor, margin: int, cell: int) -> tuple[int, int, int, int] | None:
    """Smallest rectangle of latent cells that holds every changed pixel of a batch and ``margin`` pixels around. x0 y0 x1 y1.

    Args:
        cell: Pixels of alpha that a latent cell stands for.
    """
    changed = (alpha > 0).any(0)[0]  # S S
    if not changed.any():
        return None
    size = alpha.shape[-1]
    edges = []
    for axis in (0, 1):  # columns, rows
        index = changed.any(axis).nonzero()
        low, high = int(index[0]) - margin, int(index[-1]) + 1 + margin
        edges.append((max(low, 0) // cell, -(-min(high, size) // cell)))
    (x0, x1), (y0, y1) = edges
    return x0, y0, x1, y1


def paste_margin(size: int, min_side: float) -> int:
    """Pixels around the changed ones that pasting reads: the reach of alpha's linear and halved chroma's cubic resampling."""
    return math.ceil(5 * max(1.0, size / max(min_side, 1.0))) + 2


# ---- crop back -------------------------------------------------------------------------------------------------------------


def paste(frame: Frame, box: Sequence[float], rgb: Tensor, alpha: Tensor) -> Frame:
    """Blend a crop into the frame: a new Frame whose samples where alpha is 0 are the source's, bit for bit.

    A chroma sample changes only where alpha is above 0 in every pixel it colours.

    Args:
        rgb: (3, S, S) in [-1, 1].
        alpha: (1, S, S) in [0, 1].
    """
    window = pixel_window(box, frame.width, frame.height)
    if window is None:
        return frame
    alpha_y, (left, top) = pixel_alpha(box, alpha.float().cpu()[0], window, frame.chroma_shift)
    if not alpha_y.size:
        return frame
    blocks, is_grey = _block_alpha(alpha_y, *frame.chroma_shift), _is_grey(frame)
    planes = []
    for channel, (plane, (shift_x, shift_y)) in enumerate(zip(_to_yuv(rgb.float().cpu(), frame), _shifts(frame), strict=True)):
        if channel and is_grey:
            planes.append(frame.planes[channel])
            continue
        weight = blocks if channel else alpha_y
        x, y = left >> shift_x, top >> shift_y
        edited = _restored(plane, box, (x, y), weight.shape, (shift_x, shift_y))
        edited = edited.clip(*_nominal(frame, is_luma=channel == 0))
        planes.append(_blended(frame.planes[channel], x, y, edited, weight))
    return replace(frame, planes=tuple(planes))


def _is_grey(frame: Frame) -> bool:
    """Whether a frame has no colour at all, give or take the least step: an edit of it has none either."""
    middle = 1 << (frame.bit_depth - 1)
    return all(middle - 1 <= plane.min() and plane.max() <= middle + 1 for plane in frame.planes[1:])


def _restored(
    plane: Tensor, box: Sequence[float], start: tuple[int, int], shape: tuple[int, int], shifts: tuple[int, int]
) -> np.ndarray:
    """A crop's plane (S, S) at ``shape`` samples of the frame's plane from ``start`` (x, y) on. -> (rows, columns) float32."""
    (x, y), (height, width) = start, shape
    if is_turned(box):
        return turned_back(plane.numpy(), Square.of(box), (x, y, x + width, y + height), _grid(*shifts))
    rows, row_start = restoring(box[1], box[3], plane.shape[0], y, height, shifts[1], is_cosited=False)
    columns, column_start = restoring(box[0], box[2], plane.shape[1], x, width, shifts[0], is_cosited=True)
    region = plane[row_start : row_start + rows.shape[1], column_start : column_start + columns.shape[1]]
    return (rows @ region @ columns.T).numpy()


def _blended(source: np.ndarray, x: int, y: int, edited: np.ndarray, weight: np.ndarray) -> np.ndarray:
    result = source.copy()
    region = result[y : y + weight.shape[0], x : x + weight.shape[1]]
    mixed = region + weight * (edited - region)
    np.copyto(region, np.rint(mixed).astype(source.dtype), where=weight > 0)
    return result


def pixel_window(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int] | None:
    """Pixels whose centres lie in a box, or around a turned one: (left, top, right, bottom); None where it leaves the picture."""
    x0, y0, x1, y1 = checked_box(box)
    if is_turned(box):
        x0, y0, x1, y1 = Square.of(box).bounds()
    left, top = max(math.ceil(x0 - 0.5), 0), max(math.ceil(y0 - 0.5), 0)
    right, bottom = min(math.floor(x1 - 0.5) + 1, width), min(math.floor(y1 - 0.5) + 1, height)
    return (left, top, right, bottom) if right > left and bottom > top else None


def pixel_alpha(
    box: Sequence[float], alpha: Tensor, window: tuple[int, int, int, int], chroma_shift: tuple[int, int] = (0, 0)
) -> tuple[np.ndarray, tuple[int, int]]:
    """Alpha at the window's pixels, trimmed to where it is above 0, from a whole chroma sample on.

    Returns (rows, columns) float32 and its (left, top).
    """
    left, top, right, bottom = window
    if is_turned(box):
        result = turned_back(alpha.numpy(), Square.of(box), window, is_alpha=True).clip(0, 1)
    else:
        rows, row_start = restoring(box[1], box[3], alpha.shape[0], top, bottom - top, 0, is_cosited=False, kernel="linear")
        columns, column_start = restoring(box[0], box[2], alpha.shape[1], left, right - left, 0, is_cosited=True, kernel="linear")
        region = alpha[row_start : row_start + rows.shape[1], column_start : column_start + columns.shape[1]]
        result = (rows @ region @ columns.T).clamp_(0, 1).numpy()
    result[result < SMALLEST_ALPHA] = 0
    ys, xs = np.flatnonzero(result.any(1)), np.flatnonzero(result.any(0))
    if not len(ys):
        return result[:0, :0], (left, top)
    result = result[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    left, top = left + int(xs[0]), top + int(ys[0])
    spare_x, spare_y = left % (1 << chroma_shift[0]), top % (1 << chroma_shift[1])
    return np.pad(result, ((spare_y, 0), (spare_x, 0))), (left - spare_x, top - spare_y)


def _block_alpha(alpha: np.ndarray, shift_x: int, shift_y: int) -> np.ndarray:
    """Mean alpha over the pixels that share a chroma sample, 0 if any of them has 0. (rows, columns) -> (rows/2, columns/2)."""
    rows, columns = alpha.shape
    alpha = np.pad(alpha, ((0, rows % (1 << shift_y)), (0, columns % (1 << shift_x))))
    parts = [alpha[i :: 1 << shift_y, j :: 1 << shift_x] for i in range(1 << shift_y) for j in range(1 << shift_x)]
    return np.where(np.minimum.reduce(parts) > 0, sum(parts) / len(parts), 0).astype(np.float32)


# ---- colour ----------------------------------------------------------------------------------------------------------------


def _to_rgb(planes: Tensor, frame: Frame) -> Tensor:
    """Sample values -> RGB in [-1, 1]. (3, h, w) both; ``planes`` is overwritten."""
    matrix, offset = _yuv_to_rgb(*_colour(frame))
    return torch.addmm(offset, matrix, planes.flatten(1)).clamp_(-1, 1).view_as(planes)


def _to_yuv(rgb: Tensor, frame: Frame) -> Tensor:
    """RGB in [-1, 1] -> unrounded sample values. (3, S, S) both."""
    matrix, offset = _rgb_to_yuv(*_colour(frame))
    return torch.addmm(offset, matrix, rgb.clamp(-1, 1).flatten(1)).view(rgb.shape)


def _colour(frame: Frame) -> tuple[int, bool, int]:
    """AVColorSpace, is full range, bit depth: with what players assume where the file says nothing."""
    colorspace = frame.colorspace if frame.colorspace in LUMA_WEIGHTS else (1 if frame.height >= HD_HEIGHT else 6)
    return colorspace, frame.color_range == FULL_RANGE or frame.pix_fmt.startswith("yuvj"), frame.bit_depth


@lru_cache(maxsize=32)
def _yuv_to_rgb(colorspace: int, is_full: bool, bit_depth: int) -> tuple[Tensor, Tensor]:
    """(3, 3) matrix and (3, 1) offset from sample values to RGB in [-1, 1]."""
    red, blue = LUMA_WEIGHTS[colorspace]
    green = 1 - red - blue
    black, luma_span, chroma_span = _span(is_full, bit_depth)
    to_rgb = np.array(
        [
            [1, 0, 2 * (1 - red)],
            [1, -2 * (1 - blue) * blue / green, -2 * (1 - red) * red / green],
            [1, 2 * (1 - blue), 0],
        ]
    )
    matrix = 2 * to_rgb / np.array([luma_span, chroma_span, chroma_span])
    offset = -1 - matrix @ np.array([black, 1 << (bit_depth - 1), 1 << (bit_depth - 1)])
    return torch.tensor(matrix, dtype=torch.float32), torch.tensor(offset[:, None], dtype=torch.float32)


@lru_cache(maxsize=32)
def _rgb_to_yuv(colorspace: int, is_full: bool, bit_depth: int) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`_yuv_to_rgb`."""
    matrix, offset = (x.double() for x in _yuv_to_rgb(colorspace, is_full, bit_depth))
    inverse = torch.linalg.inv(matrix)
    return inverse.float(), (-inverse @ offset).float()


def _span(is_full: bool, bit_depth: int) -> tuple[int, int, int]:
    """Black level, luma span, chroma span in sample values."""
    unit = 1 << (bit_depth - 8)
    return (0, (1 << bit_depth) - 1, (1 << bit_depth) - 1) if is_full else (16 * unit, 219 * unit, 224 * unit)


def _nominal(frame: Frame, is_luma: bool) -> tuple[int, int]:
    """The lowest and highest sample value an edited picture may have."""
    _, is_full, bit_depth = _colour(frame)
    black, luma_span, chroma_span = _span(is_full, bit_depth)
    return (black, black + (luma_span if is_luma else chroma_span))


# ---- resampling ------------------------------------------------------------------------------------------------------------


def _shifts(frame: Frame) -> tuple[tuple[int, int], ...]:
    """log2 subsampling (horizontal, vertical) of Y, U, V."""
    return ((0, 0), frame.chroma_shift, frame.chroma_shift)


def is_turned(box: Sequence[float]) -> bool:
    """Whether a box is a square that does not stand upright."""
    return len(box) == 5 and float(box[4]) != 0


def _grids(frame: Frame) -> list[Grid]:
    """Where the samples of Y, U and V lie."""
    return [_grid(*shifts) for shifts in _shifts(frame)]


def _grid(shift_x: int, shift_y: int) -> Grid:
    return Grid((1 << shift_x, 1 << shift_y), (_site(shift_x, is_cosited=True), _site(shift_y, is_cosited=False)))


def checked_box(box: Sequence[float]) -> tuple[float, float, float, float]:
    """A box (xyxy, perhaps with a roll) as xyxy numbers; refuses one without a whole pixel, or with a roll that is none."""
    x0, y0, x1, y1 = (float(v) for v in box[:4])
    if not (math.isfinite(x0 + y0 + x1 + y1 + sum(map(float, box[4:]))) and x1 - x0 >= 1 and y1 - y0 >= 1):
        raise FlashLipsError(f"The face box {x0:.1f}, {y0:.1f}, {x1:.1f}, {y1:.1f} is empty; track the clip again.")
    return x0, y0, x1, y1


def _site(shift: int, is_cosited: bool) -> float:
    """Where sample 0 of a plane lies, in luma pixels with pixel 0 from 0 to 1.

    H.264's and HEVC's default for subsampled chroma: level with the left luma column, between two luma rows.
    """
    return 0.5 if is_cosited or shift == 0 else (1 << shift) / 2


def sampling(
    start: float, stop: float, size: int, length: int, shift: int = 0, is_cosited: bool = True
) -> tuple[Tensor, int, int]:
    """Matrix (size, n) from samples ``first:last`` of a plane's axis to ``size`` crop pixels. -> matrix, first, last."""
    step = (stop - start) / size  # luma pixels per crop pixel
    luma = start + (torch.arange(size, dtype=torch.float64) + 0.5) * step
    position = (luma - _site(shift, is_cosited)) / (1 << shift)
    matrix, first = _taps(position, step / (1 << shift), length, "cubic")
    return matrix, first, first + matrix.shape[1]


def restoring(
    start: float, stop: float, size: int, first: int, count: int, shift: int = 0, is_cosited: bool = True, kernel: str = "cubic"
) -> tuple[Tensor, int]:
    """Matrix (count, n) from crop pixels to ``count`` samples of a plane's axis from ``first`` on, and the first crop pixel."""
    luma = (torch.arange(first, first + count, dtype=torch.float64) * (1 << shift)) + _site(shift, is_cosited)
    position = (luma - float(start)) * size / (float(stop) - float(start)) - 0.5
    return _taps(position, size * (1 << shift) / (float(stop) - float(start)), size, kernel)


def _taps(position: Tensor, step: float, length: int, kernel: str) -> tuple[Tensor, int]:
    """Interpolation weights at ``position`` (in samples) of an axis with replicated ends; antialiased where step > 1.

    Returns the (len(position), n) float32 matrix of the samples that take part, and the first of these.
    """
    scale = max(step, 1.0)
    radius = (2.0 if kernel == "cubic" else 1.0) * scale
    base = torch.floor(position - radius).long() + 1
    index = base[:, None] + torch.arange(math.ceil(2 * radius))
    distance = (index - position[:, None]).abs() / scale
    weight = _keys_cubic(distance) if kernel == "cubic" else (1 - distance).clamp(min=0)
    weight = weight / weight.sum(1, keepdim=True)
    index = index.clamp(0, length - 1)
    first = int(index.min())
    matrix = torch.zeros(len(position), int(index.max()) + 1 - first, dtype=torch.float64)
    return matrix.scatter_add_(1, index - first, weight).float(), first


def _keys_cubic(x: Tensor) -> Tensor:
    """Keys' interpolating cubic, a = -0.5."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))
