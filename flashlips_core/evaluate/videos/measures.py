"""One dub of one clip in numbers, as an outside witness sees it: nothing here knows who made the dub, or how.

T frames, N of them with a face in both videos. Pictures are (H, W, 3) uint8 RGB frames as any player shows them. The dub shows
the source's frames from the first on, with another mouth. Boxes and alignment are of the source's landmarks, the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F

from ... import measures as m
from ...drawings.sheets import cut_pixels, spread
from ...face.expression import mouth_opening
from ...face.motion import EYE_CORNERS, IRISES, MOUTH_CORNERS, FaceMotion, padded_box, rgb_frames
from ...face.points import LIPS, in_mesh
from ...media import probe
from ...pixels import laplacian
from ...references import head_pose

NOSE_TIP, LOWER_LIP, CHIN = 1, 17, 152  # MediaPipe's numbers
# Crops of 384 px show outer eye corners about this far apart: larger faces are measured at that size too, and there first
EYES_PX = 150.0
LEAST_PX = 8  # sides of boxes below tell nothing about detail
RADII, ANGLES = 8, 6  # bins of the spectrum: up to half a cycle a pixel, and by direction
FINEST = 0.35  # cycles a pixel: the finest frequencies begin here
PATCH = (72, 96)  # rows and columns of the aligned lower face
LIKE = 3  # source frames whose mouths are the most alike
# What counts as one step apart when mouths are compared: gap and width over the eye distance, stand-ins for yaw and pitch, roll
ALIKE = np.array([0.03, 0.05, 0.10, 0.10, 0.15])
MOVING_SPEED, MOVING_ROLL, MOVING_YAW = 0.35, 8.0, 0.15  # see head_motion


@dataclass(frozen=True)
class HeadMotion:
    """How a head moves: see :func:`head_motion`."""

    speed: float
    roll_deg: float
    yaw: float

    @property
    def is_moving(self) -> bool:
        """Whether the clip counts as one with a moving head: any of the three above its limit."""
        return self.speed > MOVING_SPEED or self.roll_deg > MOVING_ROLL or self.yaw > MOVING_YAW


def five_points(motion: FaceMotion) -> np.ndarray:
    """Irises, nose tip and mouth corners, image left first. (T, 5, 2) pixels."""
    return motion.landmarks[:, [*IRISES, NOSE_TIP, *MOUTH_CORNERS]]


def eye_distance(motion: FaceMotion) -> np.ndarray:
    """Between the outer eye corners, (T,) pixels."""
    return np.linalg.norm(np.subtract(*(motion.landmarks[:, i] for i in EYE_CORNERS)), axis=-1)


def head_motion(motion: FaceMotion, fps: float) -> HeadMotion:
    """How far a head moves.

    Speed: the mean way of the point between the outer eye corners, in eye distances a second, after a mean over five frames, so
    that the landmarks' tremble does not count. Roll in degrees and yaw (the nose tip's way along the eyes' axis over their
    distance) are ranges between the 5th and the 95th percentile. A head is moving where the speed exceeds .35, the roll 8 degrees
    or the yaw .15 (about 15 degrees).
    """
    found = motion.found
    if not found.any():
        return HeadMotion(0.0, 0.0, 0.0)
    eyes = smoothed(motion.landmarks[:, EYE_CORNERS].mean(1)[found])
    way = np.linalg.norm(np.diff(eyes, axis=0), axis=1).mean() * fps if len(eyes) > 1 else 0.0
    pose = head_pose(five_points(motion)[found])
    low, high = np.percentile(pose, [5, 95], axis=0)
    yaw, _, roll = high - low
    return HeadMotion(float(way / np.median(eye_distance(motion)[found])), math.degrees(roll), float(yaw))


def smoothed(curve: np.ndarray, reach: int = 2) -> np.ndarray:
    """The mean over ``2 * reach + 1`` rows, ends held. (T, D) -> (T, D)."""
    padded = np.concatenate([curve[:1].repeat(reach, 0), curve, curve[-1:].repeat(reach, 0)])
    return np.mean([padded[i : i + len(curve)] for i in range(2 * reach + 1)], axis=0)


def opening(motion: FaceMotion) -> np.ndarray:
    """Inner-lip gap over the distance of the irises: what a lip encoder's opening is fitted to. (T,)"""
    lips = motion.landmarks[:, list(in_mesh(LIPS))]
    return mouth_opening(lips, five_points(motion))


