"""Where the faces are in one picture: boxes and five points, by kornia's YuNet, else by OpenCV's cascade.

B pictures, H W their size, K faces. Points are image-left eye, image-right eye, nose tip, image-left and -right mouth corner.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..types import FlashLipsError, device_of
from .detection import Detection, overlap
from .following import Follower

logger = logging.getLogger(__name__)

MODELS_VARIABLE = "FLASHLIPS_MODELS"  # folders to look for weights in, separated as in PATH
YUNET_FILES = ("yunet.safetensors", "yunet_final.safetensors", "yunet_final.pth")
YUNET_SHA256 = "ee0a3035c5cbfc9484a31332223c9fd9c0ddcdb7c46b6a19e558ed393b6f2c67"  # of yunet_final.pth, 388 kB or less
YUNET_URLS = (  # where kornia's FaceDetector takes it from
    "https://huggingface.co/kornia/yunet/resolve/main/yunet_final.pth",
    "https://github.com/kornia/data/raw/main/yunet_final.pth",
)
DOWNLOAD_TIMEOUT_S = 20

# YuNet's anchors and box coding (Wu, Peng, Yu: "YuNet: a tiny millisecond-level face detector", as in kornia).
ANCHOR_SIZES = ((10, 16, 24), (32, 48), (64, 96), (128, 192, 256))
STRIDES = (8, 16, 32, 64)
VARIANCES = (0.1, 0.2)
LEAST_SIDE = 64  # pixels: one cell of the coarsest stride

# Five points inside a box of haarcascade_frontalface_alt2, as shares of its side: the mean of YuNet's on GRID's people.
CASCADE_POINTS = np.array([[0.32, 0.40], [0.68, 0.40], [0.50, 0.60], [0.33, 0.775], [0.67, 0.775]])


class Detector:
    """Finds faces in small RGB pictures. Subclasses implement :meth:`find`."""

    follower: Follower | None = None  # measures landmarks; without one, faces are followed by detections alone
    face_px: float = 60.0  # the face height at which points are steadiest; larger faces are shrunk to it
    max_side: int = 640  # the longest side at which a picture of unknown content is looked at

    def find(self, images: np.ndarray, smallest_px: float = 12.0) -> list[list[Detection]]:
        """Faces of (B, H, W, 3) uint8 RGB pictures at the size given, best first."""
        raise NotImplementedError

    def detect(self, rgb: np.ndarray) -> list[Detection]:
        """Faces of one (H, W, 3) uint8 RGB picture of any size, best first: found small, then measured at the best size."""
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
            raise FlashLipsError(f"A picture must be (height, width, 3) uint8 RGB, got {rgb.shape} {rgb.dtype}.")
        longest = max(rgb.shape[:2])
        first = min(1.0, self.max_side / longest)
        faces = [face.scaled(1 / first) for face in self.find(shrink(rgb, first)[None])[0]]
        second = self.best_scale(faces, longest)
        if not faces or abs(second / first - 1) < 0.1:
            return faces
        again = self.find(shrink(rgb, second)[None], smallest_px=0.6 * self.face_px)[0]
        return [face.scaled(1 / second) for face in again] or faces

    def best_scale(self, faces: Sequence[Detection], longest_side: int) -> float:
        """The factor that brings the smallest of these faces to ``face_px``, at most 1 and within ``max_side``."""
        limit = min(1.0, self.max_side / longest_side)
        if not faces:
            return limit
        smallest = min(float(face.box[3] - face.box[1]) for face in faces)
        return float(np.clip(self.face_px / max(smallest, 1.0), min(96 / longest_side, limit), limit))


class YuNetDetector(Detector):
    """kornia's YuNet on any device. On GRID, points scatter least at faces of 55 to 65 px, and most near 150 px."""

    def __init__(self, network: nn.Module, device: torch.device | str = "cpu", threshold: float = 0.4) -> None:
        self.device = torch.device(device)
        self.threshold = threshold
        self.network = network.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def find(self, images: np.ndarray, smallest_px: float = 12.0) -> list[list[Detection]]:
        images = widened(images)
        height, width = images.shape[1:3]
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self.device).permute(0, 3, 1, 2)
        out = self.network(pixels.flip(1).float().contiguous(memory_format=torch.channels_last))  # it was trained on BGR, 0..255
        scores = (out["conf"][..., 1] * out["iou"][..., 0].clamp(0, 1)).sqrt().cpu()
        priors = _priors(height, width)
        faces = []
        for loc, score in zip(out["loc"].float().cpu(), scores, strict=True):
            rows = torch.nonzero(score > self.threshold)[:, 0]
            faces.append(_strongest(*_decode(loc[rows], priors[rows]), score[rows].numpy(), smallest_px))
        return faces


