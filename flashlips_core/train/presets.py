"""All stages in their order: what runs each in each preset, and with which settings.

``mini``: 256 px, small networks, hours on a CPU: the bundled model's. ``full``: the paper's networks, losses and schedules, for
several GPUs; numbers that the paper does not state are marked as ours where they stand, beside each stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..types import FlashLipsError, Progress
from .codec import CodecSettings, codec
from .detail import DetailSettings, detail
from .editor import distil, pairs, paper, retrieved
from .landmarks.training import LandmarkSettings, landmarks
from .lip import FULL as FULL_LIP_ENCODER
from .lip import LipEncoderSettings, LipTeacherSettings, lip_encoder, lip_teacher
from .lip_faces import LipFacesSettings, lip_faces
from .looks import LooksSettings, looks
from .loop.settings import changed
from .portraits import PortraitsSettings, portraits
from .poses import FULL as FULL_POSES
from .poses import PoseSettings, poses
from .prepare import FULL as FULL_PREPARE
from .prepare import AlignedSettings, HeadsSettings, PrepareSettings, aligned, heads, prepare
from .run import Run
from .speech import AudioCorpusSettings, AudioEncoderSettings, audio_corpus, audio_encoder

S = TypeVar("S")


@dataclass(frozen=True)
class Stage(Generic[S]):
    """What runs a stage, and the settings of a preset."""

    run: Callable[[Run[S]], Path]
    settings: S


PRESETS = ("mini", "full")
SDXL = "the paper's SDXL VAE is used as it is"
WAV2VEC = "wav2vec 2.0 is used as it is"
PICTURES = "its editor reads pictures"

# Stage -> preset -> what runs there, or why nothing does
STAGES: dict[str, dict[str, Stage[Any] | str]] = {
    "prepare": {"mini": Stage(prepare, PrepareSettings()), "full": Stage(prepare, FULL_PREPARE)},
    "codec": {"mini": Stage(codec, CodecSettings()), "full": SDXL},
    # in preset full where the teacher is not trained jointly (ours)
    "lip-teacher": {"mini": Stage(lip_teacher, LipTeacherSettings()), "full": Stage(lip_teacher, LipTeacherSettings())},
    "heads": {"mini": Stage(heads, HeadsSettings()), "full": "it learns from real videos alone"},
    "lip-encoder": {"mini": Stage(lip_encoder, LipEncoderSettings()), "full": Stage(lip_encoder, FULL_LIP_ENCODER)},
    "looks": {"mini": Stage(looks, LooksSettings()), "full": PICTURES},
    "editor": {"mini": Stage(pairs.editor, pairs.EditorSettings()), "full": Stage(paper.editor, paper.FULL_EDITOR)},
    "editor-joint": {
        "mini": "its poses are fixed by the stage lip-teacher first",
        "full": Stage(paper.editor_joint, paper.FULL_JOINT),
    },
    "refinement": {
        "mini": Stage(pairs.refinement, pairs.RefinementSettings()),
        "full": Stage(paper.refinement, paper.FULL_REFINEMENT),
    },
    "distil": {
        "mini": Stage(distil.distil, distil.DistilSettings()),
        "full": "it learns from encoded looks, which preset mini makes",
    },
    "detail": {"mini": Stage(detail, DetailSettings()), "full": SDXL},
    "portraits": {"mini": Stage(portraits, PortraitsSettings()), "full": SDXL},
    "aligned": {"mini": Stage(aligned, AlignedSettings()), "full": PICTURES},
    "lip-faces": {
        "mini": Stage(lip_faces, LipFacesSettings()),
        "full": "its lip encoder learns from hours of many people in the first place",
    },
    "starts": {"mini": Stage(retrieved.starts, retrieved.StartsSettings()), "full": PICTURES},
    "retrieved": {
        "mini": Stage(retrieved.retrieved, retrieved.RetrievedSettings()),
        "full": "it learns from encoded starts, which preset mini makes",
    },
    "audio-corpus": {"mini": Stage(audio_corpus, AudioCorpusSettings()), "full": WAV2VEC},
    "audio-encoder": {"mini": Stage(audio_encoder, AudioEncoderSettings()), "full": WAV2VEC},
    "landmarks": {
        "mini": Stage(landmarks, LandmarkSettings()),
        "full": "the paper crops by a detector of its own; ours is small enough for preset mini",
    },
    "poses": {"mini": Stage(poses, PoseSettings()), "full": Stage(poses, FULL_POSES)},
}


def stages_of(name: str) -> dict[str, Stage[Any]]:
    """A stage in the presets that have it."""
    if name not in STAGES:
        raise FlashLipsError(f"Unknown stage '{name}'; choose one of {', '.join(STAGES)}.")
    return {preset: stage for preset, stage in STAGES[name].items() if isinstance(stage, Stage)}


def stage_of(name: str, preset: str, changes: Mapping[str, Any]) -> Stage[Any]:
    """A stage with some settings of its preset changed.

    Raises:
        FlashLipsError: There is no such stage, preset or setting, or the preset does without the stage.
    """
    own = stages_of(name)
    if preset not in PRESETS:
        raise FlashLipsError(f"No preset is called '{preset}'; choose one of {', '.join(PRESETS)}.")
    if preset not in own:
        why, others = STAGES[name][preset], " or ".join(own)
        raise FlashLipsError(f"The preset '{preset}' has no stage '{name}': {why}; leave it out, or choose preset {others}.")
    stage = own[preset]
    return Stage(stage.run, changed(stage.settings, changes, f"The stage '{name}' of preset '{preset}'"))


def run_stage(
    name: str,
    data: str | Path,
    weights: str | Path,
    folder: str | Path,
    changes: Mapping[str, Any],
    progress: Progress | None = None,
    preset: str = "mini",
) -> Path:
    """Run one stage, or continue it where it stopped; returns what it wrote.

    Args:
        data: a training set that ``data build`` made with landmarks, or the folder with ``grid_s1`` and ``grid_people``.
        weights: the folder with the frozen teachers (TAESDXL, Whisper tiny) and judges (VGG, face embedding).
        folder: where everything is cached and written.
        changes: settings that replace the preset's, e.g. ``{"steps": 4000}``.
        preset: "mini", the bundled model's, or "full", the paper's.
    """
    stage = stage_of(name, preset, changes)
    return stage.run(Run(Path(data), Path(weights), Path(folder), stage.settings, progress, preset))