# ---- lips ------------------------------------------------------------------------------------------------------------------


def lip_numbers(dub: FaceMotion, asked: np.ndarray | None) -> dict[str, float | None]:
    """How well the dub's lips do what was asked: ``asked`` (T,) openings, None where nobody knows.

    "r": correlation of the inner-lip gap with the opening asked, frame by frame. "r_best_lag": the best within 4 frames either
    way, and its "lag". "size": the opening's deviation over that of the opening asked. "size_quantiles": the same of the distance
    between the 10th and the 90th percentile, which a few wild frames cannot move. "slope": opening per opening asked.
    """
    names = ("r", "r_best_lag", "lag", "size", "size_quantiles", "slope")
    if asked is None:
        return dict.fromkeys(names)
    count = min(len(dub), len(asked))
    shown, wanted = opening(dub)[:count], np.asarray(asked[:count], float)
    both = np.isfinite(shown)
    if both.sum() < 2:
        return dict.fromkeys(names)
    r = m.correlation(dub.lip_gap, wanted)
    best, lag = m.best_correlation(dub.lip_gap, wanted, 4)
    size = m.motion_share(shown, wanted)
    spans = [np.subtract(*np.percentile(curve[both], [90, 10])) for curve in (shown, wanted)]
    values = (r, best, lag, size, spans[0] / max(spans[1], 1e-6), m.correlation(shown, wanted) * size)
    return dict(zip(names, (float(v) for v in values), strict=True))


# ---- pictures --------------------------------------------------------------------------------------------------------------


@dataclass
class _Gathered:
    """What one pass over both videos leaves of each frame with a face: source first, dub second."""

    rows: list[int] = field(default_factory=list)  # frames
    mouth: list[tuple[float, float]] = field(default_factory=list)  # detail in the source's mouth box
    mouth_native: list[tuple[float, float]] = field(default_factory=list)  # the same at the frame's own pixels
    own_mouth: list[tuple[float, float]] = field(default_factory=list)  # detail, each in its own mouth box
    own_colour: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # mean RGB there
    chin: list[tuple[float, float]] = field(default_factory=list)
    power: list[np.ndarray] = field(default_factory=list)  # (2, RADII, ANGLES)
    faces: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # aligned lower faces, PATCH


class Watcher(Protocol):
    """Looks on while the frames of a source and a dub pass by."""

    def look(self, index: int, source: np.ndarray, dub: np.ndarray) -> None: ...


def picture_numbers(
    frames: Iterable[tuple[np.ndarray, np.ndarray]], motions: tuple[FaceMotion, FaceMotion], *watchers: Watcher
) -> dict[str, float | None]:
    """Compare the pictures of a dub with its source's: ``frames`` are pairs of them, source first, as many as ``motions`` have.

    "detail": variance of the grey Laplacian in the mouth box, dub over source, median over frames, faces larger than about
    384 px made that small; "detail_native": at the frame's own pixels. "detail_true": the share of the source's detail that the
    dub has too, by frequency and direction: what exceeds the source's there does not count, so invented stripes and grain don't
    (at most 1). "finest": share of the power above .35 cycles a pixel, dub over source: above 1 for stripes and grain.
    "detail_alike" and "colour_alike": detail and worst channel of the mouth's colour beside the source's mouths of like opening,
    width and head pose. "chin": detail between lower lip and chin. "unrest": mean absolute second difference in time of the
    aligned lower face, dub over source. "colour": worst channel's mean difference of the lower face, of 255, with its sign.
    """
    count = min(map(len, motions))
    seen = motions[0].found[:count] & motions[1].found[:count]
    gathered, places = _Gathered(), _places(motions[0])
    for index, pair in zip(range(count), frames, strict=False):
        for watcher in watchers:
            watcher.look(index, *pair)
        if seen[index]:
            _gather(gathered, index, pair, motions, places[index])
    return _numbers(gathered, motions)


