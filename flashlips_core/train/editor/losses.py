"""What the editor is trained against: latents, pixels, perceptual features, identity.

B batch, C channels, H W pixels, h w latent cells. Images are (B, 3, H, W) in [-1, 1], masks (B, 1, ., .) in [0, 1]. Every loss is
a mean in float32. The frozen networks that judge come from ``pretrained``; stand-ins say so in ``name`` and ``is_stand_in``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.vgg import VGGFeatures

# Paper, stage 1. The training loop multiplies the named losses by these.
PAPER_WEIGHTS = {
    "latent_l1": 0.1,
    "latent_l1_masked": 0.1,
    "pixel_l1_masked": 10.0,
    "pixel_l1_lips": 100.0,
    "perceptual": 50.0,
    "identity": 5.0,
}
SHARPNESS_LEVELS, TEXTURE_LEVELS = 3, 2  # bands of a Laplacian pyramid, from the finest
GRAIN_PX = 8  # side of the place whose fine detail is measured
# Of the crop. The paper has a threshold and does not state it: ours is half a closed mouth, about 20x7 of 256 px
MIN_LIPS_AREA = 0.002


def l1(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference of (B, C, ., .), over the mask's area where one is given, so that its size does not matter."""
    error = (prediction.float() - target.float()).abs()
    if mask is None:
        return error.mean()
    mask = mask.float()
    return (error * mask).sum() / (mask.sum() * error.shape[1]).clamp_min(1e-6)


def lips_l1(images: Tensor, target: Tensor, lips: Tensor) -> Tensor:
    """L1 in the lips of the images where lips cover at least MIN_LIPS_AREA of the picture; 0 where none do."""
    is_visible = lips.float().mean((1, 2, 3), keepdim=True) >= MIN_LIPS_AREA  # B 1 1 1
    return l1(images, target, lips * is_visible)


def latent_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """m: a pixel mask (B, 1, H, W) at latent size (B, 1, h, w), by area."""
    return F.adaptive_avg_pool2d(mask.float(), size)


class PerceptualLoss(nn.Module):
    """Mean L1 between VGG features, summed over the first ReLU of each stage.

    A stand-in's activations are not of VGG19's size: each of its stages is divided by its mean activation on the target, so that
    one loss weight serves both.
    """

    def __init__(self, features: VGGFeatures) -> None:
        super().__init__()
        self.features = features.requires_grad_(False).eval()
        self.name, self.is_stand_in = features.name, features.is_stand_in

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            expected = self.features(target)
        losses = []
        for ours, theirs in zip(self.features(images), expected, strict=True):
            loss = l1(ours, theirs)
            losses.append(loss / theirs.float().mean().clamp_min(1e-6) if self.is_stand_in else loss)
        return torch.stack(losses).sum()


class IdentityLoss(nn.Module):
    """1 - cosine of face embeddings (ours: the paper does not say which distance)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.name, self.is_stand_in = network.name, network.is_stand_in

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            expected = self.network(target)
        return (1 - F.cosine_similarity(self.network(images).float(), expected.float(), dim=1)).mean()


def sharpness_loss(image: Tensor, target: Tensor) -> Tensor:
    """L1 between Laplacian pyramids: weighs lip and tooth edges that a plain L1 blurs. (B, 3, H, W) each."""
    total, rest = image.new_zeros(()), image - target  # the pyramid is linear
    for _ in range(SHARPNESS_LEVELS):
        band, rest = _band(rest)
        total = total + band.abs().mean()
    return total / SHARPNESS_LEVELS


def texture_loss(image: Tensor, target: Tensor) -> Tensor:
    """How much fine detail there is around each place, not where it lies: L1 between the local deviations of two band passes.

    An L1 of pixels is least for a blur where a tooth may stand here or there; this one is least for as many edges as there are.
    (B, 3, H, W) each.
    """
    total = image.new_zeros(())
    for _ in range(TEXTURE_LEVELS):
        (band, image), (wanted, target) = _band(image), _band(target)
        total = total + (_deviation(band) - _deviation(wanted)).abs().mean()
    return total / TEXTURE_LEVELS


def _band(image: Tensor) -> tuple[Tensor, Tensor]:
    """The finest band of a Laplacian pyramid and what is left, of half the size."""
    small = F.avg_pool2d(image, 2)
    return image - F.interpolate(small, size=image.shape[2:], mode="bilinear"), small


def _deviation(band: Tensor) -> Tensor:
    return (F.avg_pool2d(band.square(), GRAIN_PX, GRAIN_PX // 2) + 1e-6).sqrt()
