"""Stages "editor" (reconstruction, paper stage 1) and "refinement" (mask-free LipsChange, stage 1b).

B batch, R references; h w latent cells, 32x32 of a 256 px crop; H W the pixel window, 152x144 of a 256 px crop. Of the paper's
loss terms those that fit a CPU are used: latent L1 inside the mask, pixel L1 in the mouth window and on the lips; a Laplacian
term stands where the paper has VGG19 features. All of these are least for a blur where 12 numbers leave open how teeth and
creases lie; a term for the amount of fine detail stands against that (ours, ``losses.texture_loss``).

Ours: real frames of one clip are laid upon each other (``batches.frames``), so that two of them are a pair that differs in the
mouth alone. Such pairs supervise the mask-free editor from the start, beside the paper's masked reconstruction and its
pseudo-pairs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...codec import CELL_PX, Codec, load_codec
from ...loading import STAGE_1, load_network
from ...models.editor_unet import UNET_MINI, UNET_MINI_384, EditorUNet, EditorUNetConfig
from ...models.lip_encoder import MOUTH_REGION, LipEncoder
from ...models.masks import lower_face_mask, mouth_mask
from ...pretrained import load_vgg
from ...types import FlashLipsError, Progress
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
from ..looks import encoded_looks
from ..loop.processes import on_device
from ..loop.settings import setting
from ..loop.trainer import SHEET_BATCH, MakeBatch, Sheet, Step, TrainConfig, fit, frozen_copy, one_by_one, step_generator
from ..run import Run
from .losses import PerceptualLoss, sharpness_loss, texture_loss

WEIGHTS = {
    "latent": 1.0, "pixel": 3.0, "lips": 5.0, "sharpness": 12.0, "texture": 350.0,
    "readback": 0.3, "forth": 1.0, "perceptual": 0.2,
}  # fmt: skip
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
class PairSettings(TrainConfig):
    """What all training on pairs of encoded frames has."""

    batch_size: int = setting(16, "pairs per step")
    ema: float = 0.998
    vgg_stages: int = setting(0, "of VGG, that are compared; 0: none, the fastest")
    readback: float = setting(WEIGHTS["readback"], "weight of the lip encoder's verdict; more moves the lips further")
    texture: float = setting(WEIGHTS["texture"], "weight of the amount of fine detail; 0 leaves it out")
    references: int = setting(NUM_REFERENCES, "how many a batch has, four times out of five; else there is one")
    # an editor that always changes something blurs what fits
    alike: float = setting(0.2, "share of the neighbours whose mouth fits already")


@dataclass(frozen=True)
class EditorSettings(PairSettings):
    """Stage 1: masked reconstruction, and mask-free edits of pairs of real frames."""

    steps: int = 12_000
    start: str | None = setting(None, "an editor to go on from")
    masked: float = setting(0.25, "share of a batch whose lower face is hidden; the rest edits a neighbour mask-free")


@dataclass(frozen=True)
class RefinementSettings(PairSettings):
    """Stage 1b: mask-free self-refinement."""

    steps: int = 4000
    lr: float = 5e-4
    seed: int = 1


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


def reconstruction_step(judge: Judge, masked: float) -> Step:
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
    network: EditorUNet,
    frames: EditorFrames,
    judge: Judge,
    settings: EditorSettings,
    progress: Progress | None = None,
) -> EditorUNet:
    """Stage 1 of a network for crops of the frames' size."""
    network = network.to(memory_format=torch.channels_last)
    batches, config = _prepared(frames, settings)
    step = reconstruction_step(_textured(judge, settings), settings.masked)
    return fit(network, batches, step, config, progress=progress, sheet=_sheet(batches, judge, settings))


def refine_editor(
    drawer: EditorUNet,
    frames: EditorFrames,
    judge: Judge,
    settings: RefinementSettings,
    progress: Progress | None = None,
) -> EditorUNet:
    """Stage 1b from the weights of stage 1, whose editor also draws the variants."""
    network, (batches, config) = copy.deepcopy(drawer).requires_grad_(True), _prepared(frames, settings)
    step = refinement_step(_textured(judge, settings), frozen_copy(drawer))
    return fit(network, batches, step, config, progress=progress, sheet=_sheet(batches, judge, settings))


def _prepared(frames: EditorFrames, settings: PairSettings) -> tuple[MakeBatch, PairSettings]:
    weights = WEIGHTS | {"readback": settings.readback, "texture": settings.texture}
    batches = editor_batches(frames, settings.batch_size, settings.references, settings.alike)
    return batches, replace(settings, weights=weights)


def _textured(judge: Judge, settings: PairSettings) -> Judge:
    return replace(judge, is_textured=settings.texture > 0)


def _sheet(batches: MakeBatch, judge: Judge, settings: PairSettings) -> Sheet:
    return edit_sheet(batches(step_generator(settings.seed, SHEET_BATCH)), judge.codec)


# ---- the stages ------------------------------------------------------------------------------------------------------------


def editor(run: Run[EditorSettings]) -> Path:
    """Masked reconstruction and edits of pairs, by the small U-Net for the looks' crops."""
    frames, judge = encoded_looks(run), judge_of(run)
    network = EditorUNet(mini_config(frames.latents.shape[-1]))
    if run.settings.start:
        network.start_from(load_network("editor", run.settings.start))
    trained = train_editor(network, frames, judge, run.config("run_editor"), run.progress)
    return run.save(trained, STAGE_1, crop_px=CELL_PX * frames.latents.shape[-1])


def refinement(run: Run[RefinementSettings]) -> Path:
    """Mask-free self-refinement of the editor that the stage "editor" left."""
    frames, drawer = encoded_looks(run), load_network("editor", stage_1(run), run.device)
    trained = refine_editor(drawer, frames, judge_of(run), run.config("run_refinement"), run.progress)
    return run.save(trained, "editor", crop_px=CELL_PX * frames.latents.shape[-1])


def judge_of(run: Run[Any], codec: str | None = None, lip_encoder: str | None = None) -> Judge:
    """What an editor is trained against: the run's codec and lip encoder, or those named, and as much of VGG as is set."""
    stages = run.settings.vgg_stages
    return Judge(
        load_codec(run.own("codec", codec), run.device),
        load_network("lip-encoder", lip_encoder or run.folder, run.device),
        PerceptualLoss(load_vgg(run.weights, run.device, stages)) if stages else None,
    )


def stage_1(run: Run[Any]) -> Path:
    """The editor that the stage "editor" left."""
    path = run.folder / f"{STAGE_1}.safetensors"
    if not path.is_file():
        raise FlashLipsError(f"No {path.name} in {run.folder}; run the stage 'editor' first.")
    return path
