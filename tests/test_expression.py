import numpy as np

from flashlips_core.face import expression


def face(turn=0.0, scale=1.0, shift=(0.0, 0.0)):
    """Lips and five points of an asymmetric face under a similarity, (1, 40, 2) and (1, 5, 2)."""
    random = np.random.default_rng(0)
    lips = random.normal(0, 8, (40, 2)) + [0, 55]
    points = np.array([[-20, 0], [20, 1], [0, 30], [-12, 54], [12, 56]], float)
    rotation = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return (lips @ rotation.T + shift)[None], (points @ rotation.T + shift)[None]


def test_features_ignore_where_the_head_is():
    still = expression.normalised_lips(*face())
    moved = expression.normalised_lips(*face(turn=0.4, scale=1.7, shift=(90, -30)))
    np.testing.assert_allclose(moved, still, atol=1e-9)
    np.testing.assert_allclose(expression.mouth_opening(*face(0.4, 1.7)), expression.mouth_opening(*face()), atol=1e-9)


def test_mirroring_equals_measuring_the_mirrored_face():
    lips, points = face()
    blendshapes = np.random.default_rng(1).random((1, 52)).astype(np.float32)
    flipped_lips = (lips * [-1, 1])[:, expression.MIRROR_LIPS]
    flipped_points = (points * [-1, 1])[:, [1, 0, 2, 4, 3]]
    features = expression.raw_features(lips, points, blendshapes)
    twice = expression.mirrored(expression.mirrored(features))
    np.testing.assert_allclose(twice, features, atol=1e-6)
    lip_part = expression.mirrored(features)[:, :80]
    np.testing.assert_allclose(lip_part, expression.normalised_lips(flipped_lips, flipped_points).reshape(1, -1), atol=1e-5)


def test_the_neutral_face_is_the_closed_one():
    opening = np.array([0.0, 0.01, 0.3, 0.4, 0.5, 0.2, 0.35, 0.45])
    features = np.repeat(opening[:, None], 3, 1)
    assert (expression.neutral_features(features, opening) < 0.02).all()
