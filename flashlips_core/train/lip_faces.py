"""Stage "lip-faces": the lip encoder learns to read faces that its teacher never saw: portraits, moving and rendered heads.

The teacher reads a person's lips against that person's own face at rest, which a single portrait lacks. So the poses of new faces
are told from the inner lips' outline, by a ridge regression that GRID's people give, and their opening is measured. What the
encoder reads from GRID is held to what it read before: editors and pose models keep their meaning. All of it is ours.

N mouths, B batch, P = 12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..dataset.store import STORED_MARGIN, CropStore
from ..face import head_pose
from ..face.expression import mouth_opening
from ..face.points import INNER_LIPS, IRISES, LANDMARKS, LIPS, MIRROR_LIPS, NOSE, OUTER_LIPS
from ..face.readings import five_points
from ..loading import load_network
from ..models.lip_encoder import LipEncoder
from ..pixels import from_bytes
from ..turned import Square, to_shares, turned_cut
from ..types import Progress
from .batches.material import STORED_MOUTH, STORED_PX
from .batches.portraits import read_picture, read_portraits
from .landmarks.pictures import FaceStore
from .lip import view_mouths
from .loop.settings import setting
from .loop.trainer import MakeBatch, TrainConfig, fit
from .prepare import FIRST, OPEN, PEOPLE, aligned_stores
from .run import Run

CUT_AT_ONCE = 64  # crops
PICTURE_PX = 240  # side of the crop of a single picture
OPENING_UNIT = 0.05  # of the eyes' distance: a step of the mouth that shows
RIDGE = 3.0  # of the regression from outlines to poses, in squared shares of the outline's usual spread
NOSE_FLOOR = NOSE.stop - 3  # the landmark below the nose: no beard grows above
EYES_SHARE = 0.29  # distance of the irises over the side of an aligned crop: what a turned head's is taken for
LIP_SHARES = {PEOPLE: 0.3, FIRST: 0.1, OPEN: 0.15, "portraits": 0.15, "heads": 0.16, "beards": 0.2}  # of a batch


@dataclass(frozen=True)
class LipFacesSettings(TrainConfig):
    """Teach the lip encoder faces that GRID lacks."""

    steps: int = 3900
    batch_size: int = setting(48, "mouths per step")
    lr: float = 1.2e-3
    ema: float = 0.995
    start: str | None = setting(None, "another lip encoder than the run's")
    opening: float = setting(0.3, "weight of the measured opening; the pose's is 1")


@dataclass(frozen=True)
class FaceMouths:
    """Mouths of one kind of source, all cut from aligned crops."""

    images: np.ndarray  # (N, STORED_PX, STORED_PX, 3) uint8: the mouth region and a margin
    outlines: np.ndarray  # (N, 40) the inner lips as features, see :func:`outline_features`
    openings: np.ndarray  # (N,) gap over eye distance
    poses: Tensor | None = None  # (N, 12) what the encoder read before; None where it is not to be trusted

    def __len__(self) -> int:
        return len(self.images)


def cut_mouths(crops: np.ndarray, landmarks: np.ndarray, margin: float) -> FaceMouths:
    """Of aligned crops.

    Args:
        crops: (N, S, S, 3) uint8, ``margin`` times as wide as the editor's square.
        landmarks: (N, 99, 2) shares of the editor's square.
    """
    left, top, right, bottom = STORED_MOUTH
    size = crops.shape[1] / margin  # pixels of the editor's square
    centre = (np.array([left + right, top + bottom]) / 2 - 0.5) * size + crops.shape[1] / 2
    square = Square(float(centre[0]), float(centre[1]), (right - left) * size, 0.0)
    images = np.stack([turned_cut(crop, square, STORED_PX).round().clip(0, 255).astype(np.uint8) for crop in crops])
    return FaceMouths(images, outline_features(landmarks), openings_of(landmarks))


def bearded(crops: np.ndarray, landmarks: np.ndarray, margin: float, seed: int = 0) -> np.ndarray:
    """The same crops with painted beards, of which the pictures at hand have few: dark hair must not be read as an open mouth.

    Args:
        crops, landmarks, margin: As :func:`cut_mouths` takes them.
    """
    import cv2

    rng, result = np.random.default_rng(seed), crops.copy()
    size = crops.shape[1]
    for crop, points in zip(result, landmarks, strict=True):
        spots = ((points - 0.5) / margin + 0.5) * size
        hair, lips = np.zeros((2, size, size), np.float32)
        reach = rng.uniform(0.9, 2.2) * np.abs(spots[0, 0] - spots[10, 0]) / 2  # from a goatee to a full beard
        centre = (spots[0] + spots[10]) / 2 + [0, rng.uniform(0, 0.15) * reach]
        radii = (int(reach), int(reach * rng.uniform(0.8, 1.3)))
        cv2.ellipse(hair, tuple(centre.round().astype(int).tolist()), radii, 0, 0, 360, 1.0, -1)
        cv2.fillPoly(lips, [spots[OUTER_LIPS].round().astype(np.int32)], 1.0)
        lips = cv2.dilate(lips, np.ones((3, 3), np.uint8), iterations=int(rng.integers(0, 4)))
        hair[: max(int(spots[NOSE_FLOOR, 1]), 0)] = 0
        hair = cv2.GaussianBlur(hair * (1 - lips), (0, 0), rng.uniform(1, 4))
        strands = cv2.GaussianBlur(rng.normal(0, 1, (size, size)).astype(np.float32), (0, 0), rng.uniform(0.6, 1.5))
        tone = rng.uniform(15, 110) * np.array([1, rng.uniform(0.75, 1), rng.uniform(0.6, 1)])
        colour = tone + 60 * rng.uniform(0.2, 1) * strands[..., None]
        weight = (hair * rng.uniform(0.5, 0.95))[..., None]
        crop[:] = (crop * (1 - weight) + colour.clip(0, 255) * weight).astype(np.uint8)
    return result


def outline_features(landmarks: np.ndarray) -> np.ndarray:
    """Inner lips about their own middle, over the eyes' distance of an aligned face. (N, 99, 2) shares -> (N, 40)."""
    inner = landmarks[:, INNER_LIPS] / EYES_SHARE
    return (inner - inner.mean(1, keepdims=True)).reshape(len(landmarks), -1)


