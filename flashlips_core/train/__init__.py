"""Training: one loop (``loop``), one file per stage, and their order for the bundled model (``stages``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..types import FlashLipsError, Progress

STAGES = {
    "prepare": "measure the people's faces, cut face and mouth crops of all clips",
    "codec": "distil TAESDXL into the small face codec",
    "lip-teacher": "learn what the 12 pose numbers mean and label every frame",
    "heads": "label the rendered heads",
    "lip-encoder": "distil the labels into a network that reads the picture alone",
    "looks": "encode augmented looks of the training clips",
    "editor": "stage 1: masked reconstruction",
    "refinement": "stage 1b: mask-free self-refinement",
    "audio-encoder": "distil Whisper tiny's encoder",
    "poses": "stage 2: audio to lip poses by flow matching",
}


def run_stage(
    name: str,
    data: str | Path,
    weights: str | Path,
    folder: str | Path,
    options: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Run one stage, or continue it where it stopped; returns what it wrote.

    Args:
        data: the folder with ``grid_s1`` and ``grid_people``.
        weights: the folder with the frozen teachers (TAESDXL, Whisper tiny).
        folder: where everything is cached and written.
        options: keyword arguments of the stage's training function, e.g. ``{"steps": 4000}``.
    """
    from . import stages

    if name not in STAGES:
        raise FlashLipsError(f"Unknown stage '{name}'; choose one of {', '.join(STAGES)}.")
    run = stages.Run(Path(data), Path(weights), Path(folder), options or {}, progress)
    return getattr(stages, name.replace("-", "_"))(run)
