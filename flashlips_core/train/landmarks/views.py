"""Views of stored faces as the landmark network meets them: any rough box, bad light, bad cameras, things before the face.

Pictures are (S, S, 3) uint8 RGB, points (L, 2) shares of a picture's side. Everything random comes from one NumPy generator.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from ...face.landmarks import cut_square, make_square
from ...face.points import EYE_CORNERS, LIPS, NOSE_TIP, OVAL
from ...turned import to_shares
from .pictures import FaceStore, mirror

HIDDEN_FACE = 0.6  # share of the points behind something: more is no face any more
TOO_HIDDEN = 0.45  # between the two nothing is asked


@dataclass(frozen=True)
class View:
    """One crop and what is true of it."""

    picture: np.ndarray  # (S, S, 3) uint8
    points: np.ndarray  # (L, 2) float32
    is_face: bool


def face_view(store: FaceStore, row: int, rng: np.random.Generator, size: int) -> View:
    """A face through a rough box (as from a detector) or a refined one (from an earlier look)."""
    picture, px = store.pictures[row], store.pictures.shape[1]
    square = random_square(store.squares[row], rng)
    crop, points = cut_square(np.asarray(picture), square, size), to_shares(store.points[row] * px, square).astype(np.float32)
    if rng.random() < 0.5:
        crop, points = np.ascontiguousarray(crop[:, ::-1]), mirror(points)
    clean = crop.copy()
    crop, hidden = occlude(crop, points, rng)
    share = float(hidden[_inside(points, size)].mean()) if hidden is not None else 0.0
    if TOO_HIDDEN < share < HIDDEN_FACE:
        crop, share = clean, 0.0
    return View(spoil(crop, rng), points, share < HIDDEN_FACE)


def random_square(square: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A square near the right one: half of them as a detector gives, half as a first look leaves."""
    centre, side = (square[:2] + square[2:4]) / 2, square[2] - square[0]
    if rng.random() < 0.5:
        scale, shift, turn = np.exp(rng.uniform(np.log(0.74), np.log(1.36))), rng.uniform(-0.16, 0.16, 2), rng.uniform(-0.8, 0.8)
    else:
        scale, shift, turn = np.exp(rng.normal(0, 0.06)), rng.normal(0, 0.025, 2), rng.normal(0, 0.07)
    return make_square(centre + shift * side, scale * side, square[4] + turn)


def wrong_view(store: FaceStore, row: int, rng: np.random.Generator, size: int) -> View:
    """A box that misses: far too large, far too small, beside the face, or upside down."""
    square = store.squares[row]
    centre, side, kind = (square[:2] + square[2:4]) / 2, float(square[2] - square[0]), rng.integers(4)
    angle, turn, scale, shift = rng.uniform(0, 2 * np.pi), rng.uniform(-0.8, 0.8), rng.uniform(0.6, 1.4), 0.0
    if kind == 0:
        scale = rng.uniform(2.4, 3.5)
    elif kind == 1:
        scale, shift = rng.uniform(0.15, 0.36), rng.uniform(0, 0.3)
    elif kind == 2:
        shift = rng.uniform(0.75, 1.1) * (0.5 + scale / 2)
    else:
        turn = np.pi + rng.uniform(-0.8, 0.8)
    centre = centre + side * shift * np.array([np.cos(angle), np.sin(angle)])
    crop = cut_square(np.asarray(store.pictures[row]), make_square(centre, scale * side, square[4] + turn), size)
    return View(spoil(crop, rng), np.zeros_like(store.points[row]), False)


def background_view(store: FaceStore, row: int, rng: np.random.Generator, size: int) -> View:
    """A part of a picture without a face."""
    side = store.pictures.shape[1]
    square = make_square(rng.uniform(0.3, 0.7, 2) * side, rng.uniform(0.3, 1.0) * side, rng.uniform(-3, 3))
    crop = cut_square(np.asarray(store.pictures[row]), square, size)
    return View(spoil(crop, rng), np.zeros_like(store.points[row]), False)


