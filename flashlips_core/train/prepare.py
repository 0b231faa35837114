"""Stages "prepare", "heads", "aligned": landmarks and stored crops of all that is learnt from, made once."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from ..dataset.store import Clip, CropStore, has_store, load_clips
from ..face.motion import LANDMARKER_FILE
from ..heads.set import load_set
from ..types import FlashLipsError
from .batches import labels
from .batches.aligned import build_aligned
from .batches.material import HEADS
from .loop.settings import setting
from .run import Run

OPEN, PEOPLE, FIRST = "aligned_open", "aligned_people", "aligned_s1"  # stores of turned crops
STORED_PX = {OPEN: 480, PEOPLE: 320, FIRST: 320}  # a quarter wider than the crops; GRID's faces are small
FIRST_CLIPS = 30  # of s1, who has more than all others together
FOUND_SHARE = 0.75  # of an open clip's frames must show a face: one that comes and goes is cut or too fast to be aligned


@dataclass(frozen=True)
class PrepareSettings:
    """Cut the mouths of all clips; of GRID's also measure and cut the faces."""

    stored_px: int = setting(256, "side of GRID's stored faces, a quarter wider than the editor's crop")


@dataclass(frozen=True)
class HeadsSettings:
    """Label the rendered heads."""


@dataclass(frozen=True)
class AlignedSettings:
    """Cut the training clips through turned squares that follow the head."""


FULL = PrepareSettings(stored_px=640)  # a quarter wider than the editor's 512


def prepare(run: Run[PrepareSettings]) -> Path:
    """Make the landmarks and stored crops that the data folder lacks, see ``batches.material``."""
    run.material.prepare(run.weights, run.settings.stored_px, run.progress)
    return run.folder


def heads(run: Run[HeadsSettings]) -> Path:
    """Find the landmarks of the rendered heads (the run's folder ``synth``, made by ``heads set``) and store them as crops."""
    rendered = load_set(run.folder / "synth")
    images = rendered["images"]
    clips, rows = labels.head_clips(images, rendered["identity"], rendered["group"], run.weights / LANDMARKER_FILE, run.progress)
    labels.build_head_store(images, clips, rows, run.folder / HEADS)
    return run.folder / HEADS


def aligned(run: Run[AlignedSettings]) -> Path:
    """Cut GRID's training clips and, where there are any, those of the data's folder ``people_open``."""
    for name, clips in _clips(run).items():
        if clips and not has_store(run.folder / name):
            build_aligned(clips, run.folder / name, STORED_PX[name], run.progress)
    return run.folder


def aligned_stores(run: Run) -> dict[str, CropStore]:
    """What the stage "aligned" left, by name."""
    stores = {name: CropStore(run.folder / name) for name in STORED_PX if has_store(run.folder / name)}
    if not stores:
        raise FlashLipsError(f"No turned crops in {run.folder}; run the stage 'aligned' first.")
    return stores


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
