"""How far landmarks lie off on people held out, by how far they turn, and how much they tremble on a still face.

N pictures, L = 99 landmarks. Errors are shares of the distance of the outer eye corners.
"""

from __future__ import annotations

import numpy as np

from ...face.head_pose import fit_poses
from ...face.landmarks import FaceLandmarker, cut_from, make_square, square_around
from ...face.points import BROWS, EYES, LIPS, NOSE, OUTER_EYES, OVAL, mean_shape
from ...models.landmark_net import LandmarkNet
from .pictures import STILLS, TEST, FaceStore

YAW_BINS = (0, 15, 30, 45, 65)  # degrees
PARTS = {"lips": LIPS, "oval": OVAL, "eyes": EYES, "nose": NOSE, "brows": BROWS}
REPEATS = 24  # looks at one still face


def measure(network: LandmarkNet, stores: dict[str, FaceStore], most: int = 240) -> dict[str, float]:
    """Mean errors of the held-out faces of each store after two looks, starting from boxes that are off; and by part and yaw."""
    landmarker, scores = FaceLandmarker(network), {}
    for name, store in stores.items():
        rows = store.rows(TEST)
        rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]
        error, confidence, yaw, shortened = errors(landmarker, store, rows)
        scores[name] = float(error.mean())
        scores[f"{name} of frontal eyes"] = float((error * shortened[:, None]).mean())
        scores[f"{name} worst tenth"] = float(np.quantile(error.mean(1), 0.9))
        scores[f"{name} confident"] = float((confidence > 0.5).mean())
        scores |= {f"{name} {part}": float(error[:, own].mean()) for part, own in PARTS.items()}
        for low, high in zip(YAW_BINS, YAW_BINS[1:], strict=False):
            inside = (yaw >= low) & (yaw < high)
            if inside.sum() >= 5:
                scores[f"{name} yaw {low}-{high}"] = float(error[inside].mean())
                scores[f"{name} yaw {low}-{high} of frontal eyes"] = float((error * shortened[:, None])[inside].mean())
        if name == STILLS:
            pictures = [(store.pictures[row], store.points[row] * store.pictures.shape[1]) for row in rows]
            scores["jitter px"] = float(np.mean([jitter(landmarker, *still) for still in pictures]))
    return scores


def errors(landmarker: FaceLandmarker, store: FaceStore, rows: np.ndarray, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Errors (N, L), confidence (N,), and the labels' absolute yaw (N,) in degrees and shortening of the eye distance (N,).

    A turn shortens the distance of the eyes in the picture: over the frontal face's distance, an error is that times the
    shortening. Boxes are off by up to 12 % of their side and 25 % of their size, and turned by up to 26 degrees.
    """
    rng, px = np.random.default_rng(seed), store.pictures.shape[1]
    true = store.points[rows] * px
    squares = square_around(true).astype(np.float64)
    centre, side = (squares[:, :2] + squares[:, 2:4]) / 2, squares[:, 2] - squares[:, 0]
    centre = centre + rng.uniform(-0.12, 0.12, centre.shape) * side[:, None]
    side, turn = side * np.exp(rng.uniform(-0.22, 0.22, len(rows))), rng.uniform(-0.45, 0.45, len(rows))
    rough = make_square(centre, side, squares[:, 4] + turn)
    points, confidence = landmarker.find(cut_from([store.pictures[row] for row in rows]), rough)
    poses = fit_poses(true)
    distance = eye_distance(true)
    frontal = poses.scale * np.linalg.norm(mean_shape()[OUTER_EYES[0]] - mean_shape()[OUTER_EYES[1]])
    error = np.linalg.norm(points - true, axis=-1) / distance[:, None]
    return error, confidence, np.degrees(np.abs(poses.yaw)), distance / frontal


def eye_distance(points: np.ndarray) -> np.ndarray:
    """Distance of the outer eye corners in the picture. (N, L, 2) -> (N,)."""
    return np.linalg.norm(points[:, OUTER_EYES[0]] - points[:, OUTER_EYES[1]], axis=-1)


def jitter(landmarker: FaceLandmarker, picture: np.ndarray, points: np.ndarray, seed: int = 0) -> float:
    """How much landmarks tremble on a still face: deviation in pixels of ``picture``, mean over points and both axes.

    The picture (H, W, 3) uint8 is noised (2 of 255) and compressed anew (JPEG 60 to 90) each time, the box moved by up to 2 px.
    """
    import cv2

    rng, looks = np.random.default_rng(seed), []
    for _ in range(REPEATS):
        noisy = np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)
        coded = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 91))])[1]
        square = square_around(points) + np.append(np.tile(rng.uniform(-2, 2, 2), 2), 0).astype(np.float32)
        looks.append(landmarker.find(cut_from([cv2.imdecode(coded, cv2.IMREAD_COLOR)]), square[None])[0][0])
    return float(np.std(looks, axis=0).mean())
