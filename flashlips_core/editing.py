"""From frames to frames with another mouth: crops, latents, editor, alpha, changed pixels, paste.

B batch, R references, S crop side in pixels, h w = S / 8. Only face crops become floats; frames stay as they were coded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .clock import StageClock
from .codec import CELL_PX, Codec, crop_decode, encode_part
from .compose import alpha_from_latents, cut_batch, paste
from .face.region import face_region
from .models.masks import lips_region, lower_face_mask, mouth_mask
from .poses import at_times
from .retrieval import Mouths, lay
from .sharpen import UnsharpMask, matching_mask
from .stream import awaited, batched, prefetch
from .turned import to_shares
from .types import ClipInfo, FlashLipsError, Frame, LipPoses, Progress, Waiting
from .within_memory import WithinMemory

NUM_MEASURED = 4  # references whose edits show how soft this editor draws this mouth
REDRAWN = (0.25, 0.8)  # mean |change| of a latent from which an edit begins to replace what the frame shows, and does so fully
LAID = 8.0  # times a laid mouth's weight is the weight that it is pasted with: fully, but for the last of its rim
AREA_PX = 4  # crop pixels per pixel of the face's area, which is soft anyway
PREFETCH_BATCHES = 1  # ready, beside the one being made and the one being worked on: more only costs memory


class CropEditor:
    """Codec and editor for one clip: the references are encoded and prepared once.

    Args:
        references: (R, 3, S, S) in [-1, 1].
        reference_poses: (R, 12) what their lips do; None lets the editor judge by the pictures alone.
        is_masked: Whether this is a stage-1 editor, which must not see the lower face.
        waiting: Called before each reference is encoded.
        sharpen: How much of the fine detail that edits of the references lose is put back by an unsharp mask; needs their
            poses. 0 leaves edits as they are drawn, 1 makes them as sharp as the references.
        box_side: Usual side of the box that crops are pasted into, in frame pixels; None: that of the crops.
        keeps_detail: Whether what the codec cannot draw stays where an edit changes little (ours): the difference of two decodes
            is added to the crop, and fades into plain replacement. Crops may then be larger than the references.
    """

    def __init__(
        self,
        codec: Codec,
        editor: nn.Module,
        references: Tensor,
        reference_poses: Tensor | None = None,
        is_masked: bool = False,
        clock: StageClock | None = None,
        waiting: Waiting | None = None,
        sharpen: float = 0.0,
        box_side: float | None = None,
        keeps_detail: bool = False,
    ) -> None:
        weight = next(editor.parameters())
        self.codec, self.editor, self.keeps_detail = codec, editor, keeps_detail
        self.size = references.shape[-1]
        self.device, self.dtype = weight.device, weight.dtype
        self.clock = clock or StageClock()
        self.mask = None
        self.view = self._view((references.shape[-2] // CELL_PX, references.shape[-1] // CELL_PX))
        with torch.inference_mode(), self.clock("references"):
            parts = awaited(self._moved(references).split(1), waiting)
            latents = torch.cat([encode_part(codec, part, self.view) for part in parts])
            poses = None if reference_poses is None else reference_poses.to(latents)[None]
            self.context = editor.prepare_references(latents[None], poses)
            if is_masked:
                self.mask = lower_face_mask(*latents.shape[-2:]).to(latents)
            self.unsharp = UnsharpMask()
            if sharpen and poses is not None:
                self.unsharp = self._unsharp_mask(references, latents, poses[0], sharpen, box_side, waiting)

    def _unsharp_mask(
        self, crops: Tensor, latents: Tensor, poses: Tensor, share: float, box_side: float | None, waiting: Waiting | None
    ) -> UnsharpMask:
        """What makes up for the softness of edits: some references are given each other's mouths."""
        rows = torch.linspace(0, len(crops) - 1, min(len(crops), NUM_MEASURED)).round().long()
        redrawn = []
        for i, j in awaited(zip(rows, rows.roll(1), strict=True), waiting):
            edited = self.edit(latents[i : i + 1], poses[j : j + 1])
            redrawn.append(self.codec.decode(edited[(..., *self.view)]).float().cpu())
        view = tuple(slice(CELL_PX * part.start, CELL_PX * part.stop) for part in self.view)
        scale = crops.shape[-1] / (box_side or crops.shape[-1])
        return matching_mask(torch.cat(redrawn), crops[rows][(..., *view)], lips_region(*crops.shape[-2:])[view], scale, share)

    @torch.inference_mode()
    def __call__(
        self,
        crops: Tensor,
        poses: Tensor,
        min_side: float | None = None,
        laid: Tensor | None = None,
        area: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Edited crops (B, 3, F, F), valid in and around where alpha is above 0, and alpha (B, 1, F, F); float32 on the CPU.

        Args:
            crops: (B, 3, F, F) in [-1, 1]; F is S, or more where detail is kept.
            poses: (B, 12).
            min_side: side in pixels of the smallest box to be pasted into; the crop is decoded wide enough for that shrinking.
            laid: (B, 1, F, F) where the crops already are not the frame's own, see ``retrieval``: that is pasted too.
            area: (B, 1, n, n) in [0, 1] what of the crops may be edited, see ``face.region``; None: the mouth's ellipse.
        """
        size = crops.shape[-1]
        with self.clock.on_device("encode crop"):
            source = encode_part(self.codec, self._moved(resized(crops, self.size)), self.view)
        with self.clock.on_device("edit"):
            edited = self.edit(source, poses.to(self.device, self.dtype), area)
        with self.clock.on_device("alpha"):
            alpha = alpha_from_latents(source, edited, size).float().cpu()
            if laid is not None:
                alpha = torch.maximum(alpha, (LAID * laid).clamp(max=1))
        with self.clock.on_device("decode crop"):
            margin = _margin(size, min_side or size) + math.ceil(self.unsharp.reach * size / self.size)
            rgb = self._decoded(crops, source, edited, changed_region(alpha, margin, CELL_PX * size // self.size))
        self.clock.settle()
        return rgb, alpha

    def _decoded(
        self, crops: Tensor, source: Tensor, edited: Tensor, region: tuple[int, int, int, int] | None
    ) -> Tensor:
        """The crops with the changed region, x0 y0 x1 y1 in cells, decoded as far as the view goes. float32 on the CPU."""
        rgb = crops.float().cpu().clone()
        if region is None:
            return rgb
        rows, columns = self.view
        x0, y0, x1, y1 = region
        x0, y0, x1, y1 = max(x0, columns.start), max(y0, rows.start), min(x1, columns.stop), min(y1, rows.stop)
        inside = (x0 - columns.start, y0 - rows.start, x1 - columns.start, y1 - rows.start)
        cell = CELL_PX * crops.shape[-1] // self.size
        place = (..., slice(cell * y0, cell * y1), slice(cell * x0, cell * x1))
        drawn = crop_decode(self.codec, edited[..., rows, columns], inside)
        pixels = self.unsharp(drawn)
        if self.keeps_detail:
            shown = crop_decode(self.codec, source[..., rows, columns], inside)
            part = (slice(y0, y1), slice(x0, x1))
            redrawn = _redrawn(source, edited)[(..., *part)]
            shape = rgb[place].shape[-2:]
            drawn, shown, pixels, redrawn = (_stretched(x.float().cpu(), shape) for x in (drawn, shown, pixels, redrawn))
            pixels = torch.lerp(rgb[place] + drawn - shown, pixels, redrawn)
        rgb[place] = pixels.clamp(-1, 1).float().cpu()
        return rgb

    def _view(self, cells: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of cells that go through the codec: all of them, unless editor and codec both work locally."""
        if self.codec.halo is None:
            return slice(0, cells[0]), slice(0, cells[1])
        return self.editor.view_slices(cells)

    def edit(self, source: Tensor, poses: Tensor, area: Tensor | None = None) -> Tensor:
        """Edited latents of frames' latents (B, 4, h, w) and poses (B, 12), all on the editor's device.

        Args:
            area: (B, 1, n, n) in [0, 1]; outside, latents stay as they are.
        """
        edited = edit_once(self.editor, self.context, source, poses, self.mask)
        if area is None:
            return edited
        weight = F.interpolate(area, size=source.shape[-2:], mode="bilinear", antialias=True).to(source)
        return torch.lerp(source, edited, weight)

    def _moved(self, images: Tensor) -> Tensor:
        return images.to(self.device, self.dtype, memory_format=torch.channels_last)


def resized(crops: Tensor, size: int) -> Tensor:
    """Square crops (B, 3, F, F) at another side, antialiased."""
    if crops.shape[-1] == size:
        return crops
    return F.interpolate(crops, size=(size, size), mode="bilinear", antialias=True)


def _stretched(x: Tensor, shape: torch.Size) -> Tensor:
    return x if x.shape[-2:] == shape else F.interpolate(x, size=shape, mode="bilinear", align_corners=False)


def _redrawn(source: Tensor, edited: Tensor) -> Tensor:
    """Where an edit changes too much for what was there to shine through, 0 to 1. (B, 4, h, w) twice -> (B, 1, h, w)."""
    change = (edited - source).float().abs().mean(1, keepdim=True)
    low, high = REDRAWN
    ramp = ((F.avg_pool2d(change, 3, stride=1, padding=1, count_include_pad=False) - low) / (high - low)).clamp(0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def edit_once(editor: nn.Module, context: object, source: Tensor, poses: Tensor, mask: Tensor | None) -> Tensor:
    """Edited latents of (B, 4, h, w) and (B, 12); ``mask`` is what a stage-1 editor must not see, None for a refined one."""
    if mask is None:
        return torch.lerp(source, editor(source, context, poses), mouth_mask(*source.shape[-2:]).to(source))
    return torch.lerp(source, editor(source * (1 - mask), context, poses), mask)


@torch.inference_mode()
def edit_latents(
    editor: nn.Module,
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


def changed_region(alpha: Tensor, margin: int, cell: int = CELL_PX) -> tuple[int, int, int, int] | None:
    """Smallest rectangle of latent cells that holds every changed pixel of a batch and ``margin`` pixels around. x0 y0 x1 y1.

    Args:
        cell: Pixels of alpha that a latent cell stands for.
    """
    changed = (alpha > 0).any(0)[0]  # S S
    if not changed.any():
        return None
    size = alpha.shape[-1]
    edges = []
    for axis in (0, 1):  # columns, rows
        index = changed.any(axis).nonzero()
        low, high = int(index[0]) - margin, int(index[-1]) + 1 + margin
        edges.append((max(low, 0) // cell, -(-min(high, size) // cell)))
    (x0, x1), (y0, y1) = edges
    return x0, y0, x1, y1


def _margin(size: int, min_side: float) -> int:
    """Pixels around the changed ones that pasting reads: the reach of alpha's linear and halved chroma's cubic resampling."""
    return math.ceil(5 * max(1.0, size / max(min_side, 1.0))) + 2


@dataclass
class Counts:
    """What happened to the frames so far."""

    frames: int = 0
    edited: int = 0
    without_face: int = 0


@dataclass(frozen=True)
class FrameRows:
    """What to do with each output frame, row by row."""

    boxes: np.ndarray  # (T, 5) float32 crop squares, as a track's ``squares``
    present: np.ndarray  # (T,) bool
    poses: LipPoses  # one per frame, or read by the frames' times
    uneven: ClipInfo | None = None  # the clip, where its frames are not evenly spaced
    outlines: np.ndarray | None = None  # (T, K, 2) the face's outline in pixels, where somebody has looked
    starts: np.ndarray | None = None  # (T,) int: which of the editor's mouths each frame starts from, -1 for its own

    def __len__(self) -> int:
        return len(self.present)


@dataclass
class _Batch:
    frames: list[Frame]
    rows: list[int]  # those of ``frames`` that show the face
    boxes: np.ndarray  # (n, 5)
    crops: Tensor | None  # (n, 3, F, F)
    poses: Tensor  # (n, 12)
    laid: Tensor | None = None  # (n, 1, F, F)
    area: Tensor | None = None  # (n, 1, m, m)
    rgb: Tensor | None = None
    alpha: Tensor | None = None


@dataclass
class FrameEditor:
    """Edits a stream of frames: cutting, the networks and pasting each in a thread of its own, with bounded queues between.

    Memory does not grow with the clip; results do not depend on the batch size.
    """

    crop_editor: CropEditor
    size: int  # F: of the crops that are cut, S or more
    batch: int = 8
    clock: StageClock = field(default_factory=StageClock)
    counts: Counts = field(default_factory=Counts)
    mouths: Mouths | None = None  # what frames may start from

    def __post_init__(self) -> None:
        self._within_memory = WithinMemory(self.batch)

    def __call__(self, frames: Iterator[Frame], rows: FrameRows, waiting: Waiting | None = None) -> Iterator[Frame]:
        """The frames with the mouth changed where ``rows`` say so; the others as they are."""
        cut_batches = prefetch(self._cut(frames, rows), PREFETCH_BATCHES)
        edited = prefetch(self._edit(cut_batches), PREFETCH_BATCHES)
        return prefetch(self._paste(edited), self.batch, waiting)

    def _cut(self, frames: Iterator[Frame], rows: FrameRows) -> Iterator[_Batch]:
        start, first_pts = 0, None
        try:
            for group in batched(frames, self.batch):
                first_pts = group[0].pts if first_pts is None else first_pts
                seen = np.flatnonzero(rows.present[start : start + len(group)])  # what lies behind the rows passes through
                boxes = rows.boxes[start + seen]
                poses = _poses_of([group[i] for i in seen], start + seen, rows, first_pts)
                index = start + seen
                start += len(group)
                with self.clock("cut"):
                    crops = cut_batch([group[i] for i in seen], boxes, self.size) if len(seen) else None
                batch = _Batch(group, seen.tolist(), boxes, crops, poses)
                if len(seen):
                    self._start(batch, rows, index)
                yield batch
        finally:
            if hasattr(frames, "close"):
                frames.close()

    def _start(self, batch: _Batch, rows: FrameRows, index: np.ndarray) -> None:
        """Lay the chosen mouths over the crops, and say what of them is face."""
        outlines = None if rows.outlines is None else to_shares(rows.outlines[index], batch.boxes)
        if outlines is not None:
            batch.area = face_region(outlines, self.size // AREA_PX)
        if self.mouths is None or rows.starts is None:
            return
        with self.clock("lay mouths"):
            chosen = rows.starts[index]
            batch.crops, batch.laid = lay(batch.crops, self.mouths, chosen, outlines)
            if batch.area is not None and self.mouths.outlines is not None:
                theirs = np.where((chosen >= 0)[:, None, None], self.mouths.outlines[chosen], outlines)
                batch.area = torch.maximum(batch.area, face_region(theirs, self.size // AREA_PX))

    def _edit(self, batches: Iterator[_Batch]) -> Iterator[_Batch]:
        with closing(batches):
            for item in batches:
                if item.crops is not None:
                    item.rgb, item.alpha = self._edited(item)
                    item.crops = item.laid = None
                yield item

    def _edited(self, item: _Batch) -> tuple[Tensor, ...]:
        side = float((item.boxes[:, 2] - item.boxes[:, 0]).min())
        others = {name: x for name, x in (("laid", item.laid), ("area", item.area)) if x is not None}

        def edit(crops: Tensor, poses: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
            return self.crop_editor(crops, poses, side, **dict(zip(others, given, strict=True)))

        return self._within_memory(edit, item.crops, item.poses, *others.values())

    def _paste(self, batches: Iterator[_Batch]) -> Iterator[Frame]:
        with closing(batches):
            for item in batches:
                with self.clock("paste"):
                    for row, i in enumerate(item.rows):
                        item.frames[i] = paste(item.frames[i], item.boxes[row], item.rgb[row], item.alpha[row])
                self.counts.frames += len(item.frames)
                self.counts.edited += len(item.rows)
                self.counts.without_face += len(item.frames) - len(item.rows)
                yield from item.frames


def _poses_of(frames: Sequence[Frame], index: np.ndarray, rows: FrameRows, first_pts: int) -> Tensor:
    """(n, 12), by row, or by the middle of each frame's nominal time where the frame rate varies."""
    if rows.uneven is None:
        return rows.poses.values[index]
    seconds = [(frame.pts - first_pts) * rows.uneven.time_base + Fraction(1, 2) / rows.uneven.fps for frame in frames]
    return at_times(rows.poses, torch.tensor([float(s) for s in seconds]))
