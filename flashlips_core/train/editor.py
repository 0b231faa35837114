"""Stages "editor" (masked reconstruction, paper stage 1) and "refinement" (mask-free LipsChange, stage 1b).

B batch, R references. Latents (B, 4, 32, 32) at 256 px. The paper's loss terms that fit a CPU are used: latent L1, the same
inside the mask, pixel L1 in the mouth window and on the lips; a Laplacian term stands where the paper has VGG19 features.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..codec import Codec
from ..models.codec_mini import sharpness_loss
from ..models.editor_unet import UNET_MINI, EditorContext, EditorUNet, EditorUNetConfig
from ..models.lip_encoder import MOUTH_REGION, LipEncoder
from ..models.masks import lower_face_mask, mouth_mask
from ..types import Progress
from .editor_data import EditorFrames, draw_rows, lip_weights, window_cells, window_pixels
from .loop import MakeBatch, Step, TrainConfig, Validate, fit

WEIGHTS = {"latent": 0.2, "mask": 0.4, "pixel": 2.0, "lips": 5.0, "sharpness": 3.0}
READBACK_WEIGHT = 2.0
FORTH_WEIGHT = 5.0  # edits of real frames are what users ask for


@dataclass(frozen=True)
class EditorBatch:
    z_src: Tensor  # (B, 4, 32, 32) the frame
    z_near: Tensor  # (B, 4, 32, 32) a frame of the same clip and almost the same head pose
    pose: Tensor  # (B, 12) the frame's pose
    references: Tensor  # (B, R, 4, 32, 32)
    pixels: Tensor  # (B, 3, 128, 128) the frame's mouth window
    lips: Tensor  # (B, 4)
    other_pose: Tensor  # (B, 12) borrowed across identities


def editor_batches(frames: EditorFrames, batch_size: int) -> MakeBatch:
    """Frames with a neighbour, 1 to 3 references of their own clip, and a pose borrowed from anybody's."""

    def make(generator: torch.Generator) -> EditorBatch:
        references = int(torch.randint(1, 4, (), generator=generator))
        rows, near, others = draw_rows(frames, batch_size, references, generator)
        borrowed, _, _ = draw_rows(frames, batch_size, 0, generator)
        noise = torch.randn(batch_size, frames.poses.shape[1], generator=generator)
        return EditorBatch(
            frames.latents[rows].float().contiguous(memory_format=torch.channels_last),
            frames.latents[near].float().contiguous(memory_format=torch.channels_last), frames.poses[rows],
            frames.latents[others].float(), window_pixels(frames, rows), frames.lips[rows], frames.poses[borrowed] + 0.1 * noise,
        )  # fmt: skip

    return make


def edit_losses(z_hat: Tensor, z_target: Tensor, batch: EditorBatch, codec: Codec) -> dict[str, Tensor]:
    """The regression losses between an edit and its target; every second frame of the batch is decoded."""
    mask = lower_face_mask(*z_hat.shape[2:])
    error = (z_hat - z_target).abs()
    decoded = codec.decode(window_cells(z_hat[::2]))[:, :, 8:-8, 8:-8]  # the border lacks the decoder's context
    pixels = batch.pixels[::2, :, 8:-8, 8:-8]
    lips = lip_weights(batch.lips[::2], 128)[:, :, 8:-8, 8:-8]
    inside = F.interpolate(window_cells(mouth_mask(*z_hat.shape[2:])), scale_factor=8, mode="bilinear")[:, :, 8:-8, 8:-8]
    difference = (decoded - pixels).abs() * inside
    return {
        "latent": error.mean(),
        "mask": _masked_mean(error, mask),
        "pixel": difference.mean(),
        "lips": (difference * lips).sum() / (3 * lips.sum() + 1),
        "sharpness": sharpness_loss(decoded, pixels),
    }


def _masked_mean(error: Tensor, mask: Tensor) -> Tensor:
    return (error * mask).sum() / (mask.sum() * error.shape[0] * error.shape[1])


def near_loss(network: nn.Module, batch: EditorBatch, context: EditorContext, codec: Codec) -> Tensor:
    """Mask-free on real pixels: give the neighbour the frame's mouth. Its target is itself with the frame's mouth.

    Rendered heads keep perfectly still within a group, so their pairs are exact; real heads almost do.
    """
    target = torch.lerp(batch.z_near, batch.z_src, mouth_mask(*batch.z_src.shape[2:]))
    losses = edit_losses(network(batch.z_near, context, batch.pose), target, batch, codec)
    return sum(WEIGHTS[name] * value for name, value in losses.items())


