"""Which frames of a clip show the editor what this mouth looks like.

T frames, N candidates, S crop side. Wanted: the clip's usual head pose, sharp, and mouths from closed to wide open (a reference
whose head pose matches and whose mouth differs is the one that helps).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .face.head_pose import fit_poses
from .pixels import laplacian
from .retrieval import NUM_MOUTHS
from .types import FaceTrack

NUM_CANDIDATES = 40  # crops that are looked at; each costs one run of the lip encoder
BLURRED_SHARE = 0.25  # of the candidates: the least sharp are not used
OPENING_RANGE = (0.05, 0.95)  # quantiles of the mouth's motion: the outermost candidates are often failed detections


def head_pose(points: np.ndarray) -> np.ndarray:
    """Stand-ins for yaw, pitch and roll from five points, free of scale. (T, 5, 2) pixels -> (T, 3)."""
    points = np.asarray(points, dtype=np.float64)
    eyes, mouth = points[:, 0:2].mean(1), points[:, 3:5].mean(1)
    across = points[:, 1] - points[:, 0]
    width = np.linalg.norm(across, axis=1)
    across = across / np.maximum(width, 1e-6)[:, None]
    down = np.stack([-across[:, 1], across[:, 0]], 1)
    height = np.maximum(np.linalg.norm(mouth - eyes, axis=1), 1e-6)
    nose = points[:, 2] - eyes
    yaw = (nose * across).sum(1) / np.maximum(width, height)
    pitch = (nose * down).sum(1) / height
    return np.stack([yaw, pitch, np.arctan2(across[:, 1], across[:, 0])], 1)


def head_turns(track: FaceTrack) -> np.ndarray:
    """Yaw and pitch of each frame in radians; stand-ins for them where the track has no landmarks. (T, 2)"""
    if track.landmarks is None:
        return head_pose(track.points)[:, :2]
    poses = fit_poses(track.landmarks)
    return np.stack([poses.yaw, poses.pitch], 1)


def mouth_frames(track: FaceTrack) -> np.ndarray:
    """Up to NUM_MOUTHS frames with the face, spread evenly over the clip. -> (N,) sorted int."""
    present = np.flatnonzero(track.present)
    return present if len(present) <= NUM_MOUTHS else present[np.linspace(0, len(present) - 1, NUM_MOUTHS).round().astype(int)]


def candidate_frames(track: FaceTrack, count: int = NUM_CANDIDATES) -> np.ndarray:
    """Up to ``count`` frames spread over the clip, each the nearest of its stretch to the usual head pose. -> (N,) sorted int."""
    present = np.flatnonzero(track.present)
    if len(present) <= count:
        return present
    pose = head_pose(track.points[present])
    distance = np.linalg.norm(pose - np.median(pose, axis=0), axis=1)
    distance += _share_outside(track.boxes[present], track.width, track.height)
    edges = np.linspace(0, len(present), count + 1).round().astype(int)
    return np.array([present[a + distance[a:b].argmin()] for a, b in zip(edges[:-1], edges[1:], strict=True)])


def choose_references(crops: Tensor, poses: Tensor, count: int) -> list[int]:
    """Rows of the candidates to use: sharp ones, evenly spread along the mouth's main motion.

    Args:
        crops: (N, 3, S, S) in [-1, 1].
        poses: (N, 12) lip poses of the crops.
    """
    usable = torch.arange(len(crops))
    if len(crops) >= 2 * count:
        sharpest = sharpness(crops).argsort(descending=True, stable=True)
        usable = sharpest[: max(count, round(len(crops) * (1 - BLURRED_SHARE)))].sort().values
    if len(usable) <= count:
        return usable.tolist()
    values = poses[usable].double()
    direction = torch.linalg.svd(values - values.mean(0), full_matrices=False).Vh[0]
    direction = direction * direction[direction.abs().argmax()].sign()  # svd leaves the sign open
    order = (values @ direction).argsort(stable=True)
    low, high = OPENING_RANGE if count > 1 else (0.5, 0.5)
    ranks = torch.linspace(low, high, count) * (len(usable) - 1)
    return sorted(usable[order[ranks.round().long()]].tolist())


def sharpness(crops: Tensor) -> Tensor:
    """Fine detail of the upper face, which does not depend on how wide the mouth is open. (N, 3, S, S) -> (N,)."""
    upper = crops[:, :, : crops.shape[-2] // 2].float().mean(1)  # N S/2 S
    return laplacian(upper).abs().mean((1, 2))


def _share_outside(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """How much of each box lies outside the picture, 0 to 1. (T, 4) -> (T,)."""
    inner = np.stack([boxes[:, 0].clip(0), boxes[:, 1].clip(0), boxes[:, 2].clip(max=width), boxes[:, 3].clip(max=height)], 1)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = (inner[:, 2] - inner[:, 0]).clip(0) * (inner[:, 3] - inner[:, 1]).clip(0)
    return 1 - kept / np.maximum(area, 1e-6)
