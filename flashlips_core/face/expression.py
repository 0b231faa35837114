"""Expression features from face landmarks: MediaPipe's mouth blendshapes and the lip outline, freed of head and identity.

T frames, 40 lip points (the outer, then the inner outline, see ``points``), E features.
"""

from __future__ import annotations

import numpy as np

from .points import LIPS, MIDDLE_PAIR, MIRROR_LIPS

# What MediaPipe's face landmarker calls its 52 blendshapes, in its order (ARKit's names)
BLENDSHAPES = (
    "_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight",
    "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft",
    "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose",
    "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel", "mouthLeft",
    "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker", "mouthRight",
    "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft", "mouthSmileRight",
    "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight", "noseSneerLeft", "noseSneerRight",
)  # fmt: skip
OF_MOUTH = slice(BLENDSHAPES.index("jawForward"), BLENDSHAPES.index("mouthUpperUpRight") + 1)
MOUTH_SHAPES = BLENDSHAPES[OF_MOUTH]
NUM_LIPS = LIPS.stop
NUM_FEATURES = 2 * NUM_LIPS + len(MOUTH_SHAPES)
_SWAP = {"Left": "Right", "Right": "Left"}


def normalised_lips(lips: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Lip outlines in a head-fixed frame: origin between the eyes, x along them, unit eye distance.

    Args:
        lips: (T, 40, 2) pixels.
        points: (T, 5, 2) pixels, eyes first.
    Returns: (T, 40, 2).
    """
    left, right = points[:, 0], points[:, 1]
    axis = right - left
    distance = np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-6)  # rows without a face hold zeros
    x = axis / distance
    y = np.stack([-x[:, 1], x[:, 0]], 1)
    centred = lips - ((left + right) / 2)[:, None]
    return np.stack([(centred * x[:, None]).sum(-1), (centred * y[:, None]).sum(-1)], -1) / distance[:, None]


def mouth_opening(lips: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Inner-lip gap over eye distance, (T,)."""
    distance = np.maximum(np.linalg.norm(points[:, 1] - points[:, 0], axis=1), 1e-6)
    above, below = MIDDLE_PAIR
    return np.linalg.norm(lips[:, below] - lips[:, above], axis=1) / distance


def raw_features(lips: np.ndarray, points: np.ndarray, blendshapes: np.ndarray) -> np.ndarray:
    """Lip outline and blendshapes of each frame side by side. (T, 40, 2), (T, 5, 2), (T, 52) -> (T, E)."""
    shapes = blendshapes[:, OF_MOUTH]
    return np.concatenate([normalised_lips(lips, points).reshape(len(lips), -1), shapes], 1).astype(np.float32)


def neutral_features(features: np.ndarray, opening: np.ndarray) -> np.ndarray:
    """A face's features at rest: the median over its quarter of frames with the smallest opening. (T, E), (T,) -> (E,)."""
    return np.median(features[opening <= np.quantile(opening, 0.25)], axis=0)


def mirrored(features: np.ndarray) -> np.ndarray:
    """Features of the mirrored face; subtract the neutral first. (T, E) -> (T, E)."""
    lips = features[:, : 2 * NUM_LIPS].reshape(len(features), NUM_LIPS, 2)[:, MIRROR_LIPS] * np.array([-1, 1], np.float32)
    order = [MOUTH_SHAPES.index(_mirror_name(name)) for name in MOUTH_SHAPES]
    return np.concatenate([lips.reshape(len(features), -1), features[:, 2 * NUM_LIPS :][:, order]], 1)


def _mirror_name(name: str) -> str:
    for side, other in _SWAP.items():
        if name.endswith(side):
            return name.removesuffix(side) + other
    return name
