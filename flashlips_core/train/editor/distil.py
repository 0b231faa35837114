"""Stage "distil": a second editor learns what a trained one does, from its latents alone.

So a large editor gets a small twin for slower machines, or a U-Net one with the other backbone. The teacher's answer is known
wherever it is asked, so this needs neither pairs nor decoder nor judges.

G clips, B frames of them, R references; h w latent cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...codec import CELL_PX, Codec, load_codec
from ...loading import load_network, load_part
from ...models.editor_transformer import TRANSFORMER_MINI, EditorTransformer
from ...models.editor_unet import EditorUNet
from ...models.masks import mouth_mask
from ...types import FlashLipsError, Progress
from ..batches.frames import EditorFrames, draw_references, draw_rows, near_lips, window_cells
from ..looks import encoded_looks
from ..loop.processes import on_device
from ..loop.settings import setting
from ..loop.trainer import SHEET_BATCH, MakeBatch, Sheet, Step, TrainConfig, fit, step_generator
from ..run import Run, named
from .pairs import LIPS_SHARE, NUM_SHOWN, UNREAD_SHARE, mini_config

FRAMES_A_CLIP = 8  # share one clip's references, whose keys and values are most of a Transformer's work
BORROWED_SHARE = 0.5  # of the poses are anybody's; the rest are the clip's own
POSE_NOISE = 0.1  # deviation that borrowed poses are moved by

# By name, for the number of latent cells a side
STUDENTS: dict[str, Callable[[int], nn.Module]] = {
    "transformer-mini": lambda cells: EditorTransformer(replace(TRANSFORMER_MINI, window=mini_config(cells).window)),
    "unet-mini": lambda cells: EditorUNet(mini_config(cells)),
}


@dataclass(frozen=True)
class DistilSettings(TrainConfig):
    """Teach a second editor, smaller or with the other backbone, what the refined one does."""

    network: str = setting("transformer-mini", "transformer-mini or unet-mini")
    teacher: str | None = setting(None, "another editor than the run's")
    start: str | None = setting(None, "a pupil to go on with")
    steps: int = 6000
    batch_size: int = setting(16, f"frames per step, a multiple of {FRAMES_A_CLIP}")
    ema: float = 0.998
    references: int = setting(4, "how many a clip has")


@dataclass(frozen=True)
class ClipBatch:
    frames: Tensor  # (B, 4, h, w), B / G of each clip, clip by clip
    poses: Tensor  # (B, 12) what their lips are to do
    lips: Tensor  # (B, 4) mouth boxes, xyxy shares of the crop
    references: Tensor  # (G, R, 4, h, w)
    reference_poses: Tensor | None  # (G, R, 12)


def clip_batches(frames: EditorFrames, batch_size: int, num_references: int) -> MakeBatch:
    """Frames of a few clips with poses to give them.

    Raises:
        FlashLipsError: ``batch_size`` is no multiple of the frames that are taken of each clip.
    """
    if batch_size < 1 or batch_size % FRAMES_A_CLIP:
        raise FlashLipsError(f"The batch size is {batch_size}; it must be a multiple of {FRAMES_A_CLIP}, the frames of a clip.")

    def pick(groups: np.ndarray, generator: torch.Generator) -> np.ndarray:
        own = [frames.rows_of_group[group] for group in groups]
        return np.concatenate([rows[torch.randint(len(rows), (FRAMES_A_CLIP,), generator=generator).numpy()] for rows in own])

    def make(generator: torch.Generator) -> ClipBatch:
        firsts, _ = draw_rows(frames, batch_size // FRAMES_A_CLIP, generator)
        groups = frames.group_of[firsts]
        rows = pick(groups, generator)
        borrowed, _ = draw_rows(frames, batch_size, generator)
        noise = POSE_NOISE * torch.randn(batch_size, frames.poses.shape[1], generator=generator)
        is_borrowed = torch.rand(batch_size, 1, generator=generator) < BORROWED_SHARE
        poses = torch.where(is_borrowed, frames.poses[borrowed] + noise, frames.poses[pick(groups, generator)])
        references, read = draw_references(frames, firsts, num_references, generator)
        is_read = float(torch.rand((), generator=generator)) >= UNREAD_SHARE
        latents = frames.latents[rows].float().contiguous(memory_format=torch.channels_last)
        return ClipBatch(latents, poses, frames.lips[rows], references, read if is_read else None)

    return make


def edit_clips(editor: nn.Module, batch: ClipBatch) -> Tensor:
    """Every frame with its pose, as far as a mask-free edit may go. -> latents (B, 4, h, w)"""
    edited, count = [], len(batch.references)
    read = [None] * count if batch.reference_poses is None else batch.reference_poses.split(1)
    parts = batch.references.split(1), read, batch.frames.chunk(count), batch.poses.chunk(count)
    for references, reference_poses, frames, poses in zip(*parts, strict=True):
        edited.append(editor(frames, editor.prepare_references(references, reference_poses), poses))
    return torch.lerp(batch.frames, torch.cat(edited), mouth_mask(*batch.frames.shape[2:]))


def distillation_step(teacher: nn.Module) -> Step:
    """Latent L1 to the teacher's edits inside the mask, most of it around the lips."""

    def step(network: nn.Module, batch: ClipBatch, generator: torch.Generator) -> dict[str, Tensor]:
        with torch.no_grad():
            wanted = edit_clips(teacher, batch)
        cells = wanted.shape[-1]
        weight = mouth_mask(cells, cells) * ((1 - LIPS_SHARE) + LIPS_SHARE * near_lips(batch.lips, cells) * 4)
        difference = (edit_clips(network, batch) - wanted).abs() * weight
        return {"latent": difference.sum() / (weight.sum() * wanted.shape[1])}

    return step