def openings_of(landmarks: np.ndarray) -> np.ndarray:
    """The gap of the lips over the eyes' distance, as an aligned crop has it however the head is turned. (N, 99, 2) -> (N,)"""
    eyes = np.linalg.norm(landmarks[:, IRISES[0]] - landmarks[:, IRISES[1]], axis=-1)
    gap = mouth_opening(landmarks[:, LIPS], five_points(landmarks))
    return (gap * np.maximum(eyes, 1e-6) / np.maximum(eyes, EYES_SHARE)).astype(np.float32)


def joined(parts: Sequence[FaceMouths]) -> FaceMouths:
    """Several sources as one, without what was read from them."""
    return FaceMouths(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("images", "outlines", "openings")))


def mouths_of_store(store: CropStore, every: int = 1, has_beards: bool = False) -> FaceMouths:
    """Every n-th of a store's aligned crops."""
    parts = []
    for start in range(0, len(store), CUT_AT_ONCE * every):
        rows = np.arange(start, min(start + CUT_AT_ONCE * every, len(store)), every)
        crops, points = np.stack([store.images[i] for i in rows]), store.landmarks[rows]
        crops = bearded(crops, points, STORED_MARGIN, start) if has_beards else crops
        parts.append(cut_mouths(crops, points, STORED_MARGIN))
    return joined(parts)


def mouths_of_pictures(pictures: Iterable[tuple[np.ndarray, np.ndarray]], has_beards: bool = False) -> FaceMouths:
    """Of single pictures (H, W, 3) uint8 and their 99 landmarks in pixels, each cut through the square of its own head pose."""
    parts = []
    for number, (picture, points) in enumerate(pictures):
        square = head_pose.canonical_square(head_pose.fit_poses(points[None]))[0]
        half = STORED_MARGIN / 2 * (square[2] - square[0])
        centre = (square[:2] + square[2:4]) / 2
        wide = Square.of(np.concatenate([centre - half, centre + half, square[4:]]))
        crop = turned_cut(picture, wide, PICTURE_PX).round().clip(0, 255).astype(np.uint8)[None]
        shares = to_shares(points, square)[None]
        crop = bearded(crop, shares, STORED_MARGIN, number) if has_beards else crop
        parts.append(cut_mouths(crop, shares, STORED_MARGIN))
    return joined(parts)