def masked_step(codec: Codec) -> Step:
    """Stage 1: redraw the hidden lower face from references and the frame's own pose (Eqs. 1-3); near pairs beside it."""

    def step(network: nn.Module, batch: EditorBatch, generator: torch.Generator) -> dict[str, Tensor]:
        context = network.prepare_references(batch.references)
        z_masked = batch.z_src * (1 - lower_face_mask(*batch.z_src.shape[2:]))
        losses = edit_losses(network(z_masked, context, batch.pose), batch.z_src, batch, codec)
        return losses | {"near": near_loss(network, batch, context, codec)}

    return step


def readback_loss(z_hat: Tensor, pose: Tensor, codec: Codec, lip_encoder: LipEncoder) -> Tensor:
    """Distance between the pose that was asked for and the one that the frozen lip encoder reads from the edit (ours)."""
    height, width = z_hat.shape[2:]
    left, top, right, bottom = MOUTH_REGION
    rows = slice(int(top * height), min(math.ceil(bottom * height) + 1, height))
    columns = slice(int(left * width) - 1, math.ceil(right * width) + 1)
    decoded = codec.decode(z_hat[:, :, rows, columns])
    y, x = round(8 * height * top) - 8 * rows.start, round(8 * width * left) - 8 * columns.start
    mouth = decoded[:, :, y : y + round(8 * height * (bottom - top)), x : x + round(8 * width * (right - left))]
    size = lip_encoder.config.mouth_px
    mouth = F.interpolate(mouth.clamp(-1.2, 1.2), size=(size, size), mode="bilinear", antialias=True)
    return F.smooth_l1_loss(lip_encoder.read_mouths(mouth), pose)


def refinement_step(codec: Codec, masked: nn.Module, lip_encoder: LipEncoder | None = None) -> Step:
    """Stage 1b: the masked editor draws a variant with a borrowed mouth; the pair supervises mask-free edits both ways.

    Args:
        lip_encoder: frozen student that reads every second edit of a real frame back; None goes without.
    """
    masked = copy.deepcopy(masked).eval().requires_grad_(False)

    def step(network: nn.Module, batch: EditorBatch, generator: torch.Generator) -> dict[str, Tensor]:
        mask = lower_face_mask(*batch.z_src.shape[2:])
        with torch.no_grad():
            variant = masked(batch.z_src * (1 - mask), masked.prepare_references(batch.references), batch.other_pose)
            z_mod = torch.lerp(batch.z_src, variant, mouth_mask(*batch.z_src.shape[2:]))
        context = network.prepare_references(batch.references)
        losses = edit_losses(network(z_mod, context, batch.pose), batch.z_src, batch, codec)
        edited = network(batch.z_src, context, batch.other_pose)
        forth = (edited - z_mod).abs()
        if lip_encoder is not None:
            losses["readback"] = readback_loss(edited[::2], batch.other_pose[::2], codec, lip_encoder)
        losses["forth"] = WEIGHTS["latent"] * forth.mean() + WEIGHTS["mask"] * _masked_mean(forth, mask)
        return losses | {"near": near_loss(network, batch, context, codec)}

    return step


def train_editor(
    frames: EditorFrames,
    codec: Codec,
    run_dir: str,
    config: EditorUNetConfig = UNET_MINI,
    steps: int = 4000,
    batch_size: int = 8,
    seed: int = 0,
    lr: float = 1e-3,
    validate: Validate | None = None,
    progress: Progress | None = None,
) -> EditorUNet:
    """Stage 1 from random weights."""
    settings = TrainConfig(run_dir, steps, lr=lr, seed=seed, weights=WEIGHTS, ema=0.995)
    network = EditorUNet(config).to(memory_format=torch.channels_last)
    return fit(network, editor_batches(frames, batch_size), masked_step(codec), settings, validate, progress)


def refine_editor(
    masked: EditorUNet,
    frames: EditorFrames,
    codec: Codec,
    run_dir: str,
    lip_encoder: LipEncoder | None = None,
    steps: int = 4000,
    batch_size: int = 8,
    seed: int = 1,
    lr: float = 7e-4,
    validate: Validate | None = None,
    progress: Progress | None = None,
) -> EditorUNet:
    """Stage 1b from the masked editor's weights."""
    network = copy.deepcopy(masked).requires_grad_(True)
    step = refinement_step(codec, masked, lip_encoder)
    weights = WEIGHTS | {"forth": FORTH_WEIGHT, "readback": READBACK_WEIGHT}
    settings = TrainConfig(run_dir, steps, lr=lr, seed=seed, weights=weights, ema=0.995)
    return fit(network, editor_batches(frames, batch_size), step, settings, validate, progress)