def twin_sheet(batch: ClipBatch, teacher: nn.Module, codec: Codec) -> Sheet:
    """A picture of the same few frames every time: what is edited, the teacher's edit, the student's."""

    @torch.no_grad()
    def draw(network: nn.Module) -> Tensor:
        shown = on_device(batch, next(network.parameters()).device)
        rows = [shown.frames, edit_clips(teacher, shown), edit_clips(network, shown)]
        pictures = [codec.decode(window_cells(latents[:NUM_SHOWN])) for latents in rows]
        return torch.cat([torch.cat(list(row), 2) for row in pictures], 1).clamp(-1, 1)

    return draw


def distil_editor(
    teacher: nn.Module,
    student: nn.Module,
    frames: EditorFrames,
    codec: Codec,
    settings: DistilSettings,
    progress: Progress | None = None,
) -> nn.Module:
    """Train ``student``, for crops of the frames' size.

    Args:
        teacher: frozen, mask-free, for the same crops.
        codec: draws the sample sheets.
    """
    batches = clip_batches(frames, settings.batch_size, settings.references)
    sheet = twin_sheet(batches(step_generator(settings.seed, SHEET_BATCH)), teacher, codec)
    student = student.to(memory_format=torch.channels_last)
    return fit(student, batches, distillation_step(teacher), settings, progress=progress, sheet=sheet)


def distil(run: Run[DistilSettings]) -> Path:
    """Teach another network what the refined editor does."""
    settings, frames = run.settings, encoded_looks(run)
    crop_px = CELL_PX * frames.latents.shape[-1]
    teacher = load_part("editor", settings.teacher or run.folder, run.device)
    if teacher.is_stage_1:
        raise FlashLipsError("The teacher was trained on masked frames only (stage 1); choose a refined editor.")
    if teacher.crop_px != crop_px:
        raise FlashLipsError(f"The teacher edits crops of {teacher.crop_px} px, the looks have {crop_px}; encode them so.")
    student = named("editor", STUDENTS, settings.network)(frames.latents.shape[-1])
    if settings.start:
        start = load_network("editor", settings.start)
        if type(start) is not type(student) or start.config != student.config:
            raise FlashLipsError(
                f"The editor to start from is not a '{settings.network}' for these looks; choose another start, or none."
            )
        student.load_state_dict(start.state_dict())
    codec = load_codec(run.own("codec"), run.device)
    network = distil_editor(teacher.network, student, frames, codec, run.config("run_distil"), run.progress)
    return run.save(network, "editor", "editor-distilled", crop_px=crop_px, codec=teacher.codec, teacher=teacher.name)
