"""Stages "editor" (reconstruction, paper stage 1) and "refinement" (mask-free LipsChange, stage 1b).

B batch, R references; h w latent cells, 32x32 of a 256 px crop; H W the pixel window, 152x144 of a 256 px crop. Of the paper's
loss terms those that fit a CPU are used: latent L1 inside the mask, pixel L1 in the mouth window and on the lips; a Laplacian
term stands where the paper has VGG19 features. All of these are least for a blur where 12 numbers leave open how teeth and
creases lie; a term for the amount of fine detail stands against that (ours, ``losses.texture_loss``).

Ours: real frames of one clip are laid upon each other (``editor_data``), so that two of them are a pair that differs in the mouth
alone. Such pairs supervise the mask-free editor from the start, beside the paper's masked reconstruction and its pseudo-pairs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...codec import CELL_PX, Codec
from ...models.editor_unet import UNET_MINI, UNET_MINI_384, EditorUNet, EditorUNetConfig
from ...models.lip_encoder import MOUTH_REGION, LipEncoder
from ...models.masks import lower_face_mask, mouth_mask
from ...types import Progress
from ..batches.frames import (
    EditorFrames,
    draw_references,
    draw_rows,
    lip_weights,
    near_lips,
    window_cells,
    window_of,
    window_pixels,
)
from ..loop.processes import on_device
from ..loop.trainer import (
    SHEET_BATCH,
    MakeBatch,
    Sheet,
    Step,
    TrainConfig,
    Validate,
    fit,
    frozen_copy,
    one_by_one,
    step_generator,
)
from .losses import PerceptualLoss, sharpness_loss, texture_loss

WEIGHTS = {
    "latent": 1.0, "pixel": 3.0, "lips": 5.0, "sharpness": 12.0, "texture": 350.0,
    "readback": 0.3, "forth": 1.0, "perceptual": 0.2,
}  # fmt: skip
MASKED_SHARE = 0.25  # of a batch reconstructs masked frames; the rest edits a neighbour mask-free
ALIKE_SHARE = 0.2  # of the neighbours have the frame's mouth already: an editor that always changes something blurs what fits
NUM_REFERENCES = 6  # of a batch, four times out of five; else there is one
UNREAD_SHARE = 0.15  # of the batches do not say what the references' lips do, as callers may not know
BLUR_PX = 11  # averages a camera's noise away, leaves what moved
# The same square, one side after the other, which is quicker: kernel, stride, padding
ALONG_ROWS, ALONG_COLUMNS = ((1, BLUR_PX), 1, (0, BLUR_PX // 2)), ((BLUR_PX, 1), 1, (BLUR_PX // 2, 0))
MOVED = (0.08, 0.18)  # blurred difference, of 2 between black and white, from which a place counts as moved a little, and wholly
VARIANT_MARGIN = 0.1  # of the crop: what a variant may change around the lips
LIPS_SHARE = 0.75  # of the latent loss counts around the lips, where the motion is
LIPS_PART = (0.11, 0.21, 0.89, 0.74)  # of the pixel window, left, top, right, bottom: what VGG compares, lips and a little around
NUM_SHOWN = 8  # columns of a sample sheet
EDGE = 8  # pixels at the window's border, which lack the decoder's context


@dataclass(frozen=True)
class EditorBatch:
    z_src: Tensor  # (B, 4, h, w) the frame
    z_near: Tensor  # (B, 4, h, w) another frame of the same clip, laid upon it, with another mouth
    pose: Tensor  # (B, 12) the frame's pose
    references: Tensor  # (B, R, 4, h, w)
    reference_poses: Tensor | None  # (B, R, 12)
    pixels: Tensor  # (B, 3, H, W) the frame's mouth window
    near_pixels: Tensor  # (B, 3, H, W) the neighbour's
    lips: Tensor  # (B, 4)
    other_pose: Tensor  # (B, 12) borrowed across identities


def editor_batches(frames: EditorFrames, batch_size: int, num_references: int = NUM_REFERENCES, alike: float = 0.0) -> MakeBatch:
    """Frames with a neighbour, references of their own clip, and a pose borrowed from anybody's."""

    def make(generator: torch.Generator) -> EditorBatch:
        count = num_references if torch.rand((), generator=generator) < 0.8 else 1
        rows, near = draw_rows(frames, batch_size, generator, alike)
        borrowed, _ = draw_rows(frames, batch_size, generator)
        noise = torch.randn(batch_size, frames.poses.shape[1], generator=generator)
        references, read = draw_references(frames, rows, count, generator)
        is_read = float(torch.rand((), generator=generator)) >= UNREAD_SHARE
        return EditorBatch(
            frames.latents[rows].float().contiguous(memory_format=torch.channels_last),
            frames.latents[near].float().contiguous(memory_format=torch.channels_last), frames.poses[rows],
            references, read if is_read else None, window_pixels(frames, rows), window_pixels(frames, near),
            frames.lips[rows], frames.poses[borrowed] + 0.1 * noise,
        )  # fmt: skip

    return make


