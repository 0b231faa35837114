"""Squares, the landmark network and its training data, at toy sizes; and the bundled weights on rendered heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flashlips_core import checkpoint
from flashlips_core.face.cascades import LandmarkDetector
from flashlips_core.face.landmarks import FaceLandmarker, cut_from, cut_square, rough_square, square_around
from flashlips_core.face.points import EYES, FIVE, mean_shape
from flashlips_core.heads.mesh import Camera, load_head, rotation
from flashlips_core.heads.render import HeadRenderer
from flashlips_core.heads.set import random_look
from flashlips_core.heads.skin import SKIN_TONES, SkinPainter
from flashlips_core.loading import load_network
from flashlips_core.models.landmark_net import LANDMARKS_MINI, LandmarkNet, LandmarkNetConfig, start_at
from flashlips_core.train.landmarks.heads import vertex_offsets
from flashlips_core.train.landmarks.measure import jitter, measure
from flashlips_core.train.landmarks.pictures import FaceStore, mirror, write_store
from flashlips_core.train.landmarks.training import (
    LandmarkSettings,
    LandmarkStores,
    fresh,
    landmark_batches,
    landmark_step,
    train_landmarks,
)
from flashlips_core.train.landmarks.views import background_view, face_view, wrong_view
from flashlips_core.turned import to_pixels, to_shares
from flashlips_core.types import NUM_LANDMARKS, FlashLipsError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
MESH = SHARED / "synthetic" / "ict_facekit_f16.npz"
TINY = LandmarkNetConfig(size=32, channels=(4, 8), blocks=(0, 1), squeezed=4)
bundled = pytest.mark.skipif(
    not (checkpoint.BUNDLED_DIR / "landmarks.safetensors").is_file(), reason="the bundled landmark network is not trained yet"
)


def face(scale: float = 8.0, roll: float = 0.0, place: tuple[float, float] = (120.0, 150.0)) -> np.ndarray:
    """The frontal mean head's landmarks. -> (99, 2) pixels."""
    turn = np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    return mean_shape()[:, :2] * (1, -1) @ turn * scale + place


def drawn(points: np.ndarray, size: int) -> np.ndarray:
    """A white dot at each landmark, which weighs as much as its place says. (99, 2) pixels -> (size, size, 3) uint8."""
    import cv2

    picture = np.zeros((size, size, 3), np.uint8)
    for x, y in points:
        cv2.circle(picture, (int(round(x * 16 - 8)), int(round(y * 16 - 8))), 3 * 16, (255, 255, 255), -1, cv2.LINE_AA, 4)
    return picture


@pytest.fixture
def store(tmp_path) -> FaceStore:
    """Six drawn faces."""
    rng = np.random.default_rng(0)
    places = [face(2.6, rng.normal(0, 0.1), tuple(60 + rng.normal(0, 2, 2))) for _ in range(6)]
    rows = [(drawn(p, 120), p / 120, f"p{i}", "test" if i > 3 else "train") for i, p in enumerate(places)]
    return write_store(tmp_path / "portraits", rows)


# ---- squares ---------------------------------------------------------------------------------------------------------------


def test_points_go_into_a_square_and_back():
    rng = np.random.default_rng(0)
    points, squares = rng.normal(100, 40, (5, 99, 2)), np.array([[20, 30, 120, 130, a] for a in (-1, -0.3, 0, 0.4, 3)])
    assert np.allclose(to_pixels(to_shares(points, squares), squares), points, atol=1e-3)


def test_a_square_turns_clockwise_by_its_roll():
    square = np.array([0.0, 0.0, 10.0, 10.0, np.pi / 2])
    assert np.allclose(to_pixels(np.array([[1.0, 0.5]]), square), [[5, 10]], atol=1e-5)  # the crop's right is the picture's down


@pytest.mark.parametrize("roll", [-0.8, 0.0, 0.5])
def test_the_square_around_a_face_turns_it_upright_at_one_size(roll):
    upright, square = square_around(face()), square_around(face(20.0, roll, (400.0, 300.0)))
    assert square[4] == pytest.approx(roll, abs=1e-5)
    assert np.allclose(to_shares(face(20.0, roll, (400.0, 300.0)), square), to_shares(face(), upright), atol=1e-5)
    inside = to_shares(face(), upright)
    assert 0.1 < inside.min() and inside.max() < 0.9


def test_five_points_and_a_detectors_box_give_nearly_the_square_of_all_landmarks():
    points = face(10.0, 0.4, (300.0, 300.0))
    square, rough = square_around(points), rough_square(points[list(FIVE)])
    assert np.abs(rough - square)[:4].max() < 0.03 * (square[2] - square[0])
    assert rough[4] == pytest.approx(0.4, abs=1e-3)
    upright = face(10.0, 0.0, (300.0, 300.0))
    brows_to_chin = np.array([230.0, upright[40, 1] + 15, 370.0, upright[58, 1]])  # as YuNet draws it, without the forehead
    rough, square = rough_square(brows_to_chin), square_around(upright)
    assert rough[4] == 0
    assert np.abs(rough - square)[:4].max() < 0.12 * (square[2] - square[0])


