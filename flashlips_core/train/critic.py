"""A critic (patch discriminator) for what regression leaves soft: grain of skin, creases of lips, edges of teeth (ours).

B batch, H W pixels. It sees decoded and true pictures in pairs and tells which is which (relativistic pairing loss,
Jolicoeur-Martineau 2018, arXiv:1807.00734).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

CHANNELS = (32, 64, 128)


class Critic(nn.Module):
    """How real each patch of 38 px looks: images (B, 3, H, W) in [-1, 1] -> logits (B, 1, about H/8, about W/8)."""

    def __init__(self, channels: tuple[int, ...] = CHANNELS):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        # bf16 has no room for grain beside brightness
        with torch.autocast(images.device.type, enabled=False):
            return self.layers(images.float())

    def losses(self, decoded: Tensor, real: Tensor) -> dict[str, Tensor]:
        """ "critic", whose gradient reaches only the critic, and "realism", whose gradient reaches only what was decoded."""
        truth, frozen = self(real), {name: value.detach() for name, value in self.named_parameters()}
        told_apart = truth - self(decoded.detach())
        ahead = functional_call(self, frozen, (decoded,)) - truth.detach()
        return {"critic": F.softplus(-told_apart).mean(), "realism": F.softplus(-ahead).mean()}


class WithCritic(nn.Module):
    """A network and its critic under one optimiser, so that a run is saved, averaged and resumed as any other."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.critic = network, Critic()
