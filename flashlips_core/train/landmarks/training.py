"""Stage "landmarks": a small network that finds 99 landmarks in any rough square, taught by MediaPipe and by rendered heads.

B batch, S side of a crop, L = 99 landmarks. Errors are shares of the distance of the outer eye corners.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...face.landmarks import CENTRE_ABOVE_MOUTH_CM, SIDE_CM, square_around
from ...face.points import EYES, LIPS, OVAL, mean_shape
from ...loading import load_network
from ...models.landmark_net import LANDMARKS_MINI, LandmarkNet, LandmarkNetConfig, start_at
from ...pixels import from_bytes
from ...types import NUM_LANDMARKS, FlashLipsError, Progress
from ..loop.settings import setting
from ..loop.trainer import MakeBatch, TrainConfig, fit
from ..run import Run
from .heads import prepare_heads
from .measure import measure
from .pictures import STILLS, TEST, TRAIN, FaceStore, prepare_faces
from .views import View, background_view, face_view, wrong_view

log = logging.getLogger(__name__)

TEST_STORES = ("portraits", "people-test", "heads-test", STILLS)
LICENCE = (
    "Apache-2.0; learnt from GRID (CC BY 4.0; Cooke et al. 2006), Face Research Lab London Set and Canada set "
    "(CC BY 4.0; DeBruine, Jones 2017), public-domain portraits and addresses, CREMA-D (ODbL), Tears of Steel (CC BY 3.0, "
    "Blender Foundation), heads of ICT-FaceKit (MIT); labels by MediaPipe (Apache-2.0)"
)
BACKGROUND, WRONG = 0.08, 0.05  # shares of a batch
# How often each store is drawn; the portraits are the only ones with many real people
SHARES = {"portraits": 0.36, "s1": 0.05, "people": 0.12, "open": 0.12, "heads": 0.35}
EYE_SHARE = 9.0 / SIDE_CM  # distance of the mean head's outer eye corners over the square's side
HARDLY_WRONG = 0.02  # of that distance: smaller errors weigh quadratically


@dataclass(frozen=True)
class LandmarkSettings(TrainConfig):
    """A network that finds 99 landmarks in any rough box; needs portraits, people_open and synthetic beside GRID."""

    steps: int = 8000
    batch_size: int = setting(48, "crops per step")
    lr: float = 3e-3
    ema: float = 0.995
    start: str | None = setting(None, "a landmark network to go on from")
    save_every_s: float = 60.0


@dataclass(frozen=True)
class LandmarkBatch:
    """Crops and what is true of them."""

    crops: Tensor  # (B, 3, S, S) in [-1, 1]
    points: Tensor  # (B, L, 2) shares
    scale: Tensor  # (B,) distance of the outer eye corners of a face turned to the front, shares of the crop
    is_face: Tensor  # (B,) 1 or 0


@dataclass(frozen=True)
class LandmarkStores:
    """Where pictures are drawn from."""

    faces: dict[str, list[FaceStore]]  # by the names of SHARES
    backgrounds: list[FaceStore]


def open_stores(folders: Sequence[Path]) -> LandmarkStores:
    """Group stores by what comes before the first "-"; ``<name>-background`` shows no face, ``<name>-test`` is left out."""
    faces: dict[str, list[FaceStore]] = {}
    backgrounds = []
    for folder in folders:
        name, _, kind = folder.name.partition("-")
        if kind == "background":
            backgrounds.append(FaceStore(folder))
        elif kind != TEST and name in SHARES:
            faces.setdefault(name, []).append(FaceStore(folder))
    if not faces:
        raise FlashLipsError("There are no stored faces to learn landmarks from; give --data a folder with portraits.")
    return LandmarkStores(faces, backgrounds)


def landmark_batches(stores: LandmarkStores, batch_size: int, size: int) -> MakeBatch:
    """Random views of random faces, with some pictures that show none."""
    names = sorted(stores.faces)
    shares = np.array([SHARES[name] for name in names])
    rows = {name: [store.rows(TRAIN) for store in stores.faces[name]] for name in names}

    def draw(rng: np.random.Generator) -> View:
        chance = rng.random()
        if chance < BACKGROUND and stores.backgrounds:
            store = stores.backgrounds[rng.integers(len(stores.backgrounds))]
            return background_view(store, int(rng.integers(len(store))), rng, size)
        name = names[rng.choice(len(names), p=shares / shares.sum())]
        which = rng.choice(len(rows[name]), p=np.array([len(r) for r in rows[name]]) / sum(len(r) for r in rows[name]))
        store, row = stores.faces[name][which], rng.choice(rows[name][which])
        view = wrong_view if chance < BACKGROUND + WRONG else face_view
        return view(store, row, rng, size)

    def make(generator: torch.Generator) -> LandmarkBatch:
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        views = [draw(rng) for _ in range(batch_size)]
        points = np.stack([view.points for view in views]).astype(np.float32)
        is_face = np.array([view.is_face for view in views])
        squares = square_around(np.where(is_face[:, None, None], points, mean_shape()[:, :2]))
        scale = EYE_SHARE * (squares[:, 2] - squares[:, 0])
        crops = from_bytes(torch.from_numpy(np.stack([view.picture for view in views])))
        crops = crops.contiguous(memory_format=torch.channels_last)
        return LandmarkBatch(crops, *map(torch.from_numpy, (points, scale, is_face.astype(np.float32))))

    return make


def point_weights() -> Tensor:
    """Lips and eyes count more; the outline is where MediaPipe itself is least sure. (L,), mean 1."""
    weights = torch.ones(NUM_LANDMARKS)
    weights[LIPS], weights[EYES], weights[OVAL] = 1.3, 1.4, 0.5
    return weights / weights.mean()


def landmark_step(network: LandmarkNet, batch: LandmarkBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """Distance of points over the eye distance, where there is a face; and whether there is one."""
    points, logit = network(batch.crops)
    error = (points - batch.points).float() / batch.scale[:, None, None]
    distance = F.smooth_l1_loss(error, torch.zeros_like(error), beta=HARDLY_WRONG, reduction="none").sum(-1)  # B L
    weight = batch.is_face[:, None] * point_weights()
    return {
        "points": (distance * weight).sum() / weight.sum().clamp_min(1),
        "face": F.binary_cross_entropy_with_logits(logit.float(), batch.is_face),
    }


def train_landmarks(
    network: LandmarkNet,
    stores: LandmarkStores,
    test: dict[str, FaceStore],
    settings: LandmarkSettings,
    progress: Progress | None = None,
) -> LandmarkNet:
    """Train a network, and measure it on held-out faces by the way."""
    network = network.requires_grad_(True).to(memory_format=torch.channels_last)
    batches = landmark_batches(stores, settings.batch_size, network.config.size)
    config = replace(settings, weights={"face": 0.05})
    validate: Callable = lambda best, step: measure(best, test)  # noqa: E731
    return fit(network, batches, landmark_step, config, validate=validate, progress=progress).eval()


def fresh(config: LandmarkNetConfig = LANDMARKS_MINI) -> LandmarkNet:
    """A network that sees the mean face in every crop, before it learns."""
    network = LandmarkNet(config)
    face = mean_shape()[:, :2] * (1, -1) + (0, CENTRE_ABOVE_MOUTH_CM)
    start_at(network, torch.from_numpy(face / SIDE_CM + 0.5).float())
    return network


def landmarks(run: Run[LandmarkSettings]) -> Path:
    """Make the stores of labelled faces and rendered heads that are missing, and train the landmark network on them."""
    folder, start = run.folder / "landmarks", run.settings.start
    folders = prepare_faces(run.data, run.weights, folder, run.progress) + prepare_heads(run.data, folder, run.progress)
    network = load_network("landmarks", start) if start else fresh()
    test = {name: FaceStore(folder / name) for name in TEST_STORES}
    trained = train_landmarks(network, open_stores(folders), test, run.config("run_landmarks"), run.progress)
    return run.save(trained, "landmarks", licence=LICENCE)
