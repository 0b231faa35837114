"""The face's area in a crop, from its outline: what lies outside belongs to the background, the neck or the hair.

B crops, K points of an outline, S side of the mask.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

GROW = 0.04  # of the crop's side: the outline's points lie on the skin, and a mouth that opens takes the chin along
SOFT = 0.03  # of the crop's side, deviation of the soft edge


def face_region(outlines: np.ndarray, size: int) -> Tensor:
    """Soft masks of the area inside outlines, and a little around. (B, K, 2) shares of crops -> (B, 1, size, size) in [0, 1]."""
    import cv2

    masks = np.zeros((len(outlines), size, size), np.float32)
    reach = 2 * round(GROW * size) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    for mask, outline in zip(masks, outlines, strict=True):
        corners = np.rint((outline * size - 0.5) * 16).astype(np.int32)  # 4 fractional bits
        cv2.fillPoly(mask, [corners], 1.0, cv2.LINE_8, shift=4)
        mask[:] = cv2.GaussianBlur(cv2.dilate(mask, disc), (0, 0), SOFT * size)
    return torch.from_numpy(masks)[:, None]
