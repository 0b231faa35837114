"""Find faces, follow them, and cut a crop that does not shake."""

from .crop import Stabilise, crop_box, smooth_boxes
from .detect import Detection, Detector, load_detector
from .track import FaceReference, NoFaceError, Which, reference_face, track_faces, track_scenes

__all__ = [
    "Detection",
    "Detector",
    "FaceReference",
    "NoFaceError",
    "Stabilise",
    "Which",
    "crop_box",
    "load_detector",
    "reference_face",
    "smooth_boxes",
    "track_faces",
    "track_scenes",
]
