"""Augmentation: draws geometry, colour and damage so wide that appearance can only be read from the inputs.

B batch. Images are wide crops (see data.STORED_MARGIN) in [-1, 1]; results are the editor's crops.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ...dataset.store import CROP_PX, STORED_MARGIN


@dataclass(frozen=True)
class View:
    """One drawn camera and colour per row; frames of a clip share it."""

    geometry: Tensor  # (B, 2, 3) output to input coordinates, grid_sample's convention, on wide crops
    colour: Tensor  # (B, 3, 3) RGB mixing
    offset: Tensor  # (B, 3) added after mixing
    gamma: Tensor  # (B,)
    softness: Tensor  # (B,) in [0, 1]: 0 sharp, 1 as if enlarged from half the size
    noise: Tensor  # (B,) deviation


def _uniform(generator: torch.Generator, size: tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.rand(size, generator=generator) * (high - low) + low


def draw_view(count: int, generator: torch.Generator, strength: float = 1.0) -> View:
    """Looks for ``count`` clips: mirror, turn (12 degrees), scale (10 %), light, skin and camera colour, blur, noise."""
    turn = _uniform(generator, (count,), -0.2, 0.2) * strength
    scale = torch.exp(_uniform(generator, (count,), -0.1, 0.1) * strength) / STORED_MARGIN
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5 * min(strength, 1.0), -1.0, 1.0)
    shift = _uniform(generator, (count, 2), -0.05, 0.05) * strength
    cos, sin = torch.cos(turn) * scale, torch.sin(turn) * scale
    geometry = torch.stack(
        [torch.stack([cos * mirror, -sin, shift[:, 0]], -1), torch.stack([sin * mirror, cos, shift[:, 1]], -1)], 1
    )
    saturation = torch.exp(_uniform(generator, (count, 1, 1), -0.7, 0.5) * strength)
    gain = torch.exp(_uniform(generator, (count, 1, 1), -0.35, 0.25) * strength)
    tint = torch.exp(_uniform(generator, (count, 3, 1), -0.2, 0.2) * strength)
    mixing = _uniform(generator, (count, 3, 3), -0.12, 0.12) * strength
    grey = torch.full((3, 3), 1 / 3)
    colour = gain * tint * (grey + saturation * (torch.eye(3) - grey)) + mixing
    return View(
        geometry,
        colour,
        _uniform(generator, (count, 3), -0.12, 0.12) * strength,
        torch.exp(_uniform(generator, (count,), -0.35, 0.35) * strength),
        torch.rand(count, generator=generator).square() * strength,
        torch.rand(count, generator=generator).square() * 0.03 * strength,
    )


def on_device(view: View, device: torch.device | str) -> View:
    """The same looks there."""
    return View(*(value.to(device) for value in vars(view).values()))


def select(view: View, rows: Tensor) -> View:
    """The looks of the clips that frames belong to."""
    return View(*(value[rows] for value in vars(view).values()))


def after_motion(view: View, motion: Tensor) -> View:
    """The same look of frames that are first moved back by ``motion`` (B, 2, 3): similarities in the wide crop's [-1, 1]."""
    turned = motion[:, :, :2] @ view.geometry  # B 2 3
    return replace(view, geometry=torch.cat([turned[:, :, :2], turned[:, :, 2:] + motion[:, :, 2:]], 2))


def apply(wide: Tensor, view: View, generator: torch.Generator, size: int = CROP_PX) -> Tensor:
    """Wide crops (B, 3, S, S) in [-1, 1] -> augmented crops (B, 3, size, size) in [-1, 1]; all on the generator's device."""
    grid = F.affine_grid(view.geometry, [len(wide), 3, size, size], align_corners=False)
    image = F.grid_sample(wide, grid, mode="bicubic", padding_mode="border", align_corners=False)
    image = (image + 1) / 2
    image = torch.einsum("bij,bjhw->bihw", view.colour, image) + view.offset[:, :, None, None]
    image = image.clamp(0, 1).pow(view.gamma[:, None, None, None])
    soft = F.interpolate(F.avg_pool2d(image, 2), scale_factor=2, mode="bilinear")
    image = torch.lerp(image, soft, view.softness[:, None, None, None])
    # Sensor noise with some grain size, so that it survives the codec.
    grain = torch.randn(len(image), 3, size // 2, size // 2, generator=generator, device=generator.device)
    grain = F.interpolate(grain, scale_factor=2)
    return ((image + grain * view.noise[:, None, None, None]) * 2 - 1).clamp(-1, 1)


def move_points(points: Tensor, view: View) -> Tensor:
    """Landmarks (B, L, 2) in the unaugmented crop's coordinates -> the augmented crop's, both [0, 1]."""
    wide = (points - 0.5) * 2 / STORED_MARGIN  # grid_sample coordinates of the wide crop
    linear, shift = view.geometry[:, :, :2], view.geometry[:, :, 2]
    moved = torch.einsum("bij,blj->bli", torch.linalg.inv(linear), wide - shift[:, None])
    return moved / 2 + 0.5
