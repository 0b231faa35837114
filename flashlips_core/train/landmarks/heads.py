"""Rendered heads for the landmark network: turned far, with the mesh's own landmarks, wearing the skins of photographs.

L = 99 landmarks. The mean head's landmarks lie where MediaPipe sees them (``face.points``); every head's lie off its
vertices by the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...face.points import ICT_MOUTH, mean_shape
from ...heads.mesh import Camera, HeadMesh, load_head, rotation
from ...heads.render import HeadRenderer
from ...heads.set import HAIR_COLOURS, random_look, upper_face
from ...heads.skin import SKIN_TONES, SkinPainter, photo_skin
from ...heads.speech import random_expression
from ...turned import to_shares
from ...types import Progress
from .pictures import STORED_PX, TEST, TRAIN, FaceStore, has_faces, stored_square, write_store

log = logging.getLogger(__name__)

Skin = tuple[np.ndarray, np.ndarray, bool]
YAW, PITCH = 1.08, 0.45  # radians, the furthest turns: 62 and 26 degrees
TEXTURE_PX = 256  # a stored face is 80 px wide
PICTURES_EACH = 8  # of one person in one skin
PAINTED = 16  # skins without a photograph, all tones


def vertex_offsets(mesh: HeadMesh) -> np.ndarray:
    """From the mesh's vertices of the landmarks to the landmarks, (L, 3) cm."""
    return mean_shape() + np.array(ICT_MOUTH) - mesh.neutral[mesh.mediapipe]


def random_turn(rng: np.random.Generator) -> tuple[float, float]:
    """Yaw and pitch in radians: half of them near the front, half anywhere."""
    if rng.random() < 0.4:
        yaw, pitch = rng.normal(0, (0.35, 0.18))
    else:
        yaw, pitch = rng.uniform((-YAW, -PITCH), (YAW, PITCH))
    return float(np.clip(yaw, -YAW, YAW)), float(np.clip(pitch, -PITCH, PITCH))


def photographed_skins(painter: SkinPainter, folder: Path, people: set[str], limit: int, rng: np.random.Generator) -> list[Skin]:
    """Skins of these people's portraits, those with the least open lips."""
    import cv2

    with np.load(folder / "mediapipe.npz") as file:
        labels = dict(file)
    names = [str(n) for n in labels["blendshape_names"]]
    smile = labels["blendshapes"][:, [names.index("mouthSmileLeft"), names.index("jawOpen")]].astype(float).sum(1)
    allowed = [i for i in np.argsort(smile) if str(labels["people"][i]) in people and not labels["is_grey"][i]][:limit]
    skins = []
    for index in allowed:
        picture = cv2.imread(str(folder / str(labels["files"][index])))
        points = labels["landmarks_px"][index][labels["landmark_index_99"]]
        shrink = min(1.0, 400 / picture.shape[0])
        picture = cv2.resize(picture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)[..., ::-1]
        skins.append((*photo_skin(painter, np.ascontiguousarray(picture), points * shrink, rng), True))
    return skins


def painted_skins(painter: SkinPainter, count: int, rng: np.random.Generator) -> list[Skin]:
    """Skins from nothing, from light to dark."""
    skins = []
    for index in range(count):
        tone = SKIN_TONES[index % len(SKIN_TONES)] * rng.uniform(0.93, 1.07, 3)
        hair = np.array(HAIR_COLOURS[rng.integers(len(HAIR_COLOURS))], np.float32)
        skins.append((painter.paint(rng, tone, hair, is_bearded=bool(rng.random() < 0.4)), tone, False))
    return skins


def render_heads(
    folder: Path,
    mesh_file: Path,
    faces: FaceStore,
    portraits: Path,
    backgrounds: Sequence[FaceStore],
    people: int,
    split: str = TRAIN,
    seed: int = 0,
    progress: Progress | None = None,
) -> FaceStore:
    """Render and store PICTURES_EACH pictures of so many people, in the skins of one split of ``faces``, the portraits' store."""
    mesh, rng = load_head(mesh_file), np.random.default_rng([seed, people])
    painter = SkinPainter(mesh, TEXTURE_PX)
    owners = set(map(str, faces.people[faces.rows(split)]))
    skins = photographed_skins(painter, portraits, owners, 260, rng) + painted_skins(painter, PAINTED, rng)
    log.info("%d skins", len(skins))

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray, str, str]]:
        with HeadRenderer(mesh, STORED_PX, 1) as renderer:
            for person in range(people):
                skin = skins[person % len(skins)]
                resting = mesh.identify(rng.normal(0, 0.85, len(mesh.identity)).clip(-2.5, 2.5))
                for _ in range(PICTURES_EACH):
                    yield *_render(renderer, resting, skin, backgrounds, rng), f"head-{split}-{person}", split
                if progress is not None:
                    progress(person + 1, people)

    return write_store(folder, parts())


def _render(
    renderer: HeadRenderer, resting: np.ndarray, skin: Skin, backgrounds: Sequence[FaceStore], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One picture (P, P, 3) and its landmarks (L, 2), shares of it."""
    mesh, look = renderer.mesh, random_look(rng, skin)
    if backgrounds and rng.random() < 0.7:
        store = backgrounds[rng.integers(len(backgrounds))]
        look = replace(look, background=np.ascontiguousarray(store.pictures[rng.integers(len(store))]))
    renderer.set_look(look)
    mouth = random_expression(mesh, rng) * (rng.random() < 0.85)
    expression = np.clip(upper_face(mesh, rng) + mouth, 0, 1)
    vertices = mesh.express(mesh.turn_eyes(resting, *rng.normal(0, (0.2, 0.1))), expression)
    camera = Camera(rotation(*random_turn(rng), 0.0), float(rng.uniform(45, 150)), tuple(rng.normal(0, 4, 2)))
    points = camera.project(vertices[mesh.mediapipe] + vertex_offsets(mesh))
    square = stored_square(points)
    return renderer.draw(vertices, camera, square[:4]), to_shares(points, square).astype(np.float32)


HEAD_STORES = {"heads-1": (170, TRAIN, 1), "heads-2": (170, TRAIN, 2), "heads-test": (24, TEST, 7)}


def prepare_heads(data: Path, folder: Path, progress: Progress | None = None) -> list[Path]:
    """Render the stores of heads that are missing; returns their folders. ``folder`` has the portraits' store already."""
    backgrounds, faces = [FaceStore(folder / "portraits-background")], FaceStore(folder / "portraits")
    mesh = data / "synthetic" / "ict_facekit_f16.npz"
    for name, (people, split, seed) in HEAD_STORES.items():
        if not has_faces(folder / name):
            render_heads(folder / name, mesh, faces, data / "portraits", backgrounds, people, split, seed, progress)
    return [folder / name for name in HEAD_STORES]
