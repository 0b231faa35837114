"""Where a head is and how it is turned, from its landmarks; and the editor's square that follows from it.

T frames, L = 99 landmarks, R rigid ones. The camera is scaled orthographic (weak perspective): a point of the mean head,
in cm with y up, lies at ``place + scale * (R @ point)[:2]`` with y turned down; R = Rz(roll) Ry(yaw) Rx(pitch). Angles are
radians: positive yaw turns to image right, positive pitch nods down, positive roll tilts clockwise on screen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..types import FlashLipsError
from .landmarks import make_square
from .points import BROWS, EYE_CORNERS, INNER_PAIRS, MOUTH_CORNERS, NOSE, mean_shape

# What jaw and lips hardly move, and how much each point is believed. On ICT's head an open jaw lowers the nose's wings by
# 3 mm and a raised upper lip lifts them by 6, the point below the nose by 2; brows rise.
RIGID = (*EYE_CORNERS[0], *EYE_CORNERS[1], *range(NOSE.start, NOSE.stop), *range(BROWS.start, BROWS.stop))
RIGID_WEIGHTS = (1.0, 1.0, 1.0, 1.0, *(1.0, 1.0, 1.0, 1.0, 0.2, 0.05, 0.05), *(0.1,) * (BROWS.stop - BROWS.start))

ROUNDS = 6  # Gauss-Newton steps
CROP_SIDE_CM = 22.3  # side of the editor's square over the scale: the median of crop_box's on GRID
MOUTH_AT = (0.5, 0.625)  # where the closed mouth's centre lies in the editor's square, as crop_box puts it


@dataclass(frozen=True)
class HeadPoses:
    """A head's pose in each frame."""

    yaw: np.ndarray  # (T,) radians
    pitch: np.ndarray  # (T,) radians
    roll: np.ndarray  # (T,) radians
    scale: np.ndarray  # (T,) pixels per cm of the mean head
    place: np.ndarray  # (T, 2) pixels, where the mean head's closed mouth lies
    residual: np.ndarray  # (T,) what the rigid points miss, root mean square in cm

    def __len__(self) -> int:
        return len(self.yaw)

    @property
    def rotation(self) -> np.ndarray:
        """(T, 3, 3)."""
        return rotations(np.stack([self.yaw, self.pitch, self.roll], -1))

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points of the head (..., 3) in cm, the same in every frame, to pixels (T, ..., 2)."""
        flat = np.asarray(points, np.float64).reshape(-1, 3)
        seen = np.einsum("tij,nj->tni", _cameras(self), flat) + self.place[:, None]
        return seen.reshape(len(self), *np.shape(points)[:-1], 2)


def rotations(angles: np.ndarray) -> np.ndarray:
    """Yaw, pitch, roll (T, 3) to Rz(roll) Ry(yaw) Rx(pitch), (T, 3, 3); y up, so a positive roll is clockwise on screen."""
    (cy, cp, cr), (sy, sp, sr) = np.cos(angles).T, np.sin(angles).T
    zero, one = np.zeros_like(cy), np.ones_like(cy)
    turn = np.stack([cy, zero, sy, zero, one, zero, -sy, zero, cy], -1).reshape(-1, 3, 3)
    nod = np.stack([one, zero, zero, zero, cp, -sp, zero, sp, cp], -1).reshape(-1, 3, 3)
    tilt = np.stack([cr, sr, zero, -sr, cr, zero, zero, zero, one], -1).reshape(-1, 3, 3)
    return tilt @ turn @ nod


def fit_poses(points: np.ndarray, shape: np.ndarray | None = None) -> HeadPoses:
    """The pose of each face by least squares over the rigid points. (T, L, 2) pixels -> T poses.

    Args:
        shape: (L, 3) a person's own head in the mean head's frame; None takes the mean head.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 3 or points.shape[1:] != (len(mean_shape()), 2):
        raise FlashLipsError(f"Landmarks must be (frames, {len(mean_shape())}, 2), got {points.shape}.")
    model = (mean_shape() if shape is None else np.asarray(shape, np.float64))[list(RIGID)]
    weight = np.array(RIGID_WEIGHTS)
    unit = points.std(axis=(1, 2)).clip(1e-6)  # the fit is done in units of the face, whatever its size
    seen = points[:, list(RIGID)] / unit[:, None, None]
    state = _closed_form(seen, model, weight)
    for _ in range(ROUNDS):
        state = _gauss_newton(state, seen, model, weight)
    angles, scale, place = state[:, :3], np.exp(state[:, 3]), state[:, 4:6]
    missed = _project(state, model) - seen
    residual = np.sqrt((missed**2).sum(-1) @ weight / weight.sum()) / scale
    return HeadPoses(*angles.T, scale * unit, place * unit[:, None], residual)


def _cameras(poses: HeadPoses) -> np.ndarray:
    """(T, 2, 3): pixels per cm, y down."""
    return poses.rotation[:, :2] * np.array([1, -1])[:, None] * poses.scale[:, None, None]


def _project(state: np.ndarray, model: np.ndarray) -> np.ndarray:
    """(T, 6), (R, 3) -> (T, R, 2)."""
    turned = model @ rotations(state[:, :3]).swapaxes(1, 2)
    return turned[..., :2] * (1, -1) * np.exp(state[:, 3])[:, None, None] + state[:, None, 4:6]


