"""Stages "starts" and "retrieved": the editor learns on frames with a mouth of their clip laid over them (``starts``).

B batch, h w latent cells, H W the pixel window. Half of the batches are starts, half plain frames with quite another mouth, so
that what the editor could do stays. It is judged by the picture that a dub shows: what the codec cannot draw stays where an edit
changes little (``composed``), and it is asked to change no more than it must.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...codec import CELL_PX, load_codec
from ...loading import load_network, load_part
from ...models.masks import mouth_mask
from ...types import FlashLipsError, Progress
from ..batches.frames import lip_weights, near_lips, window_cells
from ..loop.settings import setting
from ..loop.trainer import SHEET_BATCH, MakeBatch, Step, fit, step_generator
from ..prepare import FIRST, OPEN, PEOPLE, aligned_stores
from ..run import Run
from .losses import sharpness_loss, texture_loss
from .pairs import (
    LIPS_SHARE,
    EditorBatch,
    Judge,
    PairSettings,
    edit_sheet,
    editor_batches,
    judge_of,
    mouths_of,
    pair_target,
    without_edge,
)
from .starts import RetrievedFrames, encode_retrieved, load_retrieved, retrieved_batches

REDRAWN = (0.25, 0.8)  # mean |change| of a latent from which an edit begins to replace what was there, and does so fully
WEIGHTS = {
    "latent": 1.0, "needless": 1.0, "pixel": 3.0, "lips": 5.0, "sharpness": 12.0, "texture": 150.0, "drawn": 2.0,
    "readback": 0.3, "perceptual": 0.2,
}  # fmt: skip
DECODED_EVERY = 3  # of a batch one in so many is decoded, which costs more than its edit
STARTS = {OPEN: (3, 14), PEOPLE: (1, 8), FIRST: (1, 8)}  # looks of each clip, frames of each look


@dataclass(frozen=True)
class StartsSettings:
    """Encode frames over which another mouth of their clip was laid."""

    codec: str | None = setting(None, "another codec than the run's")
    lip_encoder: str | None = setting(None, "another lip encoder than the run's")
    crop_px: int = setting(384, "side of the editor's crop, a multiple of 64")
    strength: float = setting(0.5, "of the augmentation")
    rounds: int = setting(1, "so many times as many looks of each clip")


@dataclass(frozen=True)
class RetrievedSettings(PairSettings):
    """Teach the editor to start from such frames, and to change only what it must."""

    steps: int = 1500
    batch_size: int = 8
    lr: float = 2e-4
    ema: float = 0.995
    seed: int = 4
    start: str | None = setting(None, "another editor than the run's")
    codec: str | None = setting(None, "another codec than the run's")
    lip_encoder: str | None = setting(None, "another lip encoder than the run's")
    readback: float = WEIGHTS["readback"]
    texture: float = WEIGHTS["texture"]
    references: int = 8
    share: float = setting(0.6, "of the batches begin with a retrieved start, the rest with another mouth, as before")


def mixed_batches(first: MakeBatch, second: MakeBatch, share: float) -> MakeBatch:
    """Batches of either: ``share`` of them are of the first kind."""

    def make(generator: torch.Generator) -> EditorBatch:
        is_first = float(torch.rand((), generator=generator)) < share
        return (first if is_first else second)(generator)

    return make


def redrawn_share(before: Tensor, after: Tensor) -> Tensor:
    """Where an edit changes too much for what was there to shine through, (B, 4, h, w) twice -> (B, 1, h, w) in [0, 1]."""
    change = (after - before).abs().mean(1, keepdim=True)
    low, high = REDRAWN
    ramp = ((F.avg_pool2d(change, 3, stride=1, padding=1, count_include_pad=False) - low) / (high - low)).clamp(0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def composed(start: Tensor, shown: Tensor, drawn: Tensor, share: Tensor) -> Tensor:
    """The picture of a dub: the start and the difference of two decodes, or what is drawn alone where ``share`` is 1.

    Args:
        start: (B, 3, H, W) pixels that the edit started from.
        shown: what the codec makes of them.
        drawn: what it makes of the edit.
        share: (B, 1, H / 8, W / 8) in [0, 1].
    """
    return torch.lerp(start + drawn - shown, drawn, F.interpolate(share, size=drawn.shape[2:], mode="bilinear"))


def retrieved_step(judge: Judge) -> Step:
    """Edits of starts towards their frames, judged as a dub shows them."""

    def step(network: nn.Module, batch: EditorBatch, generator: torch.Generator) -> dict[str, Tensor]:
        mask, cells = mouth_mask(*batch.z_src.shape[2:]), batch.z_src.shape[-1]
        context = network.prepare_references(batch.references, batch.reference_poses)
        z_hat = torch.lerp(batch.z_near, network(batch.z_near, context, batch.pose), mask)
        z_target, target = pair_target(batch, mask)
        weight = mask * ((1 - LIPS_SHARE) + LIPS_SHARE * near_lips(batch.lips, cells) * 4)
        kept = mask * (1 - ((z_target - batch.z_near).abs().mean(1, keepdim=True) / REDRAWN[0]).clamp(0, 1))
        losses = {
            "latent": ((z_hat - z_target).abs() * weight).sum() / (weight.sum() * z_hat.shape[1]),
            "needless": ((z_hat - batch.z_near).abs() * kept).sum() / (kept.sum() * z_hat.shape[1] + 1),
        }
        rows = slice(None, None, DECODED_EVERY)
        return losses | _picture_losses(judge, z_hat[rows], batch, target, rows)

    return step


def _picture_losses(judge: Judge, z_hat: Tensor, batch: EditorBatch, target: Tensor, rows: slice) -> dict[str, Tensor]:
    cells, start, target = z_hat.shape[-1], batch.near_pixels[rows], target[rows]
    with torch.no_grad():
        shown = judge.codec.decode(window_cells(batch.z_near[rows]))
        share = window_cells(redrawn_share(batch.z_near[rows], z_hat.detach()))
    drawn = judge.codec.decode(window_cells(z_hat))
    picture = composed(start, shown, drawn, share)
    inside = F.interpolate(window_cells(mouth_mask(cells, cells)), scale_factor=CELL_PX, mode="bilinear")
    lips = without_edge(lip_weights(batch.lips[rows], cells) * inside)
    difference = without_edge((picture - target) * inside)
    losses = {
        "pixel": difference.abs().sum() / (3 * without_edge(inside).sum() * len(z_hat)),
        "lips": (difference.abs() * lips).sum() / (3 * lips.sum() + 1),
        "sharpness": sharpness_loss(difference, torch.zeros_like(difference)),
        "texture": texture_loss(without_edge(picture), without_edge(target)),
        "drawn": (without_edge((drawn - target) * inside)).abs().sum() / (3 * without_edge(inside).sum() * len(z_hat)),
    }
    if judge.lip_encoder is not None:
        mouths = mouths_of(picture, cells, judge.lip_encoder.config.mouth_px)
        losses["readback"] = F.smooth_l1_loss(judge.lip_encoder.read_mouths(mouths), batch.pose[rows])
    if judge.perceptual is not None:
        losses["perceptual"] = judge.perceptual(picture[::2], target[::2])
    return losses


def train_retrieved(
    editor: nn.Module, retrieved: RetrievedFrames, judge: Judge, settings: RetrievedSettings, progress: Progress | None = None
) -> nn.Module:
    """Go on training a copy of ``editor``."""
    network = copy.deepcopy(editor).requires_grad_(True).to(memory_format=torch.channels_last)
    config = replace(settings, weights=WEIGHTS | {"readback": settings.readback, "texture": settings.texture})
    sizes = settings.batch_size, settings.references, settings.alike
    laid = retrieved_batches(retrieved, *sizes)
    batches = mixed_batches(laid, editor_batches(retrieved.frames, *sizes), settings.share)
    sheet = edit_sheet(laid(step_generator(settings.seed, SHEET_BATCH)), judge.codec)
    return fit(network, batches, retrieved_step(judge), config, progress=progress, sheet=sheet)


# ---- the stages ------------------------------------------------------------------------------------------------------------


def starts(run: Run[StartsSettings]) -> Path:
    """Encode frames with other mouths of their clips laid over them, for the stage "retrieved"."""
    settings = run.settings
    codec = load_codec(run.own("codec", settings.codec))
    reader = load_network("lip-encoder", settings.lip_encoder or run.folder)
    for seed, (name, store) in enumerate(aligned_stores(run).items()):
        out, (looks, frames) = run.folder / f"starts_{name}", STARTS[name]
        if not (out / "frames.npz").is_file():
            encode_retrieved(
                store,
                codec,
                reader,
                out,
                looks * settings.rounds,
                frames,
                seed,
                settings.strength,
                settings.crop_px,
                run.progress,
            )
    return run.folder


def retrieved(run: Run[RetrievedSettings]) -> Path:
    """The editor that is named, or the run's, learns what is left to do where an edit starts from a retrieved mouth."""
    settings = run.settings
    folders = sorted(path.parent for path in run.folder.glob("starts_*/frames.npz"))
    if not folders:
        raise FlashLipsError(f"No encoded starts under {run.folder}; run the stage 'starts' first.")
    frames, part = load_retrieved(folders), load_part("editor", settings.start or run.folder)
    judge = judge_of(run, settings.codec, settings.lip_encoder)
    network = train_retrieved(part.network, frames, judge, run.config("run_retrieved"), run.progress)
    crop_px = CELL_PX * frames.frames.latents.shape[-1]
    return run.save(network, "editor", "editor-retrieved", crop_px=crop_px, codec=part.codec)
