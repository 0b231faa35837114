"""Stage "looks": augmented looks of every training clip, encoded once for the stages of preset mini that train editors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..codec import load_codec
from ..dataset.store import CropStore
from ..loading import load_network
from ..types import FlashLipsError
from .batches.frames import EditorFrames, encode_looks, load_frames
from .batches.material import FIRST, HEADS, PEOPLE, SET_FACES
from .loop.settings import setting
from .run import Run

# Looks of each clip, at most, and frames of each look
LOOKS = {PEOPLE: (3, 20), FIRST: (1, 20), HEADS: (3, 12), SET_FACES: (3, 20)}
MANY_CLIPS = 300  # of a built set: fewer get more looks each, as GRID's people do


@dataclass(frozen=True)
class LooksSettings:
    """Encode augmented looks of the training clips."""

    only: str | None = setting(None, "one store alone, to share the work")
    crop_px: int = setting(256, "side of the editor's crop, a multiple of 64")
    strength: float = setting(1.0, "of the augmentation")
    rounds: int = setting(1, "so many times as many looks of each clip")
    device: str | None = setting(None, "where the codec and the lip encoder compute (None: each process's own card, or the CPU)")


def looks(run: Run[LooksSettings]) -> Path:
    """Encode looks of every store of faces that has none yet."""
    settings, faces = run.settings, run.material
    codec = load_codec(run.own("codec"), run.device)
    reader = load_network("lip-encoder", run.folder, run.device)
    stored = [name for name in faces.face_stores if faces.is_stored(name)] + ([HEADS] if run.has_heads else [])
    if not stored:
        raise FlashLipsError(f"No crops in {run.folder}; run the stage 'prepare' first, or give --data a built training set.")
    if settings.only not in (None, *stored):
        raise FlashLipsError(
            f"No crops are called '{settings.only}' here; leave the setting 'only' out, or choose {' or '.join(stored)}."
        )
    for seed, (name, (count, frames)) in enumerate(LOOKS.items()):
        out = run.folder / f"looks_{name}"
        if name in stored and settings.only in (None, name) and not (out / "frames.npz").is_file():
            is_still = name == HEADS
            store = CropStore(run.folder / HEADS) if is_still else faces.faces(name, settings.crop_px)
            if name == SET_FACES:
                count = min(count, max(1, MANY_CLIPS // len(store.clip_ids)))
            encode_looks(
                store, codec, reader, out, count * settings.rounds, frames, seed, strength=settings.strength, is_still=is_still,
                crop_px=settings.crop_px, device=run.device, progress=run.progress,
            )  # fmt: skip
    return run.folder


def encoded_looks(run: Run) -> EditorFrames:
    """What the stage "looks" left, on the run's device where it fits there."""
    folders = sorted(p for p in run.folder.glob("looks_*") if (p / "frames.npz").is_file())
    if not folders:
        raise FlashLipsError(f"No encoded looks under {run.folder}; run the stage 'looks' first.")
    return load_frames(folders).near(run.device)