class CascadeDetector(Detector):
    """OpenCV's Haar cascade: frontal faces only, points guessed from the box."""

    def __init__(self, path: str | Path) -> None:
        import cv2

        self.cascade = cv2.CascadeClassifier(str(path))
        if self.cascade.empty():
            raise FlashLipsError(f"OpenCV cannot read the face cascade {Path(path).name}; reinstall opencv-python-headless.")

    def find(self, images: np.ndarray, smallest_px: float = 24.0) -> list[list[Detection]]:
        import cv2

        side = max(int(0.7 * smallest_px), 20)  # its box is tighter than YuNet's
        faces = []
        for image in widened(images):
            grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
            boxes, votes = self.cascade.detectMultiScale2(grey, 1.06, 4, minSize=(side, side))
            found = [_from_cascade(box, vote) for box, vote in zip(np.asarray(boxes).reshape(-1, 4), votes, strict=True)]
            faces.append(sorted(found, key=lambda face: -face.score))
        return faces


def load_detector(weights: str | Path | None = None, device: str | torch.device = "cpu", download: bool = True) -> Detector:
    """The best detector to be had.

    YuNet with ``weights`` (a file, or a folder that holds one of YUNET_FILES), with those found in a folder that the environment
    variable FLASHLIPS_MODELS names or in torch's hub cache, or with kornia's download; else OpenCV's cascade with a warning.
    """
    path = _given(Path(weights)) if weights is not None else found_weights() or (_downloaded() if download else None)
    if path is not None:
        return YuNetDetector(_load_yunet(path), device_of(device))
    detector = CascadeDetector(_cascade_path())
    logger.warning(
        "YuNet's weights are neither in %s nor downloadable: using OpenCV's face cascade, which sees frontal faces only and "
        "places the crop less exactly. Put yunet_final.pth (%s) into ComfyUI's models/flashlips, or into a folder that %s names.",
        MODELS_VARIABLE, YUNET_URLS[0], MODELS_VARIABLE,
    )  # fmt: skip
    return detector


def widened(images: np.ndarray) -> np.ndarray:
    """Pictures (B, H, W, 3) as large as detectors need: a shorter side is filled up with its last pixels, right and below."""
    rows, columns = (max(LEAST_SIDE - side, 0) for side in images.shape[1:3])
    return np.pad(images, ((0, 0), (0, rows), (0, columns), (0, 0)), mode="edge") if rows or columns else images


def shrink(rgb: np.ndarray, factor: float) -> np.ndarray:
    """Resize with antialiasing. (H, W, 3) uint8 -> uint8."""
    if factor >= 0.999:
        return rgb
    size = [max(round(n * factor), 16) for n in rgb.shape[:2]]
    pixels = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None]
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


# ---- weights ---------------------------------------------------------------------------------------------------------------


def _given(path: Path) -> Path:
    found = _in_folder(path) if path.is_dir() else path if path.is_file() else None
    if found is None:
        raise FlashLipsError(f"No face detector weights at {path}; give yunet_final.pth, a .safetensors copy, or their folder.")
    return found


def _in_folder(folder: Path) -> Path | None:
    return next((folder / name for name in YUNET_FILES if (folder / name).is_file()), None)


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def found_weights() -> Path | None:
    """YuNet's weights in a folder that FLASHLIPS_MODELS names, or in torch's hub cache."""
    named = [Path(name) for name in os.environ.get(MODELS_VARIABLE, "").split(os.pathsep) if name]
    return next((path for path in map(_in_folder, [*named, _hub_folder()]) if path is not None), None)


