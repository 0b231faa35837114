"""Head poses: known turns come back, and neither scale nor the mouth's rest follows the jaw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flashlips_core.face import motion
from flashlips_core.face.crop import crop_box
from flashlips_core.face.head_pose import (
    MOUTH_AT,
    canonical_square,
    canonical_squares,
    fit_poses,
    mouth_offset,
    mouth_rest,
    rotations,
)
from flashlips_core.face.points import FIVE, ICT_MOUTH, LANDMARKS, MOUTH_CORNERS, in_mesh, mean_shape, mirror_order
from flashlips_core.heads.mesh import ICT_MEDIAPIPE_VERTICES, Camera, load_head, rotation
from flashlips_core.turned import to_shares
from flashlips_core.types import NUM_LANDMARKS, FlashLipsError

MESH = Path(__file__).resolve().parents[2] / "shared" / "data" / "synthetic" / "ict_facekit_f16.npz"
needs_mesh = pytest.mark.skipif(not MESH.is_file(), reason="the head mesh lies in ../shared, which is not here")


@pytest.fixture(scope="module")
def mesh():
    return load_head(MESH)


def seen(angles: np.ndarray, scale: float = 12.0, place: tuple[float, float] = (100.0, 80.0), shape=None) -> np.ndarray:
    """The mean head (or ``shape``) from afar. (T, 3) radians -> (T, 99, 2) pixels."""
    head = mean_shape() if shape is None else shape
    return (head @ rotations(angles).swapaxes(1, 2))[..., :2] * (1, -1) * scale + place


def mesh_points(mesh, vertices: np.ndarray, camera: Camera) -> np.ndarray:
    """A mesh's landmarks through a camera, 100 px to the focal length. -> (99, 2)."""
    offsets = mean_shape() + np.array(ICT_MOUTH) - mesh.neutral[mesh.mediapipe]
    return camera.project(vertices[mesh.mediapipe] + offsets) * 1500


def test_the_table_holds_the_points_that_data_and_evaluation_use():
    assert len(LANDMARKS) == len(ICT_MEDIAPIPE_VERTICES) == NUM_LANDMARKS
    assert in_mesh(FIVE) == (468, 473, 4, 61, 291)
    assert motion.INNER_PAIRS == ((82, 87), (13, 14), (312, 317)) and motion.EYE_CORNERS == (33, 263)
    order = list(mirror_order())
    assert [order[i] for i in order] == list(range(len(LANDMARKS)))
    assert order[MOUTH_CORNERS[0]] == MOUTH_CORNERS[1]


def test_known_turns_scales_and_places_come_back():
    angles = np.random.default_rng(0).uniform(-1, 1, (40, 3)) * (1.05, 0.5, 0.8)
    poses = fit_poses(seen(angles))
    assert np.abs(np.stack([poses.yaw, poses.pitch, poses.roll], 1) - angles).max() < 1e-6
    assert np.allclose(poses.scale, 12) and np.allclose(poses.place, (100, 80))
    assert poses.residual.max() < 1e-6


def test_noise_of_a_pixel_moves_them_little():
    rng = np.random.default_rng(1)
    angles = rng.uniform(-1, 1, (200, 3)) * (0.9, 0.4, 0.8)
    points = seen(angles)
    poses = fit_poses(points + rng.normal(0, 1, points.shape))
    error = np.abs(np.stack([poses.yaw, poses.pitch, poses.roll], 1) - angles).mean(0)
    assert np.degrees(error).max() < 1.5
    assert np.abs(poses.scale / 12 - 1).mean() < 0.02


def test_a_roll_turns_the_pose_as_the_meshs_own_rotation_does():
    assert np.allclose(rotations(np.array([[0.5, 0.2, -0.3]]))[0], rotation(0.5, 0.2, -0.3), atol=1e-6)


