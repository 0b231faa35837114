"""Stages that learn from ordinary faces: many people, sharp, moving. They follow those in ``stages`` and share its run folder.

The data folder has GRID's folders, and beside them, where they are there, ``portraits`` (labelled pictures, see that module) and
``people_open`` (videos of moving faces).
"""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..codec import CELL_PX, Codec, load_codec
from ..dataset.store import Clip, CropStore, has_store, load_clips
from ..face.motion import LANDMARKER_FILE
from ..face.points import LANDMARKS
from ..loading import load_network, load_part
from ..pretrained import load_vgg
from ..types import FlashLipsError
from . import lip_faces as lips
from .batches import labels
from .batches.aligned import build_aligned
from .batches.portraits import crop_portrait, read_picture, read_portraits
from .editor.losses import PerceptualLoss
from .editor.retrieved import train_retrieved
from .editor.starts import encode_retrieved, load_retrieved
from .landmarks.pictures import FaceStore
from .loop.trainer import TrainConfig
from .sharp_faces import build_tiles, decode_check, draw_crops, mouth_boxes, train_portraits
from .stages import CODEC_TEACHER, Run

log = logging.getLogger(__name__)

OPEN, PEOPLE, FIRST = "aligned_open", "aligned_people", "aligned_s1"  # stores of turned crops
STORED_PX = {OPEN: 480, PEOPLE: 320, FIRST: 320}  # a quarter wider than the crops; GRID's faces are small
FIRST_CLIPS = 30  # of s1, who has more than all others together
STARTS = {OPEN: (3, 14), PEOPLE: (1, 8), FIRST: (1, 8)}  # looks of each clip, frames of each look
FOUND_SHARE = 0.75  # of an open clip's frames must show a face: one that comes and goes is cut or too fast to be aligned
LIP_SHARES = {PEOPLE: 0.3, FIRST: 0.1, OPEN: 0.15, "portraits": 0.15, "heads": 0.16, "beards": 0.2}  # of a batch
SHOWN = (16, 384)  # held-out portraits that are measured, and the side of their crops


def aligned(run: Run) -> Path:
    """Cut the training clips through turned squares that follow the head."""
    for name, clips in _clips(run).items():
        if clips and not has_store(run.folder / name):
            build_aligned(clips, run.folder / name, STORED_PX[name], progress=run.progress)
    return run.folder


def _clips(run: Run) -> dict[str, list[Clip]]:
    """The clips of each store."""
    known = [clip for clip in run.material.clips() if clip.split == "train" and clip.path]
    if not known:
        raise FlashLipsError(f"{run.data} has no videos to cut; this stage reads folders of videos, not a built training set.")
    first = sorted((c for c in known if c.speaker == "s1"), key=lambda clip: clip.id)
    random.Random(0).shuffle(first)
    clips = {PEOPLE: [c for c in known if c.speaker != "s1"], FIRST: first[:FIRST_CLIPS]}
    if (run.data / "people_open").is_dir():
        measured = run.folder / "open_mediapipe.npz"
        if not measured.is_file():
            labels.label_videos(run.data / "people_open", run.weights / LANDMARKER_FILE, measured, run.progress)
        clips[OPEN] = [c for c in load_clips(measured, run.data / "people_open") if c.found.mean() >= FOUND_SHARE]
    return clips


def _stores(run: Run) -> dict[str, CropStore]:
    stores = {name: CropStore(run.folder / name) for name in STORED_PX if has_store(run.folder / name)}
    if not stores:
        raise FlashLipsError(f"No turned crops in {run.folder}; run the stage 'aligned' first.")
    return stores


def portraits(run: Run) -> Path:
    """Go on training the decoder of the codec that ``start`` names, on portraits and the aligned clips."""
    options = dict(run.options)
    start, count, stages = options.pop("start"), options.pop("crops"), options.pop("vgg_stages")
    codec = load_codec(start or str(run.folder / "codec.safetensors"), run.device)
    learnt, held_out = read_portraits(run.data / "portraits")
    tiles = run.folder / f"tiles_{count}_{options['seed']}.npz"
    if not tiles.is_file():
        stores = list(_stores(run).values())
        build_tiles(draw_crops(learnt, stores), codec, tiles, count, seed=options["seed"], progress=run.progress)
    perceptual = PerceptualLoss(load_vgg(run.weights, run.device, stages)) if stages else None
    run_dir, check = str(run.folder / "run_portraits"), _check(held_out, codec)
    network = train_portraits(codec, [tiles], run_dir, perceptual, validate=check, progress=run.progress, **options)
    return run.save(network, "codec", "codec-portraits", teacher=CODEC_TEACHER)