def _closed_form(seen: np.ndarray, model: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Affine camera by least squares, made a rotation by SVD. -> (T, 6): yaw, pitch, roll, log scale, place."""
    design = np.concatenate([model, np.ones((len(model), 1))], 1) * weight[:, None]  # R 4
    solution = np.linalg.pinv(design) @ (seen * weight[:, None])  # T 4 2
    affine = (solution[:, :3] * (1, -1)).swapaxes(1, 2)  # T 2 3, y up
    left, values, right = np.linalg.svd(affine, full_matrices=False)
    rows = left @ right
    full = np.concatenate([rows, np.cross(rows[:, 0], rows[:, 1])[:, None]], 1)
    yaw = np.arcsin(-full[:, 2, 0].clip(-1, 1))
    pitch = np.arctan2(full[:, 2, 1], full[:, 2, 2])
    roll = np.arctan2(-full[:, 1, 0], full[:, 0, 0])
    return np.concatenate([np.stack([yaw, pitch, roll, np.log(values.mean(1).clip(1e-9))], 1), solution[:, 3]], 1)


def _gauss_newton(state: np.ndarray, seen: np.ndarray, model: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """One damped step on the weighted squares; derivatives by small differences, of all frames at once."""
    now, step = _project(state, model), 1e-5
    slopes = np.stack([(_project(state + step * unit, model) - now) / step for unit in np.eye(6)], -1)  # T R 2 6
    spread = np.sqrt(weight)[None, :, None]
    jacobian = (slopes * spread[..., None]).reshape(len(state), -1, 6)
    missed = ((seen - now) * spread).reshape(len(state), -1)
    normal = jacobian.swapaxes(1, 2) @ jacobian
    damping = 1e-6 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(6)
    return state + np.linalg.solve(normal + damping, (jacobian.swapaxes(1, 2) @ missed[..., None]))[..., 0]


# ---- the editor's square ---------------------------------------------------------------------------------------------------


def mouth_rest(poses: HeadPoses, offset: np.ndarray | None = None) -> np.ndarray:
    """Where the closed mouth's centre lies, which no jaw moves. (T, 2) pixels.

    Args:
        offset: (2,) cm to image right and up in the head's own frame: how a person's mouth lies off the mean head's.
    """
    return poses.project(np.zeros(3) if offset is None else np.array([*offset, 0.0]))


def canonical_square(poses: HeadPoses, offset: np.ndarray | None = None) -> np.ndarray:
    """The editor's square of each frame: sized by the head's scale, turned by its roll, the mouth's rest at MOUTH_AT. (T, 5)."""
    side = CROP_SIDE_CM * poses.scale
    cos, sin = np.cos(poses.roll), np.sin(poses.roll)
    right, down = np.stack([cos, sin], -1), np.stack([-sin, cos], -1)
    shift = (0.5 - MOUTH_AT[0]) * right + (0.5 - MOUTH_AT[1]) * down
    return make_square(mouth_rest(poses, offset) + shift * side[:, None], side, poses.roll)


def mouth_offset(points: np.ndarray, poses: HeadPoses) -> np.ndarray:
    """How a person's mouth lies off the mean head's: median over the frames with the most closed mouths. (T, L, 2) -> (2,) cm.

    The middle of the mouth's corners is measured in the plane of the face, which a turn shortens.
    """
    points = np.asarray(points, np.float64)
    gap = np.mean([np.linalg.norm(points[:, a] - points[:, b], axis=-1) for a, b in INNER_PAIRS], axis=0) / poses.scale
    calm = np.abs(poses.yaw) < max(0.5, float(np.quantile(np.abs(poses.yaw), 0.25)))  # rad: further turned ones say little of x
    used = calm & (gap <= np.quantile(gap[calm], 0.5))
    seen = points[:, list(MOUTH_CORNERS)].mean(1) - mouth_rest(poses)
    plane = np.linalg.pinv(_cameras(poses)[:, :, :2])  # T 2 2: pixels to cm in the face's own plane
    return np.median(np.einsum("tij,tj->ti", plane, seen)[used], axis=0)


def canonical_squares(points: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, HeadPoses]:
    """Squares (T, 5) and poses of one person's clip, not smoothed; rows that are not ``present`` hold NaN.

    Args:
        points: (T, L, 2) pixels.
        present: (T,) bool.
    """
    present = np.asarray(present, bool)
    if not present.any():
        raise FlashLipsError("No face in any frame; pick a clip with a visible face, or lower the detection threshold.")
    poses = fit_poses(np.asarray(points)[present])
    squares = np.full((len(present), 5), np.nan, np.float32)
    squares[present] = canonical_square(poses, mouth_offset(np.asarray(points)[present], poses))
    return squares, spread_out(poses, present)


def spread_out(poses: HeadPoses, present: np.ndarray) -> HeadPoses:
    """The poses of the present frames in the rows of all frames, NaN elsewhere."""
    full = {}
    for name in poses.__dataclass_fields__:
        values = getattr(poses, name)
        full[name] = np.full((len(present), *values.shape[1:]), np.nan)
        full[name][present] = values
    return replace(poses, **full)
