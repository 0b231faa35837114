"""Faces that are coloured patches, and a detector that sees them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from flashlips_core.face import Detection, Detector
from flashlips_core.types import ClipInfo, Frame

SIZE = (160, 240)  # rows, columns
RED, BLUE = (90, 110, 200), (90, 200, 110)  # Y, U, V of two faces
Face = tuple[float, float, float, tuple[int, int, int]]  # centre x, centre y, side, colour


class PatchDetector(Detector):
    """Finds strongly coloured squares: a detector whose faces a test can draw."""

    def find(self, images: np.ndarray, smallest_px: float = 12.0) -> list[list[Detection]]:
        from scipy import ndimage

        found = []
        for image in images:
            faces = []
            colour = image.astype(int)
            for mask in (colour[..., 0] > colour[..., 2] + 60, colour[..., 2] > colour[..., 0] + 60):
                for rows, columns in ndimage.find_objects(ndimage.label(mask)[0]):
                    x0, x1, y0, y1 = columns.start, columns.stop, rows.start, rows.stop
                    if y1 - y0 >= 6:
                        box = np.array([x0, y0, x1, y1], np.float32)
                        shares = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]], np.float32)
                        faces.append(Detection(box, box[:2] + shares * (box[2:] - box[:2]), 0.9))
            found.append(faces)
        return found


def draw(faces: list[Face], background: int = 60, seed: int = 0) -> Frame:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    planes = [background + 40 * (np.sin(x / (9 + seed)) > 0), np.full(SIZE, 128), np.full(SIZE, 128)]
    for cx, cy, side, colour in faces:
        inside = (np.abs(x - cx) < side / 2) & (np.abs(y - cy) < side / 2)
        planes = [np.where(inside, value, plane) for value, plane in zip(colour, planes, strict=True)]
    return Frame(tuple(p.astype(np.uint8) for p in planes), "yuv444p", 0)


def clip_of(scene: Callable[[int], list[Face]], count: int, fps: int = 25) -> tuple[list[Frame], ClipInfo]:
    frames = [draw(scene(t)) for t in range(count)]
    rate = Fraction(fps)
    info = ClipInfo("", SIZE[1], SIZE[0], rate, count, count / rate, 1 / rate, 0, "yuv444p", 0, 0, 0, 0, False, None, None)
    return frames, info
