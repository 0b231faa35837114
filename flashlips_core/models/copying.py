"""Copying from references whose lips already do what is wanted: a short path that small training budgets need (ours).

B batch, R references, P pose numbers, F channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compare_poses(poses: Tensor, reference_poses: Tensor | None, metric: Tensor) -> tuple[Tensor | None, Tensor]:
    """How near each reference's pose is to the wanted one, (B, R), 0 at best; and what the nearest lack of it, (B, P).

    Args:
        poses: (B, P) that are wanted.
        reference_poses: (1 or B, R, P); None where nobody has read them: then nothing is near, and nothing lacks.
        metric: (P,) log weight of each pose number in the distance.
    """
    if reference_poses is None:
        return None, torch.zeros_like(poses)
    difference = poses[:, None] - reference_poses  # B R P
    likeness = -(difference.square() * metric.exp()).sum(-1)
    return likeness, (likeness.softmax(1)[..., None] * difference).sum(1)


def weighted_sum(weights: Tensor, maps: Tensor) -> Tensor:
    """Sum over references, (B, R, h, w) and (1 or B, R, F, h, w) -> (B, F, h, w)."""
    if maps.shape[0] == 1:
        return torch.einsum("brhw,rfhw->bfhw", weights, maps[0])
    return torch.einsum("brhw,brfhw->bfhw", weights, maps)