def _inside(points: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of points, held inside the picture."""
    place = (points * size).astype(int).clip(0, size - 1)
    return place[:, 1], place[:, 0]


# ---- things before the face ------------------------------------------------------------------------------------------------


def occlude(crop: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    """Glasses, hands, microphones, bars. Returns the picture and the mask (S, S) bool of what hides the face, None without."""
    if rng.random() < 0.16:
        crop = glasses(crop, points, rng)
    if rng.random() > 0.28:
        return crop, None
    thing = (hand, microphone, patch)[rng.integers(3)]
    mask = np.zeros(crop.shape[:2], np.uint8)
    thing(mask, points * len(crop), rng)
    colour = _thing_colour(crop, points, rng, is_skin=thing is hand)
    ramp, (across, down) = np.linspace(-1, 1, len(crop), dtype=np.float32), rng.normal(0, 0.12, 2)
    shade = (1 + down * ramp[:, None] + across * ramp[None])[..., None]
    body = np.clip(np.asarray(colour, np.float32) * shade, 0, 255)
    cover = mask[..., None].astype(np.float32) / 255
    return (crop + (body - crop) * cover).astype(np.uint8), mask > 127


def _thing_colour(crop: np.ndarray, points: np.ndarray, rng: np.random.Generator, is_skin: bool) -> np.ndarray:
    if is_skin:
        row, column = (v[NOSE_TIP] for v in _inside(points, len(crop)))
        return crop[row, column] * rng.uniform(0.75, 1.15)
    return rng.uniform(5, 250) * rng.uniform(0.8, 1.1, 3) if rng.random() < 0.4 else rng.uniform(5, 60, 3)


def glasses(crop: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two rims with a bridge; one in four is dark."""
    import cv2

    size = len(crop)
    places = points * size
    centres = [places[list(pair)].mean(0) for pair in EYE_CORNERS]
    across = places[EYE_CORNERS[1][0]] - places[EYE_CORNERS[0][0]]
    length, angle = float(np.hypot(*across)), float(np.degrees(np.arctan2(across[1], across[0])))
    axes = tuple(np.maximum(length * np.array([rng.uniform(0.22, 0.30), rng.uniform(0.15, 0.26)]), 1))
    colour, thick = rng.uniform(0, 90, 3) * (rng.random() < 0.8) + 0.0, int(rng.integers(1, 4))
    drawn = crop.copy()
    is_dark, drop = rng.random() < 0.25, np.array([0, rng.uniform(0, 0.05) * length])
    for centre in centres:
        box = ((float(centre[0]), float((centre + drop)[1])), (2 * axes[0], 2 * axes[1]), angle)
        if is_dark:
            cv2.ellipse(drawn, box, colour, -1, cv2.LINE_AA)
        cv2.ellipse(drawn, box, colour, thick, cv2.LINE_AA)
    inner = [c + s * across / max(length, 1e-6) * axes[0] for c, s in zip(centres, (1, -1), strict=True)]
    cv2.line(drawn, *[tuple(np.round(p).astype(int).tolist()) for p in inner], colour, thick, cv2.LINE_AA)
    strength = rng.uniform(0.75, 1.0)
    return (crop + (drawn.astype(np.float32) - crop) * strength).astype(np.uint8)


def hand(mask: np.ndarray, places: np.ndarray, rng: np.random.Generator) -> None:
    """A palm and fingers that reach from outside over the lower face or the cheek."""
    import cv2

    face = np.ptp(places[OVAL], axis=0).max()
    target = places[rng.integers(len(places))] + rng.normal(0, 0.1, 2) * face
    angle = rng.uniform(-0.3, np.pi + 0.3)  # from below or the sides
    away = np.array([np.cos(angle), np.sin(angle)])
    palm = target + away * face * rng.uniform(0.35, 0.6)
    wide = face * rng.uniform(0.06, 0.10)
    cv2.circle(mask, _pixel(palm), int(face * rng.uniform(0.18, 0.28)), 255, -1, cv2.LINE_AA)
    side = np.array([-away[1], away[0]])
    for finger in np.linspace(-1.2, 1.2, rng.integers(3, 5)):
        tip = target + side * finger * wide * 2.1 + rng.normal(0, 0.04, 2) * face
        cv2.line(mask, _pixel(palm + side * finger * wide * 1.5), _pixel(tip), 255, max(int(2 * wide), 1), cv2.LINE_AA)


def microphone(mask: np.ndarray, places: np.ndarray, rng: np.random.Generator) -> None:
    """A round head near or over the mouth and chin, on a stick."""
    import cv2

    face = np.ptp(places[OVAL], axis=0).max()
    head = places[LIPS].mean(0) + rng.normal((0, 0.2), (0.22, 0.14)) * face
    axes = np.maximum(face * rng.uniform(0.05, 0.16) * np.array([1, rng.uniform(1, 1.5)]), 1).astype(int)
    cv2.ellipse(mask, _pixel(head), tuple(axes.tolist()), float(rng.uniform(-60, 60)), 0, 360, 255, -1, cv2.LINE_AA)
    foot = head + np.array([rng.normal(0, 0.5), 1.5]) * face
    cv2.line(mask, _pixel(head), _pixel(foot), 255, max(int(axes[0] * rng.uniform(0.3, 0.9)), 1), cv2.LINE_AA)


def patch(mask: np.ndarray, places: np.ndarray, rng: np.random.Generator) -> None:
    """A bar, a caption, somebody's shoulder: one half-plane or a box."""
    import cv2

    face = np.ptp(places[OVAL], axis=0).max()
    middle = places[rng.integers(len(places))]
    size = face * rng.uniform(0.1, 0.55, 2) * (2.5 if rng.random() < 0.2 else 1)
    box = ((float(middle[0]), float(middle[1])), tuple(size.tolist()), float(rng.uniform(0, 180)))
    cv2.fillPoly(mask, [np.round(cv2.boxPoints(box)).astype(np.int32)], 255, cv2.LINE_AA)


def _pixel(point: np.ndarray) -> tuple[int, int]:
    return tuple(int(v) for v in np.round(point))


# ---- light and cameras -----------------------------------------------------------------------------------------------------


def spoil(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light, colour, blur, few pixels, noise and compression, each now and then."""
    import cv2

    size = len(crop)
    if rng.random() < 0.8:
        crop = _relight(crop, rng)
    if rng.random() < 0.25:
        few = int(size * rng.uniform(0.25, 0.8))
        small = cv2.resize(crop, (few, few), interpolation=cv2.INTER_AREA)
        crop = cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR if rng.random() < 0.7 else cv2.INTER_CUBIC)
    if rng.random() < 0.2:
        crop = _blur(crop, rng)
    if rng.random() < 0.35:
        (row, column), step = rng.integers(0, 512 - size, 2), rng.choice([-1, 1])
        noise = _grain()[row : row + size, column : column + size, ::step]
        if rng.random() < 0.5:
            noise = noise[..., :1].repeat(3, 2)
        crop = cv2.add(crop, np.ascontiguousarray(noise) * np.float32(rng.uniform(1, 14)), dtype=cv2.CV_8U)
    if rng.random() < 0.35:
        coded = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(12, 80))])[1]
        crop = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    return crop


def _relight(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gamma, gain per channel, saturation, a light from one side."""
    import cv2

    value = np.arange(256, dtype=np.float32)[:, None] / 255
    gain = rng.uniform(0.6, 1.3) * rng.uniform(0.88, 1.12, 3)
    curve = np.clip(value ** np.exp(rng.normal(0, 0.3)) * gain + rng.normal(0, 0.05), 0, 1) * 255
    pixels = cv2.LUT(crop, curve.astype(np.uint8)[None])
    if rng.random() < 0.4:
        grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        kept = rng.uniform(0.2, 1.4) if rng.random() < 0.7 else 0.0
        pixels = cv2.addWeighted(pixels, kept, grey, 1 - kept, 0)
    if rng.random() < 0.3:
        ramp = np.linspace(-1, 1, len(crop), dtype=np.float32)
        across, down = rng.normal(0, 0.35, 2).astype(np.float32)
        light = np.clip(1 + down * ramp[:, None] + across * ramp[None], 0.2, 1.8)
        pixels = cv2.multiply(pixels, cv2.merge([light] * 3), dtype=cv2.CV_8U)
    return pixels


@functools.cache
def _grain() -> np.ndarray:
    """Gaussian noise of deviation 1, drawn once: views take pieces of it. (512, 512, 3) float32."""
    return np.random.default_rng(0).standard_normal((512, 512, 3), np.float32)


def _blur(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Out of focus, or moved while the shutter was open."""
    import cv2

    if rng.random() < 0.5:
        return cv2.GaussianBlur(crop, (0, 0), rng.uniform(0.4, 1.6))
    length, angle = int(rng.integers(2, 8)), rng.uniform(0, np.pi)
    kernel = np.zeros((9, 9), np.float32)
    ends = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    cv2.line(kernel, _pixel(4 - ends), _pixel(4 + ends), 1.0)
    return cv2.filter2D(crop, -1, kernel / kernel.sum())