def upright_frames(path: Path) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 RGB as they are shown, a phone's turned upright."""
    turns = -probe(path).rotation // 90
    for frame in rgb_frames(path):
        yield np.rot90(frame, turns) if turns else frame


def _gather(into: _Gathered, index: int, pair: Sequence[np.ndarray], motions: Sequence[FaceMotion], place: np.ndarray) -> None:
    scale = min(1.0, EYES_PX / float(eye_distance_at(motions[0], index)))
    own = [padded_box(motion.mouth_box[index]) for motion in motions]
    into.rows.append(index)
    greys = [_grey(cut_pixels(frame, own[0])) for frame in pair]
    small = [_smaller(grey, scale) for grey in greys]
    into.mouth.append(tuple(map(_detail, small)))
    into.mouth_native.append(tuple(map(_detail, greys)))
    into.power.append(np.stack([spectrum(grey) for grey in small]))
    mouths = [cut_pixels(frame, box) for frame, box in zip(pair, own, strict=True)]
    into.own_mouth.append(tuple(_detail(_smaller(_grey(mouth), scale)) for mouth in mouths))
    into.own_colour.append(tuple(mouth.mean((0, 1)) for mouth in mouths))
    box = _chin_box(motions, index)
    into.chin.append(tuple(_detail(_smaller(_grey(cut_pixels(frame, box)), scale)) for frame in pair))
    into.faces.append(tuple(_aligned(frame, place) for frame in pair))


def eye_distance_at(motion: FaceMotion, index: int) -> float:
    """Between the outer eye corners of one frame, pixels, at least 1."""
    first, second = (motion.landmarks[index, i] for i in EYE_CORNERS)
    return max(float(np.linalg.norm(first - second)), 1.0)


def _numbers(found: _Gathered, motions: Sequence[FaceMotion]) -> dict[str, float | None]:
    names = ("detail", "detail_native", "detail_true", "finest", "detail_alike", "colour_alike", "chin", "unrest", "colour")
    if not found.rows:
        return dict.fromkeys(names)
    source, dub = np.mean(found.power, axis=0)
    true = np.minimum(source, dub).sum() / max(source.sum(), 1e-9)
    values = {
        "detail": _ratio(found.mouth), "detail_native": _ratio(found.mouth_native), "detail_true": float(true),
        "finest": _finest(found.power), **_beside_alike(found, motions), "chin": _ratio(found.chin),
        "unrest": _unrest(found), "colour": _colour(found),
    }  # fmt: skip
    return {name: None if values[name] is None or not np.isfinite(values[name]) else values[name] for name in names}


