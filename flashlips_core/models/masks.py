"""What the stage-1 editor must not see: the lower face (paper: ``x_masked``; the geometry is ours)."""

from __future__ import annotations

import torch
from torch import Tensor

# Shares of the crop: from slightly above the nose tip, full cheek width, to the lower edge. A mask that leaves the cheeks
# visible leaks the original lips.
MASK_TOP, MASK_SIDE = 14 / 32, 5 / 32


def lower_face_mask(height: int, width: int) -> Tensor:
    """Soft mask of what stage 1 hides, (1, 1, h, w) in [0, 1]; one latent cell of transition."""
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    rows = ((y - MASK_TOP) * height + 0.5).clamp(0, 1)
    columns = (torch.minimum(x - MASK_SIDE, 1 - MASK_SIDE - x) * width + 0.5).clamp(0, 1)
    return (rows[:, None] * columns[None])[None, None]