@dataclass(frozen=True)
class Judge:
    """What measures an edit, all frozen: the codec and, where given, the lip encoder that reads the edit back (ours) and VGG."""

    codec: Codec
    lip_encoder: LipEncoder | None = None
    perceptual: PerceptualLoss | None = None
    is_textured: bool = True  # whether edits must have as much detail as what they should have been
    recompute: bool = False  # decode window by window, and again in the backward pass: memory of one window instead of B

    def losses(
        self, z_hat: Tensor, target: tuple[Tensor, Tensor], batch: EditorBatch, region: Tensor, rows: slice
    ) -> dict[str, Tensor]:
        """The regression losses of edits towards what they should have been.

        Args:
            target: latents (B, 4, h, w) and the pixels of their window (B, 3, H, W).
            region: (B, 1, h, w) where the edit was free.
            rows: which of the batch are decoded for the pixel losses and read back.
        """
        z_target, pixels = target[0], target[1][rows]
        cells = z_hat.shape[-1]
        weight = region * ((1 - LIPS_SHARE) + LIPS_SHARE * near_lips(batch.lips, cells) * 4)
        decoded = self._decode(z_hat[rows])
        inside = F.interpolate(window_cells(region[rows]), scale_factor=8, mode="bilinear")
        lips = without_edge(lip_weights(batch.lips[rows], cells) * inside)
        difference = without_edge((decoded - pixels) * inside)
        losses = {
            "latent": ((z_hat - z_target).abs() * weight).sum() / (weight.sum() * z_hat.shape[1]),
            "pixel": difference.abs().sum() / (3 * without_edge(inside).sum()),
            "lips": (difference.abs() * lips).sum() / (3 * lips.sum() + 1),
            "sharpness": sharpness_loss(difference, torch.zeros_like(difference)),
        }
        if self.lip_encoder is not None:
            losses["readback"] = self._readback(decoded, batch.pose[rows], cells)
        if self.perceptual is not None:
            height, width = decoded.shape[2:]
            left, top, right, bottom = (round(s * n) for s, n in zip(LIPS_PART, (width, height) * 2, strict=True))
            ours, theirs = (x[::2, :, top:bottom, left:right] for x in (decoded, pixels))
            losses["perceptual"] = self.perceptual(ours, theirs)
        if self.is_textured:
            with torch.no_grad():  # what the codec itself loses is not the editor's to add
                round_trip = self._decode(z_target[rows])
            losses["texture"] = texture_loss(without_edge(decoded), without_edge(round_trip))
        return losses

    def readback(self, z_hat: Tensor, poses: Tensor) -> Tensor:
        """Distance between the poses that were asked for and those that the lip encoder reads from the edits."""
        return self._readback(self._decode(z_hat), poses, z_hat.shape[-1])

    def _decode(self, latents: Tensor) -> Tensor:
        """The pixels (B, 3, H, W) of the latents' windows."""
        cells = window_cells(latents)
        return one_by_one(self.codec.decode, cells) if self.recompute else self.codec.decode(cells)

    def _readback(self, decoded: Tensor, poses: Tensor, cells: int) -> Tensor:
        mouths = mouths_of(decoded, cells, self.lip_encoder.config.mouth_px)
        return F.smooth_l1_loss(self.lip_encoder.read_mouths(mouths), poses)


def moved(pixels_a: Tensor, pixels_b: Tensor) -> Tensor:
    """Where two frames that lie upon each other differ by more than noise, (B, 3, H, W) twice -> (B, 1, H, W) in [0, 1].

    Two frames of a camera differ everywhere. An editor that is asked for the other frame's noise smooths the skin; one that is
    asked only for what moved keeps it.
    """
    difference = _blurred(pixels_a - pixels_b).abs().amax(1, keepdim=True)
    share = ((difference - MOVED[0]) / (MOVED[1] - MOVED[0])).clamp(0, 1)
    widest = F.max_pool2d(F.max_pool2d(share, *ALONG_ROWS), *ALONG_COLUMNS)
    return _blurred(widest)


def _blurred(images: Tensor) -> Tensor:
    along = F.avg_pool2d(images, *ALONG_ROWS, count_include_pad=False)
    return F.avg_pool2d(along, *ALONG_COLUMNS, count_include_pad=False)


