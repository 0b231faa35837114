"""How like its source a generated face is, inside and outside the mouth, beside a floor and a ceiling.

N frames that are looked at, S = 256 crop side in pixels. Crops are those that an editor sees, of the source's face
in both videos.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...codec import Codec
from ...drawings.sheets import cut_pixels, spread
from ...face.crop import crop_box, smooth_boxes
from ...face.motion import FaceMotion, padded_box
from ...measures import box_slices, psnr_from_error
from ...pixels import from_bytes
from ..videos.measures import five_points

CROP_PX = 256
JITTER_PX = 128  # crops are compared in time at this side
MOST_PICTURES = 50  # frames of a clip, spread over it, whose pictures are compared
AT_ONCE = 8

Compare = Callable[[Tensor, Tensor], Tensor]
"""Two (B, 3, S, S) in [-1, 1] -> a map (B, 1, S, S) whose mean over a region is the score there, or its squared error."""


@dataclass
class Crops:
    """Gathers both faces while the frames pass by, and how the difference between them trembles."""

    motions: tuple[FaceMotion, FaceMotion]  # source, generated
    fps: float
    rows: list[int] = field(init=False)  # frames whose crops are kept
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (S, S, 3) uint8: source, generated
    mouths: list[tuple[slice, slice]] = field(default_factory=list)  # rows and columns of both mouths' common box
    _apart: dict[int, Tensor] = field(default_factory=dict)  # the last frames' differences outside the mouth, of 255
    _jitter: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        source, generated = self.motions
        both = np.flatnonzero(source.found & generated.found)
        self.rows = both[spread(len(both), MOST_PICTURES)].tolist()
        self._both = set(both.tolist())
        self._boxes = smooth_boxes(crop_box(five_points(source)), source.found, self.fps)

    def look(self, index: int, source: np.ndarray, generated: np.ndarray) -> None:
        """Keep what is needed of this frame."""
        if index not in self._both:
            return
        box = self._boxes[index]
        crops = tuple(torch.from_numpy(squeezed(frame, box, CROP_PX)) for frame in (source, generated))
        mouth = self._mouth(index, box)
        if index in self.rows:
            self.pairs.append(crops)
            self.mouths.append(mouth)
        self._tremble(index, crops, mouth)

    @property
    def jitter(self) -> float | None:
        """Mean absolute second difference in time of what differs outside the mouth, levels of 255; None: no 3 faces in a row."""
        return float(np.mean(self._jitter)) if self._jitter else None

    def _mouth(self, index: int, box: np.ndarray) -> tuple[slice, slice]:
        lips = padded_box(np.stack([motion.mouth_box[index] for motion in self.motions]))
        scale = CROP_PX / float(box[2] - box[0])
        corners = np.concatenate([lips[:, :2].min(0), lips[:, 2:].max(0)]) - np.tile(box[:2], 2)
        return box_slices(corners * scale, CROP_PX, CROP_PX)

    def _tremble(self, index: int, crops: tuple[Tensor, Tensor], mouth: tuple[slice, slice]) -> None:
        source, generated = (crop.float().mean(-1) for crop in crops)
        apart = generated - source
        apart[mouth] = 0
        self._apart[index] = F.avg_pool2d(apart[None], CROP_PX // JITTER_PX)[0]
        window = [self._apart.get(index - back) for back in (2, 1, 0)]
        self._apart.pop(index - 2, None)
        if all(one is not None for one in window):
            before, middle, after = window
            self._jitter.append(float((before - 2 * middle + after).abs().mean()))


def squeezed(frame: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """What a box of a frame shows at so many pixels. (H, W, 3) uint8 -> (side, side, 3) uint8"""
    pixels = torch.from_numpy(cut_pixels(frame, box)).permute(2, 0, 1)[None].float()
    sized = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    return sized[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


# ---- scores ----------------------------------------------------------------------------------------------------------------


def squared_errors(first: Tensor, second: Tensor) -> Tensor:
    """On a [0, 1] scale: PSNR is taken from its mean."""
    return ((first - second) / 2).square().mean(1, keepdim=True)


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """SSIM in a Gaussian window of 11 pixels, mean over colours."""
    from kornia.metrics import ssim

    return ssim((first + 1) / 2, (second + 1) / 2, 11, 1.0).mean(1, keepdim=True)


@torch.inference_mode()
def likeness(crops: Crops, codec: Codec, lpips: nn.Module | None, is_reconstruction: bool) -> dict[str, float | None]:
    """``psnr_mouth``, ``psnr_outside``, the same of ssim and lpips, and of each the ``_floor`` and ``_ceiling`` in the mouth.

    The floor is another frame's mouth of the source, half the clip away, shown in its place; the ceiling the source through the
    codec and back. What the mouth should look like is known of a reconstruction alone; of others only the outside is scored.
    """
    compare: dict[str, Compare] = {"psnr": squared_errors, "ssim": similarity}
    if lpips is not None:
        compare["lpips"] = lpips
    found: dict[str, list[float]] = {}
    count = len(crops.pairs)
    for first in range(0, count, AT_ONCE):
        part = range(first, min(first + AT_ONCE, count))
        sources, generated = (from_bytes(torch.stack([crops.pairs[i][which] for i in part])) for which in (0, 1))
        others = from_bytes(torch.stack([crops.pairs[(i + count // 2) % count][0] for i in part]))
        weight = next(codec.network.parameters())
        ceiling = codec.decode(codec.encode(sources.to(weight))).float().cpu().clamp(-1, 1)
        for name, measure in compare.items():
            made = measure(sources, generated)
            _add(found, f"{name}_outside", made, crops, part, is_inside=False)
            if is_reconstruction:
                for suffix, maps in (("", made), ("_floor", measure(sources, others)), ("_ceiling", measure(sources, ceiling))):
                    _add(found, f"{name}_mouth{suffix}", maps, crops, part, is_inside=True)
    return {name: _mean(name, values) for name, values in found.items()}


def _add(found: dict[str, list[float]], name: str, maps: Tensor, crops: Crops, part: range, is_inside: bool) -> None:
    for row, index in enumerate(part):
        inside = torch.zeros(maps.shape[-2:], dtype=torch.bool)
        inside[crops.mouths[index]] = True
        found.setdefault(name, []).append(float(maps[row, 0][inside if is_inside else ~inside].mean()))


def _mean(name: str, values: list[float]) -> float:
    """Over frames: of PSNR in dB, as it is reported."""
    return float(np.mean([psnr_from_error(value) for value in values] if name.startswith("psnr") else values))


@torch.inference_mode()
def identity(crops: Crops, embed: nn.Module) -> float:
    """Mean cosine of the face embeddings of each frame, generated and source."""
    cosines = []
    for first in range(0, len(crops.pairs), AT_ONCE):
        part = crops.pairs[first : first + AT_ONCE]
        faces = [embed(from_bytes(torch.stack([pair[which] for pair in part]))).float() for which in (0, 1)]
        cosines += F.cosine_similarity(*faces).tolist()
    return float(np.mean(cosines))
