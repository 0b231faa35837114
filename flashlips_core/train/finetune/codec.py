"""A codec's decoder learns one person's face from one clip of them; the encoder stays, so that every editor still fits.

A small decoder has no room for everybody's skin and teeth, but it has for one person's. An edit can only be as near to a person
as the decoder draws that person's own latents. It learns from frames alone: asked for as much fine detail in edits, whose latents
are softer, it drew combs across the lips.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...checks import check_output
from ...codec import Codec
from ...drawings.sheets import spread
from ...models.codec_mini import MiniCodec
from ...types import FlashLipsError, Progress
from ..batches.frames import EditorFrames, window_cells, window_pixels
from ..editor.losses import sharpness_loss, texture_loss
from ..editor.pairs import without_edge
from ..loop.trainer import MakeBatch
from .best_so_far import BestSoFar, Tuned, Tuning, key_of, trainable
from .person import PersonFrames, check_latents
from .report import Check, check_windows, lips_in_window

WEIGHTS = {"pixel": 3.0, "sharpness": 6.0, "texture": 30.0}
NUM_SHOWN = 16  # held-out frames of each look


@dataclasses.dataclass(frozen=True)
class CodecTuning(Tuning):
    """The defaults suit a CPU: a step takes half a second on one core."""

    lr: float = 2e-4
    batch: int = 4


@dataclasses.dataclass(frozen=True)
class DecoderBatch:
    cells: Tensor  # (B, 4, h, w) the mouth windows' latents
    pixels: Tensor  # (B, 3, 8h, 8w) what they are of


def decoder_batches(frames: EditorFrames, batch: int) -> MakeBatch:
    """Frames of the person, by chance."""

    def make(generator: torch.Generator) -> DecoderBatch:
        rows = torch.randint(len(frames.poses), (batch,), generator=generator).numpy()
        return DecoderBatch(window_cells(frames.latents[rows].float()), window_pixels(frames, rows))

    return make


def decoder_step(network: nn.Module, batch: DecoderBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """The picture from its latents, and as much fine detail as it has."""
    decoded, pixels = (without_edge(x) for x in (network.decode(batch.cells), batch.pixels))
    return {
        "pixel": (decoded - pixels).abs().mean(),
        "sharpness": sharpness_loss(decoded, pixels),
        "texture": texture_loss(decoded, pixels),
    }


class DecoderExaminer:
    """Decodes the same held-out mouths whenever it is asked, and compares."""

    def __init__(self, person: PersonFrames, device: torch.device) -> None:
        frames = person.held_out
        rows = spread(len(frames.poses), NUM_SHOWN)
        self.cells = window_cells(frames.latents[rows].float()).to(device)
        self.wanted, self.boxes = window_pixels(frames, rows), lips_in_window(frames.lips[rows], person.crop_px)

    @torch.no_grad()
    def look(self, network: nn.Module, step: int) -> tuple[Check, Tensor]:
        """The numbers, and the mouths (B, 3, H, W) in [-1, 1] on the CPU."""
        drawn = torch.cat([network.decode(cell) for cell in self.cells.split(4)]).clamp(-1, 1).float().cpu()
        return check_windows(drawn, self.wanted, self.boxes, step), drawn


def check_learnable(codec: Codec) -> None:
    """Refuse a codec that is not of this software's kind."""
    if not isinstance(codec.network, MiniCodec):
        raise FlashLipsError(f"The codec '{codec.name}' cannot learn a person; choose a bundled one, or one trained here.")


def tune_decoder(
    codec: Codec,
    person: PersonFrames,
    out: str | Path,
    settings: CodecTuning = CodecTuning(),
    progress: Progress | None = None,
    watch: Callable[[list[Check], Tensor], None] | None = None,
    device: torch.device | str | None = None,
) -> Tuned:
    """Let ``codec``'s decoder learn a person's mouth windows, and write the codec to ``out``; the one given stays as it is.

    What is kept is the best on the clip's held-out end, by the PSNR of the lips.

    Args:
        person: encoded by this codec.
        progress: counts steps, or seconds where minutes are the limit; what it raises stops the run and keeps the best so far.
        watch: gets all checks after each one, and the held-out mouths as the network now draws them.
        device: where a copy of the codec is trained; None: where it is.
    Raises:
        FlashLipsError: The codec is not of this software's kind or did not make these latents, or ``out`` cannot be written or
            is another's.
    """
    out = Path(out)
    check_output(out, [], (".safetensors",))
    check_learnable(codec)
    check_latents(codec, person)
    with torch.inference_mode(False), torch.enable_grad():
        return _tune_decoder(codec, person, out, settings, progress, watch, device)


def _tune_decoder(
    codec: Codec, person: PersonFrames, out: Path, settings: CodecTuning, progress: Progress | None,
    watch: Callable[[list[Check], Tensor], None] | None, device: torch.device | str | None,
) -> Tuned:  # fmt: skip
    base, learnt = trainable(codec.network, device).requires_grad_(False), person.learnt
    examiner = DecoderExaminer(person, next(base.parameters()).device)

    def notes(checks: list[Check], check: Check) -> dict[str, Any]:
        return codec.notes | {"base": codec.name, "latents": codec.latents} | person.notes()

    key = key_of(base, [person.sample(), next(base.decoder.parameters())], settings)
    kept = BestSoFar(out, "codec", settings, key, Check, examiner.look, notes, progress, watch)
    with kept.alone():
        kept.open(base)
        network = copy.deepcopy(base)
        network.decoder.requires_grad_(True)
        ended = kept.fit(network, decoder_batches(learnt, settings.batch), decoder_step, WEIGHTS)
    return Tuned(str(out), ended, kept.checks)
