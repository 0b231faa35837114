"""Training: one loop (``loop``), one file per stage, and their order (``stages``, ``paper_stages``),
their numbers (``presets``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..types import FlashLipsError, Progress
from .presets import settings_of

STAGES = {
    "prepare": "cut the mouths of all clips; of GRID's also measure and cut the faces",
    "codec": "distil TAESDXL into the small face codec",
    "lip-teacher": "learn what the 12 pose numbers mean and label every frame",
    "heads": "label the rendered heads",
    "lip-encoder": "distil the labels into a network that reads the picture alone",
    "looks": "encode augmented looks of the training clips",
    "editor": "stage 1: masked reconstruction",
    "editor-joint": "stage 1 with the lip teacher trained jointly (preset full), instead of lip-teacher and the first editor",
    "refinement": "stage 1b: mask-free self-refinement",
    "distil": "teach a second editor, smaller or with the other backbone, what the refined one does",
    "detail": "teach the codec's decoder, against a critic, to draw what edits leave soft",
    "portraits": "teach the codec's decoder sharp faces of many people, without a critic",
    "aligned": "cut the training clips through turned squares that follow the head",
    "lip-faces": "teach the lip encoder faces that GRID lacks",
    "starts": "encode frames over which another mouth of their clip was laid",
    "retrieved": "teach the editor to start from such frames, and to change only what it must",
    "audio-corpus": "let Whisper tiny hear the clips, and recordings in the data's folder 'speech'",
    "audio-encoder": "distil Whisper tiny's encoder",
    "landmarks": "a network that finds 99 landmarks in any rough box; needs portraits, people_open and synthetic beside GRID",
    "poses": "stage 2: audio to lip poses by flow matching",
}


def run_stage(
    name: str,
    data: str | Path,
    weights: str | Path,
    folder: str | Path,
    options: dict[str, Any] | None = None,
    progress: Progress | None = None,
    preset: str = "mini",
) -> Path:
    """Run one stage, or continue it where it stopped; returns what it wrote.

    Args:
        data: a training set that ``data build`` made with landmarks, or the folder with ``grid_s1`` and ``grid_people``.
        weights: the folder with the frozen teachers (TAESDXL, Whisper tiny) and judges (VGG, face embedding).
        folder: where everything is cached and written.
        options: settings that replace the preset's, e.g. ``{"steps": 4000}``; ``presets`` lists them all.
        preset: "mini", the bundled model's, or "full", the paper's.
    """
    if name not in STAGES:
        raise FlashLipsError(f"Unknown stage '{name}'; choose one of {', '.join(STAGES)}.")
    settings = settings_of(name, preset, options)
    from . import paper_stages, real_stages, speech_stages, stages

    run = stages.Run(Path(data), Path(weights), Path(folder), settings, progress, preset)
    function = name.replace("-", "_")
    modules = [*([paper_stages] if preset == "full" else []), stages, real_stages, speech_stages]
    module = next(module for module in modules if function in vars(module) and callable(vars(module)[function]))
    return getattr(module, function)(run)
