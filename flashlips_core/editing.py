"""From frames to frames with another mouth: crops, latents, editor, alpha, changed pixels, paste.

B batch, R references, S crop side in pixels, h w = S / 8. Only face crops become floats; frames stay as they were coded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .codec import CELL_PX, Codec, crop_decode, encode_part
from .compose import alpha_from_latents, changed_region, cut_batch, paste, paste_margin
from .models.editor import Editor, EditorContext
from .models.masks import lips_region, lower_face_mask, mouth_mask
from .pixels import resized, stretched
from .poses.motion import at_times
from .retrieval import Mouths, crops_to_edit, laid_alpha
from .sharpen import UnsharpMask, matching_mask
from .stream import awaited, batched, prefetch
from .system.clock import StageClock
from .system.memory import WithinMemory
from .types import ClipInfo, Frame, LipPoses, Waiting

NUM_MEASURED = 4  # references whose edits show how soft this editor draws this mouth
REDRAWN = (0.25, 0.8)  # mean |change| of a latent from which an edit begins to replace what the frame shows, and does so fully
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
        editor: Editor,
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
        need: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Edited crops (B, 3, F, F), valid in and around where alpha is above 0, and alpha (B, 1, F, F); float32 on the CPU.

        Args:
            crops: (B, 3, F, F) in [-1, 1]; F is S, or more where detail is kept.
            poses: (B, 12).
            min_side: side in pixels of the smallest box to be pasted into; the crop is decoded wide enough for that shrinking.
            laid: (B, 1, F, F) where the crops already are not the frame's own, see ``retrieval``: that is pasted too.
            area: (B, 1, n, n) in [0, 1] what of the crops may be edited, see ``face.region``; None: the mouth's ellipse.
            need: (B,) in [0, 1] how much of the edit each crop needs; None: all of it. Crops that need none cost nothing.
        """
        if need is not None and not need.all():
            return self._edit_some(crops, poses, min_side, laid, area, need)
        size = crops.shape[-1]
        small = self.size if self.keeps_detail else size
        assert CELL_PX * size % small == 0, f"{size} px crops have no whole pixels per cell of {small} px ones"
        with self.clock.on_device("encode crop"):
            source = encode_part(self.codec, self._moved(resized(crops, small)), self.view)
        with self.clock.on_device("edit"):
            edited = self.edit(source, poses.to(self.device, self.dtype), area)
            if need is not None:
                edited = torch.lerp(source, edited, need.to(source)[:, None, None, None])
        with self.clock.on_device("alpha"):
            alpha = alpha_from_latents(source, edited, size).float().cpu()
            if laid is not None:
                alpha = torch.maximum(alpha, laid_alpha(laid))
        with self.clock.on_device("decode crop"):
            margin = paste_margin(size, min_side or size) + math.ceil(self.unsharp.reach * size / small)
            rgb = self._decoded(crops, source, edited, changed_region(alpha, margin, CELL_PX * size // small))
        self.clock.settle()
        return rgb, alpha

    def _edit_some(
        self, crops: Tensor, poses: Tensor, min_side: float | None, laid: Tensor | None, area: Tensor | None, need: Tensor
    ) -> tuple[Tensor, Tensor]:
        """:meth:`__call__` where some crops need no edit."""
        rgb = crops.float().cpu().clone()
        alpha = laid_alpha(laid) if laid is not None else crops.new_zeros(len(crops), 1, *crops.shape[-2:])
        rows = need.nonzero()[:, 0]
        if len(rows):
            given = (None if x is None else x[rows] for x in (laid, area, need))
            rgb[rows], alpha[rows] = self(crops[rows], poses[rows], min_side, *given)
        return rgb, alpha

    def _decoded(self, crops: Tensor, source: Tensor, edited: Tensor, region: tuple[int, int, int, int] | None) -> Tensor:
        """The crops with the changed region, x0 y0 x1 y1 in cells, decoded as far as the view goes. float32 on the CPU."""
        rgb = crops.float().cpu().clone()
        if region is None:
            return rgb
        rows, columns = self.view
        x0, y0, x1, y1 = region
        x0, y0, x1, y1 = max(x0, columns.start), max(y0, rows.start), min(x1, columns.stop), min(y1, rows.stop)
        inside = (x0 - columns.start, y0 - rows.start, x1 - columns.start, y1 - rows.start)
        cell = CELL_PX * crops.shape[-1] // (self.size if self.keeps_detail else crops.shape[-1])
        place = (..., slice(cell * y0, cell * y1), slice(cell * x0, cell * x1))
        drawn = crop_decode(self.codec, edited[..., rows, columns], inside)
        pixels = self.unsharp(drawn)
        if self.keeps_detail:
            shown = crop_decode(self.codec, source[..., rows, columns], inside)
            part = (slice(y0, y1), slice(x0, x1))
            redrawn = _redrawn(source, edited)[(..., *part)]
            shape = rgb[place].shape[-2:]
            drawn, shown, pixels, redrawn = (stretched(x.float().cpu(), shape) for x in (drawn, shown, pixels, redrawn))
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


def _redrawn(source: Tensor, edited: Tensor) -> Tensor:
    """Where an edit changes too much for what was there to shine through, 0 to 1. (B, 4, h, w) twice -> (B, 1, h, w)."""
    change = (edited - source).float().abs().mean(1, keepdim=True)
    low, high = REDRAWN
    ramp = ((F.avg_pool2d(change, 3, stride=1, padding=1, count_include_pad=False) - low) / (high - low)).clamp(0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def edit_once(editor: Editor, context: EditorContext, z_src: Tensor, poses: Tensor, mask: Tensor | None) -> Tensor:
    """Edited latents of frames' latents (B, 4, h, w) and poses (B, 12); letters and Eqs. 1 to 3: ``models.editor``.

    An edit is confined (ours) to the mask of stage 1, or to the mouth's ellipse.

    Args:
        mask: What a stage-1 editor must not see; None for a mask-free one.
    """
    if mask is None:
        z_hat, area = editor(z_src, context, poses), mouth_mask(*z_src.shape[-2:]).to(z_src)
    else:
        z_masked = z_src * (1 - mask)
        z_hat, area = editor(z_masked, context, poses), mask
    return torch.lerp(z_src, z_hat, area)


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
    needs: np.ndarray | None = None  # (T,) in [0, 1]: how much of the edit a frame needs; None: all of it

    def __len__(self) -> int:
        return len(self.present)


@dataclass
class _Batch:
    frames: list[Frame]
    rows: list[int]  # those of ``frames`` that show the face
    boxes: np.ndarray  # (n, 5)
    crops: Tensor | None  # (n, 3, F, F)
    poses: Tensor  # (n, 12)
    others: dict[str, Tensor] = field(default_factory=dict)  # n rows each, what else the crop editor takes
    rgb: Tensor | None = None
    alpha: Tensor | None = None


@dataclass
class FrameEditor:
    """Edits a stream of frames: cutting, the networks and pasting each in a thread of its own, with bounded queues between.

    Memory does not grow with the clip; results do not depend on the batch size.
    """

    crop_editor: CropEditor | None  # None: no frame needs an edit beyond the mouth that is laid over it
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
                batch = _Batch(group, seen.tolist(), boxes, None, poses)
                if len(seen):
                    self._start(batch, rows, index)
                yield batch
        finally:
            if hasattr(frames, "close"):
                frames.close()

    def _start(self, batch: _Batch, rows: FrameRows, index: np.ndarray) -> None:
        """Cut the crops, and lay the chosen mouths over them."""
        with self.clock("cut"):
            crops = cut_batch([batch.frames[i] for i in batch.rows], batch.boxes, self.size)
        outlines, chosen, needs = (None if x is None else x[index] for x in (rows.outlines, rows.starts, rows.needs))
        with self.clock("lay mouths" if self.mouths else "cut"):
            batch.crops, batch.others = crops_to_edit(crops, batch.boxes, outlines, self.mouths, chosen)
        if needs is not None:
            batch.others["need"] = torch.from_numpy(needs).float()

    def _edit(self, batches: Iterator[_Batch]) -> Iterator[_Batch]:
        with closing(batches):
            for item in batches:
                if item.crops is not None:
                    item.rgb, item.alpha = self._edited(item)
                    item.crops, item.others = None, {}
                yield item

    def _edited(self, item: _Batch) -> tuple[Tensor, ...]:
        if self.crop_editor is None:
            return item.crops, laid_alpha(item.others["laid"])
        side = float((item.boxes[:, 2] - item.boxes[:, 0]).min())

        def edit(crops: Tensor, poses: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
            return self.crop_editor(crops, poses, side, **dict(zip(item.others, given, strict=True)))

        return self._within_memory(edit, item.crops, item.poses, *item.others.values())

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
