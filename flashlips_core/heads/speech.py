"""How a head mesh speaks: mouth shapes of the sounds of English, and curves through them.

E expressions of the mesh, T frames. Weights are 0..1 of the mesh's own shapes, named without their side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .mesh import HeadMesh

# Our reading of the usual viseme charts in ARKit's terms, set by eye on the rendered head
VISEMES: dict[str, dict[str, float]] = {
    "rest": {},
    "ah": {"jawOpen": 0.42, "mouthLowerDown": 0.25, "mouthUpperUp": 0.18},
    "eh": {"jawOpen": 0.24, "mouthStretch": 0.25, "mouthLowerDown": 0.30, "mouthUpperUp": 0.22},
    "ee": {"jawOpen": 0.10, "mouthSmile": 0.30, "mouthStretch": 0.28, "mouthLowerDown": 0.30, "mouthUpperUp": 0.25},
    "oh": {"jawOpen": 0.30, "mouthFunnel": 0.45, "mouthPucker": 0.22},
    "oo": {"jawOpen": 0.12, "mouthFunnel": 0.28, "mouthPucker": 0.62},
    "mbp": {"jawOpen": 0.05, "mouthClose": 0.06, "mouthPress": 0.35, "mouthRollLower": 0.28, "mouthRollUpper": 0.24},
    "fv": {"jawOpen": 0.08, "mouthRollLower": 0.42, "mouthUpperUp": 0.26, "mouthLowerDown": 0.08},
    "s": {"jawOpen": 0.06, "mouthStretch": 0.28, "mouthLowerDown": 0.34, "mouthUpperUp": 0.20},
    "sh": {"jawOpen": 0.10, "mouthFunnel": 0.52, "mouthPucker": 0.15, "mouthLowerDown": 0.15},
    "th": {"jawOpen": 0.13, "mouthLowerDown": 0.25, "mouthUpperUp": 0.15},
    "l": {"jawOpen": 0.20, "mouthLowerDown": 0.22, "mouthUpperUp": 0.15},
    "k": {"jawOpen": 0.16, "mouthStretch": 0.15, "mouthLowerDown": 0.15},
    "r": {"jawOpen": 0.12, "mouthFunnel": 0.35, "mouthPucker": 0.25},
}

# ARPAbet, as pronouncing dictionaries and pocketsphinx write it; diphthongs are two shapes
PHONES: dict[str, tuple[str, ...]] = {
    "SIL": ("rest",),
    **dict.fromkeys(("AA", "AH", "AE"), ("ah",)),
    **dict.fromkeys(("EH", "ER", "IH"), ("eh",)),
    **dict.fromkeys(("IY", "Y"), ("ee",)),
    **dict.fromkeys(("AO", "OW"), ("oh",)),
    **dict.fromkeys(("UW", "UH", "W"), ("oo",)),
    **dict.fromkeys(("M", "B", "P"), ("mbp",)),
    **dict.fromkeys(("F", "V"), ("fv",)),
    **dict.fromkeys(("S", "Z", "T", "D", "N"), ("s",)),
    **dict.fromkeys(("SH", "ZH", "CH", "JH"), ("sh",)),
    **dict.fromkeys(("TH", "DH"), ("th",)),
    **dict.fromkeys(("K", "G", "NG", "HH"), ("k",)),
    "L": ("l",),
    "R": ("r",),
    "AY": ("ah", "ee"),
    "EY": ("eh", "ee"),
    "AW": ("ah", "oo"),
    "OY": ("oh", "ee"),
}
STRONG = {"mbp": 2.5, "fv": 1.8, "oo": 1.3}  # shapes that neighbours must not wash out: closed lips are closed
COARTICULATION_S = 0.045  # width of the Gaussian that joins neighbouring sounds
LIPS_LEAD_S = 0.04  # lips move before the sound


def speech_curves(mesh: HeadMesh, phones: Sequence[tuple[str, float, float]], num_frames: int, fps: float) -> np.ndarray:
    """Expression weights of a timed line. phones: (ARPAbet, start, end) in seconds. -> (T, E) float32."""
    times = np.arange(num_frames) / fps
    total = np.zeros((num_frames, len(mesh.expression_names)), np.float32)
    weight = np.full((num_frames, 1), 1e-3, np.float32)
    for phone, start, end in phones:
        shapes = PHONES.get(phone.rstrip("012").upper(), ("rest",))
        step = (end - start) / len(shapes)
        for i, shape in enumerate(shapes):
            first, last = start + i * step - LIPS_LEAD_S, start + (i + 1) * step - LIPS_LEAD_S
            near = np.clip(np.maximum(first - times, times - last), 0, None)
            pull = (STRONG.get(shape, 1.0) * np.exp(-((near / COARTICULATION_S) ** 2) / 2))[:, None].astype(np.float32)
            total += pull * mesh.weights(**VISEMES[shape])
            weight += pull
    return total / weight


def random_expression(mesh: HeadMesh, rng: np.random.Generator) -> np.ndarray:
    """A mouth in the middle of speech: two mixed shapes, a strength, a little of everything else. -> (E,) float32."""
    names = list(VISEMES)
    first, second = rng.choice(len(names), 2, p=None, replace=False)
    share = rng.beta(0.6, 0.6)
    strength = rng.uniform(0.4, 1.35)
    mixed = share * mesh.weights(**VISEMES[names[first]]) + (1 - share) * mesh.weights(**VISEMES[names[second]])
    for name, chance, most in (
        ("jawOpen", 0.4, 0.35),
        ("mouthSmile", 0.25, 0.45),
        ("mouthFrown", 0.1, 0.3),
        ("mouthLowerDown", 0.25, 0.3),
        ("mouthUpperUp", 0.25, 0.3),
        ("mouthShrugLower", 0.15, 0.3),
        ("mouthDimple", 0.15, 0.4),
        ("cheekPuff", 0.05, 0.3),
    ):
        if rng.random() < chance:
            mixed = mixed + mesh.weights(**{name: rng.uniform(0, most)})
    for name in ("mouthLeft", "mouthRight", "jawLeft", "jawRight"):
        if rng.random() < 0.1:
            mixed = mixed + mesh.weights(**{name: rng.uniform(0, 0.15)})
    uneven = 1 + rng.normal(0, 0.06, mixed.shape)
    return np.clip(strength * mixed * uneven, 0, 1).astype(np.float32)
