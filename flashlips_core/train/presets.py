"""Every number of a training run in one place: the settings of each stage, as the bundled model is trained and as the paper's is.

``mini``: 256 px, small networks, hours on a CPU. ``full``: the paper's networks, losses and schedules, for several GPUs; numbers
that the paper does not state are marked as ours. A run takes one preset and replaces settings by name; no others exist.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ..types import FlashLipsError

# What the loop takes in every stage that trains (``loop.TrainConfig`` says what each means).
LOOP = {
    "schedule": "onecycle", "weight_decay": 0.01, "betas": (0.9, 0.99), "accumulate": 1, "clip": 1.0, "precision": "fp32",
    "recompute": False, "device": None, "log_every": 50, "tensorboard": False, "validate_every": 1000, "save_every_s": 120.0,
}  # fmt: skip

MINI: dict[str, dict[str, Any]] = {
    "prepare": {"stored_px": 256},
    "codec": LOOP | {
        "steps": 3000, "batch_size": 4, "lr": 1.5e-3, "ema": 0.995, "seed": 0, "cached": 2400, "start": None,
        "decoder_only": False,
    },
    "lip-teacher": LOOP | {"steps": 4000, "batch_size": 32, "lr": 2e-3, "ema": 0.999, "seed": 0, "log_every": 100},
    "heads": {},
    "lip-encoder": LOOP | {
        "network": "mini", "steps": 5000, "batch_size": 64, "lr": 2e-3, "ema": 0.0, "seed": 0, "log_every": 100,
    },
    "looks": {"only": None, "crop_px": 256, "strength": 1.0, "rounds": 1, "device": None},
    "editor": LOOP | {
        "steps": 12_000, "batch_size": 16, "lr": 1e-3, "ema": 0.998, "seed": 0, "start": None, "vgg_stages": 0, "readback": 0.3,
        "texture": 350.0, "masked": 0.25, "references": 6, "alike": 0.2,
    },
    "refinement": LOOP | {
        "steps": 4000, "batch_size": 16, "lr": 5e-4, "ema": 0.998, "seed": 1, "vgg_stages": 0, "readback": 0.3,
        "texture": 350.0, "references": 6, "alike": 0.2,
    },
    "distil": LOOP | {
        "network": "transformer-mini", "teacher": None, "start": None, "steps": 6000, "batch_size": 16, "lr": 1e-3, "ema": 0.998,
        "seed": 0, "references": 4,
    },
    "detail": LOOP | {
        "steps": 2000, "batch_size": 10, "lr": 3e-4, "ema": 0.995, "betas": (0.5, 0.99), "seed": 2,
        "realism": 0.15, "blend": 0.75,
    },
    "portraits": LOOP | {
        "steps": 2400, "batch_size": 6, "lr": 4e-4, "ema": 0.995, "seed": 3, "start": None, "crops": 2400, "vgg_stages": 3,
        "validate_every": 200,
    },
    "aligned": {},
    "lip-faces": LOOP | {
        "steps": 3900, "batch_size": 48, "lr": 1.2e-3, "ema": 0.995, "seed": 0, "start": None, "opening": 0.3,
    },
    "starts": {"codec": None, "lip_encoder": None, "crop_px": 384, "strength": 0.5, "rounds": 1},
    "retrieved": LOOP | {
        "steps": 1500, "batch_size": 8, "lr": 2e-4, "ema": 0.995, "seed": 4, "start": None, "codec": None, "lip_encoder": None,
        "vgg_stages": 0, "readback": 0.3, "texture": 150.0, "references": 8, "alike": 0.2, "share": 0.6,
    },
    "audio-corpus": {"voices": True},
    "audio-encoder": LOOP | {
        "network": "large", "steps": 4000, "batch": 6, "lr": 2e-3, "ema": 0.995, "seed": 0, "told": 0.5, "start": None,
    },
    "landmarks": LOOP | {
        "steps": 8000, "batch_size": 48, "lr": 3e-3, "ema": 0.995, "seed": 0, "start": None, "save_every_s": 60.0,
    },
    "poses": LOOP | {
        "network": "mini", "steps": 1500, "batch": 10, "num_frames": 64, "lr": 1e-3, "ema": 0.995, "seed": 0,
        "audio_dropout": 0.1, "variants": 3, "voice_shift": 6.0, "log_every": 100, "threads": 1, "start": None,
        "components": 0, "told": False,
    },
}  # fmt: skip

# 8 processes of 4 are the paper's batch of 32; fewer processes reach it with accumulate. Memory: blocks and decoder recomputed.
_FULL_LOOP = LOOP | {"precision": "bf16", "recompute": True, "tensorboard": True, "save_every_s": 900.0}  # ours
_PIXELS = _FULL_LOOP | {
    "crop_px": 512,  # ours
    "references": 4,  # as at test time; ours in training, where the choice among them must be learnt
    "codec": "sdxl",  # a name, folder or file as load_codec takes it; another one is a stand-in
    "batch_size": 4, "ema": 0.9999, "seed": 0, "validate_every": 5000,  # EMA: ours
}  # fmt: skip

FULL: dict[str, dict[str, Any]] = {
    "prepare": {"stored_px": 640},  # a quarter wider than the editor's 512
    "lip-teacher": MINI["lip-teacher"],  # where the teacher is not trained jointly (ours)
    # ResNet-34; distilled in 200 k steps, in the paper the last ones of the reconstruction
    "lip-encoder": _FULL_LOOP | {
        "network": "resnet34", "steps": 200_000, "batch_size": 64, "lr": 1e-3, "ema": 0.0, "seed": 0, "recompute": False,
    },
    # AdamW, OneCycle from 1e-4 to 1e-8, 1 M steps; network: unet-250m or transformer-300m
    "editor": _PIXELS | {"network": "unet-250m", "steps": 1_000_000, "lr": 1e-4, "start": None},
    "editor-joint": _PIXELS | {"network": "unet-250m", "steps": 800_000, "lr": 1e-4, "teacher": None},  # before the distillation
    "refinement": _PIXELS | {"steps": 200_000, "lr": 1e-5},  # the rate is ours
    # 150 M parameters, AdamW at a constant 5e-5; batch and steps are ours
    "poses": MINI["poses"] | _FULL_LOOP | {
        "network": "150m", "steps": 400_000, "batch": 4, "num_frames": 100, "lr": 5e-5, "schedule": "constant", "ema": 0.9999,
    },
}  # fmt: skip

PRESETS = {"mini": MINI, "full": FULL}
WHY_NOT = {
    ("full", "landmarks"): "the paper crops by a detector of its own; ours is small enough for preset mini",
    ("full", "codec"): "the paper's SDXL VAE is used as it is",
    ("full", "audio-encoder"): "wav2vec 2.0 is used as it is",
    ("full", "audio-corpus"): "wav2vec 2.0 is used as it is",
    ("full", "detail"): "the paper's SDXL VAE is used as it is",
    ("full", "portraits"): "the paper's SDXL VAE is used as it is",
    ("full", "aligned"): "its editor reads pictures",
    ("full", "starts"): "its editor reads pictures",
    ("full", "lip-faces"): "its lip encoder learns from hours of many people in the first place",
    ("full", "retrieved"): "it learns from encoded starts, which preset mini makes",
    ("full", "distil"): "it learns from encoded looks, which preset mini makes",
    ("full", "looks"): "its editor reads pictures",
    ("full", "heads"): "it learns from real videos alone",
    ("mini", "editor-joint"): "its poses are fixed by the stage lip-teacher first",
}


def settings_of(stage: str, preset: str = "mini", changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All settings of a stage: the preset's, with some of them changed.

    Raises:
        FlashLipsError: There is no such preset or setting, or the preset does without the stage.
    """
    if preset not in PRESETS:
        raise FlashLipsError(f"No preset is called '{preset}'; choose one of {', '.join(PRESETS)}.")
    if stage not in PRESETS[preset]:
        others = " or ".join(name for name, stages in PRESETS.items() if stage in stages)
        reason = WHY_NOT.get((preset, stage), "there is nothing to train")
        raise FlashLipsError(f"The preset '{preset}' has no stage '{stage}': {reason}; leave it out, or choose preset {others}.")
    settings = PRESETS[preset][stage]
    for name, value in (changes or {}).items():
        if name not in settings:
            near = difflib.get_close_matches(name, settings, 1)
            known = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(settings)) or 'none'}."
            raise FlashLipsError(f"The stage '{stage}' of preset '{preset}' has no setting '{name}'; {known}")
        if not _fits(value, settings[name]):
            raise FlashLipsError(f"The setting '{name}' is {value!r}; give it a value like {settings[name]!r}.")
    return settings | dict(changes or {})


def _fits(value: Any, example: Any) -> bool:
    """Whether a value is of the kind that a preset has; a float may be written as a whole number."""
    if example is None:
        return value is None or isinstance(value, str)
    kinds = (int, float) if isinstance(example, float) else type(example)
    return isinstance(value, kinds) and isinstance(value, bool) == isinstance(example, bool)
