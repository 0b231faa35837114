"""Faces that are drawn and not found: landmarks whose answers are known, textured frames, and their files without loss."""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np

from flashlips_core.evaluate.videos import measures as vm
from flashlips_core.face.motion import EYE_CORNERS, INNER_PAIRS, MOUTH_CORNERS, OUTER_LIPS, FaceMotion, motion_from_faces

SIZE, EYES, COUNT = 160, 64.0, 24  # pixels, pixels, frames


def motion_of(gaps: np.ndarray, drift: np.ndarray | None = None, roll_deg: np.ndarray | None = None) -> FaceMotion:
    """A face whose inner lips are ``gaps`` eye distances apart, with every landmark that is measured. Drift in pixels, (T, 2)."""
    faces = []
    for index, gap in enumerate(gaps):
        points = np.full((478, 2), 80.0, np.float32)
        points[list(EYE_CORNERS)] = [[48, 40], [48 + EYES, 40]]
        points[list(vm.IRISES)] = [[56, 40], [104, 40]]
        points[vm.NOSE_TIP] = [80, 70]
        points[list(OUTER_LIPS)] = [[80 + 20 * math.cos(a), 98 + 10 * math.sin(a)] for a in np.linspace(0, 6, len(OUTER_LIPS))]
        points[list(MOUTH_CORNERS)] = [[60, 98], [100, 98]]
        for above, below in INNER_PAIRS:
            points[above], points[below] = [80, 98 - gap * EYES / 2], [80, 98 + gap * EYES / 2]
        points[vm.LOWER_LIP], points[vm.CHIN] = [80, 108], [80, 140]
        if roll_deg is not None:
            a = math.radians(roll_deg[index])
            points = (points - 80) @ np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]], np.float32) + 80
        faces.append((points + (0 if drift is None else drift[index]), np.zeros(52, np.float32)))
    return motion_from_faces(faces)


def pictures(seed: int = 0) -> np.ndarray:
    """Textured frames whose grain changes a little from one to the next. (COUNT, SIZE, SIZE, 3) uint8."""
    rng = np.random.default_rng(seed)
    still = rng.normal(0, 18, (SIZE, SIZE, 3))
    return np.stack([(120 + still + rng.normal(0, 4, still.shape)).clip(0, 255) for _ in range(COUNT)]).astype(np.uint8)


def written(path: Path, frames: np.ndarray) -> Path:
    """A video without loss, colours as they are."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264rgb", rate=25, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "rgb24"
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
        output.mux(stream.encode())
    return path