def test_something_that_is_no_box_is_refused():
    with pytest.raises(FlashLipsError, match="five points"):
        rough_square(np.zeros(6))


def test_a_square_is_cut_where_it_lies():
    points = face(6.0, 0.6, (110.0, 120.0))
    square = square_around(points)
    crop = cut_square(drawn(points, 240), square, 240)
    rows, columns = (to_shares(points, square) * 240).round().astype(int).T[::-1]
    assert (crop[rows, columns] > 128).all()


# ---- network and runner ----------------------------------------------------------------------------------------------------


def test_the_bundled_size_is_below_a_million_parameters():
    assert sum(p.numel() for p in LandmarkNet(LANDMARKS_MINI).parameters()) == 862_527


def test_an_untrained_network_starts_at_the_given_points():
    network, points = LandmarkNet(TINY), torch.rand(NUM_LANDMARKS, 2)
    start_at(network, points)
    torch.nn.init.zeros_(network.readout.weight)
    found, logit = network(torch.rand(2, 3, 32, 32))
    assert torch.allclose(found[0], points, atol=1e-6) and logit.shape == (2,)


def test_crops_of_another_size_are_refused():
    with pytest.raises(FlashLipsError, match="cut them to that size"):
        LandmarkNet(TINY)(torch.zeros(1, 3, 31, 32))


def test_a_batch_gives_what_its_pictures_give_alone():
    landmarker, crops = FaceLandmarker(LandmarkNet(TINY)), torch.rand(4, 3, 32, 32)
    points, confidence = landmarker.read(crops)
    alone = [landmarker.read(crops[i : i + 1]) for i in range(4)]
    assert np.allclose(points, np.concatenate([p for p, _ in alone]), atol=1e-5)
    assert np.allclose(confidence, np.concatenate([c for _, c in alone]), atol=1e-5)


def test_the_runners_network_with_norms_folded_in_answers_as_the_plain_one():
    network, crops = LandmarkNet(TINY), torch.rand(3, 3, 32, 32)
    for _ in range(3):
        network(crops * 3)  # running statistics that are not the first ones
    points, logit = network.eval()(crops)
    read, confidence = FaceLandmarker(network).read(crops)
    assert np.allclose(read, points.detach(), atol=1e-5)
    assert np.allclose(confidence, logit.detach().sigmoid(), atol=1e-5)


def test_a_second_look_starts_where_the_first_one_ended():
    class Oracle(torch.nn.Module):
        """Answers with the right points of whatever square was cut last."""

        def __init__(self):
            super().__init__()
            self.config, self.readout = TINY, torch.nn.Linear(1, 1)

        def forward(self, crops):
            shares = to_shares(np.stack([face(6.0, 0.5)] * len(crops)), self.squares)
            return torch.from_numpy(shares).float(), torch.full((len(crops),), 5.0)

    landmarker, looked_at = FaceLandmarker(Oracle()), []

    def cut(rows, squares, size):
        landmarker.network.squares = squares
        looked_at.append(squares)
        return torch.zeros(len(rows), 3, size, size)

    rough = rough_square(np.array([[60.0, 60, 180, 190]]))
    points, confidence = landmarker.find(cut, rough)
    assert np.allclose(points[0], face(6.0, 0.5), atol=1e-3) and confidence[0] > 0.99
    assert np.allclose(looked_at[0], rough) and looked_at[1][0, 4] == pytest.approx(0.5, abs=1e-3)


# ---- training --------------------------------------------------------------------------------------------------------------


def test_views_keep_points_on_their_pixels(store):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        view = face_view(store, int(store.rows("train")[seed % 4]), rng, 64)
        assert view.picture.shape == (64, 64, 3) and view.picture.dtype == np.uint8
        if view.is_face:
            rows, columns = (view.points * 64).astype(int).T[::-1].clip(0, 63)
            assert view.picture[rows, columns].mean() > view.picture.mean()
    assert not wrong_view(store, 0, np.random.default_rng(0), 64).is_face
    assert not background_view(store, 0, np.random.default_rng(0), 64).is_face


def test_mirroring_twice_changes_nothing():
    points = face() / 240
    assert np.allclose(mirror(mirror(points)), points)
    assert np.allclose(mirror(points)[EYES].mean(0), points[EYES].mean(0) * (-1, 1) + (1, 0))