def _ratio(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Median over frames of second over first; frames too small to tell are NaN."""
    first, second = np.array(pairs, float).T
    known = np.isfinite(first) & np.isfinite(second) & (first > 1e-6)
    return float(np.median(second[known] / first[known])) if known.any() else None


def _grey(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.astype(np.float32).mean(-1))


def _smaller(grey: torch.Tensor, scale: float) -> torch.Tensor:
    if scale >= 1:
        return grey
    size = [max(round(side * scale), 1) for side in grey.shape]
    return F.interpolate(grey[None, None], size, mode="bilinear", antialias=True)[0, 0]


def _detail(grey: torch.Tensor) -> float:
    """As :func:`measures.detail`, of a patch; NaN where it is too small."""
    return float(laplacian(grey).var()) if min(grey.shape) >= LEAST_PX else math.nan


def spectrum(grey: torch.Tensor) -> np.ndarray:
    """Power of a patch (H, W) by frequency and direction, weighted as a Laplacian sees it. -> (RADII, ANGLES)"""
    height, width = grey.shape
    window = torch.outer(torch.hann_window(height, False), torch.hann_window(width, False))
    power = torch.fft.fft2((grey - grey.mean()) * window).abs().square().numpy() / (height * width)
    fy, fx = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    weight = (4 - 2 * np.cos(2 * np.pi * fx) - 2 * np.cos(2 * np.pi * fy)) ** 2
    radius = np.minimum(np.hypot(fx, fy) * 2 * RADII, RADII - 1).astype(int)
    angle = np.minimum((np.arctan2(fy, fx) % np.pi) / np.pi * ANGLES, ANGLES - 1).astype(int)
    return np.bincount((radius * ANGLES + angle).ravel(), (power * weight).ravel(), RADII * ANGLES).reshape(RADII, ANGLES)


def _finest(power: Sequence[np.ndarray]) -> float | None:
    """Share of the weighted power at the finest frequencies, dub over source."""
    first = math.ceil(FINEST * 2 * RADII - 1e-9)
    by_radius = np.mean(power, axis=0).sum(-1)  # 2 RADII
    shares = by_radius[:, first:].sum(1) / np.maximum(by_radius.sum(1), 1e-9)
    return float(shares[1] / shares[0]) if shares[0] > 1e-9 else None


def _beside_alike(found: _Gathered, motions: Sequence[FaceMotion]) -> dict[str, float | None]:
    """Detail and colour of the dub's mouths over those of the source's mouths that are most like them."""
    rows = found.rows
    source, dub = (_mouth_pose(motion)[rows] / ALIKE for motion in motions)
    apart = np.linalg.norm(dub[:, None] - source[None], axis=-1)  # N N
    alike = apart.argsort(1, kind="stable")[:, :LIKE]
    detail, colour = np.array(found.own_mouth, float), np.array(found.own_colour, float)  # N 2; N 2 3
    pairs = [(np.nanmean(detail[near, 0]) if np.isfinite(detail[near, 0]).any() else math.nan, detail[i, 1])
             for i, near in enumerate(alike)]  # fmt: skip
    off = (colour[:, 1] - colour[alike, 0].mean(1)).mean(0)
    return {"detail_alike": _ratio(pairs), "colour_alike": float(off[np.abs(off).argmax()])}


def _mouth_pose(motion: FaceMotion) -> np.ndarray:
    """Gap, width and head pose of each frame, (T, 5)."""
    width = np.linalg.norm(np.subtract(*(motion.landmarks[:, i] for i in MOUTH_CORNERS)), axis=-1) / eye_distance(motion)
    return np.concatenate([motion.lip_gap[:, None], width[:, None], head_pose(five_points(motion))], axis=1)


def _chin_box(motions: Sequence[FaceMotion], index: int) -> np.ndarray:
    """Between the lower of the two lower lips and the source's chin (xyxy, pixels): skin in both videos."""
    lips = [motion.landmarks[index, LOWER_LIP] for motion in motions]
    top = lips[int(lips[1][1] > lips[0][1])]
    chin = motions[0].landmarks[index, CHIN]
    height, middle = max(chin[1] - top[1], 1.0), (top + chin) / 2
    half = np.array([0.4 * eye_distance_at(motions[0], index), 0.38 * height])
    return np.concatenate([middle - half, middle + half])


def _places(motion: FaceMotion) -> np.ndarray:
    """Where the lower face lies in each frame: eye midpoint x and y, axis along the eyes x and y (pixels), smoothed. (T, 4)"""
    corners = motion.landmarks[:, EYE_CORNERS]
    places = np.concatenate([corners.mean(1), corners[:, 1] - corners[:, 0]], axis=1)
    if motion.found.any():
        places[motion.found] = smoothed(places[motion.found])
    return places


def _aligned(frame: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The lower face, upright: 1.5 eye distances wide, from above the lips to the chin. -> (*PATCH, 3)"""
    from PIL import Image

    rows, columns = PATCH
    along = place[2:]  # one eye distance
    down = np.array([-along[1], along[0]])
    finer = max(1, math.floor(float(np.linalg.norm(along)) * 1.5 / columns))
    step = 1.5 / (columns * finer)  # eye distances per pixel
    corner = place[:2] - 0.75 * along + (1.2 - 0.75 * rows / columns) * down
    matrix = (along[0] * step, down[0] * step, corner[0], along[1] * step, down[1] * step, corner[1])
    size = (columns * finer, rows * finer)
    whole = Image.fromarray(np.ascontiguousarray(frame))
    picture = whole.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(picture.resize((columns, rows), Image.Resampling.BOX))


def _unrest(found: _Gathered) -> float | None:
    """Mean absolute second difference in time, dub over source, over frames whose neighbours have a face too."""
    rows = np.array(found.rows)
    middle = [i for i in range(1, len(rows) - 1) if rows[i + 1] - rows[i - 1] == 2]
    if not middle:
        return None
    sums = np.zeros(2)
    for i in middle:
        for which in (0, 1):
            before, now, after = (found.faces[i + k][which].astype(np.float32).mean(-1) for k in (-1, 0, 1))
            sums[which] += np.abs(before - 2 * now + after).mean()
    return float(sums[1] / max(sums[0], 1e-6))


def _colour(found: _Gathered) -> float:
    """The worst channel's mean difference, with its sign."""
    means = np.array([[face.mean((0, 1)) for face in pair] for pair in found.faces])  # N 2 3
    off = (means[:, 1] - means[:, 0]).mean(0)
    return float(off[np.abs(off).argmax()])


# ---- what a sheet shows ----------------------------------------------------------------------------------------------------


@dataclass
class Views:
    """Mouths at full resolution, kept while the frames pass by."""

    frames: dict[str, list[int]]  # what they are -> frame indices
    boxes: np.ndarray  # (T, 4) xyxy pixels, one size
    found: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # source, dub

    def look(self, index: int, source: np.ndarray, dub: np.ndarray) -> None:
        """Keep this frame's mouths if they are wanted."""
        if any(index in rows for rows in self.frames.values()):
            self.found[index] = (cut_pixels(source, self.boxes[index]), cut_pixels(dub, self.boxes[index]))

    def rows(self) -> dict[str, list[np.ndarray]]:
        """Labelled rows, source over dub."""
        return {
            f"{who}, {what}": [self.found[i][side] for i in rows if i in self.found]
            for what, rows in self.frames.items()
            for side, who in enumerate(("source", "dub"))
        }


def mouth_views(motion: FaceMotion, curve: np.ndarray, columns: int = 10) -> Views | None:
    """Frames spread over a clip, and as many in a row where ``curve`` (T,), an opening, moves most; None without a face."""
    if not motion.found.any():
        return None
    count, known = min(len(motion), len(curve)), np.flatnonzero(motion.found)
    run = min(columns, count)
    change = np.abs(np.diff(np.nan_to_num(np.asarray(curve[:count], float)), prepend=0.0))[1:]
    sums = np.convolve(change, np.ones(max(run - 1, 1)), "valid") if len(change) >= run - 1 > 0 else np.zeros(1)
    start = int(sums.argmax())
    lips = motion.mouth_box[known].reshape(-1, 2, 2).mean(1)
    centres = np.stack([np.interp(np.arange(len(motion)), known, axis) for axis in smoothed(lips).T], 1)
    side = float(np.median(eye_distance(motion)[known]))
    boxes = np.concatenate([centres + side * np.array(corner) for corner in ((-0.65, -0.45), (0.65, 0.6))], 1)
    chosen = spread(count, columns)
    return Views({"spread over the clip": chosen, "in a row": list(range(start, start + run))}, boxes)
