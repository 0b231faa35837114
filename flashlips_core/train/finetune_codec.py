"""A codec's decoder learns one person's face from one clip of them; the encoder stays, so that every editor still fits.

A small decoder has no room for everybody's skin and teeth, but it has for one person's. It learns what the latents of that
person's frames look like. But an edit's latents are softer than a frame's, and from frames alone it learns to draw them as they
are: so it sees edits too, and is asked for as much fine detail in them as frames have, wherever it lies.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_output
from ..codec import Codec
from ..loading import LoadedPart
from ..losses import sharpness_loss, texture_loss
from ..models.codec_mini import MiniCodec
from ..models.masks import mouth_mask
from ..types import FlashLipsError, Progress
from .best_so_far import BestSoFar, Tuned, Tuning, key_of, trainable
from .editor import EditorBatch, edit_neighbours, editor_batches, pair_target, without_edge
from .editor_data import EditorFrames, window_cells
from .finetune_data import PersonFrames, check_editor, check_latents
from .finetune_report import Check, Examiner, check_windows
from .loop import MakeBatch, Step

WEIGHTS = {"pixel": 3.0, "sharpness": 6.0, "texture": 30.0, "edit_pixel": 0.9, "edit_sharpness": 1.8, "edit_texture": 350.0}
EDIT_SHARE = 0.5  # of the batches are edited too; each time, it learns the person's frames more slowly
SHARPNESS_DB = 2.0  # what a check loses for edits e times too soft or too sharp; the likeness of frames alone chooses the softest


@dataclasses.dataclass(frozen=True)
class CodecTuning(Tuning):
    """The defaults suit a CPU: a step takes three quarters of a second on one core."""

    lr: float = 3e-4
    batch: int = 4


@dataclasses.dataclass(frozen=True)
class CodecCheck(Check):
    """One look at the held-out frames: the likeness of frames there and back, and the sharpness of their neighbours' edits."""

    @property
    def score(self) -> float:
        """The best has the highest."""
        return self.psnr_db - SHARPNESS_DB * abs(math.log(max(self.sharpness, 1e-6)))

    def sentence(self) -> str:
        """For people."""
        return f"lips there and back {self.psnr_db:.2f} dB, edits' sharpness {self.sharpness:.2f}"


@dataclasses.dataclass(frozen=True)
class DecoderBatch:
    """Frames of the person, and whether their neighbours are edited and drawn too."""

    pairs: EditorBatch
    is_edited: bool


def decoder_batches(frames: EditorFrames, batch: int) -> MakeBatch:
    """Frames by chance, in ``EDIT_SHARE`` of the batches with edits."""
    pairs = editor_batches(frames, batch)

    def make(generator: torch.Generator) -> DecoderBatch:
        is_edited = float(torch.rand((), generator=generator)) < EDIT_SHARE
        return DecoderBatch(pairs(generator), is_edited)

    return make


def decoder_step(editor: nn.Module) -> Step:
    """Frames as they are from their latents, and edits of ``editor`` with as much fine detail as frames have."""

    def step(network: nn.Module, batch: DecoderBatch, generator: torch.Generator) -> dict[str, Tensor]:
        pairs = batch.pairs
        losses = window_losses(network.decode(window_cells(pairs.z_src)), pairs.pixels)
        if not batch.is_edited:
            return losses | {f"edit_{name}": torch.zeros_like(loss) for name, loss in losses.items()}
        with torch.no_grad():
            edits = edit_neighbours(editor, pairs)
            _, wanted = pair_target(pairs, mouth_mask(*edits.shape[2:]).to(edits))
        edited = window_losses(network.decode(window_cells(edits)), wanted)
        return losses | {f"edit_{name}": loss for name, loss in edited.items()}

    return step


