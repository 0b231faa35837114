"""Batches of pictures for the paper's losses: a frame, other frames of its clip, and where its lips are.

B batch, R references, S crop side in pixels, E expression features. Pictures are (B, 3, S, S) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...dataset.store import CropStore
from ...face.expression import mirrored
from ...face.points import OUTER_LIPS
from ...types import FlashLipsError
from ..loop.trainer import MakeBatch
from . import augment

# The outer lip outline as a closed line: MediaPipe lists its lower part, then its upper part, both from the left.
OUTLINE = (*range(11), *range(OUTER_LIPS.stop - 1, 10, -1))


@dataclass(frozen=True)
class PictureBatch:
    images: Tensor  # (B, 3, S, S) the frames
    references: Tensor  # (B, R, 3, S, S) other frames of the same clips, in the same light
    lips: Tensor  # (B, 1, S, S) inside the lips' outer outline, 0 or 1
    expression: Tensor | None = None  # (B, E)
    reference_expression: Tensor | None = None  # (B, R, E)


@dataclass(frozen=True)
class PictureSource:
    """Stored crops to draw from.

    Args:
        stores: all cut at one size; that of ``dataset.store.CropStore``, or of a training set's shards.
        expressions: per store the expression features of its frames (N, E), for training that measures expressions.
    """

    stores: Sequence[CropStore]
    expressions: Sequence[np.ndarray] | None = None

    def clips(self) -> dict[str, list[tuple[int, np.ndarray]]]:
        """Speaker -> clips of at least two frames: store, and rows in it."""
        found: dict[str, list[tuple[int, np.ndarray]]] = {}
        for place, store in enumerate(self.stores):
            order = np.argsort(store.clip_of, kind="stable")
            bounds = np.searchsorted(store.clip_of[order], np.arange(len(store.clip_ids) + 1))
            for clip, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
                if stop - start > 1:
                    found.setdefault(str(store.speakers[clip]), []).append((place, order[start:stop]))
        if not found:
            raise FlashLipsError("The stored crops hold no clip of two frames or more; build them from talking videos.")
        return found


def picture_batches(
    source: PictureSource, batch_size: int, num_references: int, crop_px: int, strength: float = 0.5
) -> MakeBatch:
    """Frames drawn by speaker first, each with ``num_references`` other frames of its clip.

    Args:
        crop_px: Side of the editor's square.
        strength: Of the augmentation (ours), see :func:`augment.draw_view`; a clip's frames are seen through one camera.
    """
    clips = source.clips()
    speakers = sorted(clips)
    _check_size(source, crop_px)

    def make(generator: torch.Generator) -> PictureBatch:
        view = augment.draw_view(batch_size, generator, strength)
        images, references, lips, expression, others = [], [], [], [], []
        for index in range(batch_size):
            own = clips[speakers[_draw(len(speakers), generator)]]
            place, rows = own[_draw(len(own), generator)]
            order = torch.randperm(len(rows), generator=generator).numpy()
            picked = rows[np.append(order[:1], order[1 + np.arange(num_references) % (len(rows) - 1)])]
            store, look = source.stores[place], augment.select(view, torch.full((len(picked),), index))
            crops = augment.apply(store.batch(picked), look, generator, crop_px)
            outline = torch.from_numpy(np.asarray(store.landmarks[picked[:1]][:, list(OUTLINE)], np.float32))
            images.append(crops[0])
            references.append(crops[1:])
            lips.append(inside(augment.move_points(outline, augment.select(view, torch.tensor([index]))), crop_px)[0])
            if source.expressions is not None:
                features = source.expressions[place][picked]
                is_mirrored = float(torch.linalg.det(view.geometry[index, :, :2])) < 0
                features = torch.from_numpy(mirrored(features) if is_mirrored else features).float()
                expression.append(features[0])
                others.append(features[1:])
        batch = PictureBatch(_stack(images), torch.stack(references), torch.stack(lips))
        return replace(batch, expression=_stack(expression), reference_expression=_stack(others)) if expression else batch

    return make


def inside(outline: Tensor, size: int) -> Tensor:
    """Which pixels lie inside closed lines, by the even-odd rule. (B, L, 2) in [0, 1] -> (B, 1, size, size), 0 or 1."""
    ticks = (torch.arange(size, device=outline.device) + 0.5) / size
    x, y = ticks[None, None, :], ticks[None, :, None]
    crossings = torch.zeros(len(outline), size, size, dtype=torch.bool, device=outline.device)
    for a, b in zip(outline.unbind(1), outline.roll(-1, 1).unbind(1), strict=True):
        (xa, ya), (xb, yb) = (p[:, :, None, None].unbind(1) for p in (a, b))
        spans = (ya > y) != (yb > y)
        rise = torch.where(yb == ya, 1.0, yb - ya)  # a level edge spans no row
        crossings ^= spans & (x < xa + (y - ya) * (xb - xa) / rise)
    return crossings[:, None].float()


def _check_size(source: PictureSource, crop_px: int) -> None:
    for store in source.stores:
        side = store.batch(np.array([0])).shape[-1]
        if side < crop_px:
            raise FlashLipsError(
                f"The stored crops are {side} px wide, too small for crop_px={crop_px}; "
                f"train with crop_px={side // 128 * 128 or 128}, or store larger ones (prepare stored_px={crop_px * 5 // 4}; "
                f"a training set is built again with --crop-px {crop_px})."
            )


def _draw(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


def _stack(parts: list[Tensor]) -> Tensor:
    stacked = torch.stack(parts)
    return stacked.contiguous(memory_format=torch.channels_last) if stacked.ndim == 4 else stacked