@torch.inference_mode()
def read_mouths(encoder: LipEncoder, images: np.ndarray, is_mirrored: bool = False) -> Tensor:
    """What the encoder reads from stored mouths. (N, 12)"""
    poses, size, flip = [], encoder.config.mouth_px, -1.0 if is_mirrored else 1.0
    for start in range(0, len(images), 128):
        stored = from_bytes(images[start : start + 128])
        way = torch.full((len(stored),), flip)
        poses.append(encoder.read_mouths(view_mouths(stored, size, torch.Generator(), 0.0, 0.0, way)))
    return torch.cat(poses)


def fit_poses(outlines: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Ridge regression from outlines (N, 40) to poses (N, 12), with a constant. -> (41, 12)"""
    design = np.concatenate([outlines, np.ones((len(outlines), 1))], 1)
    penalty = RIDGE * outlines.std() ** 2 * np.eye(design.shape[1])
    penalty[-1, -1] = 0
    return np.linalg.solve(design.T @ design + penalty, design.T @ poses)


def told_poses(outlines: np.ndarray, fitted: np.ndarray) -> Tensor:
    """Poses (N, 12) by :func:`fit_poses`."""
    return torch.from_numpy(outlines @ fitted[:-1] + fitted[-1]).float()


@dataclass(frozen=True)
class FaceBatch:
    mouths: Tensor  # (B, 3, mouth_px, mouth_px)
    poses: Tensor  # (B, 12)
    trust: Tensor  # (B,) weight of the pose
    openings: Tensor  # (B,)


def face_batches(sources: Sequence[FaceMouths], shares: Sequence[float], encoder: LipEncoder, batch_size: int) -> MakeBatch:
    """Mouths seen through other cameras; a mirrored mouth's pose is what the encoder reads from it, or what its outline tells.

    Args:
        shares: of a batch, one for each source.
        encoder: as it was before.
    """
    known = [s for s in sources if s.poses is not None]
    fitted = fit_poses(np.concatenate([s.outlines for s in known]), torch.cat([s.poses for s in known]).numpy())
    plain = [s.poses if s.poses is not None else told_poses(s.outlines, fitted) for s in sources]
    flipped = [
        read_mouths(encoder, s.images, True) if s.poses is not None else told_poses(_mirrored(s.outlines), fitted)
        for s in sources
    ]
    counts = np.random.default_rng(0).multinomial(batch_size, np.array(shares) / sum(shares))
    counts[0] += batch_size - counts.sum()

    def make(generator: torch.Generator) -> FaceBatch:
        parts = []
        for source, count, (as_is, mirrored) in zip(sources, counts.tolist(), zip(plain, flipped, strict=True), strict=True):
            rows = torch.randint(len(source), (count,), generator=generator)
            is_flipped = torch.rand(count, generator=generator) < 0.5
            seen, is_narrow = _narrowed(_softened(from_bytes(source.images[rows.numpy()]), generator), generator)
            flip = torch.where(is_flipped, -1.0, 1.0)
            mouths = view_mouths(seen, encoder.config.mouth_px, generator, 0.05, 1.0, flip)
            poses = torch.where(is_flipped[:, None], mirrored[rows], as_is[rows])
            trust = torch.full((count,), 1.0 if source.poses is not None else 0.25) * ~is_narrow
            parts.append(FaceBatch(mouths, poses, trust, torch.from_numpy(source.openings)[rows]))
        return FaceBatch(*(torch.cat([getattr(p, name) for p in parts]) for name in ("mouths", "poses", "trust", "openings")))

    return make


def face_step(network: LipEncoder, batch: FaceBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """Poses as before or as the outline tells, and openings as they are measured."""
    poses = network.read_mouths(batch.mouths)
    each = F.smooth_l1_loss(poses, batch.poses, reduction="none").mean(1)
    error = (network.opening(poses) - batch.openings) / OPENING_UNIT
    return {"pose": (each * batch.trust).mean(), "opening": F.smooth_l1_loss(error, torch.zeros_like(error))}


def train_faces(
    encoder: LipEncoder,
    sources: Sequence[FaceMouths],
    shares: Sequence[float],
    settings: LipFacesSettings,
    progress: Progress | None = None,
) -> LipEncoder:
    """Go on training a lip encoder on these mouths, which come with ``shares`` of a batch."""
    before = LipEncoder(encoder.config)
    before.load_state_dict(encoder.state_dict())
    batches = face_batches(sources, shares, before.eval(), settings.batch_size)
    config = replace(settings, weights={"pose": 1.0, "opening": settings.opening})
    return fit(encoder.train(), batches, face_step, config, progress=progress).eval()


def _mirrored(outlines: np.ndarray) -> np.ndarray:
    points = outlines.reshape(len(outlines), -1, 2) * np.array([-1, 1])
    return points[:, MIRROR_LIPS[OUTER_LIPS]].reshape(len(outlines), -1)


def _narrowed(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A quarter of the pictures narrower, as turned heads show mouths, and which: their pose numbers would be others."""
    is_narrow = torch.rand(len(images), generator=generator) < 0.25
    width = torch.where(is_narrow, 0.55 + 0.4 * torch.rand(len(images), generator=generator), 1.0)
    zero, one = torch.zeros_like(width), torch.ones_like(width)
    geometry = torch.stack([torch.stack([1 / width, zero, zero], -1), torch.stack([zero, one, zero], -1)], 1)
    grid = F.affine_grid(geometry, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False), is_narrow


def _softened(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures less sharp, as small or compressed faces are. (B, 3, S, S)"""
    size = images.shape[-1]
    result = images.clone()
    for row in torch.nonzero(torch.rand(len(images), generator=generator) < 0.5)[:, 0].tolist():
        small = int(size / (1 + 3 * float(torch.rand((), generator=generator))))
        less = F.interpolate(images[row : row + 1], size=(small, small), mode="bilinear", antialias=True)
        result[row] = F.interpolate(less, size=(size, size), mode="bilinear")[0]
    return result


# ---- the stage -------------------------------------------------------------------------------------------------------------


def lip_faces(run: Run[LipFacesSettings]) -> Path:
    """Go on training a lip encoder on the aligned clips, portraits and rendered heads."""
    encoder, stores = load_network("lip-encoder", run.settings.start or run.folder), aligned_stores(run)
    kinds = {name: mouths_of_store(store, 1 if name == OPEN else 2) for name, store in stores.items()}
    for name in {PEOPLE, FIRST} & set(kinds):  # of whom the encoder's teacher knew the face at rest
        kinds[name] = replace(kinds[name], poses=read_mouths(encoder, kinds[name].images))
    beards = [mouths_of_store(store, 3 if name == OPEN else 6, has_beards=True) for name, store in stores.items()]
    pictures = {name: list(make()) for name, make in _pictures(run).items()}
    kinds |= {name: mouths_of_pictures(shown) for name, shown in pictures.items() if shown}
    beards += [mouths_of_pictures(shown, has_beards=True) for shown in pictures.values() if shown]
    kinds["beards"] = joined(beards)
    shares = [LIP_SHARES[name] for name in kinds]
    network = train_faces(encoder, list(kinds.values()), shares, run.config("run_lip_faces"), run.progress)
    return run.save(network, "lip-encoder", "lip-encoder-faces")


def _pictures(run: Run) -> dict[str, Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]]:
    """Single pictures with their 99 landmarks in pixels: portraits, and the landmark stage's rendered heads."""

    def portraits() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if (run.data / "portraits").is_dir():
            for portrait in read_portraits(run.data / "portraits")[0]:
                yield read_picture(portrait.path), portrait.landmarks[list(LANDMARKS)]

    def heads() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for folder in sorted(run.folder.glob("landmarks/heads-[0-9]*")):
            store = FaceStore(folder)
            for row in range(0, len(store), 2):
                yield store.pictures[row], store.points[row] * store.pictures.shape[1]

    return {"portraits": portraits, "heads": heads}
