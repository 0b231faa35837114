"""Stages "editor" (masked reconstruction, paper stage 1) and "refinement" (mask-free LipsChange, stage 1b).

B batch, R references. Latents (B, 4, 32, 32) at 256 px. The paper's loss terms that fit a CPU are used: latent L1, the same
inside the mask, pixel L1 in the mouth window and on the lips; a Laplacian term stands where the paper has VGG19 features.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..codec import Codec
from ..models.codec_mini import sharpness_loss
from ..models.editor_unet import UNET_MINI, EditorUNet, EditorUNetConfig
from ..types import Progress
from .editor_data import EditorFrames, draw_pairs, lip_weights, window_cells, window_pixels
from .loop import MakeBatch, Step, TrainConfig, Validate, fit

# Lower face in latent cells of the 256 px crop: from slightly above the nose tip, full cheek width, to the lower edge.
MASK_TOP, MASK_SIDE = 14 / 32, 5 / 32
WEIGHTS = {"latent": 0.2, "mask": 0.4, "pixel": 2.0, "lips": 3.0, "sharpness": 3.0}


def lower_face_mask(height: int, width: int) -> Tensor:
    """Soft mask of what stage 1 hides, (1, 1, h, w) in [0, 1]; one cell of transition."""
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    rows = ((y - MASK_TOP) * height + 0.5).clamp(0, 1)
    columns = (torch.minimum(x - MASK_SIDE, 1 - MASK_SIDE - x) * width + 0.5).clamp(0, 1)
    return (rows[:, None] * columns[None])[None, None]


@dataclass(frozen=True)
class EditorBatch:
    z_src: Tensor  # (B, 4, 32, 32) the frame
    pose: Tensor  # (B, 12) its pose
    references: Tensor  # (B, R, 4, 32, 32)
    pixels: Tensor  # (B, 3, 128, 128) its mouth window
    lips: Tensor  # (B, 4)
    other_pose: Tensor  # (B, 12) borrowed across identities


def editor_batches(frames: EditorFrames, batch_size: int, exact: bool = False) -> MakeBatch:
    """Frames with 1 to 3 references of their own clip and a pose borrowed from anybody's."""

    def make(generator: torch.Generator) -> EditorBatch:
        references = int(torch.randint(1, 4, (), generator=generator))
        rows, others = draw_pairs(frames, batch_size, references, generator, exact)
        borrowed, _ = draw_pairs(frames, batch_size, 1, generator)
        noise = torch.randn(batch_size, frames.poses.shape[1], generator=generator)
        return EditorBatch(
            frames.latents[rows].float().contiguous(memory_format=torch.channels_last), frames.poses[rows],
            frames.latents[others].float(), window_pixels(frames, rows), frames.lips[rows], frames.poses[borrowed] + 0.1 * noise,
        )  # fmt: skip

    return make


def edit_losses(z_hat: Tensor, z_target: Tensor, batch: EditorBatch, codec: Codec, mask: Tensor) -> dict[str, Tensor]:
    """The regression losses between an edit and its target frame; every second frame of the batch is decoded."""
    error = (z_hat - z_target).abs()
    decoded = codec.decode(window_cells(z_hat[::2]))[:, :, 8:-8, 8:-8]  # the border lacks the decoder's context
    pixels = batch.pixels[::2, :, 8:-8, 8:-8]
    lips = lip_weights(batch.lips[::2], 128)[:, :, 8:-8, 8:-8]
    difference = (decoded - pixels).abs()
    return {
        "latent": error.mean(),
        "mask": (error * mask).sum() / (mask.sum() * error.shape[0] * error.shape[1]),
        "pixel": difference.mean(),
        "lips": (difference * lips).sum() / (3 * lips.sum() + 1),
        "sharpness": sharpness_loss(decoded, pixels),
    }


def masked_step(codec: Codec) -> Step:
    """Stage 1: redraw the hidden lower face from references and the frame's own pose (Eqs. 1-3)."""
    mask = lower_face_mask(32, 32)

    def step(network: nn.Module, batch: EditorBatch, generator: torch.Generator) -> dict[str, Tensor]:
        context = network.prepare_references(batch.references)
        z_hat = network(batch.z_src * (1 - mask), context, batch.pose)
        return edit_losses(z_hat, batch.z_src, batch, codec, mask)

    return step


def refinement_step(codec: Codec, masked: nn.Module, exact_batches: MakeBatch | None) -> Step:
    """Stage 1b: the masked editor draws a variant with a borrowed mouth; the pair supervises mask-free edits both ways.

    Rendered heads add pairs that are exact, in the same step.
    """
    mask = lower_face_mask(32, 32)
    masked = copy.deepcopy(masked).eval().requires_grad_(False)

    def step(network: nn.Module, batch: EditorBatch, generator: torch.Generator) -> dict[str, Tensor]:
        with torch.no_grad():
            variant = masked(batch.z_src * (1 - mask), masked.prepare_references(batch.references), batch.other_pose)
            z_mod = batch.z_src + mask * (variant - batch.z_src)
        context = network.prepare_references(batch.references)
        losses = edit_losses(network(z_mod, context, batch.pose), batch.z_src, batch, codec, mask)
        forth = (network(batch.z_src, context, batch.other_pose) - z_mod).abs()
        losses["forth"] = forth.mean() + 2 * (forth * mask).sum() / (mask.sum() * forth.shape[0] * forth.shape[1])
        if exact_batches is not None:
            losses["exact"] = _exact_loss(network, exact_batches(generator), codec, mask)
        return losses

    return step


def _exact_loss(network: nn.Module, pair: EditorBatch, codec: Codec, mask: Tensor) -> Tensor:
    """Move one rendered mouth onto the next row's frame of the same head: the first reference is the frame to edit."""
    context = network.prepare_references(pair.references)
    losses = edit_losses(network(pair.references[:, 0], context, pair.pose), pair.z_src, pair, codec, mask)
    return sum(WEIGHTS[name] * value for name, value in losses.items())


def train_editor(
    frames: EditorFrames, codec: Codec, run_dir: str, config: EditorUNetConfig = UNET_MINI, steps: int = 8000, batch_size: int = 16,
    seed: int = 0, lr: float = 1e-3, validate: Validate | None = None, progress: Progress | None = None,
) -> EditorUNet:
    """Stage 1 from random weights."""
    settings = TrainConfig(run_dir, steps, lr=lr, seed=seed, weights=WEIGHTS, ema=0.998)
    network = EditorUNet(config).to(memory_format=torch.channels_last)
    return fit(network, editor_batches(frames, batch_size), masked_step(codec), settings, validate, progress)


def refine_editor(
    masked: EditorUNet, frames: EditorFrames, codec: Codec, run_dir: str, steps: int = 4000, batch_size: int = 8, seed: int = 1,
    lr: float = 5e-4, validate: Validate | None = None, progress: Progress | None = None,
) -> EditorUNet:
    """Stage 1b from the masked editor's weights."""
    network = copy.deepcopy(masked).requires_grad_(True)
    exact = editor_batches(frames, max(batch_size // 2, 1), exact=True) if frames.exact_groups else None
    settings = TrainConfig(run_dir, steps, lr=lr, seed=seed, weights=WEIGHTS | {"forth": 0.2}, ema=0.998)
    return fit(network, editor_batches(frames, batch_size), refinement_step(codec, masked, exact), settings, validate, progress)