def test_a_wrong_answer_costs_nothing_where_there_is_no_face(store):
    stores = LandmarkStores({"portraits": [store]}, [store])
    batch = landmark_batches(stores, 32, 32)(torch.Generator().manual_seed(0))
    assert 0 < batch.is_face.sum() < 32
    nobody = type(batch)(batch.crops, batch.points, batch.scale, torch.zeros(32))
    assert landmark_step(LandmarkNet(TINY), nobody, torch.Generator())["points"] == 0


def test_a_few_steps_of_training_bring_points_nearer(store, tmp_path):
    stores = LandmarkStores({"portraits": [store]}, [])
    wide = LandmarkNetConfig(size=32, channels=(8, 16), blocks=(0, 0), squeezed=8)
    settings = LandmarkSettings(str(tmp_path / "run"), steps=60, batch_size=16, lr=5e-3, log_every=20, ema=0.9)
    network = train_landmarks(fresh(wide), stores, {"portraits": store}, settings)
    table = (tmp_path / "run" / "losses.csv").read_text().splitlines()
    column = table[0].split(",").index("points")
    losses = [float(row.split(",")[column]) for row in table[1:]]
    assert losses[-1] < 0.8 * losses[0]
    scores = measure(network, {"portraits": store})
    assert {"portraits", "portraits lips", "portraits confident"} <= set(scores)


# ---- the bundled weights ---------------------------------------------------------------------------------------------------


@bundled
def test_the_bundled_file_is_small_and_says_whose_pictures_it_learnt_from():
    path = checkpoint.bundled("landmarks")
    assert path.stat().st_size <= 2.5e6
    assert "Apache-2.0" in checkpoint.info(path).notes["licence"]
    assert load_network("landmarks").config == LANDMARKS_MINI


@pytest.fixture(scope="module")
def rendered():
    """``rendered(yaw, roll)`` draws one head: picture (256, 256, 3) uint8 and its landmarks (99, 2) in pixels."""
    if not MESH.is_file():
        pytest.skip("the head mesh lies in ../shared, which is not here")
    mesh, rng = load_head(MESH), np.random.default_rng(11)
    try:
        renderer = HeadRenderer(mesh, 256, 1)
    except FlashLipsError as error:
        pytest.skip(str(error))
    skin = SkinPainter(mesh, 128).paint(rng, SKIN_TONES[2], np.array([60.0, 40, 30]))
    with renderer:
        renderer.set_look(random_look(rng, (skin, SKIN_TONES[2], False)))

        def draw(yaw: float, roll: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
            camera = Camera(rotation(yaw, 0.1, roll), 100.0)
            points = camera.project(mesh.neutral[mesh.mediapipe] + vertex_offsets(mesh))
            middle, half = (points.min(0) + points.max(0)) / 2, np.ptp(points, axis=0).max()
            picture = renderer.draw(mesh.neutral, camera, np.concatenate([middle - half, middle + half]))
            return picture, (points - middle + half) / (2 * half) * 256

        yield draw


def error_of(found: np.ndarray, true: np.ndarray) -> float:
    """Mean error over the frontal face's distance of the outer eye corners."""
    square = square_around(true)
    return float(np.linalg.norm(found - true, axis=-1).mean() / (9.0 / 21.0 * (square[2] - square[0])))


@pytest.mark.shared
@bundled
@pytest.mark.parametrize("yaw", [-0.6, 0.0, 0.5])
def test_the_bundled_network_finds_a_turned_heads_landmarks_from_a_rough_box(rendered, yaw):
    picture, true = rendered(yaw)
    rough = square_around(true) + np.array([10, -8, 10, -8, 0.2], np.float32)
    found, confidence = FaceLandmarker(load_network("landmarks")).find(cut_from([picture]), rough[None])
    assert error_of(found[0], true) < 0.07 and confidence[0] > 0.5


@pytest.mark.shared
@bundled
def test_landmarks_of_a_still_face_hardly_tremble(rendered):
    assert jitter(FaceLandmarker(load_network("landmarks")), *rendered(0.1)) < 0.6


@pytest.mark.shared
@bundled
@pytest.mark.parametrize(("yaw", "roll"), [(0.0, 0.0), (-1.0, 0.0), (0.9, 0.0), (0.1, -0.7)])
def test_cascades_and_network_find_faces_that_turn_and_tilt(rendered, yaw, roll):
    picture, true = rendered(yaw, roll)
    faces = LandmarkDetector(FaceLandmarker(load_network("landmarks"))).find(picture[None])[0]
    eyes_and_mouth = true[list(FIVE)]
    far = np.linalg.norm(faces[0].points - eyes_and_mouth, axis=-1).mean() / np.ptp(true, axis=0).max()
    assert far < 0.08


@bundled
def test_a_picture_of_nothing_is_no_face():
    grey = np.random.default_rng(0).integers(100, 140, (200, 200, 3), np.uint8)
    square = np.array([[20.0, 20, 180, 180, 0]])
    assert FaceLandmarker(load_network("landmarks")).find(cut_from([grey]), square)[1][0] < 0.5
