"""Self-refinement of an editor for one person, from one clip of them; what is kept is the best on the clip's held-out end."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ... import checkpoint
from ...checks import check_output
from ...codec import Codec
from ...loading import CODEC_FILE, LoadedPart
from ...types import FlashLipsError, Progress
from ..editor.pairs import WEIGHTS, Judge, editor_batches, refinement_step
from ..loop.attentive import attentive
from ..loop.trainer import Step
from .best_so_far import BestSoFar, Tuned, Tuning, key_of, trainable
from .lora import add_lora, with_shared_weights
from .person import PersonFrames, check_latents, check_trainable
from .report import Check, Examiner, write_sheet

LARGE = 20_000_000  # parameters of editor and codec, from which they may not fit a small card; the bundled have up to 9 M
Watch = Callable[[list[Check], Tensor], None]


@dataclasses.dataclass(frozen=True)
class FineTuning(Tuning):
    """The defaults suit a CPU; a rate of 1e-4 lost on held-out frames of an unseen person (GRID s4) within 25 steps."""

    lora: int = 0  # rank of the low-rank additions; 0 trains all weights


@dataclasses.dataclass(frozen=True)
class FineTuned(Tuned):
    """What came of it."""

    sheet: str  # mouths before and after

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return super().as_dict() | {"sheet": self.sheet}


def fine_tune(
    editor: LoadedPart,
    person: PersonFrames,
    codec: Codec,
    lip_encoder: nn.Module,
    out: str | Path,
    settings: FineTuning = FineTuning(),
    progress: Progress | None = None,
    watch: Watch | None = None,
    device: torch.device | str | None = None,
) -> FineTuned:
    """Refine ``editor`` for a person and write it to ``out``, a .safetensors; the networks that are given stay as they are.

    Args:
        progress: counts steps, or seconds where minutes are the limit; what it raises stops the run and keeps the best so far.
        watch: gets all checks after each one, and the held-out mouths (B, 3, H, W) in [-1, 1] as the network now edits them.
        device: where copies of the networks are trained; None: where the editor is.
    Raises:
        FlashLipsError: The editor is of stage 1, ``out`` cannot be written, is another's or is being written by another process,
            or the loss is no number any more.
    """
    out = Path(out)
    check_output(out, [], (".safetensors",))
    if editor.crop_px != person.crop_px:
        raise FlashLipsError(
            f"The editor sees crops of {editor.crop_px} px, these frames have {person.crop_px}; prepare them for this editor."
        )
    check_trainable(codec)
    check_latents(codec, person)
    if editor.is_stage_1:
        raise FlashLipsError("This editor was trained on masked frames only (stage 1); choose a refined one.")
    with torch.inference_mode(False), torch.enable_grad():
        where = next(editor.network.parameters()).device if device is None else torch.device(device)
        return _fine_tune(editor, person, codec, lip_encoder, out, settings, progress, watch, where)


def _fine_tune(
    editor: LoadedPart,
    person: PersonFrames,
    codec: Codec,
    lip_encoder: nn.Module,
    out: Path,
    settings: FineTuning,
    progress: Progress | None,
    watch: Watch | None,
    device: torch.device,
) -> FineTuned:
    # copies: gradients cannot pass through weights that were loaded in inference mode, and the caller's must not change
    parts = (editor.network, codec, lip_encoder)
    drawer, codec, reader = (trainable(part, device).requires_grad_(False) for part in parts)
    examiner, learnt = Examiner(person, codec, device), person.learnt

    def look(network: nn.Module, step: int) -> tuple[Check, Tensor]:
        edits = examiner.edits(network)
        return examiner.check(edits, step), edits

    def notes(checks: list[Check], check: Check) -> dict[str, Any]:
        return notes_of(editor, person, codec)

    key = key_of(drawer, [person.sample(), learnt.poses], settings)
    kept = BestSoFar(out, "editor", settings, key, Check, look, notes, progress, watch)
    with kept.alone():
        kept.open(drawer)
        network, step, loop = learning(drawer, codec, reader, settings, device)
        ended = kept.fit(network, editor_batches(learnt, settings.batch), step, WEIGHTS, **loop)
        best = checkpoint.load(out, "editor", {type(drawer).__name__: lambda fields: _rebuilt(drawer, fields)}, device)
        with attentive(kept.again):
            sheet = write_sheet(examiner, drawer, best, out.with_suffix(".png"))
    return FineTuned(str(out), ended, kept.checks, str(sheet))


def learning(
    drawer: nn.Module, codec: Codec, reader: nn.Module, settings: FineTuning, device: torch.device
) -> tuple[nn.Module, Step, dict[str, Any]]:
    """The network that learns, its step, and settings of the loop: those of large networks trade time for memory."""
    if settings.lora:
        network = add_lora(with_shared_weights(drawer), settings.lora, settings.seed)
    else:
        network = copy.deepcopy(drawer).requires_grad_(True)
    is_large = sum(p.numel() for part in (drawer, codec) for p in part.parameters()) > LARGE
    step = refinement_step(Judge(codec, reader, recompute=is_large), drawer)
    is_bf16 = is_large and device.type == "cuda"
    return network, step, {"recompute": is_large, "precision": "bf16" if is_bf16 else "fp32"}


def _rebuilt(like: nn.Module, fields: dict[str, Any]) -> nn.Module:
    return type(like)(checkpoint.config_from_dict(type(like.config), fields))


def notes_of(base: LoadedPart, person: PersonFrames, codec: Codec) -> dict[str, Any]:
    """What the checkpoint says of where it comes from."""
    latents = codec.latents if codec.latents in checkpoint.BUNDLED else base.codec
    drawn_by = {CODEC_FILE: codec.path.name} if codec.is_fine_tuned and codec.path is not None else {}
    inherited = {name: value for name, value in base.notes.items() if name != CODEC_FILE}
    return inherited | {"base": base.name, "codec": latents, "crop_px": person.crop_px} | drawn_by | person.notes()
