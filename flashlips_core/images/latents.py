"""The editor alone, on latents that somebody else has encoded. T frames, R references, h w latent size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..editing import edit_once
from ..models.editor import Editor
from ..models.masks import lower_face_mask
from ..system.memory import WithinMemory
from ..types import FlashLipsError, LipPoses, Progress


@torch.inference_mode()
def edit_latents(
    editor: Editor,
    target: Tensor,
    references: Tensor,
    poses: LipPoses,
    reference_poses: LipPoses | None = None,
    strength: float = 1.0,
    is_masked: bool = False,
    batch: int = 8,
    progress: Progress | None = None,
    show: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """The editor alone, between an encoder and a decoder. -> (T, 4, h, w) float32 on the CPU.

    Args:
        target: (T, 4, h, w) scaled latents of crops.
        references: (R, 4, h, w), of the same size.
        poses: T or more; those past the last target are not used.
        reference_poses: R, what the references' lips do; None lets the editor judge by their latents alone.
        strength: 0 leaves the target as it is, 1 is the edit.
        show: gets the first latent of each batch when it is edited, (4, h, w).
    """
    check_latents(target, references, poses)
    if reference_poses is not None and len(reference_poses) != len(references):
        raise FlashLipsError(f"Got {len(reference_poses)} reference poses for {len(references)} references; give one for each.")
    weight = next(editor.parameters())
    seen = None if reference_poses is None else reference_poses.values.to(weight)[None]
    context = editor.prepare_references(references.to(weight)[None], seen)
    mask = lower_face_mask(*target.shape[-2:]).to(weight) if is_masked else None
    edited, within_memory = [], WithinMemory(batch)

    def edit(source: Tensor, rows: Tensor) -> tuple[Tensor]:
        return (edit_once(editor, context, source.to(weight), rows.to(weight), mask).float().cpu(),)

    for source, rows in zip(target.split(batch), poses.values[: len(target)].split(batch), strict=True):
        (result,) = within_memory(edit, source, rows)
        edited.append(torch.lerp(source.float().cpu(), result, strength))
        if show is not None:
            show(edited[-1][0])
        if progress is not None:
            progress(sum(map(len, edited)), len(target))
    return torch.cat(edited)


def check_latents(target: Tensor, references: Tensor, poses: LipPoses) -> None:
    """Refuse what :func:`edit_latents` cannot use."""
    for name, latents in (("target", target), ("references", references)):
        if latents.ndim != 4 or latents.shape[1] != 4 or not len(latents):
            raise FlashLipsError(
                f"The {name} must be latents of SDXL's kind, (frames, 4, rows, columns), got {tuple(latents.shape)}; "
                "encode crops with Load Codec's VAE."
            )
    (rows, columns), (reference_rows, reference_columns) = target.shape[-2:], references.shape[-2:]
    if (rows, columns) != (reference_rows, reference_columns):
        raise FlashLipsError(
            f"The references are {reference_columns}x{reference_rows} latent cells, the target {columns}x{rows}; "
            "crop both to one size before encoding."
        )
    if len(poses) < len(target):
        raise FlashLipsError(
            f"Got {len(poses)} poses for {len(target)} target latents; give one pose per latent, at the frame rate of the images."
        )
