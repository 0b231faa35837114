"""Lip-sync for a batch of images in memory: the pixels that the edit does not touch keep their floats.

T images, H W their size, R references, S crop side in pixels. Short batches only: a clip is a file, see ``pipeline``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..checks import no_face_in
from ..editing import CropEditor
from ..face.points import OVAL
from ..pipeline import LipSync
from ..poses.motion import resample
from ..retrieval import crops_to_edit
from ..steps import SHARPEN, Cutter, DubSettings
from ..stream import batched
from ..system.memory import WithinMemory
from ..types import FaceTrack, FlashLipsError, LipPoses, Progress, Waiting
from .frames import check_track_of_images, cut_images, paste_images

LARGEST_BATCH_BYTES = 4 * 2**30  # of float32 images; 172 pictures of 1080p. The result is as large again


def edit_images(
    lipsync: LipSync,
    images: Tensor,
    track: FaceTrack,
    poses: LipPoses,
    references: Tensor | None = None,
    batch: int = 8,
    sharpen: float = SHARPEN,
    start: str = DubSettings.start,
    progress: Progress | None = None,
    show: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Images with the mouth in ``poses``.

    Args:
        images: (T, 3, H, W) float32 in [0, 1]; any strides.
        track: of these images; those without a face stay as they are.
        poses: resampled to the track's rate; the last pose is held.
        references: (R, 3, S, S) crops in [-1, 1]; None chooses among the images.
        sharpen: how much of the fine detail that the editor loses is put back, 0 to 1.
        start: "retrieved" or "frame", see :class:`DubSettings`.
        show: gets each edited crop (3, S, S) in [-1, 1].

    Returns (T, 3, H, W) with the strides of ``images``.
    """
    check_images(images, track)
    if not track.present.any():
        raise no_face_in("the images")
    given = None if references is None else check_references(references, lipsync.crop_px)
    settings = DubSettings(sharpen=sharpen, start=start, mode="masked" if lipsync.is_stage_1 else "mask-free")
    waiting = None if progress is None else lambda: progress(0, len(images))
    look = lipsync.look_at(_cutters(images, track, waiting), track)
    if given is not None:
        look = look.with_references(given)
    mouths = look.mouths if settings.is_retrieved else None
    editor = lipsync.prepared(look, settings, track.usual_side, waiting=waiting)
    size = mouths.size if mouths else lipsync.crop_px
    values, every = resample(poses, track.fps, len(images)).values, np.arange(len(images))
    starts, needs = lipsync.starts(look, values, track, every) if mouths else (None, None)
    outlines = None if track.landmarks is None else track.landmarks[:, OVAL]
    result, within_memory = images.clone(), WithinMemory(batch)
    for index in batched(np.flatnonzero(track.present).tolist(), batch):
        boxes, some = track.squares[index], images[index]
        crops = cut_images(some, boxes, size) * 2 - 1
        chosen, rims = (None if x is None else x[index] for x in (starts, outlines))
        laid, others = crops_to_edit(crops, boxes, rims, mouths, chosen)
        if needs is not None:
            others["need"] = torch.from_numpy(needs[index]).float()
        edit = partial(_edited, editor, float((boxes[:, 2] - boxes[:, 0]).min()), tuple(others))
        edited, alpha = within_memory(edit, laid, values[index], *others.values())
        result[index] = paste_images(some, boxes, (edited + 1) / 2, alpha)
        if show is not None:
            show(edited[0] * alpha[0] + crops[0] * (1 - alpha[0]))
        if progress is not None:
            progress(index[-1] + 1, len(images))
    return result


def _edited(editor: CropEditor, min_side: float, names: tuple[str, ...], crops: Tensor, poses: Tensor, *others: Tensor):
    return editor(crops, poses, min_side, **dict(zip(names, others, strict=True)))


def _cutters(images: Tensor, track: FaceTrack, waiting: Waiting | None) -> Iterator[Cutter]:
    """A cutter for each image that shows the face."""
    for i in np.flatnonzero(track.present):
        yield lambda size, i=i: cut_images(images[i : i + 1], track.squares[i : i + 1], size)[0] * 2 - 1
        if waiting is not None:
            waiting()


def check_images(images: Tensor, track: FaceTrack) -> None:
    """Refuse a batch that is too large for memory, or another one than the track's."""
    size = images.numel() * 4
    if size > LARGEST_BATCH_BYTES:
        raise FlashLipsError(
            f"{len(images)} images of {images.shape[3]}x{images.shape[2]} take {size / 2**30:.1f} GB, and as much again for the "
            f"result; up to {LARGEST_BATCH_BYTES / 2**30:.0f} GB is edited here: give the clip as a VIDEO to Lip-Sync Video."
        )
    check_track_of_images(track, images)


def check_references(references: Tensor, size: int) -> Tensor:
    """Reference crops (R, 3, S, S), if they have the editor's size."""
    if references.shape[-2:] != (size, size):
        height, width = references.shape[-2:]
        raise FlashLipsError(
            f"The references are {width}x{height} pixels, the editor sees crops of {size}x{size}; make them with Crop Faces "
            f"at size {size}, or leave them out."
        )
    return references
