"""Find faces without any download: OpenCV's cascades propose, the bundled landmark network decides and places the points.

Frontal faces are looked for first, then profiles, then both on the picture turned to either side; each step only where
the ones before found nothing sure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..turned import to_pixels
from ..types import FlashLipsError
from .detect import Detection, Detector, overlap, widened
from .landmarks import FaceLandmarker, cut_from, cut_square, make_square, square_around
from .points import FIVE

FRONTAL, PROFILE = "haarcascade_frontalface_alt2.xml", "haarcascade_profileface.xml"
# Centre x, y and side of the square around the landmarks, as shares of a cascade's box: medians over 192 rendered heads turned
# by up to 62 degrees. The profile cascade knows faces that look to image left.
FRONTAL_SQUARE, PROFILE_SQUARE = (0.50, 0.59, 1.14), (0.36, 0.60, 1.0)
ROLLS = (-0.55, 0.55)  # radians: a cascade bears about 20 degrees, so these reach 50
VOTES = 1  # few: false finds are the network's business
SCALE_STEP = 1.1
SURE = 0.97  # less may be part of a profile that looked frontal: go on looking
SAME_FACE = 0.3  # overlap of two finds


class LandmarkDetector(Detector):
    """Faces turned by up to 60 degrees and tilted by up to 45, with points from their landmarks.

    Args:
        landmarker: the network that decides.
        threshold: least confidence of a face.
    """

    face_px = 100.0  # the network reads crops of 112 px

    def __init__(self, landmarker: FaceLandmarker, threshold: float = 0.6) -> None:
        self.landmarker, self.threshold = landmarker, threshold
        self.frontal, self.profile = (_cascade(name) for name in (FRONTAL, PROFILE))

    def find(self, images: np.ndarray, smallest_px: float = 24.0) -> list[list[Detection]]:
        return [self._find(image, max(int(0.7 * smallest_px), 20)) for image in widened(images)]

    def _find(self, image: np.ndarray, least_px: int) -> list[Detection]:
        proposed: list[np.ndarray] = []
        faces: list[Detection] = []
        for squares in self._proposals(np.ascontiguousarray(image), least_px):
            proposed += squares
            faces = self._decide(image, proposed)
            if faces and faces[0].score > SURE:
                break
        return faces

    def _proposals(self, image: np.ndarray, least_px: int) -> Iterator[list[np.ndarray]]:
        """Squares to look at, step by step."""
        import cv2

        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        yield self._frontal(grey, least_px)
        yield self._profiles(grey, least_px)
        height, width = grey.shape
        side = float(np.hypot(height, width))
        turned = []
        for roll in ROLLS:
            whole = make_square(np.array([width, height]) / 2, np.array(side), np.array(roll))
            tilted = cut_square(grey, whole, round(side))
            for square in (*self._frontal(tilted, least_px), *self._profiles(tilted, least_px)):
                centre = to_pixels((square[:2] + square[2:4])[None] / 2 / round(side), whole)[0]
                turned.append(make_square(centre, square[2] - square[0], np.array(roll)))
        yield turned

    def _frontal(self, grey: np.ndarray, least_px: int) -> list[np.ndarray]:
        return [_square(box, FRONTAL_SQUARE) for box in _boxes(self.frontal, grey, least_px)]

    def _profiles(self, grey: np.ndarray, least_px: int) -> list[np.ndarray]:
        x, y, side = PROFILE_SQUARE
        left = [_square(box, PROFILE_SQUARE) for box in _boxes(self.profile, grey, least_px)]
        mirrored = np.array(_boxes(self.profile, np.ascontiguousarray(grey[:, ::-1]), least_px)).reshape(-1, 4)
        mirrored[:, 0] = grey.shape[1] - mirrored[:, 0] - mirrored[:, 2]
        return left + [_square(box, (1 - x, y, side)) for box in mirrored]

    def _decide(self, image: np.ndarray, squares: Sequence[np.ndarray]) -> list[Detection]:
        """Look twice at each square and keep what is a face, best first."""
        if not squares:
            return []
        points, confidence = self.landmarker.find(cut_from([image] * len(squares)), np.stack(squares))
        moved = square_around(points)
        kept: list[Detection] = []
        for k in np.argsort(-confidence, kind="stable"):
            box = np.concatenate([points[k].min(0), points[k].max(0)])
            if confidence[k] < self.threshold or overlap(moved[k][:4], squares[k][:4]) < SAME_FACE:
                continue
            if all(overlap(box, other.box) <= SAME_FACE for other in kept):
                kept.append(Detection(box, points[k][list(FIVE)], float(confidence[k])))
        return kept


def _cascade(name: str) -> Any:
    try:
        import cv2
    except ImportError as error:
        raise FlashLipsError("Faces are found with OpenCV's cascades; install opencv-python-headless<5.") from error
    cascade = cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / name))
    if cascade.empty():
        raise FlashLipsError(f"OpenCV {cv2.__version__} brings no {name}; install opencv-python-headless<5.")
    return cascade


def _boxes(cascade: Any, grey: np.ndarray, least_px: int) -> np.ndarray:
    """(N, 4): x, y, width, height."""
    return np.asarray(cascade.detectMultiScale(grey, SCALE_STEP, VOTES, minSize=(least_px, least_px))).reshape(-1, 4)


def _square(box: np.ndarray, place: tuple[float, float, float]) -> np.ndarray:
    """The square around the landmarks that a cascade's box (x, y, w, h) stands for. -> (5,)."""
    centre = np.array([box[0] + place[0] * box[2], box[1] + place[1] * box[3]], np.float64)
    return make_square(centre, np.array(place[2] * float(box[2])), np.array(0.0))