def _check(held_out: list, codec: Codec):
    """Numbers on the sharpest held-out portraits, whose names are in a set of large pictures."""
    sharpest = sorted(held_out, key=lambda p: -abs(p.landmarks[454] - p.landmarks[234]).max())[: SHOWN[0]]
    cut = [crop_portrait(portrait, SHOWN[1]) for portrait in sharpest]
    crops = [crop for crop, _ in cut]
    return decode_check(crops, mouth_boxes([points for _, points in cut], SHOWN[1]), codec) if crops else None


def lip_faces(run: Run) -> Path:
    """Go on training the lip encoder that ``start`` names, or the run's, on the aligned clips, portraits and rendered heads."""
    options = dict(run.options)
    start, batch_size, weights = options.pop("start"), options.pop("batch_size"), {"pose": 1.0, "opening": options.pop("opening")}
    encoder, stores = load_network("lip-encoder", start or run.folder), _stores(run)
    kinds = {name: lips.mouths_of_store(store, 1 if name == OPEN else 2) for name, store in stores.items()}
    for name in {PEOPLE, FIRST} & set(kinds):  # of whom the encoder's teacher knew the face at rest
        kinds[name] = dataclasses.replace(kinds[name], poses=lips.read_mouths(encoder, kinds[name].images))
    beards = [lips.mouths_of_store(store, 3 if name == OPEN else 6, has_beards=True) for name, store in stores.items()]
    pictures = {name: list(make()) for name, make in _pictures(run).items()}
    kinds |= {name: lips.mouths_of_pictures(shown) for name, shown in pictures.items() if shown}
    beards += [lips.mouths_of_pictures(shown, has_beards=True) for shown in pictures.values() if shown]
    kinds["beards"] = lips.joined(beards)
    config = TrainConfig(str(run.folder / "run_lip_faces"), weights=weights, **options)
    network = lips.train_faces(encoder, list(kinds.values()), [LIP_SHARES[name] for name in kinds], config, batch_size)
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


def starts(run: Run) -> Path:
    """Encode frames with other mouths of their clips laid over them, for the stage "retrieved"."""
    codec = load_codec(run.options["codec"] or str(run.folder / "codec.safetensors"))
    reader = load_network("lip-encoder", run.options["lip_encoder"] or run.folder)
    for seed, (name, store) in enumerate(_stores(run).items()):
        out, (looks, frames) = run.folder / f"starts_{name}", STARTS[name]
        if not (out / "frames.npz").is_file():
            settings = {"strength": run.options["strength"], "crop_px": run.options["crop_px"]}
            looks *= run.options["rounds"]
            encode_retrieved(store, codec, reader, out, looks, frames, seed, progress=run.progress, **settings)
    return run.folder


def retrieved(run: Run) -> Path:
    """The editor that ``start`` names, or the run's, learns what is left to do where an edit starts from a retrieved mouth."""
    options = dict(run.options)
    folders = sorted(path.parent for path in run.folder.glob("starts_*/frames.npz"))
    if not folders:
        raise FlashLipsError(f"No encoded starts under {run.folder}; run the stage 'starts' first.")
    start, codec_name, reader = options.pop("start"), options.pop("codec"), options.pop("lip_encoder")
    frames, part = load_retrieved(folders), load_part("editor", start or run.folder)
    stages = options.pop("vgg_stages")
    network = train_retrieved(
        part.network, frames, load_codec(codec_name or str(run.folder / "codec.safetensors")),
        str(run.folder / "run_retrieved"), load_network("lip-encoder", reader or run.folder),
        PerceptualLoss(load_vgg(run.weights, stages=stages)) if stages else None, progress=run.progress, **options,
    )  # fmt: skip
    crop_px = CELL_PX * frames.frames.latents.shape[-1]
    return run.save(network, "editor", "editor-retrieved", crop_px=crop_px, codec=part.codec)