def _downloaded() -> Path | None:
    """Fetch kornia's file into torch's hub cache; None where no source answers."""
    target = _hub_folder() / "yunet_final.pth"
    for url in YUNET_URLS:
        try:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as reply:
                data = reply.read(16 << 20)
        except (urllib.error.URLError, OSError) as error:
            logger.info("%s did not answer: %s", url, error)
            continue
        if hashlib.sha256(data).hexdigest() != YUNET_SHA256:
            logger.warning("%s sent a file with another checksum; it is not used.", url)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        part.write_bytes(data)
        part.replace(target)
        return target
    return None


def _load_yunet(path: Path) -> nn.Module:
    """Build YuNet and fill it, strictly. A .pth is opened only if it is kornia's own file, and without running code."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        from kornia.models.yunet import YuNet
    except ImportError:  # kornia before it moved there
        from kornia.contrib.face_detection import YuNet

    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            if hashlib.sha256(path.read_bytes()).hexdigest() != YUNET_SHA256:
                raise FlashLipsError(f"{path.name} is not kornia's file (other checksum); get it again from {YUNET_URLS[0]}.")
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        network = YuNet("test", pretrained=False)
        network.load_state_dict(tensors, strict=True)
    except (RuntimeError, OSError, SafetensorError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise FlashLipsError(f"{path.name} holds no YuNet weights ({reason}); get {YUNET_URLS[0]}.") from error
    return network


def _cascade_path() -> Path:
    try:
        import cv2
    except ImportError as error:
        raise FlashLipsError(
            f"No face detector: put yunet_final.pth ({YUNET_URLS[0]}) into a folder named in {MODELS_VARIABLE}, "
            "or install opencv-python-headless<5."
        ) from error
    path = Path(cv2.data.haarcascades) / "haarcascade_frontalface_alt2.xml"
    if not path.is_file():
        raise FlashLipsError(
            f"OpenCV {cv2.__version__} brings no face cascade: put yunet_final.pth ({YUNET_URLS[0]}) into a folder named in "
            f"{MODELS_VARIABLE}, or install opencv-python-headless<5."
        )
    return path


# ---- decoding --------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _priors(height: int, width: int) -> Tensor:
    """YuNet's anchors as (N, 4): centre x, y, width, height in pixels."""
    rows, columns = (height + 1) // 2 // 2, (width + 1) // 2 // 2
    parts = []
    for stride, sizes in zip(STRIDES, ANCHOR_SIZES, strict=True):
        rows, columns = rows // 2, columns // 2
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        centre = (torch.stack([x, y], -1).float() + 0.5) * stride
        side = torch.tensor(sizes, dtype=torch.float32)
        anchors = torch.cat([centre[:, :, None].expand(-1, -1, len(sizes), -1), side[:, None].expand(rows, columns, -1, 2)], -1)
        parts.append(anchors.reshape(-1, 4))
    return torch.cat(parts)


def _decode(loc: Tensor, priors: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(K, 14) offsets and (K, 4) anchors -> boxes (K, 4) xyxy, points (K, 5, 2)."""
    centre = priors[:, :2] + loc[:, :2] * VARIANCES[0] * priors[:, 2:]
    half = priors[:, 2:] * torch.exp(loc[:, 2:4] * VARIANCES[1]) / 2
    points = priors[:, None, :2] + loc[:, 4:].view(-1, 5, 2) * VARIANCES[0] * priors[:, None, 2:]
    return torch.cat([centre - half, centre + half], 1).numpy(), points.numpy()


def _strongest(boxes: np.ndarray, points: np.ndarray, scores: np.ndarray, smallest_px: float) -> list[Detection]:
    """Non-maximum suppression at an overlap of 0.3, best first."""
    kept: list[Detection] = []
    for k in np.argsort(-scores, kind="stable")[:400]:
        if boxes[k, 3] - boxes[k, 1] < smallest_px:
            continue
        if all(overlap(boxes[k], other.box) <= 0.3 for other in kept):
            kept.append(Detection(boxes[k], points[k], float(scores[k])))
    return kept


def _from_cascade(box: np.ndarray, votes: int) -> Detection:
    x, y, side = float(box[0]), float(box[1]), float(box[2])
    points = np.array([x, y]) + side * CASCADE_POINTS
    return Detection(np.array([x, y, x + side, y + 1.15 * side], np.float32), points.astype(np.float32), votes / (votes + 4))
