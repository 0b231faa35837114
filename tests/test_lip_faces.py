"""The lip encoder learns new faces: what it is told of them, and that it keeps what it read before."""

from __future__ import annotations

import numpy as np
import torch

from flashlips_core.face.points import IRISES, LIPS, MIRROR_LIPS, mean_shape
from flashlips_core.face.readings import lip_gap
from flashlips_core.models.lip_encoder import LipEncoder, LipEncoderConfig
from flashlips_core.train.batches.material import STORED_PX
from flashlips_core.train.lip_faces import (
    EYES_SHARE,
    FaceMouths,
    LipFacesSettings,
    cut_mouths,
    fit_poses,
    openings_of,
    outline_features,
    read_mouths,
    told_poses,
    train_faces,
)


def faces(gaps: np.ndarray) -> np.ndarray:
    """Landmarks of an upright mean head in its square whose lips are ``gaps`` of the eyes' distance apart. (N, 99, 2) shares."""
    flat = mean_shape()[:, :2] * [1, -1]
    scale = EYES_SHARE / np.linalg.norm(flat[IRISES[0]] - flat[IRISES[1]])
    points = np.tile(flat * scale + [0.5, 0.625], (len(gaps), 1, 1))
    middle = (points[:, 25, 1] + points[:, 35, 1]) / 2
    for below, above in ((24, 34), (25, 35), (26, 36)):
        points[:, below, 1], points[:, above, 1] = middle + gaps * EYES_SHARE / 2, middle - gaps * EYES_SHARE / 2
    return points


def pictures(gaps: np.ndarray) -> np.ndarray:
    """Grey crops with a dark slit as high as the gap. (N, 240, 240, 3) uint8, a quarter wider than the square."""
    crops = np.full((len(gaps), 240, 240, 3), 150, np.uint8)
    for crop, gap in zip(crops, gaps, strict=True):
        half = gap * EYES_SHARE * 192 / 2
        crop[round(144 - half) : round(144 + half) + 1, 90:150] = 20
    return crops


def test_an_opening_is_measured_the_same_however_the_head_is_turned() -> None:
    upright = faces(np.array([0.0, 0.1, 0.3]))
    turned = (upright - [0.5, 0]) * [0.6, 1] + [0.5, 0]  # by 53 degrees: as wide as its cosine
    assert np.allclose(openings_of(upright), [0, 0.1, 0.3], atol=1e-3)
    assert np.allclose(openings_of(turned), openings_of(upright), atol=1e-3)
    assert np.allclose(lip_gap(upright), [0, 0.1, 0.3], atol=1e-3)


def test_poses_are_told_from_outlines() -> None:
    gaps = np.linspace(0, 0.4, 40)
    outlines, poses = outline_features(faces(gaps)), np.stack([gaps * k for k in range(12)], 1)
    told = told_poses(outlines, fit_poses(outlines, poses))
    assert np.abs(told.numpy() - poses).max() < 0.4
    assert np.corrcoef(told[:, 7], poses[:, 7])[0, 1] > 0.99


def test_a_stored_mouth_shows_the_mouth() -> None:
    mouths = cut_mouths(pictures(np.array([0.3])), faces(np.array([0.3])), 1.25)
    assert mouths.images.shape == (1, STORED_PX, STORED_PX, 3)
    rows = np.flatnonzero(mouths.images[0, :, STORED_PX // 2].mean(1) < 60)
    assert 6 < len(rows) < 40 and abs(rows.mean() / STORED_PX - 0.45) < 0.1


def test_training_teaches_openings_and_keeps_poses(tmp_path) -> None:
    torch.manual_seed(0)
    encoder = LipEncoder(LipEncoderConfig(channels=(8, 16), blocks=(1, 1), mouth_px=32))
    encoder.opening_weight[0] = 0.05
    gaps = np.random.default_rng(0).uniform(0, 0.4, 64)
    new = cut_mouths(pictures(gaps), faces(gaps), 1.25)
    known = FaceMouths(new.images, new.outlines, new.openings, read_mouths(encoder.eval(), new.images))

    def error() -> float:
        return float((encoder.eval().opening(read_mouths(encoder, new.images)) - torch.from_numpy(new.openings)).abs().mean())

    before = error()
    settings = LipFacesSettings(str(tmp_path), 40, lr=5e-3, ema=0, opening=10.0, log_every=20, batch_size=16)
    encoder = train_faces(encoder, [known, new], [0.5, 0.5], settings)
    assert error() < 0.6 * before


def test_the_mirror_of_an_outline_is_the_outline_of_the_mirror() -> None:
    from flashlips_core.train.lip_faces import _mirrored

    points = faces(np.array([0.2])) + np.random.default_rng(1).normal(0, 0.01, (1, 99, 2))
    other = points.copy()
    other[:, LIPS] = (points * [-1, 1] + [1, 0])[:, LIPS][:, MIRROR_LIPS]
    assert np.allclose(_mirrored(outline_features(points)), outline_features(other), atol=1e-6)
