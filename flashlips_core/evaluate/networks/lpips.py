"""LPIPS v0.1 on AlexNet (Zhang et al. 2018): torchvision's AlexNet and the five published linear layers.

B batch, H W pixels. Images are (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...pretrained import read_state_dict
from ...types import FlashLipsError
from . import find

BACKBONE, LINEAR = ("alexnet-*.pth", "alexnet*.safetensors"), ("alex.pth", "lpips*alex*.pth", "lpips*alex*.safetensors")
CONVS = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
PLACES = (0, 3, 6, 8, 10)  # of the convolutions among torchvision's ``features``
POOLED_AFTER = (0, 1)  # convolutions with a 3x3 pool of stride 2 behind their ReLU
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS's ScalingLayer, for [-1, 1]


class Lpips(nn.Module):
    """A distance map as large as the images: (B, 3, H, W) twice -> (B, 1, H, W), as LPIPS's ``spatial=True`` gives it."""

    name = "LPIPS (AlexNet)"

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(*sizes) for sizes in CONVS)
        self.linear = nn.ModuleList(nn.Conv2d(outputs, 1, 1, bias=False) for _, outputs, *_ in CONVS)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        total = first.new_zeros(len(first), 1, *first.shape[-2:])
        for one, other, linear in zip(self.features(first), self.features(second), self.linear, strict=True):
            apart = linear((_unit(one) - _unit(other)) ** 2)
            total = total + F.interpolate(apart, size=first.shape[-2:], mode="bilinear", align_corners=False)
        return total

    def features(self, images: Tensor) -> list[Tensor]:
        """After each ReLU."""
        x, found = (images - self.shift) / self.scale, []
        for index, conv in enumerate(self.convs):
            x = F.relu(conv(x))
            found.append(x)
            if index in POOLED_AFTER:
                x = F.max_pool2d(x, 3, stride=2)
        return found


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def load_lpips(folder: Path | None) -> Lpips:
    """From torchvision's ``alexnet-*.pth`` and LPIPS's own ``alex.pth``."""
    backbone = find(folder, BACKBONE, "torchvision's AlexNet")
    linear = find(folder, LINEAR, "the linear layers of LPIPS v0.1")
    network, tensors, layers = Lpips(), read_state_dict(backbone), read_state_dict(linear)
    try:
        state = {
            f"convs.{i}.{part}": tensors[f"features.{place}.{part}"]
            for i, place in enumerate(PLACES)
            for part in ("weight", "bias")
        }
        state |= {f"linear.{i}.weight": layers[f"lin{i}.model.1.weight"] for i in range(len(CONVS))}
        network.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise FlashLipsError(f"{backbone.name} and {linear.name} are not AlexNet's and LPIPS's files ({error}).") from error
    return network.requires_grad_(False).eval()
