"""Blocks that several networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class RecomputedBlock(nn.Module):
    """A block that can forget its activations and compute them again in the backward pass: less memory, more work."""

    is_recomputed = False

    def __call__(self, *inputs):
        if self.is_recomputed and torch.is_grad_enabled():
            return checkpoint(super().__call__, *inputs, use_reentrant=False, preserve_rng_state=False)  # no block draws numbers
        return super().__call__(*inputs)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions: turn the pairs (i, i + D/2) of x (B, H, N, D) by each token's angles, in float32.

    Args:
        rotation: cosines and sines, (N, D/2) float32 each.
    """
    cosine, sine = rotation
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], dim=-1).to(x.dtype)


class ConvBlock(nn.Module):
    """Residual pair of 3x3 convolutions without normalisation: local, so that crops with a halo are exact. (B C h w)"""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv_2(F.relu(self.conv_1(x))))


class ModulatedBlock(RecomputedBlock):
    """Residual block whose second normalisation is scaled and shifted by a condition (B C h w), (B D) -> (B C' h w)."""

    def __init__(self, channels_in: int, channels_out: int, condition_dim: int, groups: int = 16):
        super().__init__()
        self.norm_1 = nn.GroupNorm(groups, channels_in)
        self.conv_1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(condition_dim, 2 * channels_out)
        self.norm_2 = nn.GroupNorm(groups, channels_out)
        self.conv_2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        nn.init.zeros_(self.conv_2.weight)
        nn.init.zeros_(self.conv_2.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition)[..., None, None].chunk(2, dim=1)  # B C' 1 1 each
        hidden = self.conv_1(F.silu(self.norm_1(x)))
        hidden = torch.addcmul(shift, self.norm_2(hidden), 1 + scale)
        return self.skip(x) + self.conv_2(F.silu(hidden))
