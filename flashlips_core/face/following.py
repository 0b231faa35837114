"""From a rough place to landmarks, frame by frame: what the tracker follows a face by.

K faces, L landmarks (99). Crops are cut from the frame at its own resolution, so that small pictures for the detector are enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..compose import cut
from ..types import Frame
from .detection import Detection
from .landmarks import FaceLandmarker, rough_square, square_around
from .readings import box_around, five_points

FOUND = 0.5  # confidence from which landmarks count as a face's


class Follower:
    """Finds the landmarks of faces in frames, from a detector's rough boxes or from the landmarks of the frame before."""

    def __init__(self, landmarker: FaceLandmarker) -> None:
        self.landmarker = landmarker

    def measure(self, frame: Frame, faces: Sequence[Detection]) -> list[Detection]:
        """Detections with landmarks; those whose place shows no face are left out. Looks twice: at the rough place, then around
        the landmarks that were found there."""
        if not faces:
            return []
        landmarks, confidence = self._look(frame, np.stack([rough_square(face.points) for face in faces]), looks=2)
        rows = zip(faces, landmarks, confidence, strict=True)
        return [detection_of(points, face.score) for face, points, sure in rows if sure >= FOUND]

    def follow(self, frame: Frame, last: np.ndarray) -> list[Detection]:
        """The same faces a frame later, (K, L, 2) pixels before; the lost are left out. A score is the landmarks' confidence."""
        landmarks, confidence = self._look(frame, square_around(last), looks=1)
        return [detection_of(points, float(sure)) for points, sure in zip(landmarks, confidence, strict=True) if sure >= FOUND]

    def _look(self, frame: Frame, squares: np.ndarray, looks: int) -> tuple[np.ndarray, np.ndarray]:
        """Landmarks (K, L, 2) in frame pixels and confidence (K,) from squares (K, 5)."""

        def cut_all(_: np.ndarray, squares: np.ndarray, size: int) -> Tensor:
            return torch.stack([cut(frame, square, size) for square in squares])

        return self.landmarker.find(cut_all, squares, looks)


def detection_of(landmarks: np.ndarray, score: float) -> Detection:
    """A detection whose box and five points are those of its landmarks (L, 2)."""
    return Detection(box_around(landmarks), five_points(landmarks), score, landmarks)
