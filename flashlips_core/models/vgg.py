"""VGG up to its last wanted stage, for a perceptual loss: VGG19 (paper) and VGG16, its stand-in."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VGG19_CONVS = (2, 2, 4, 4, 4)  # convolutions per stage; torchvision numbers them through ReLUs and pools
VGG16_CONVS = (2, 2, 3, 3, 3)


class VGGFeatures(nn.Module):
    """VGG up to the first convolution of its last kept stage; gives the first ReLU of every stage.

    Args:
        convs: convolutions per stage.
        mean, deviation: of the network's own inputs, per channel.
        scale: from [0, 1] to the network's range (1 or 255).
        is_bgr: whether channels come blue first.
        is_stand_in: whether this is not the network that the paper names.
    """

    def __init__(
        self,
        convs: tuple[int, ...],
        mean: tuple[float, float, float],
        deviation: tuple[float, float, float] = (1.0, 1.0, 1.0),
        scale: float = 1.0,
        is_bgr: bool = False,
        channels: tuple[int, ...] = (64, 128, 256, 512, 512),
        is_stand_in: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.is_stand_in = ("VGG16 (stand-in)" if is_stand_in else "VGG19"), is_stand_in
        self.is_bgr, self.scale = is_bgr, scale
        kept = (*convs[:-1], 1)
        inputs = 3
        self.convs = nn.ModuleDict()
        for stage, (count, outputs) in enumerate(zip(kept, channels, strict=False), start=1):
            for i in range(1, count + 1):
                self.convs[f"conv{stage}_{i}"] = nn.Conv2d(inputs, outputs, 3, padding=1)
                inputs = outputs
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> features of each stage, (B, channels, H / 2^i, W / 2^i)."""
        x = (images + 1) / 2 * self.scale
        x = ((x.flip(1) if self.is_bgr else x) - self.mean) / self.deviation
        features = []
        for name, conv in self.convs.items():
            is_first = name.endswith("_1")
            if is_first and features:
                x = F.max_pool2d(x, 2)
            x = F.relu(conv(x))
            if is_first:
                features.append(x)
        return features
