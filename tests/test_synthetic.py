"""Rendered heads: on a small made-up head, so that no outside data is needed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from flashlips_core.cli import main
from flashlips_core.dataset.store import Clip
from flashlips_core.heads.mesh import Camera, HeadMesh, arkit_weights, from_arrays, load_head, rotation
from flashlips_core.heads.render import HeadRenderer, Look
from flashlips_core.heads.set import SetConfig, load_set, make_set
from flashlips_core.heads.skin import fit_photo, texture_map
from flashlips_core.heads.speech import PHONES, VISEMES, random_expression, speech_curves
from flashlips_core.train.batches.labels import build_head_store
from flashlips_core.types import FlashLipsError

GRID = 21
SHAPES = sorted({f"{name}_{side}" for shape in VISEMES.values() for name in shape for side in "LR"})
OTHERS = "mouthFrown mouthShrugLower mouthDimple cheekPuff mouthLeft mouthRight jawLeft jawRight eyeBlink eyeSquint eyeWide"
BROWS = "browInnerUp browOuterUp browDown cheekSquint"


@pytest.fixture(scope="module")
def head() -> HeadMesh:
    """A bulging sheet with five points where a face has them; every mouth shape pulls its lower middle down."""
    x, y = np.meshgrid(np.linspace(-9, 9, GRID), np.linspace(12, -14, GRID))
    neutral = np.stack([x, y, 10 - 0.05 * (x**2 + 0.3 * y**2)], -1).reshape(-1, 3).astype(np.float32)
    at = np.arange(GRID * GRID).reshape(GRID, GRID)
    quads = np.stack([at[:-1, :-1], at[1:, :-1], at[1:, 1:], at[:-1, 1:]], -1).reshape(-1, 4)
    names = [*SHAPES, *OTHERS.split(), *BROWS.split()]
    pull = np.exp(-(neutral[:, 0] ** 2 + (neutral[:, 1] + 5) ** 2) / 2) * (np.hypot(neutral[:, 0], neutral[:, 1] + 5) < 4)
    mouth = np.stack([np.zeros_like(pull), -1.5 * pull, -0.5 * pull], -1)
    expressions = np.stack([mouth * (not name.startswith(("eye", "brow"))) for name in names])
    rng = np.random.default_rng(0)

    def nearest(x: float, y: float) -> int:
        return int(np.hypot(neutral[:, 0] - x, neutral[:, 1] - y).argmin())

    points = np.full(68, nearest(0, 0))
    points[36:42], points[42:48] = nearest(-3, 3.5), nearest(3, 3.5)
    points[48], points[54], points[61:64], points[65:68] = nearest(-2.5, -3.5), nearest(2.5, -3.5), nearest(0, -3), nearest(0, -4)
    arrays = {
        "neutral": neutral,
        "identity": (rng.normal(0, 0.2, (3, 1, 3)) * np.ones((3, len(neutral), 3))).astype(np.float16),
        "expr": expressions.astype(np.float16),
        "expr_names": np.array(names),
        "quads": quads,
        "quads_uv": quads,
        "uv": ((neutral[:, :2] - neutral[:, :2].min(0)) / np.ptp(neutral[:, :2], axis=0)).astype(np.float32),
        "mat": np.zeros(len(quads), np.int16),
        "mat_names": np.array(["M_Face"]),
        "points_68": points,
        "mediapipe": rng.choice(len(neutral), 99, replace=False),
    }
    return from_arrays(arrays)


@pytest.fixture(scope="module")
def renderer(head):
    try:
        made = HeadRenderer(head, 64)
    except FlashLipsError as error:
        pytest.skip(str(error))
    with made:
        made.set_look(Look(skin=np.random.default_rng(0).integers(60, 220, (64, 64, 4), np.uint8)))
        yield made


BOX = np.array([-0.12, -0.12, 0.12, 0.12])


def test_pictures_of_one_head_differ_only_where_the_mesh_moves(renderer, head):
    camera = Camera(rotation(0.1, 0.05, 0.02), 90.0)
    closed, opened = head.neutral, head.express(head.neutral, head.weights(jawOpen=1.0))
    a, b = renderer.draw(closed, camera, BOX), renderer.draw(opened, camera, BOX)
    changed = np.argwhere((a != b).any(-1))
    assert len(changed) > 20
    moved = np.linalg.norm(opened - closed, axis=1) > 0
    seen = np.concatenate([camera.project(shape[moved]) for shape in (closed, opened)])
    low, high = ((seen.min(0) + 0.12) / 0.24 * 64)[::-1], ((seen.max(0) + 0.12) / 0.24 * 64)[::-1]
    cell = 9  # two mesh cells in pixels: neighbours of moved vertices change their normals, which their cells blend
    assert (changed >= low - cell).all() and (changed <= high + cell).all()


def test_the_same_drawing_twice_is_identical(renderer, head):
    camera = Camera(rotation(0.2, 0, 0), 80.0)
    assert np.array_equal(renderer.draw(head.neutral, camera, BOX), renderer.draw(head.neutral, camera, BOX))


def test_a_point_is_drawn_where_the_camera_projects_it(renderer, head):
    camera = Camera(rotation(0.15, -0.1, 0.05), 90.0, (1.0, -0.5))
    projected = (camera.project(head.neutral) + 0.12) / 0.24 * 64
    uncovered = dataclasses.replace(renderer.look, background=np.full((1, 1, 3), 0, np.uint8))
    covered = dataclasses.replace(renderer.look, background=np.full((1, 1, 3), 255, np.uint8))
    pictures = []
    for look in (uncovered, covered):
        renderer.set_look(look)
        pictures.append(renderer.draw(head.neutral, camera, BOX))
    rows, columns = np.nonzero((pictures[0] == pictures[1]).all(-1))
    inside = projected.clip(0, 64)
    assert abs(columns.min() - inside[:, 0].min()) <= 1.5 and abs(columns.max() + 1 - inside[:, 0].max()) <= 1.5
    assert abs(rows.min() - inside[:, 1].min()) <= 1.5 and abs(rows.max() + 1 - inside[:, 1].max()) <= 1.5


def test_clip_space_agrees_with_the_projection(head):
    camera = Camera(rotation(-0.2, 0.1, 0.1), 70.0, (2.0, 1.0))
    box = np.array([-0.1, -0.15, 0.14, 0.09])
    points = np.c_[head.neutral, np.ones(len(head.neutral))] @ camera.clip_matrix(box).T
    clip = points[:, :2] / points[:, 3:]
    expected = (camera.project(head.neutral) - box[:2]) / (box[2:] - box[:2]) * 2 - 1
    np.testing.assert_allclose(clip, expected * (1, -1), atol=1e-4)


def test_a_rendered_set_resumes_and_its_groups_are_mouth_only_pairs(renderer, head, tmp_path, monkeypatch):
    monkeypatch.setattr("flashlips_core.heads.set.make_skins", lambda *_: [(renderer.look.skin, np.full(3, 180.0), False)])
    monkeypatch.setattr("flashlips_core.heads.set.SkinPainter", lambda mesh: None)
    config = SetConfig(identities=2, same_pose=3, other_poses=1, size=48)
    make_set(head, tmp_path, config)
    first = load_set(tmp_path)
    (tmp_path / "001.npz").unlink()
    make_set(head, tmp_path, config)
    again = load_set(tmp_path)
    for name in first:
        assert np.array_equal(first[name], again[name]), name
    assert first["images"].shape == (8, 48, 48, 3) and first["points"].shape == (8, 5, 2)
    assert first["group"].tolist() == [0, 0, 0, 1, 2, 2, 2, 3] and first["identity"].tolist() == [0] * 4 + [1] * 4
    upper = first["images"][:3, :12].astype(int)
    assert np.ptp(upper, axis=0).max() == 0
    assert np.ptp(first["images"][:3].astype(int), axis=0).max() > 10


def test_a_photograph_is_fitted_by_pose_and_identity(head):
    vertices = head.shape(np.array([1.0, -0.5, 0.3]), head.weights(jawOpen=0.5))
    turn = rotation(0.15, 0.05, 0.1)
    pixels = (vertices[head.mediapipe] @ turn.T)[:, :2] * (6, -6) + (120, 110)
    fitted, projection, shift = fit_photo(head, pixels)
    error = fitted[head.mediapipe] @ projection.T + shift - pixels
    assert np.abs(error).max() < 0.6


def test_texels_lie_where_their_vertices_are(head):
    texels = texture_map(head, 64)
    spread = texels.spread(head.neutral)
    x, y = np.round(texels.uv_of(np.arange(len(head.neutral)))).astype(int).clip(0, 63).T
    assert np.abs(spread[y, x] - head.neutral).max() < 1.0


def test_speech_closes_the_lips_on_m_and_opens_them_on_ah(head):
    phones = [("SIL", 0.0, 0.3), ("AA1", 0.3, 0.6), ("M", 0.6, 0.75), ("AA1", 0.75, 1.0)]
    curves = speech_curves(head, phones, 30, 25)
    jaw = curves[:, head.expression_names.index("jawOpen_L")]
    assert jaw[10] > 0.35 and jaw[16] < 0.15 and jaw[22] > 0.35 and jaw[0] < 0.02
    assert set().union(*PHONES.values()) <= set(VISEMES)


def test_random_mouths_stay_in_range_and_vary(head):
    rng = np.random.default_rng(0)
    mouths = np.stack([random_expression(head, rng) for _ in range(40)])
    assert mouths.min() >= 0 and mouths.max() <= 1 and mouths.std(0).max() > 0.05


def test_arkit_names_take_sides_and_averages(head):
    values = head.weights(mouthSmile_L=0.4, mouthSmile_R=0.2)[None]
    assert arkit_weights(head, values, ["_neutral", "mouthSmileLeft", "mouthSmile"])[0].tolist() == pytest.approx([0, 0.4, 0.3])


def test_a_missing_or_foreign_mesh_is_named_and_exits_with_2(tmp_path, capsys):
    assert main(["heads", "set", "--mesh", str(tmp_path / "none.npz"), "--out", str(tmp_path / "out")]) == 2
    assert "none.npz" in capsys.readouterr().err and not (tmp_path / "out").exists()
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    with pytest.raises(FlashLipsError, match="lacks"):
        load_head(tmp_path / "other.npz")


def test_heads_are_stored_with_all_their_pixels_and_their_edges_repeated(tmp_path):
    rng = np.random.default_rng(0)
    images, points = rng.integers(0, 256, (5, 64, 64, 3), np.uint8), rng.uniform(0, 64, (5, 99, 2)).astype(np.float32)
    found, five = np.ones(4, bool), points[1:, :5]
    clip = Clip("heads/train/0000", "head000", "", found, points[1:], np.zeros((4, 52), np.float32), five)
    store = build_head_store(images, [clip], [np.arange(1, 5)], tmp_path / "heads")
    assert store.images.shape == (4, 80, 80, 3) and list(store.speakers) == ["head000"]
    assert np.array_equal(store.images[:, 8:72, 8:72], images[1:])
    assert np.array_equal(store.images[:, 0, 8:72], images[1:, 0])
    np.testing.assert_allclose(store.landmarks, points[1:] / 64)