def pair_target(batch: EditorBatch, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The neighbour with the frame's mouth: the frame on the lips and where something moved inside the mask, itself elsewhere."""
    rows, columns = mask.shape[2:]
    changed = torch.maximum(moved(batch.near_pixels, batch.pixels), lip_weights(batch.lips, columns))
    share = changed * F.interpolate(window_cells(mask), scale_factor=8, mode="bilinear")
    top, left, height, width = window_of(columns)
    cells = F.pad(F.avg_pool2d(share, 8), (left, columns - left - width, top, rows - top - height))
    return torch.lerp(batch.z_near, batch.z_src, cells), torch.lerp(batch.near_pixels, batch.pixels, share)


def mouths_of(windows: Tensor, cells: int, size: int) -> Tensor:
    """The lip encoder's mouth region of decoded windows of crops of ``cells`` cells, (B, 3, H, W) -> (B, 3, size, size)."""
    top, left, _, _ = (CELL_PX * v for v in window_of(cells))
    x0, y0, x1, y1 = (round(CELL_PX * cells * share) for share in MOUTH_REGION)
    mouths = windows[:, :, y0 - top : y1 - top, x0 - left : x1 - left].clamp(-1.2, 1.2)
    return F.interpolate(mouths, size=(size, size), mode="bilinear", antialias=True)


def without_edge(window: Tensor) -> Tensor:
    """A decoded window less the pixels that lack their surroundings."""
    return window[:, :, EDGE:-EDGE, EDGE:-EDGE]


def _first(batch_size: int, share: float) -> Tensor:
    """(B, 1, 1, 1) bool: the first ``share`` of a batch, whose rows come in no order."""
    return (torch.arange(batch_size) < round(share * batch_size))[:, None, None, None]


def reconstruction_step(judge: Judge, masked: float = MASKED_SHARE) -> Step:
    """Stage 1: a share of the batch redraws the hidden lower face of its own frame (Eqs. 1-3), the rest edits the neighbour."""

    def step(network: nn.Module, batch: EditorBatch, generator: torch.Generator) -> dict[str, Tensor]:
        cells = batch.z_src.shape[2:]
        is_masked = _first(len(batch.pose), masked)
        region = torch.where(is_masked, lower_face_mask(*cells), mouth_mask(*cells))
        given = torch.where(is_masked, batch.z_src * (1 - region), batch.z_near)
        drawn = network(given, network.prepare_references(batch.references, batch.reference_poses), batch.pose)
        z_hat = torch.lerp(torch.where(is_masked, batch.z_src, batch.z_near), drawn, region)
        paired = pair_target(batch, mouth_mask(*cells))
        target = tuple(torch.where(is_masked, own, pair) for own, pair in zip((batch.z_src, batch.pixels), paired, strict=True))
        return judge.losses(z_hat, target, batch, region, slice(None, None, 2))

    return step


def refinement_step(judge: Judge, drawer: nn.Module) -> Step:
    """Stage 1b: the editor of stage 1 draws variants with borrowed mouths; the pairs supervise mask-free edits both ways.

    A quarter of the batch edits a variant back to the real frame, half of it a real neighbour; the last quarter edits the real
    frame to the borrowed pose, and is held to the variant around the lips and to the pose, by the lip encoder, on them.

    Args:
        drawer: frozen, and not the network that learns.
    """

    def step(network: nn.Module, batch: EditorBatch, generator: torch.Generator) -> dict[str, Tensor]:
        mask, cells = mouth_mask(*batch.z_src.shape[2:]), batch.z_src.shape[-1]
        size = len(batch.pose)
        quarter = size // 4
        with torch.no_grad():
            variant = drawer(batch.z_src, drawer.prepare_references(batch.references, batch.reference_poses), batch.other_pose)
            z_mod = torch.lerp(batch.z_src, variant, near_lips(batch.lips, cells, VARIANT_MARGIN) * mask)
        is_back, is_forth = _first(size, quarter / size), ~_first(size, 1 - quarter / size)
        given = torch.where(is_back, z_mod, torch.where(is_forth, batch.z_src, batch.z_near))
        pose = torch.where(is_forth[:, 0, 0], batch.other_pose, batch.pose)
        drawn = network(given, network.prepare_references(batch.references, batch.reference_poses), pose)
        z_hat = torch.lerp(given, drawn, mask)
        paired = pair_target(batch, mask)
        target = tuple(torch.where(is_back, own, pair) for own, pair in zip((batch.z_src, batch.pixels), paired, strict=True))
        losses = judge.losses(z_hat, target, batch, mask * (~is_forth), slice(0, size - quarter, 2))
        forth = slice(size - quarter, None)
        around = mask * (1 - near_lips(batch.lips[forth], cells))
        losses["forth"] = ((z_hat[forth] - z_mod[forth]).abs() * around).sum() / (around.sum() * z_hat.shape[1])
        if judge.lip_encoder is not None:
            losses["readback"] = losses["readback"] + judge.readback(z_hat[forth], pose[forth])
        return losses

    return step


def edit_neighbours(network: nn.Module, batch: EditorBatch) -> Tensor:
    """Every neighbour with its frame's mouth, mask-free. -> latents (B, 4, h, w)"""
    drawn = network(batch.z_near, network.prepare_references(batch.references, batch.reference_poses), batch.pose)
    return torch.lerp(batch.z_near, drawn, mouth_mask(*batch.z_near.shape[2:]))


def edit_sheet(batch: EditorBatch, codec: Codec) -> Sheet:
    """A picture of the same few pairs every time: what is edited, the edit, and the frame whose mouth it should have."""

    @torch.no_grad()
    def draw(network: nn.Module) -> Tensor:
        shown = on_device(batch, next(network.parameters()).device)
        edits = codec.decode(window_cells(edit_neighbours(network, shown)))
        rows = [torch.cat(list(pixels[:NUM_SHOWN]), 2) for pixels in (shown.near_pixels, edits, shown.pixels)]
        return torch.cat(rows, 1).clamp(-1, 1)

    return draw


def mini_config(cells: int) -> EditorUNetConfig:
    """The small U-Net for crops of ``cells`` latent cells a side."""
    return UNET_MINI_384 if cells == 48 else UNET_MINI


def train_editor(
    frames: EditorFrames,
    codec: Codec,
    run_dir: str,
    lip_encoder: LipEncoder | None = None,
    perceptual: PerceptualLoss | None = None,
    config: EditorUNetConfig | None = None,
    steps: int = 12000,
    batch_size: int = 16,
    seed: int = 0,
    lr: float = 1e-3,
    ema: float = 0.998,
    readback: float = WEIGHTS["readback"],
    texture: float = WEIGHTS["texture"],
    masked: float = MASKED_SHARE,
    references: int = NUM_REFERENCES,
    alike: float = ALIKE_SHARE,
    start: EditorUNet | None = None,
    validate: Validate | None = None,
    progress: Progress | None = None,
    **loop: object,
) -> EditorUNet:
    """Stage 1, from random weights or from those of ``start``; ``loop`` are further settings of TrainConfig.

    Args:
        config: None is the small network for crops of this size.
        readback: weight of the lip encoder's verdict; more moves the lips further.
        texture: weight of the amount of fine detail; 0 leaves it out.
        masked: share of a batch whose lower face is hidden.
        references: how many a batch has, four times out of five.
        alike: share of the neighbours whose mouth fits already.
    """
    network = EditorUNet(config or mini_config(frames.latents.shape[-1])).to(memory_format=torch.channels_last)
    if start is not None:
        network.start_from(start)
    judge = Judge(codec, lip_encoder, perceptual, is_textured=texture > 0)
    weights = WEIGHTS | {"readback": readback, "texture": texture}
    settings = TrainConfig(run_dir, steps, lr=lr, seed=seed, weights=weights, ema=ema, **loop)
    batches = editor_batches(frames, batch_size, references, alike)
    sheet = edit_sheet(batches(step_generator(seed, SHEET_BATCH)), codec)
    return fit(network, batches, reconstruction_step(judge, masked), settings, validate, progress, sheet)


def refine_editor(
    drawer: EditorUNet,
    frames: EditorFrames,
    codec: Codec,
    run_dir: str,
    lip_encoder: LipEncoder | None = None,
    perceptual: PerceptualLoss | None = None,
    steps: int = 4000,
    batch_size: int = 16,
    seed: int = 1,
    lr: float = 5e-4,
    ema: float = 0.998,
    readback: float = WEIGHTS["readback"],
    texture: float = WEIGHTS["texture"],
    references: int = NUM_REFERENCES,
    alike: float = ALIKE_SHARE,
    validate: Validate | None = None,
    progress: Progress | None = None,
    **loop: object,
) -> EditorUNet:
    """Stage 1b from the weights of stage 1, whose editor also draws the variants.

    Args:
        readback: weight of the lip encoder's verdict; more moves the lips further.
        texture: weight of the amount of fine detail; 0 leaves it out.
        references: how many a batch has, four times out of five.
        alike: share of the neighbours whose mouth fits already.
    """
    network, judge = copy.deepcopy(drawer).requires_grad_(True), Judge(codec, lip_encoder, perceptual, is_textured=texture > 0)
    weights = WEIGHTS | {"readback": readback, "texture": texture}
    settings = TrainConfig(run_dir, steps, lr=lr, seed=seed, weights=weights, ema=ema, **loop)
    batches = editor_batches(frames, batch_size, references, alike)
    sheet = edit_sheet(batches(step_generator(seed, SHEET_BATCH)), codec)
    step = refinement_step(judge, frozen_copy(drawer))
    return fit(network, batches, step, settings, validate, progress, sheet)
