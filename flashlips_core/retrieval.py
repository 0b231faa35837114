"""Retrieved starts (ours, not the paper's): an edit starts from the clip's own mouth that is nearest to the wanted one.

The mask-free editor's easy case is a mouth that almost fits. For each frame the clip's own frames are searched for such a mouth,
and it is laid over the frame with its colour matched: real teeth, real lips, at the frame's own resolution. The editor then
changes what is left. T output frames, N mouths, B batch, F side of a crop at the clip's own resolution, P pose numbers (12).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .codec import CELL_PX
from .face.region import face_region
from .pixels import laplacian
from .turned import to_shares

NUM_MOUTHS = 96  # that are kept of a clip; at 768 px of side they take 60 MB
LARGEST_PX = 768  # side at which crops are laid together; finer detail than that is lost in the mouth
WINDOW = (0.2, 0.4, 0.8, 1.0)  # what is kept of a mouth's crop: left, top, right, bottom
CENTRE, RADII = (0.5, 0.69), (0.245, 0.235)  # the ellipse that is laid over, soft towards its rim: lips, chin, the skin between
RIM = 0.3  # of the radius, over which it fades
LAID = 8.0  # times a laid mouth's weight is the weight that it is pasted with: fully, but for the last of its rim
AREA_PX = 4  # crop pixels per pixel of the face's area, which is soft anyway
FACE_SHRINK = 8  # times smaller than crops are the masks of the faces' areas, which are soft
GRID = 48  # side at which colours are compared
RIM_REACH = (0.7, 1.2)  # of the ellipse's radius: skin, chin and jaw that should agree; lips and teeth are not asked
RIM_PX = 24  # side of the small crops by which it is told whether a mouth fits in a frame
# Costs, in squared deviations of a pose number over the training set
OPENING_COST = 3.0  # per squared OPENING_UNIT of the lips' gap, which a viewer sees first
OPENING_UNIT = 0.05  # of the eyes' distance: the deviation of the gap in speech on GRID
HEAD_COST = 30.0  # per squared radian of yaw and pitch: 10 degrees cost as much as .9 deviations of every pose number
RIM_COST = 0.3  # per RIM_UNITs of mean squared difference of the skin around: a hand, a microphone, a fold, another light
COVER_UNIT, COVER_MOST = 0.01, 8.0  # of [-1, 1], squared, in the eighth of that skin that differs most; a unit costs 1, at most
COVER_FREE = 0.045  # which costs nothing: a turned head differs everywhere a little, a hand before the chin in one place much
RIM_FLOOR = 0.002  # of [-1, 1], squared: what noise and a fold make; the unit is this, and what good matches of the clip have
BLUR_COST = 1.0  # of a mouth with half the usual fine detail
SWITCH_COST = 0.35  # of leaving a mouth for another one
STEP_COST = 0.05  # of going on to the next frame of the clip, as it was spoken


# What the lips' gap may lack, of the eyes' distance, before an edit makes up for it, and where all of it is needed
GAP_NEED = (0.04, 0.12)


# How the opening of a clip's mouths is told: by MediaPipe on eight development clips these bring a dub's r from .73 to .83
GAP_SHARE = 0.3  # of the landmarks beside the lip encoder
NEAR_FRAMES = 2  # frames apart at which mouths open nearly alike


@dataclass(frozen=True)
class Faces:
    """What is known of some frames before an edit; the rows that a path is chosen by."""

    poses: Tensor  # (T, 12): of a clip's mouths what their lips do, of output frames what is wanted
    openings: np.ndarray  # (T,) the lips' gap over the eyes' distance that the poses stand for
    heads: np.ndarray  # (T, 2) yaw and pitch, radians
    scenes: np.ndarray  # (T,) int: a mouth is laid over frames of its own scene only
    rims: np.ndarray  # (T, K) what surrounds the mouth, see :func:`rim_of`

    def __len__(self) -> int:
        return len(self.poses)

    def rows(self, index: np.ndarray | slice) -> Faces:
        """Some of the frames."""
        return Faces(*(values[index] for values in (self.poses, self.openings, self.heads, self.scenes, self.rims)))


@dataclass(frozen=True)
class Mouths:
    """The mouths of one clip that starts are made of, each a frame's square with the mouth in it."""

    windows: Tensor  # (N, 3, h, w) uint8: the WINDOW of crops of F pixels
    faces: Faces  # N of them
    frames: np.ndarray  # (N,) int, their frames in the clip
    outlines: np.ndarray | None  # (N, K, 2) the face's outline as shares of the crop; None where nobody has looked
    size: int  # F

    def __len__(self) -> int:
        return len(self.windows)


