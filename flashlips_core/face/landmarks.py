"""The 99 landmarks of a face in any rough square, and the squares themselves.

T faces, L = 99 landmarks in the order of ``points.LANDMARKS``. A *square* is five numbers ``x0 y0 x1 y1 roll``: an upright
box in pixels, turned about its own centre by ``roll`` radians, positive clockwise on screen, so that the crop's right is
(cos roll, sin roll) in the picture. Points in a crop are shares of its side, (0, 0) at its top left corner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..models.landmark_net import LandmarkNet, fused
from ..pixels import from_bytes
from ..turned import axes_of, to_pixels
from ..types import FlashLipsError
from .crop import EYE_DISTANCE_WEIGHT
from .points import mean_shape

SIDE_CM = 21.0  # side of a square around a face of the mean head's size: its outline takes 1 / 1.3 of it
CENTRE_ABOVE_MOUTH_CM = 3.9  # the middle of the outline
UNIT_CM = 7.75  # 1.2 times the distance of the mean head's irises, see crop.crop_box
BOX_SIDE = 1.45  # a square's side over the longer side of a detector's box
BOX_CENTRE = 0.47  # of the height of a detector's box, which leaves out the forehead

Cut = Callable[[np.ndarray, np.ndarray, int], Tensor]  # rows (n,), squares (n, 5), size -> (n, 3, size, size) in [-1, 1]


def make_square(centre: np.ndarray, side: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """(..., 2), (...), (...) -> (..., 5) float32."""
    half = np.asarray(side)[..., None] / 2
    return np.concatenate([centre - half, centre + half, np.asarray(roll)[..., None]], -1).astype(np.float32)


def cut_square(picture: np.ndarray, square: np.ndarray, size: int) -> np.ndarray:
    """A turned square of a picture whose edge repeats outside. (H, W, 3) uint8, (5,) -> (size, size, 3) uint8."""
    import cv2

    corners = to_pixels(np.array([[0, 0], [1, 0], [0, 1]]), square)
    shrink = max(float(square[2] - square[0]) / size, 1.0)
    if shrink > 1.25:  # by area first, else details flicker
        small = [max(round(n / shrink), 1) for n in picture.shape[1::-1]]
        corners = corners * (np.array(small) / picture.shape[1::-1])
        picture = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
    inner = np.array([[0, 0], [size, 0], [0, size]], np.float32) - 0.5  # OpenCV counts from the centres of pixels
    matrix = cv2.getAffineTransform(corners.astype(np.float32) - 0.5, inner)
    return cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def cut_from(pictures: Sequence[np.ndarray]) -> Cut:
    """What :meth:`FaceLandmarker.find` cuts with: pictures (H, W, 3) uint8."""

    def cut(rows: np.ndarray, squares: np.ndarray, size: int) -> Tensor:
        crops = [cut_square(pictures[row], square, size) for row, square in zip(rows, squares, strict=True)]
        return from_bytes(torch.from_numpy(np.stack(crops)))

    return cut


def rough_square(box_or_points: np.ndarray) -> np.ndarray:
    """The first square around a detector's find: boxes (..., 4) xyxy, or five points (..., 5, 2) -> (..., 5).

    Points are image-left eye, image-right eye, nose tip, image-left and -right mouth corner; they also tell the roll.
    """
    given = np.asarray(box_or_points, np.float64)
    if given.shape[-2:] == (5, 2):
        eyes, mouth = given[..., 0:2, :].mean(-2), given[..., 3:5, :].mean(-2)
        down, right = mouth - eyes, given[..., 1, :] - given[..., 0, :]
        unit = np.maximum(np.linalg.norm(down, axis=-1), EYE_DISTANCE_WEIGHT * np.linalg.norm(right, axis=-1))
        upright = np.stack([down[..., 1], -down[..., 0]], -1) + right  # the right that both tell, weighted by their lengths
        roll = np.arctan2(upright[..., 1], upright[..., 0])
        up = np.stack([np.sin(roll), -np.cos(roll)], -1)
        centre = mouth + up * (CENTRE_ABOVE_MOUTH_CM / UNIT_CM * unit)[..., None]
        return make_square(centre, SIDE_CM / UNIT_CM * unit, roll)
    if given.shape[-1] != 4:
        raise FlashLipsError(f"A face is a box (4,) or five points (5, 2), got {given.shape}; give what a detector found.")
    width, height = given[..., 2] - given[..., 0], given[..., 3] - given[..., 1]
    centre = np.stack([given[..., 0] + width / 2, given[..., 1] + BOX_CENTRE * height], -1)
    return make_square(centre, BOX_SIDE * np.maximum(width, height), np.zeros(given.shape[:-1]))


def square_around(points: np.ndarray) -> np.ndarray:
    """The square that fits landmarks: turned upright with them, as large as they spread. (..., 99, 2) pixels -> (..., 5).

    All points take part (a similarity transform onto the mean head's), so that noise of single ones hardly moves it.
    """
    points = np.asarray(points, np.float64)
    face = mean_shape()[:, :2] * (1, -1) - (0, -CENTRE_ABOVE_MOUTH_CM)  # cm from the square's centre, y down
    middle = face.mean(0)
    model = (face - middle) @ (1, 1j)
    mean = points.mean(-2)
    seen = (points - mean[..., None, :]) @ (1, 1j)  # ... L
    roll = np.angle((seen * model.conj()).sum(-1))
    scale = np.sqrt((np.abs(seen) ** 2).mean(-1) / (np.abs(model) ** 2).mean())  # pixels per cm
    centre = mean - (axes_of(roll) @ middle) * scale[..., None]
    return make_square(centre, SIDE_CM * scale, roll)


class FaceLandmarker:
    """Landmarks of faces in rough squares, by a :class:`LandmarkNet`; it keeps nothing between calls."""

    def __init__(self, network: LandmarkNet, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.network = fused(network).to(self.device, memory_format=torch.channels_last)

    @property
    def size(self) -> int:
        """Side in pixels of the crops that are read."""
        return self.network.config.size

    @torch.inference_mode()
    def read(self, crops: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Crops (B, 3, size, size) in [-1, 1] -> points (B, 99, 2), shares of the crop, and confidence (B,) in 0..1."""
        dtype = self.network.readout.weight.dtype
        crops = crops.to(self.device, dtype).contiguous(memory_format=torch.channels_last)
        points, logit = self.network(crops)
        return points.float().cpu().numpy(), logit.float().sigmoid().cpu().numpy()

    def find(self, cut: Cut, squares: np.ndarray, looks: int = 2) -> tuple[np.ndarray, np.ndarray]:
        """Landmarks of one face in each of T pictures.

        Args:
            cut: cuts squares (n, 5) out of the pictures ``rows`` (n,): (n, 3, size, size) in [-1, 1].
            squares: (T, 5) rough squares: :func:`rough_square` of a detector's find, or :func:`square_around` of the points of
                the frame before.
            looks: 2 looks again in the square around the points of the first look; 1 will do after a frame before.
        Returns: points (T, 99, 2) float32 pixels, confidence (T,) of the last look.
        """
        rows = np.arange(len(squares))
        shares, confidence = self.read(cut(rows, squares, self.size))
        points = to_pixels(shares, squares).astype(np.float32)
        return (points, confidence) if looks <= 1 else self.find(cut, square_around(points), looks - 1)
