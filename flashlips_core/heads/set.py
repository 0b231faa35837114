"""Rendered heads for training: the same face, pose and light with different mouths, which no camera can film.

``python -m flashlips_core heads set --mesh ict_facekit_f16.npz --out folder`` writes one npz per person;
``... clip --mesh ... --phones line.json --audio line.wav --out face.mp4`` films one head that says a line.
N pictures, E expressions, S picture size, L = 99 MediaPipe points.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..face.crop import crop_box
from ..face.expression import BLENDSHAPES
from ..face.points import LANDMARKS
from ..types import FlashLipsError, Progress
from .mesh import Camera, HeadMesh, arkit_weights, rotation
from .render import HeadRenderer, Look
from .skin import SKIN_TONES, SkinPainter, photo_skin
from .speech import random_expression

logger = logging.getLogger(__name__)

HAIR_COLOURS = ((26, 20, 17), (48, 34, 26), (78, 54, 36), (120, 88, 54), (168, 136, 92), (120, 62, 36), (130, 128, 126))  # sRGB
IRIS_COLOURS = ((0.05, 0.03, 0.015), (0.10, 0.055, 0.025), (0.13, 0.11, 0.05), (0.10, 0.16, 0.20), (0.14, 0.17, 0.12))  # linear


@dataclass(frozen=True)
class SetConfig:
    """What to render for each person."""

    identities: int = 100
    looks: int = 1  # skin, light and camera, each with its own groups
    same_pose: int = 12  # pictures that differ in the mouth alone
    other_poses: int = 4  # further pictures, each with its own pose
    size: int = 384  # px of a picture: enlarging smaller ones would teach soft mouths
    skins: int = 20  # painted skins, shared with a tint; as many again from photographs where there are any
    seed: int = 0


def linear(colour: np.ndarray) -> tuple[float, float, float]:
    """sRGB in 0..255 to the renderer's linear light."""
    return tuple((np.clip(np.asarray(colour, np.float64), 0, 255) / 255) ** 2)


def make_skins(painter: SkinPainter, config: SetConfig, photos: str | Path | None) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """Textures to choose from: (texture, tone sRGB, is a photograph).

    Args:
        photos: npz with images (K, h, w, 3) uint8 RGB and points (K, L, 2) pixels: frontal faces with closed lips.
    """
    rng = np.random.default_rng([config.seed, 1])
    skins = []
    for i in range(config.skins):
        tone = SKIN_TONES[i % len(SKIN_TONES)] * rng.uniform(0.93, 1.07, 3)
        hair = np.array(HAIR_COLOURS[rng.integers(len(HAIR_COLOURS))], np.float32)
        skins.append((painter.paint(rng, tone, hair, is_bearded=bool(rng.random() < 0.3)), tone, False))
    if photos is not None:
        with np.load(photos) as data:
            for image, points in zip(data["images"], data["points"], strict=True):
                skins.append((*photo_skin(painter, image, points, rng), True))
    return skins


def random_look(rng: np.random.Generator, skin: tuple[np.ndarray, np.ndarray, bool]) -> Look:
    """Colours and light around one skin. A photograph already holds light, so it gets less of ours."""
    texture, tone, is_photo = skin
    tint = rng.uniform(0.88, 1.1) * rng.uniform(0.95, 1.05, 3)
    texture = texture.copy()
    texture[..., :3] = np.clip(texture[..., :3] * tint, 0, 255).astype(np.uint8)
    ambient = rng.uniform(0.7, 0.85) if is_photo else rng.uniform(0.3, 0.6)
    key = rng.uniform(0.15, 0.3) if is_photo else rng.uniform(0.4, 0.75)
    warmth = rng.uniform(-0.08, 0.08)
    side = rng.choice([-1, 1])
    grey = rng.uniform(10, 200)
    behind = np.clip(np.array([grey, grey, grey]) + rng.normal(0, 35, (2, 1, 3)) + rng.normal(0, 25, 3), 0, 255)
    rows = np.linspace(0, 1, 128)[:, None, None]
    return Look(
        skin=texture,
        back_skin=linear(tone * tint),
        hair=linear(HAIR_COLOURS[rng.integers(len(HAIR_COLOURS))]),
        hair_amount=0.92 if rng.random() < 0.85 else 0.12,
        hairline=float(rng.normal(0, 0.5)),
        iris=IRIS_COLOURS[rng.integers(len(IRIS_COLOURS))],
        teeth=tuple(np.array([0.80, 0.72, 0.58]) * rng.uniform(0.8, 1.1) * (1, 1, rng.uniform(0.85, 1.1))),
        cloth=tuple(rng.uniform(0.01, 0.5) * rng.uniform(0.3, 1, 3)),
        ambient=tuple(ambient * np.array([1 + warmth / 2, 1, 1 - warmth / 2])),
        light_directions=(
            (side * rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), 0.8),
            (-side * rng.uniform(0.3, 1.0), rng.uniform(-0.2, 0.6), 0.5),
        ),
        light_colours=(tuple(key * np.array([1 + warmth, 1, 1 - warmth])), (key * rng.uniform(0.2, 0.6),) * 3),
        shine=float(rng.uniform(0.3, 1.5)),
        background=np.clip(behind[0] * (1 - rows) + behind[1] * rows, 0, 255).astype(np.uint8),
    )


