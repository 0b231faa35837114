"""Pictures as networks have them and as files and screens do."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def to_bytes(images: Tensor) -> np.ndarray:
    """(..., 3, H, W) about [-1, 1], on any device -> (..., H, W, 3) uint8."""
    scaled = (images.detach().float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().byte().movedim(-3, -1).contiguous().cpu().numpy()


def from_bytes(images: np.ndarray | Tensor) -> Tensor:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) in [-1, 1], on the same device."""
    return torch.as_tensor(images).movedim(-1, -3).float() / 127.5 - 1


def laplacian(grey: Tensor) -> Tensor:
    """Curvature by the four neighbours, which shows fine detail. (..., H, W) -> (..., H - 2, W - 2)"""
    inner = grey[..., 1:-1, 1:-1]
    return 4 * inner - grey[..., :-2, 1:-1] - grey[..., 2:, 1:-1] - grey[..., 1:-1, :-2] - grey[..., 1:-1, 2:]


def resized(crops: Tensor, size: int) -> Tensor:
    """Square crops (B, 3, F, F) at another side, antialiased."""
    if crops.shape[-1] == size:
        return crops
    return F.interpolate(crops, size=(size, size), mode="bilinear", antialias=True)


def stretched(x: Tensor, shape: torch.Size) -> Tensor:
    """(B, C, h, w) at another height and width, linearly."""
    return x if x.shape[-2:] == shape else F.interpolate(x, size=shape, mode="bilinear", align_corners=False)
