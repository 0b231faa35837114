"""An edited mouth as sharp as the clip's own: an unsharp mask, as strong as the editor's softness on this clip asks for.

A small editor regresses to the mean of what a mouth may look like, which is soft. How soft is measured once per clip, on its
references; one mask for all frames, so that nothing flickers. B batch, S crop side in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .pixels import laplacian
from .types import FlashLipsError

SIGMA = 1.0  # frame pixels: the finest detail, which regression loses first
STRONGEST = 1.0  # no dub of 16 GRID clips then has more than 1.06 of its clip's detail; a noisy clip would ask for more still


def check_share(sharpen: float) -> None:
    """Refuse what is no share."""
    if not 0 <= sharpen <= 1:
        raise FlashLipsError(f"Sharpening is a share from 0 (none) to 1 (all that was lost), got {sharpen:g}; choose one.")


@dataclass(frozen=True)
class UnsharpMask:
    """Adds ``strength`` times what a Gaussian blur of ``sigma`` crop pixels takes from the luminance: colours get no fringes."""

    strength: float = 0.0
    sigma: float = SIGMA

    @property
    def reach(self) -> int:
        """Pixels that are read on each side."""
        return math.ceil(2 * self.sigma) if self.strength else 0

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], both."""
        if self.strength == 0:
            return pixels
        return (pixels + self.strength * _fine(pixels.mean(1, keepdim=True), self.sigma)).clamp(-1, 1)


def matching_mask(edited: Tensor, shown: Tensor, region: Tensor, scale: float, share: float = 1.0) -> UnsharpMask:
    """The mask that gives edits the fine detail of the crops that they were made of, once they are pasted.

    Fine detail is the variance of the Laplacian. Sharpening and pasting are linear, L(edited) + s L(fine), so that this variance
    is a quadratic in the strength s.

    Args:
        edited, shown: (B, 3, H, W) in [-1, 1].
        region: (H, W) bool, where detail counts.
        scale: crop pixels per frame pixel; where it is above 1, pasting shrinks the crop and takes its finest detail.
        share: of the strength found, 0 to 1.
    """
    sigma = SIGMA * max(scale, 1.0)
    grey = edited.float().mean(1, keepdim=True)
    own, gained = (laplacian(_as_pasted(x, scale))[..., region[1:-1, 1:-1]] for x in (grey, _fine(grey, sigma)))
    wanted = fine_detail(shown.float(), region)
    a, b, c = _covariance(gained, gained), 2 * _covariance(own, gained), _covariance(own, own) - wanted
    if c >= 0 or a <= 0:
        return UnsharpMask(0.0, sigma)
    strength = (math.sqrt(b * b - 4 * a * c) - b) / (2 * a)
    return UnsharpMask(share * min(strength, STRONGEST), sigma)


def fine_detail(pixels: Tensor, region: Tensor) -> float:
    """Mean over pictures (B, 3, H, W) of the variance of the grey Laplacian inside ``region`` (H, W) bool."""
    curvature = laplacian(pixels.mean(1, keepdim=True))[..., region[1:-1, 1:-1]]
    return _covariance(curvature, curvature)


def _fine(grey: Tensor, sigma: float) -> Tensor:
    """What a Gaussian blur takes away. (B, 1, H, W)"""
    from kornia.filters import gaussian_blur2d  # takes its time to import

    size = 2 * math.ceil(2 * sigma) + 1
    return grey - gaussian_blur2d(grey, (size, size), (sigma, sigma), border_type="replicate")


def _as_pasted(pixels: Tensor, scale: float) -> Tensor:
    """Shrunk to frame pixels and back, as who cuts the face out of the result sees it. (B, C, H, W)"""
    if scale <= 1:
        return pixels
    size = [max(round(side / scale), 1) for side in pixels.shape[-2:]]
    small = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
    return F.interpolate(small, size=pixels.shape[-2:], mode="bicubic", align_corners=False)


def _covariance(first: Tensor, second: Tensor) -> float:
    """Mean over pictures of the covariance over pixels. (B, 1, N) twice."""
    first, second = (x - x.mean(-1, keepdim=True) for x in (first, second))
    return float(torch.mean(first * second))
