"""Fixed regions of the crop: what the stage-1 editor must not see (paper: ``x_masked``), and what an edit may change (ours)."""

from __future__ import annotations

import torch
from torch import Tensor

# Shares of the crop: from slightly above the nose tip, full cheek width, to the lower edge. A mask that leaves the cheeks
# visible leaks the original lips.
MASK_TOP, MASK_SIDE = 14 / 32, 6 / 32
LIPS = (0.33, 0.50, 0.67, 0.74)  # of the crop, left, top, right, bottom: around the lips that MediaPipe finds on GRID


def lower_face_mask(height: int, width: int) -> Tensor:
    """Soft mask of what stage 1 hides, (1, 1, h, w) in [0, 1]; one latent cell of transition."""
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    rows = ((y - MASK_TOP) * height + 0.5).clamp(0, 1)
    columns = (torch.minimum(x - MASK_SIDE, 1 - MASK_SIDE - x) * width + 0.5).clamp(0, 1)
    return (rows[:, None] * columns[None])[None, None]


def mouth_mask(height: int, width: int) -> Tensor:
    """What a mask-free edit may change: lips, chin and the skin between, a soft ellipse, (1, 1, h, w) in [0, 1].

    Training pairs differ inside it alone, and edits are confined to it, so that cheeks and neck keep their texture.
    """
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    radius = (((y[:, None] - 0.71) / 0.25).square() + ((x[None] - 0.5) / 0.25).square()).sqrt()
    return ((1.1 - radius) / 0.35).clamp(0, 1)[None, None]


def lips_region(height: int, width: int) -> Tensor:
    """Where a frontal face's lips lie in its crop, (h, w) bool."""
    left, top, right, bottom = (round(share * side) for share, side in zip(LIPS, (width, height) * 2, strict=True))
    region = torch.zeros(height, width, dtype=torch.bool)
    region[top:bottom, left:right] = True
    return region
