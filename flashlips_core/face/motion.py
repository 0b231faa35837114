"""Mouth motion as MediaPipe's face landmarker sees it: an outside witness, used for labels and evaluation, never for dubbing."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..types import FlashLipsError, Progress
from . import points
from .expression import BLENDSHAPES
from .points import in_mesh

LANDMARKER_FILE = "face_landmarker_v2_with_blendshapes.task"
# Numbers of MediaPipe's face mesh, see ``points``
OUTER_LIPS, FACE_OVAL = in_mesh(points.OUTER_LIPS), in_mesh(points.OVAL)
MOUTH_CORNERS, EYE_CORNERS, IRISES = (in_mesh(rows) for rows in (points.MOUTH_CORNERS, points.OUTER_EYES, points.IRISES))
(NOSE_TIP,) = in_mesh((points.NOSE_TIP,))
INNER_PAIRS = tuple(in_mesh(pair) for pair in points.INNER_PAIRS)
JAW_OPEN = BLENDSHAPES.index("jawOpen")

Face = tuple[np.ndarray, np.ndarray]  # landmarks (478, 2) in pixels, blendshapes (52,)


@dataclass(frozen=True)
class FaceMotion:
    """What one face's mouth does; rows are NaN where no face was found."""

    jaw_open: np.ndarray  # (T,) MediaPipe's jawOpen blendshape, 0..1
    lip_gap: np.ndarray  # (T,) mean inner-lip gap over the distance of the outer eye corners
    mouth_aspect: np.ndarray  # (T,) mean inner-lip gap over the mouth's width
    mouth_box: np.ndarray  # (T, 4) xyxy pixels around the outer lips
    blendshapes: np.ndarray  # (T, 52)
    landmarks: np.ndarray  # (T, 478, 2) pixels

    def __len__(self) -> int:
        return len(self.jaw_open)

    @property
    def found(self) -> np.ndarray:
        """(T,) bool: frames with a face."""
        return np.isfinite(self.jaw_open)


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Send the process's stderr to nowhere: MediaPipe's C++ parts log each start there, past Python's logging."""
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


@contextlib.contextmanager
def open_landmarker(model: str | Path) -> Iterator[Callable[[np.ndarray], Face | None]]:
    """A function from one (H, W, 3) uint8 RGB frame to its face, None without one.

    Frames are looked at one by one (MediaPipe's image mode), so a frame's result does not depend on its neighbours.
    """
    model = Path(model)
    if not model.is_file():
        raise FlashLipsError(f"No MediaPipe face landmarker at {model}; download it from Google and name its folder.")
    try:
        with quiet_stderr():
            import mediapipe
            from mediapipe.tasks import python as tasks
            from mediapipe.tasks.python import vision
    except ImportError as error:
        raise FlashLipsError("MediaPipe is not installed, but measures mouth motion; run: pip install mediapipe") from error
    options = vision.FaceLandmarkerOptions(
        base_options=tasks.BaseOptions(model_asset_buffer=model.read_bytes()), output_face_blendshapes=True, num_faces=1
    )
    with quiet_stderr():
        landmarker = vision.FaceLandmarker.create_from_options(options)

    def detect(frame: np.ndarray) -> Face | None:
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
        with quiet_stderr():
            result = landmarker.detect(image)
        if not result.face_landmarks:
            return None
        height, width = frame.shape[:2]
        landmarks = np.array([(p.x * width, p.y * height) for p in result.face_landmarks[0]], dtype=np.float32)
        return landmarks, np.array([c.score for c in result.face_blendshapes[0]], dtype=np.float32)

    try:
        yield detect
    finally:
        with quiet_stderr():
            landmarker.close()


def motion_from_faces(faces: list[Face | None]) -> FaceMotion:
    """The mouth's curves from what :func:`open_landmarker` found in each frame."""
    blank = np.full((478, 2), np.nan, np.float32), np.full(52, np.nan, np.float32)
    filled = [face or blank for face in faces]
    landmarks = np.stack([found for found, _ in filled]) if filled else np.zeros((0, 478, 2), np.float32)
    blendshapes = np.stack([scores for _, scores in filled]) if filled else np.zeros((0, 52), np.float32)
    gap = np.mean([_distance(landmarks, a, b) for a, b in INNER_PAIRS], axis=0)
    lips = landmarks[:, OUTER_LIPS]
    return FaceMotion(
        jaw_open=blendshapes[:, JAW_OPEN],
        lip_gap=gap / _distance(landmarks, *EYE_CORNERS),
        mouth_aspect=gap / _distance(landmarks, *MOUTH_CORNERS),
        mouth_box=np.concatenate([lips.min(axis=1), lips.max(axis=1)], axis=1),
        blendshapes=blendshapes,
        landmarks=landmarks,
    )


def measure_frames(frames: Iterable[np.ndarray], model: str | Path, progress: Progress | None = None) -> FaceMotion:
    """Measure (H, W, 3) uint8 RGB frames of one face."""
    faces = []
    with open_landmarker(model) as detect:
        for frame in frames:
            faces.append(detect(frame))
            if progress is not None:
                progress(len(faces), 0)
    return motion_from_faces(faces)


def measure_video(path: str | Path, model: str | Path) -> FaceMotion:
    """Measure a video file, decoded by PyAV as any player would show it."""
    return measure_frames(rgb_frames(path), model)


def rgb_frames(path: str | Path) -> Iterator[np.ndarray]:
    """Each frame of a video as (H, W, 3) uint8 RGB, through FFmpeg's own conversion rather than ours."""
    import av

    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def padded_box(box: np.ndarray, share: float = 0.25) -> np.ndarray:
    """A box (..., 4) grown on each side by ``share`` of its longer side."""
    margin = share * np.maximum(box[..., 2] - box[..., 0], box[..., 3] - box[..., 1])[..., None]
    return box + margin * np.array([-1, -1, 1, 1], dtype=box.dtype)


def _distance(landmarks: np.ndarray, first: int, second: int) -> np.ndarray:
    return np.linalg.norm(landmarks[:, first] - landmarks[:, second], axis=-1)