def random_camera(rng: np.random.Generator, spread: float) -> Camera:
    """A head turned by about ``spread`` radians."""
    turn = rng.normal(0, (spread, 0.6 * spread, 0.4 * spread)).clip(-0.4, 0.4)
    return Camera(rotation(*turn), float(rng.uniform(60, 150)), tuple(rng.normal(0, 4, 2)))


def jittered_box(rng: np.random.Generator, mesh: HeadMesh, resting: np.ndarray, camera: Camera) -> np.ndarray:
    """The editor's crop of the resting face, off by a few per cent as tracked ones are. -> (4,) image units."""
    box = crop_box(camera.project(mesh.five_points(resting))).astype(np.float64)
    side = box[2] - box[0]
    centre = (box[:2] + box[2:]) / 2 + rng.normal(0, 0.012, 2) * side
    half = side / 2 * rng.uniform(0.96, 1.05)
    return np.concatenate([centre - half, centre + half])


def upper_face(mesh: HeadMesh, rng: np.random.Generator) -> np.ndarray:
    """What brows and lids do, the same for all pictures of a group. -> (E,) float32."""
    weights = mesh.weights(eyeBlink=float(rng.choice([0, 0, 0, 0.3, 1.0]) * rng.uniform(0.5, 1)), eyeSquint=rng.uniform(0, 0.3))
    for name in ("browInnerUp", "browOuterUp", "browDown", "eyeWide", "cheekSquint"):
        weights += mesh.weights(**{name: float(rng.uniform(0, 0.5) * (rng.random() < 0.25))})
    return weights


def render_person(renderer: HeadRenderer, config: SetConfig, person: int, skins: list) -> dict[str, np.ndarray]:
    """All pictures of one person: see ``make_set`` for the arrays. The seed and the number decide everything."""
    mesh, rng = renderer.mesh, np.random.default_rng([config.seed, 2, person])
    shape = rng.normal(0, 0.85, len(mesh.identity)).clip(-2.5, 2.5)
    resting_person = mesh.identify(shape)
    rows: dict[str, list] = {name: [] for name in ("images", "group", "expr", "points", "landmarks")}
    group = person * config.looks * (1 + config.other_poses)
    for look in range(config.looks):
        renderer.set_look(random_look(rng, skins[(person + look * len(skins) // 2) % len(skins)]))
        for pose in range(1 + config.other_poses):
            camera = random_camera(rng, 0.12 if pose == 0 else 0.18)
            above = upper_face(mesh, rng)
            resting = mesh.turn_eyes(resting_person, *rng.normal(0, (0.15, 0.08)))
            box = jittered_box(rng, mesh, resting, camera)
            for picture in range(config.same_pose if pose == 0 else 1):
                mouth = random_expression(mesh, rng) if picture or pose else np.zeros_like(above)
                expression = np.clip(above + mouth, 0, 1)
                vertices = mesh.express(resting, expression)
                rows["images"].append(renderer.draw(vertices, camera, box))
                rows["group"].append(group)
                rows["expr"].append(expression)
                for name, points in (("points", mesh.five_points(vertices)), ("landmarks", vertices[mesh.mediapipe])):
                    rows[name].append((camera.project(points) - box[:2]) / (box[2] - box[0]) * config.size)
            group += 1
    arrays = {name: np.stack(values) for name, values in rows.items()}
    arrays |= {name: arrays[name].astype(np.float32) for name in ("points", "landmarks")}
    return arrays | {
        "identity": np.full(len(arrays["group"]), person),
        "arkit": arkit_weights(mesh, arrays["expr"], list(BLENDSHAPES)),
        "expr_names": np.array(mesh.expression_names),
        "arkit_names": np.array(BLENDSHAPES),
        "landmark_index": np.array(LANDMARKS),
    }


def make_set(
    mesh: HeadMesh, out: str | Path, config: SetConfig, photos: str | Path | None = None, progress: Progress | None = None
) -> None:
    """Write ``out/000.npz``, ``out/001.npz`` ...: one file per person; files that exist are kept, so a stopped run resumes.

    Arrays: images (N, S, S, 3) uint8 crops; identity (N,); group (N,): pictures of one group differ in the mouth alone;
    expr (N, E) and arkit (N, 52) weights with expr_names and arkit_names; points (N, 5, 2) and landmarks (N, L, 2) pixels
    with landmark_index, MediaPipe's numbers.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    missing = [person for person in range(config.identities) if not (out / f"{person:03d}.npz").exists()]
    if not missing:
        return
    skins = make_skins(SkinPainter(mesh), config, photos)
    logger.info("%d skins, %d persons to render", len(skins), len(missing))
    with HeadRenderer(mesh, config.size) as renderer:
        for person in missing:
            arrays = render_person(renderer, config, person, skins)
            part = out / f"{person:03d}.npz.part"
            with part.open("wb") as file:
                np.savez(file, **arrays)
            part.rename(out / f"{person:03d}.npz")
            if progress:
                progress(config.identities - len(missing) + missing.index(person) + 1, config.identities)


def load_set(folder: str | Path) -> dict[str, np.ndarray]:
    """Read the persons that ``make_set`` has written so far into one dictionary of arrays."""
    files = sorted(Path(folder).glob("*.npz"))
    if not files:
        raise FlashLipsError(f"No rendered heads in '{folder}'; make them with 'python -m flashlips_core heads set'.")
    loaded = [np.load(file) for file in files]
    shared = {"expr_names", "arkit_names", "landmark_index"}
    joined = {name: np.concatenate([part[name] for part in loaded]) for name in loaded[0].files if name not in shared}
    return joined | {name: loaded[0][name] for name in shared}
