"""MediaPipe as the witness of a test, or a toy in its place."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from flashlips_core.face import motion as face_motion

SHARED = Path(__file__).resolve().parents[2] / "shared"
LANDMARKER = SHARED / "weights" / face_motion.LANDMARKER_FILE
needs_mediapipe = pytest.mark.skipif(
    not (LANDMARKER.is_file() and importlib.util.find_spec("mediapipe")),
    reason="MediaPipe or its landmarker file (../shared/weights) is not here",
)


def toy_motion(count: int = 25) -> face_motion.FaceMotion:
    """What a witness would see in a clip of ``toy_dubs``'s steady face."""
    landmarks = np.tile(np.array([32.0, 24.0], np.float32), (count, 478, 1))
    angle = np.linspace(0, 2 * math.pi, len(face_motion.FACE_OVAL), endpoint=False)
    landmarks[:, face_motion.FACE_OVAL] += 14 * np.stack([np.sin(angle), -np.cos(angle)], 1)
    landmarks[:, 61], landmarks[:, 291], landmarks[:, 13], landmarks[:, 14] = (27, 34), (37, 34), (32, 33), (32, 35)
    landmarks[:, 33], landmarks[:, 263] = (24, 18), (40, 18)
    return face_motion.motion_from_faces([(points, np.full(52, 0.1, np.float32)) for points in landmarks])