def fine_size(crop_px: int, side: float) -> int:
    """F: the side of crops that keep a clip's resolution, for squares of ``side`` pixels and an editor of ``crop_px``.

    Each of the editor's latent cells covers whole pixels of it.
    """
    cells = crop_px // CELL_PX
    return cells * min(max(round(side / cells), CELL_PX), max(LARGEST_PX // cells, CELL_PX))


def mouth_window(size: int) -> tuple[slice, slice]:
    """Rows and columns of WINDOW in a crop of that side."""
    left, top, right, bottom = (round(share * size) for share in WINDOW)
    return slice(top, bottom), slice(left, right)


# ---- which mouth -----------------------------------------------------------------------------------------------------------


def choose_path(mouths: Mouths, wanted: Faces) -> np.ndarray:
    """Which mouth each output frame starts from: the cheapest path over frames, by Viterbi's algorithm. -> (T,) int, -1: none."""
    path = np.full(len(wanted), -1)
    lost = _blur_cost(mouths.windows)
    edges = [0, *(np.flatnonzero(np.diff(wanted.scenes)) + 1).tolist(), len(wanted)]
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        usable = np.flatnonzero(mouths.faces.scenes == wanted.scenes[start]) if stop > start else []
        if len(usable):
            part = wanted.rows(slice(start, stop))
            cost = misfit(mouths.faces.rows(usable), part) + lost[usable]
            path[start:stop] = usable[_viterbi(cost, mouths.frames[usable])]
    return path


def misfit(shown: Faces, wanted: Faces) -> np.ndarray:
    """How badly each of N mouths fits each of T frames, (T, N): lips, head, and what lies around."""
    cost = _squared_distance(wanted.poses.numpy(), shown.poses.numpy()) / shown.poses.shape[1]
    cost += HEAD_COST * _squared_distance(wanted.heads, shown.heads)
    around, worst = _rim_differences(wanted.rims, shown.rims)
    cost += RIM_COST * around / (RIM_FLOOR + np.median(np.quantile(around, 0.1, axis=1)))
    cost += ((worst - COVER_FREE) / COVER_UNIT).clip(0, COVER_MOST)
    return cost + OPENING_COST * ((wanted.openings[:, None] - shown.openings) / OPENING_UNIT) ** 2


def needs_of(mouths: Mouths, wanted: Faces, path: np.ndarray) -> np.ndarray:
    """How much of an edit each frame needs after its mouth was laid: none where the lips fit, all of it without a mouth. (T,)"""
    missing = np.abs(wanted.openings - mouths.faces.openings[path])
    ramp = np.where(path < 0, 1, ((missing - GAP_NEED[0]) / (GAP_NEED[1] - GAP_NEED[0])).clip(0, 1))
    return ramp * ramp * (3 - 2 * ramp)


def steady_openings(read: np.ndarray, mirrored: np.ndarray, gaps: np.ndarray | None, frames: np.ndarray) -> np.ndarray:
    """What a clip's mouths open, from all that tells it: a mouth that is misread would be chosen again and again. (N,)

    Args:
        read, mirrored: (N,) what the lip encoder reads from each mouth, and from its mirror image.
        gaps: (N,) the landmarks' gap, of which only the changes are believed; None where nobody has looked.
        frames: (N,) int, sorted; those next to each other in the clip open nearly alike.
    """
    openings = (read + mirrored) / 2
    if gaps is not None and gaps.std() > 1e-6:
        changes = (gaps - gaps.mean()) / gaps.std() * openings.std() + openings.mean()
        openings = (1 - GAP_SHARE) * openings + GAP_SHARE * changes
    near = np.diff(frames) <= NEAR_FRAMES
    weight, total = np.full(len(openings), 0.5), 0.5 * openings
    for here, there in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        weight[here] += 0.25 * near
        total[here] += 0.25 * near * openings[there]
    return total / weight


def rim_of(crop: Tensor) -> np.ndarray:
    """What surrounds the mouth in a small crop, without its light. (3, RIM_PX, RIM_PX) in [-1, 1] -> (K,) float32.

    The mean square of the difference of two is that of the colours around the mouth, after a plane per channel has been fitted.
    """
    weight, project, around = _rim_projection()
    return (project @ (crop.flatten(1).T.numpy()[around] * weight)).T.ravel().astype(np.float32)


def no_rims(count: int) -> np.ndarray:
    """Room for the rims of a clip's frames: (count, K) of zeros."""
    return np.zeros((count, 3 * len(_rim_projection()[0])), np.float32)


@lru_cache(maxsize=1)
def _rim_projection() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the n pixels around the mouth: weights (n, 1), the (n, n) matrix that takes weighted planes out, and which they are."""
    low, high = RIM_REACH
    radius = _radius(RIM_PX).numpy()
    around = np.flatnonzero((radius > low) & (radius < high))
    weight = np.full((len(around), 1), np.sqrt(1 / (3 * len(around))))
    ticks = np.linspace(-1, 1, RIM_PX)
    x, y = (part.ravel()[around] for part in np.meshgrid(ticks, ticks))
    basis, _ = np.linalg.qr(weight * np.stack([np.ones_like(x), x, y], -1))
    return weight, np.eye(len(weight)) - basis @ basis.T, around


@lru_cache(maxsize=1)
def _rim_parts() -> list[np.ndarray]:
    """Which numbers of a rim belong to each eighth of the way around the mouth."""
    _, _, around = _rim_projection()
    y, x = ((place + 0.5) / RIM_PX - centre for place, centre in zip(np.divmod(around, RIM_PX), CENTRE[::-1], strict=True))
    part = (np.arctan2(y, x) / (2 * np.pi) * 8 % 8).astype(int).clip(0, 7)
    return [np.flatnonzero(np.tile(part, 3) == k) for k in range(8)]


def _rim_differences(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared difference all around, and in the eighth that differs most. (T, K), (N, K) -> (T, N) twice"""
    around, worst = np.zeros((2, len(a), len(b)), np.float32)  # T may be an hour of frames: one eighth at a time
    for part in _rim_parts():
        difference = _squared_distance(a[:, part], b[:, part])
        around += difference
        np.maximum(worst, difference * (a.shape[1] / len(part)), out=worst)
    return around, worst


def _squared_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Between all rows of (T, D) and (N, D). -> (T, N)"""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)  # T may be an hour of frames
    return (np.einsum("td,td->t", a, a)[:, None] + np.einsum("nd,nd->n", b, b) - 2 * a @ b.T).clip(min=0)


def _blur_cost(windows: Tensor) -> np.ndarray:
    """Of each window (N, 3, h, w) uint8, against the clip's usual one. -> (N,)"""
    sharp = np.array([float(laplacian(window.float().mean(0)[None]).abs().mean()) for window in windows])
    return BLUR_COST * np.log2(np.maximum(np.median(sharp) / np.maximum(sharp, 1e-6), 1))


def _viterbi(cost: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """The cheapest path through (T, N), where staying is free and going on to the next frame nearly so. -> (T,) int."""
    total, came = cost[0], np.zeros(cost.shape, int)
    stay, place = np.arange(cost.shape[1]), {frame: i for i, frame in enumerate(frames.tolist())}
    following = np.array([place.get(frame - 1, -1) for frame in frames.tolist()])
    for t in range(1, len(cost)):
        best = int(total.argmin())
        before, price = stay.copy(), total.copy()
        for other, paid in ((np.full_like(stay, best), total[best] + SWITCH_COST), (following, total[following] + STEP_COST)):
            is_better = (other >= 0) & (paid < price)
            before, price = np.where(is_better, other, before), np.where(is_better, paid, price)
        came[t], total = before, price + cost[t]
    path = np.zeros(len(cost), int)
    path[-1] = int(total.argmin())
    for t in range(len(cost) - 1, 0, -1):
        path[t - 1] = came[t, path[t]]
    return path


# ---- over the frame --------------------------------------------------------------------------------------------------------


def crops_to_edit(
    crops: Tensor,
    boxes: np.ndarray,
    outlines: np.ndarray | None,
    mouths: Mouths | None = None,
    chosen: np.ndarray | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Crops with the chosen mouths laid over them, and what ``editing.CropEditor`` should know of them.

    Args:
        crops: (B, 3, F, F) in [-1, 1], cut from ``boxes`` (B, 5).
        outlines: (B, K, 2) the faces' outlines in pixels of the frames.
        chosen: (B,) int, rows of ``mouths``; -1 leaves a crop as it is.
    """
    others, side = {}, crops.shape[-1] // AREA_PX
    if outlines is not None:
        outlines = to_shares(outlines, boxes)
        others["area"] = face_region(outlines, side)
    if mouths is None or chosen is None:
        return crops, others
    crops, others["laid"] = lay(crops, mouths, chosen, outlines)
    if outlines is not None and mouths.outlines is not None:
        theirs = np.where((chosen >= 0)[:, None, None], mouths.outlines[chosen], outlines)
        others["area"] = torch.maximum(others["area"], face_region(theirs, side))
    return crops, others


def laid_alpha(laid: Tensor) -> Tensor:
    """What of a crop is pasted where another mouth was laid with that weight."""
    return (LAID * laid).clamp(max=1)


def lay(crops: Tensor, mouths: Mouths, rows: np.ndarray, outlines: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """Crops with other mouths laid over their own.

    Args:
        crops: (B, 3, F, F) in [-1, 1].
        rows: (B,) int, which mouth each gets; -1 leaves it as it is.
        outlines: (B, K, 2) the faces' outlines as shares of the crops.

    Returns the starts (B, 3, F, F) and where they are not the crops, (B, 1, F, F) in [0, 1].
    """
    size = crops.shape[-1]
    view, result, laid = mouth_window(size), crops.clone(), crops.new_zeros(len(crops), 1, size, size)
    index = np.flatnonzero(rows >= 0)
    if not len(index):
        return result, laid
    chosen = rows[index]
    shown = mouths.windows[torch.from_numpy(chosen)].float() / 127.5 - 1
    area = ellipse(size)[None, None, view[0], view[1]].expand(len(index), -1, -1, -1)
    if outlines is not None and mouths.outlines is not None:
        area = area * _faces(outlines[index], mouths.outlines[chosen], size, view)
    own = crops[torch.from_numpy(index)][..., view[0], view[1]]
    result[index, :, view[0], view[1]] = laid_over(own, shown, area)
    laid[index, :, view[0], view[1]] = area
    return result, laid


def laid_over(own: Tensor, shown: Tensor, area: Tensor) -> Tensor:
    """``shown`` over ``own``, (B, 3, h, w) in [-1, 1] each, where ``area`` (B, 1, h, w) says, its colours made the frame's."""
    return torch.lerp(own, (shown + _colour_plane(own, shown, area)).clamp(-1, 1), area)


def ellipse(size: int) -> Tensor:
    """The area that a mouth is laid over, 1 inside, falling smoothly to 0 at its rim. (size, size)"""
    ramp = ((1 - _radius(size)) / RIM).clamp(0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _radius(size: int) -> Tensor:
    """0 at the ellipse's centre, 1 at its rim. (size, size)"""
    ticks = (torch.arange(size) + 0.5) / size
    return (((ticks[:, None] - CENTRE[1]) / RADII[1]).square() + ((ticks[None] - CENTRE[0]) / RADII[0]).square()).sqrt()


def _faces(own: np.ndarray, laid: np.ndarray, size: int, view: tuple[slice, slice]) -> Tensor:
    """What belongs to either face, (B, 1, h, w): no background comes along, and a longer chin does."""
    small = size // FACE_SHRINK
    both = torch.maximum(face_region(own, small), face_region(laid, small))
    return F.interpolate(both, size=(size, size), mode="bilinear", align_corners=False)[..., view[0], view[1]]


def _colour_plane(own: Tensor, shown: Tensor, area: Tensor) -> Tensor:
    """What brings a laid mouth's colours to the frame's: per channel a plane, fitted where the two meet. (B, 3, h, w)

    Fitted robustly: where cheeks fold differently, or a hand comes in, the two differ by more than light.
    """
    height, width = own.shape[-2:]
    rows, columns = torch.linspace(-1, 1, GRID), torch.linspace(-1, 1, GRID)
    small = [F.interpolate(x, size=(GRID, GRID), mode="area") for x in (own, shown, area)]
    difference = (small[0] - small[1]).flatten(2).transpose(1, 2)  # B G 3
    rim = (small[2] * (1 - small[2]) * 4).flatten(1)  # B G: 1 half-way
    basis = torch.stack([torch.ones(GRID, GRID), columns.expand(GRID, GRID), rows[:, None].expand(GRID, GRID)], -1).flatten(0, 1)
    weight = rim
    for _ in range(3):
        normal = torch.einsum("bg,gi,gj->bij", weight, basis, basis) + 1e-3 * torch.eye(3)
        fit = torch.linalg.solve(normal, torch.einsum("bg,gi,bgc->bic", weight, basis, difference))  # B 3 3
        error = (difference - basis @ fit).abs().mean(-1)
        usual = (rim * error).sum(1, keepdim=True) / rim.sum(1, keepdim=True).clamp(min=1e-6)
        weight = rim / (1 + (error / (2 * usual + 1e-3)).square())
    plane = (basis @ fit).transpose(1, 2).reshape(-1, 3, GRID, GRID)
    return F.interpolate(plane, size=(height, width), mode="bilinear", align_corners=True)
