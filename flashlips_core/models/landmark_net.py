"""A small network that reads a face's 99 landmarks from a rough crop: plain convolutions, batch norms, one linear readout.

B batch, S side of the crop, L landmarks in the order of ``face.points.LANDMARKS``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..types import NUM_LANDMARKS, FlashLipsError


@dataclass(frozen=True)
class LandmarkNetConfig:
    """``channels[i]`` after the i-th halving, ``blocks[i]`` residual blocks there; ``squeezed`` channels go into the readout."""

    size: int = 112
    channels: tuple[int, ...] = (16, 32, 64, 128)
    blocks: tuple[int, ...] = (0, 0, 1, 1)
    squeezed: int = 40
    num_points: int = NUM_LANDMARKS


LANDMARKS_MINI = LandmarkNetConfig()


class LandmarkNet(nn.Module):
    """(B, 3, S, S) crops in [-1, 1] -> points (B, L, 2) as shares of the crop, and a logit (B,): is this a face?

    Shares are (0, 0) at the crop's top left corner and (1, 1) at its bottom right; points may lie outside.
    """

    def __init__(self, config: LandmarkNetConfig = LANDMARKS_MINI):
        super().__init__()
        self.config = config
        halvings = len(config.channels)
        if config.size % 2**halvings or len(config.blocks) != halvings:
            raise FlashLipsError(f"A landmark network of size {config.size} must halve {halvings} times, with blocks at each.")
        layers: list[nn.Module] = []
        for before, after, count in zip((3, *config.channels), config.channels, config.blocks, strict=False):
            layers += [_layer(before, after, 2), *(_Block(after) for _ in range(count))]
        self.layers = nn.Sequential(*layers, _layer(config.channels[-1], config.squeezed, 1, kernel=1))
        cells = (config.size // 2**halvings) ** 2
        self.readout = nn.Linear(cells * config.squeezed, 2 * config.num_points + 1)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        if crops.shape[1:] != (3, self.config.size, self.config.size):
            wanted = f"(B, 3, {self.config.size}, {self.config.size})"
            raise FlashLipsError(f"The landmark network reads crops {wanted}, got {tuple(crops.shape)}; cut them to that size.")
        out = self.readout(self.layers(crops).flatten(1))  # B (2 L + 1)
        return out[:, :-1].unflatten(1, (-1, 2)) + 0.5, out[:, -1]


class _Block(nn.Module):
    """Two 3x3 convolutions around which the picture may pass."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = _layer(channels, channels, 1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.second(self.first(x))))


def _layer(before: int, after: int, stride: int, kernel: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


def fused(network: LandmarkNet) -> LandmarkNet:
    """A frozen copy in eval mode whose norms are part of its convolutions: the same answers, a quarter faster."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for module in list(network.modules()):
        if isinstance(module, _Block):
            module.second, module.norm = fuse_conv_bn_eval(module.second, module.norm), nn.Identity()
        elif isinstance(module, nn.Sequential) and len(module) == 3 and isinstance(module[1], nn.BatchNorm2d):
            module[0], module[1] = fuse_conv_bn_eval(module[0], module[1]), nn.Identity()
    return network


def start_at(network: LandmarkNet, points: Tensor) -> None:
    """Let an untrained network answer with these points (L, 2), shares of the crop, whatever it sees at first."""
    with torch.no_grad():
        network.readout.weight.mul_(0.1)
        network.readout.bias[:-1] = (points - 0.5).flatten().to(network.readout.bias)
