"""From frames to frames with another mouth: crops, latents, editor, alpha, changed pixels, paste.

B batch, R references, S crop side in pixels, h w = S / 8. Only face crops become floats; frames stay as they were coded.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from .codec import CELL_PX, Codec, crop_decode, encode_part
from .compose import alpha_from_latents, cut_batch, paste
from .models.masks import lips_region, lower_face_mask, mouth_mask
from .poses import at_times
from .sharpen import UnsharpMask, matching_mask
from .stream import awaited, batched, prefetch
from .types import ClipInfo, FlashLipsError, Frame, LipPoses, Progress, Waiting
from .within_memory import WithinMemory

NUM_MEASURED = 4  # references whose edits show how soft this editor draws this mouth
PREFETCH_BATCHES = 1  # ready, beside the one being made and the one being worked on: more only costs memory


class StageClock:
    """Seconds of work per stage, added up over threads; waiting for another stage is not counted."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        self._has_events = device is not None and device.type == "cuda"
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time inside as this stage's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._add(stage, time.perf_counter() - start)

    @contextmanager
    def on_device(self, stage: str) -> Iterator[None]:
        """As calling it, for queued device work: CUDA events mark it, :meth:`settle` adds it up."""
        if not self._has_events:
            with self(stage):
                yield
            return
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        stop.record()
        self._pending.append((stage, start, stop))

    def settle(self) -> None:
        """Add up the device work that has been waited for."""
        for stage, start, stop in self._pending:
            stop.synchronize()
            self._add(stage, start.elapsed_time(stop) / 1000)
        self._pending.clear()

    def timed(self, stage: str, items: Iterable) -> Iterator:
        """The same items; the time that each takes to come is this stage's."""
        iterator = iter(items)
        try:
            while True:
                with self(stage):
                    item = next(iterator, None)
                if item is None:
                    return
                yield item
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    def _add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


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
    ) -> None:
        weight = next(editor.parameters())
        self.codec, self.editor = codec, editor
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
    def __call__(self, crops: Tensor, poses: Tensor, min_side: float | None = None) -> tuple[Tensor, Tensor]:
        """Edited crops (B, 3, S, S), valid in and around where alpha is above 0, and alpha (B, 1, S, S); float32 on the CPU.

        Args:
            crops: (B, 3, S, S) in [-1, 1].
            poses: (B, 12).
            min_side: side in pixels of the smallest box to be pasted into; the crop is decoded wide enough for that shrinking.
        """
        size = crops.shape[-1]
        with self.clock.on_device("encode crop"):
            crops = self._moved(crops)
            source = encode_part(self.codec, crops, self.view)
        with self.clock.on_device("edit"):
            edited = self.edit(source, poses.to(self.device, self.dtype))
        with self.clock.on_device("alpha"):
            alpha = alpha_from_latents(source, edited, size).float().cpu()
        with self.clock.on_device("decode crop"):
            rgb = self._decoded(crops, edited, changed_region(alpha, margin=_margin(size, min_side or size) + self.unsharp.reach))
        self.clock.settle()
        return rgb, alpha

    def _decoded(self, crops: Tensor, edited: Tensor, region: tuple[int, int, int, int] | None) -> Tensor:
        """The crops with the changed region, x0 y0 x1 y1 in cells, decoded as far as the view goes. float32 on the CPU."""
        rgb = crops.float().cpu().clone()
        if region is None:
            return rgb
        rows, columns = self.view
        x0, y0, x1, y1 = region
        x0, y0, x1, y1 = max(x0, columns.start), max(y0, rows.start), min(x1, columns.stop), min(y1, rows.stop)
        inside = (x0 - columns.start, y0 - rows.start, x1 - columns.start, y1 - rows.start)
        pixels = self.unsharp(crop_decode(self.codec, edited[..., rows, columns], inside))
        rgb[..., CELL_PX * y0 : CELL_PX * y1, CELL_PX * x0 : CELL_PX * x1] = pixels.clamp(-1, 1).float().cpu()
        return rgb

    def _view(self, cells: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of cells that go through the codec: all of them, unless editor and codec both work locally."""
        if self.codec.halo is None:
            return slice(0, cells[0]), slice(0, cells[1])
        return self.editor.view_slices(cells)

    def edit(self, source: Tensor, poses: Tensor) -> Tensor:
        """Edited latents of frames' latents (B, 4, h, w) and poses (B, 12), all on the editor's device."""
        return edit_once(self.editor, self.context, source, poses, self.mask)

    def _moved(self, images: Tensor) -> Tensor:
        return images.to(self.device, self.dtype, memory_format=torch.channels_last)


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


def changed_region(alpha: Tensor, margin: int) -> tuple[int, int, int, int] | None:
    """Smallest rectangle of latent cells that holds every changed pixel of a batch and ``margin`` pixels around. x0 y0 x1 y1."""
    changed = (alpha > 0).any(0)[0]  # S S
    if not changed.any():
        return None
    size = alpha.shape[-1]
    edges = []
    for axis in (0, 1):  # columns, rows
        index = changed.any(axis).nonzero()
        low, high = int(index[0]) - margin, int(index[-1]) + 1 + margin
        edges.append((max(low, 0) // CELL_PX, -(-min(high, size) // CELL_PX)))
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

    def __len__(self) -> int:
        return len(self.present)


@dataclass
class _Batch:
    frames: list[Frame]
    rows: list[int]  # those of ``frames`` that show the face
    boxes: np.ndarray  # (n, 5)
    crops: Tensor | None  # (n, 3, S, S)
    poses: Tensor  # (n, 12)
    rgb: Tensor | None = None
    alpha: Tensor | None = None


@dataclass
class FrameEditor:
    """Edits a stream of frames: cutting, the networks and pasting each in a thread of its own, with bounded queues between.

    Memory does not grow with the clip; results do not depend on the batch size.
    """

    crop_editor: CropEditor
    size: int  # S
    batch: int = 8
    clock: StageClock = field(default_factory=StageClock)
    counts: Counts = field(default_factory=Counts)

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
                start += len(group)
                with self.clock("cut"):
                    crops = cut_batch([group[i] for i in seen], boxes, self.size) if len(seen) else None
                yield _Batch(group, seen.tolist(), boxes, crops, poses)
        finally:
            if hasattr(frames, "close"):
                frames.close()

    def _edit(self, batches: Iterator[_Batch]) -> Iterator[_Batch]:
        with closing(batches):
            for item in batches:
                if item.crops is not None:
                    side = float((item.boxes[:, 2] - item.boxes[:, 0]).min())
                    item.rgb, item.alpha = self._within_memory(partial(self._edited, side), item.crops, item.poses)
                    item.crops = None
                yield item

    def _edited(self, side: float, crops: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
        return self.crop_editor(crops, poses, side)

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