@needs_mesh
def test_the_turned_mean_head_gives_its_angles_back_within_two_degrees(mesh):
    for yaw, pitch, roll in ((0, 0, 0), (0.6, 0.2, 0.3), (-1.0, -0.3, -0.7), (0.3, -0.4, 0.6)):
        camera = Camera(rotation(yaw, pitch, roll), 400.0)  # from afar, as weak perspective supposes
        poses = fit_poses(mesh_points(mesh, mesh.neutral, camera)[None])
        found = np.degrees([poses.yaw[0], poses.pitch[0], poses.roll[0]])
        assert np.abs(found - np.degrees([yaw, pitch, roll])).max() < 2


@needs_mesh
@pytest.mark.parametrize("yaw", [0.0, 0.7])
def test_neither_scale_nor_the_mouths_rest_follows_the_jaw(mesh, yaw):
    camera = Camera(rotation(yaw, 0.1, 0.2), 90.0)
    rest = mesh.identify(np.random.default_rng(3).normal(0, 0.8, len(mesh.identity)))
    jaws = [mesh.express(rest, mesh.weights(jawOpen=w)) for w in np.linspace(0, 1, 6)]
    points = np.stack([mesh_points(mesh, vertices, camera) for vertices in jaws])
    poses = fit_poses(points)
    assert np.ptp(poses.scale) / poses.scale.mean() < 0.005
    assert np.ptp(mouth_rest(poses), axis=0).max() < 0.035 * poses.scale.mean()  # 0.35 mm of the head
    opened = np.linalg.norm(points[-1, 25] - points[0, 25])
    assert opened > 1.0 * poses.scale.mean()  # while the lower lip went down by more than a centimetre


@needs_mesh
def test_a_persons_own_mouth_lies_where_the_square_wants_it(mesh):
    rng = np.random.default_rng(5)
    rest = mesh.identify(rng.normal(0, 1, len(mesh.identity)))
    camera = [Camera(rotation(*turn), 120.0) for turn in rng.normal(0, (0.2, 0.1, 0.3), (12, 3))]
    points = np.stack([mesh_points(mesh, rest, c) for c in camera])
    squares, poses = canonical_squares(points, np.ones(12, bool))
    mouths = to_shares(points[:, list(MOUTH_CORNERS)].mean(1, keepdims=True), squares)[:, 0]
    assert np.abs(mouths - MOUTH_AT).max() < 0.02
    assert np.allclose(squares[:, 4], poses.roll, atol=1e-6)


def test_the_square_of_the_frontal_mean_head_is_about_todays():
    points = seen(np.zeros((1, 3)))
    square = canonical_square(fit_poses(points))[0]
    box = crop_box(points[0, list(FIVE)])
    side = box[2] - box[0]
    assert abs((square[2] - square[0]) / side - 1) < 0.04
    assert np.abs((square[:2] + square[2:4] - box[:2] - box[2:]) / 2).max() < 0.04 * side


def test_a_mouth_off_the_means_place_is_measured_in_the_heads_own_frame():
    head = mean_shape()
    head[:40] += (0.3, -0.5, 0.0)
    angles = np.random.default_rng(2).normal(0, (0.3, 0.15, 0.4), (30, 3))
    points = seen(angles, shape=head)
    assert np.allclose(mouth_offset(points, fit_poses(points)), (0.3, -0.5), atol=1e-6)


def test_frames_without_a_face_stay_empty():
    points, present = seen(np.zeros((4, 3))), np.array([True, False, True, True])
    points[1] = np.nan
    squares, poses = canonical_squares(points, present)
    assert np.isnan(squares[1]).all() and np.isnan(poses.yaw[1])
    assert np.isfinite(squares[present]).all() and len(poses) == 4
    with pytest.raises(FlashLipsError, match="No face in any frame"):
        canonical_squares(points, np.zeros(4, bool))


def test_other_numbers_of_points_are_refused():
    with pytest.raises(FlashLipsError, match="99"):
        fit_poses(np.zeros((3, 68, 2)))