def window_losses(drawn: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Likeness and fine detail of mouth windows (B, 3, H, W); at their edge, which lacks its surroundings, nothing counts."""
    drawn, wanted = without_edge(drawn), without_edge(wanted)
    return {
        "pixel": (drawn - wanted).abs().mean(),
        "sharpness": sharpness_loss(drawn, wanted),
        "texture": texture_loss(drawn, wanted),
    }


class DecoderExaminer:
    """Draws the same held-out frames and edits whenever it is asked, and compares."""

    def __init__(self, person: PersonFrames, codec: Codec, editor: nn.Module) -> None:
        device = next(editor.parameters()).device
        pairs = Examiner(person, codec, device)
        self.frames, self.edits = window_cells(person.held_out.latents[pairs.rows].float()).to(device), pairs.edited(editor)
        self.wanted, self.boxes = pairs.wanted, pairs.boxes

    @torch.no_grad()
    def look(self, network: nn.Module, step: int) -> tuple[CodecCheck, Tensor]:
        """The numbers, and the edited mouths (B, 3, H, W) in [-1, 1] on the CPU."""
        frames, edits = (
            torch.cat([network.decode(part) for part in cells.split(4)]).clamp(-1, 1).float().cpu()
            for cells in (self.frames, self.edits)
        )
        there_and_back, edited = (check_windows(drawn, self.wanted, self.boxes, step) for drawn in (frames, edits))
        return CodecCheck(step, there_and_back.psnr_db, edited.sharpness), edits


def check_learnable(codec: Codec) -> None:
    """Refuse a codec that is not of this software's kind."""
    if not isinstance(codec.network, MiniCodec):
        raise FlashLipsError(f"The codec '{codec.name}' cannot learn a person; choose a bundled one, or one trained here.")


def tune_decoder(
    codec: Codec,
    person: PersonFrames,
    editor: LoadedPart,
    out: str | Path,
    settings: CodecTuning = CodecTuning(),
    progress: Progress | None = None,
    watch: Callable[[list[CodecCheck], Tensor], None] | None = None,
) -> Tuned:
    """Let ``codec``'s decoder learn a person's mouth windows, and write the codec to ``out``; what is given stays as it is.

    What is kept is the best on the clip's held-out end, see :class:`CodecCheck`.

    Args:
        person: encoded by this codec.
        editor: whose edits are drawn.
        progress: counts steps, or seconds where minutes are the limit; what it raises stops the run and keeps the best so far.
        watch: gets all checks after each one, and the held-out edits as the network now draws them.
    Raises:
        FlashLipsError: The codec is not of this software's kind or did not make these latents, the editor is of stage 1 or sees
            crops of another size, or ``out`` cannot be written or is another's.
    """
    out = Path(out)
    check_output(out, [], (".safetensors",))
    check_learnable(codec)
    check_latents(codec, person)
    check_editor(editor, person)
    with torch.inference_mode(False), torch.enable_grad():
        return _tune_decoder(codec, person, editor, out, settings, progress, watch)


def _tune_decoder(
    codec: Codec, person: PersonFrames, editor: LoadedPart, out: Path, settings: CodecTuning, progress: Progress | None,
    watch: Callable[[list[CodecCheck], Tensor], None] | None,
) -> Tuned:  # fmt: skip
    base, drawer = (trainable(part).requires_grad_(False) for part in (codec, editor.network))
    network = copy.deepcopy(base.network)
    network.decoder.requires_grad_(True)
    examiner = DecoderExaminer(person, base, drawer)

    def notes(checks: list[CodecCheck], check: CodecCheck) -> dict[str, Any]:
        return codec.notes | {"base": codec.name, "latents": codec.latents} | person.notes()

    key = key_of(base.network, [person.sample(), next(base.network.decoder.parameters()), next(drawer.parameters())], settings)
    kept = BestSoFar(out, "codec", settings, key, CodecCheck, examiner.look, notes, progress, watch)
    with kept.alone():
        kept.open(base.network)
        ended = kept.fit(network, decoder_batches(person.learnt, settings.batch), decoder_step(drawer), WEIGHTS)
    return Tuned(str(out), ended, kept.checks)
