"""Small pictures for the tracker: what the detector looks at, how a scene is told from the next, a face from another.

Made from the YUV planes; no full RGB frame is ever made.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Frame
from .crop import crop_box

PATCH = 16  # side of the small picture by which faces are told apart
HISTOGRAM_BINS = 32


def thumbnail(frame: Frame, longest_side: float) -> np.ndarray:
    """The frame as small RGB, for detection only. -> (h, w, 3) uint8; BT.601, limited range: near enough to find a face."""
    factor = min(1.0, longest_side / max(frame.width, frame.height))
    size = (max(round(frame.height * factor), 16), max(round(frame.width * factor), 16))
    y, u, v = (_resized(plane, size, frame.bit_depth) for plane in frame.planes)
    y, u, v = 1.164 * (y - 16), u - 128, v - 128
    rgb = torch.stack([y + 1.596 * v, y - 0.392 * u - 0.813 * v, y + 2.017 * u], -1)
    return rgb.round_().clamp_(0, 255).byte().numpy()


def _resized(plane: np.ndarray, size: tuple[int, int], bit_depth: int) -> Tensor:
    pixels = _on_same_memory(plane if bit_depth == 8 else (plane >> (bit_depth - 8)).astype(np.uint8))[None, None]
    if plane.shape != size:
        pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
    return pixels[0, 0].float()


def _on_same_memory(plane: np.ndarray) -> Tensor:
    """A tensor to read from. Torch has no read-only tensors, so the view of the decoder's memory is unlocked, not copied."""
    view = plane.view()
    try:
        view.flags.writeable = True
    except ValueError:  # an array of its own that is locked
        view = plane.copy()
    return torch.from_numpy(view)


def luma_histogram(frame: Frame) -> np.ndarray:
    """Shares of luma in HISTOGRAM_BINS bins, in each of 3 x 3 fields, of about 100 x 100 sampled pixels. -> (9, bins) float32."""
    y = frame.planes[0]
    step = max(min(y.shape) // 96, 1)
    y = (y[::step, ::step] >> (frame.bit_depth - 3 - 2)).astype(np.int64)
    rows, columns = (np.arange(n) * 3 // n for n in y.shape)
    fields = (rows[:, None] * 3 + columns) * HISTOGRAM_BINS
    counts = np.bincount((fields + y).ravel(), minlength=9 * HISTOGRAM_BINS).reshape(9, HISTOGRAM_BINS).astype(np.float32)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def histogram_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Share of pixels that change bin, 0 to 1, mean over the fields; neighbouring bins are joined so that noise costs nothing."""
    difference = np.pad(a - b, ((0, 0), (1, 1)))
    joined = 0.25 * difference[:, :-2] + 0.5 * difference[:, 1:-1] + 0.25 * difference[:, 2:]
    return float(np.abs(joined).sum(1).mean() / 2)


def face_patch(rgb: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Appearance of a face: its crop, box-averaged to PATCH x PATCH and standardised. (H, W, 3) uint8 -> (3, PATCH, PATCH)."""
    x0, y0, x1, y1 = crop_box(points)
    side = 4 * PATCH
    columns = np.clip((x0 + (np.arange(side) + 0.5) * (x1 - x0) / side).astype(int), 0, rgb.shape[1] - 1)
    rows = np.clip((y0 + (np.arange(side) + 0.5) * (y1 - y0) / side).astype(int), 0, rgb.shape[0] - 1)
    small = rgb[rows[:, None], columns].astype(np.float32).reshape(PATCH, 4, PATCH, 4, 3).mean((1, 3))
    return standardised(small.transpose(2, 0, 1))


def standardised(patch: np.ndarray) -> np.ndarray:
    """Zero mean and unit deviation per picture, so that brightness and contrast do not tell faces apart; colours still do."""
    patch = patch - patch.mean()
    return (patch / max(float(patch.std()), 1e-6)).astype(np.float32)


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two patches, -1 to 1."""
    return float((a * b).mean())
