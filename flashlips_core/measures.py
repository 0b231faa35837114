"""The measures of a dub: pure functions on curves and pictures, each a number that says what it was computed from.

T frames. Curves are (T,) arrays, one value per video frame, with NaN where no face was found.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .pixels import laplacian
from .types import Frame

LIP_LEAK_RATIO = 0.25  # KeySync: a mouth whose aspect ratio exceeds this counts as open
REST_PERCENTILE = 5  # a face's rest: the opening that it stays under in this share of its own frames

# Of the way from a person's shut lips to their widest opening; up to there they count as closed. Chosen on the real videos of s1
# test (80 sounds), not on any dub: .10 finds 85 % of their own closures (46 % by chance), .15 95 % (59 %), .20 99 % (66 %)
CLOSED_SHARE = 0.15
WIDEST_PERCENTILE = 95

LEAST_CLIPS = 5  # for an interval around a mean over clips

Bounds = tuple[float | None, float | None]  # lowest and highest value that passes; None: there is no such limit
UNBOUNDED: Bounds = (None, None)


@dataclass(frozen=True)
class Measure:
    """One row of the table."""

    name: str
    value: float | None  # None: not measured
    target: str  # "at least 0.60", "" for a number given for comparison only
    passed: bool | None  # None without a target or a value
    count: int  # clips or frames behind the value
    note: str = ""
    interval: tuple[float, float] | None = None  # of a mean over clips, see :func:`bootstrap_interval`

    def as_dict(self) -> dict:
        return asdict(self)


def at_least(name: str, value: float | None, limit: float, count: int, note: str = "") -> Measure:
    """A row that passes from ``limit`` upwards."""
    passed = None if value is None else bool(value >= limit)
    return Measure(name, value, f"at least {limit:.2f}", passed, count, note)


def at_most(name: str, value: float | None, limit: float, count: int, note: str = "") -> Measure:
    """A row that passes up to ``limit``."""
    passed = None if value is None else bool(value <= limit)
    return Measure(name, value, f"at most {limit:.2f}", passed, count, note)


def within(name: str, value: float | None, bounds: Bounds, count: int, note: str = "") -> Measure:
    """A row that passes between two limits; with one or none of them :func:`at_least`, :func:`at_most` or :func:`shown`."""
    low, high = bounds
    if high is None:
        return shown(name, value, count, note) if low is None else at_least(name, value, low, count, note)
    if low is None:
        return at_most(name, value, high, count, note)
    passed = None if value is None else bool(low <= value <= high)
    return Measure(name, value, f"{low:.2f} to {high:.2f}", passed, count, note)


def shown(name: str, value: float | None, count: int, note: str = "") -> Measure:
    """A row without a target."""
    return Measure(name, value, "", None, count, note)


def not_measured(name: str, reason: str) -> Measure:
    """A row whose network or data is absent; never approximated under the same name."""
    return Measure(name, None, "", None, 0, reason)


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """Where the mean over clips would lie if other clips like these had been taken: percentiles of resampled means.

    None for fewer than 5 values, whose resamples say too little.
    """
    known = np.asarray(values, float)
    if len(known) < LEAST_CLIPS:
        return None
    means = np.random.default_rng(seed).choice(known, (draws, len(known))).mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation over the frames that both curves have; 0 where either does not move at all."""
    length = min(len(first), len(second))
    first, second = np.asarray(first[:length], float), np.asarray(second[:length], float)
    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < 2:
        return 0.0
    first, second = first[both] - first[both].mean(), second[both] - second[both].mean()
    scale = math.sqrt(float((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / scale) if scale > 1e-12 else 0.0


def best_correlation(measured: np.ndarray, wanted: np.ndarray, max_lag: int = 5) -> tuple[float, int]:
    """The highest correlation within ``max_lag`` frames and its lag; a positive lag: ``measured`` is late."""
    scores = {0: correlation(measured, wanted)}
    for lag in range(1, max_lag + 1):
        scores[lag] = correlation(measured[lag:], wanted)
        scores[-lag] = correlation(measured, wanted[lag:])
    lag = max(scores, key=lambda k: (scores[k], -abs(k)))
    return scores[lag], lag


def rest_opening(opening: np.ndarray) -> float:
    """The mouth opening of a face at rest, from a curve of the same face that includes pauses."""
    return float(np.nanpercentile(opening, REST_PERCENTILE))


def opening_above_rest(opening: np.ndarray, rest: float) -> float:
    """Mean opening above rest; frames below rest count as 0, so that they cannot hide open ones."""
    return float(np.nanmean(np.clip(np.asarray(opening, float) - rest, 0, None)))


def silence_share(silent: np.ndarray, source: np.ndarray) -> float:
    """Opening above rest in a clip dubbed with silence, as a share of the talking source's own."""
    rest = rest_opening(source)
    return opening_above_rest(silent, rest) / max(opening_above_rest(source, rest), 1e-6)


def closed_frames(lip_gap: np.ndarray, own_gap: np.ndarray) -> np.ndarray:
    """Frames (T,) bool in which lips are closed, by the scale of the person whose undubbed curve is ``own_gap``.

    That person's lips count as shut at the 5th percentile of their own inner-lip gap and as wide open at its 95th; closed is up
    to 15 % of the way between. Where no face was found they are not closed.
    """
    if not np.isfinite(own_gap).any():
        return np.zeros(len(lip_gap), bool)
    shut, wide = np.nanpercentile(own_gap, [REST_PERCENTILE, WIDEST_PERCENTILE])
    return np.nan_to_num(np.asarray(lip_gap, float), nan=np.inf) <= shut + CLOSED_SHARE * (wide - shut)


def closures(closed: np.ndarray, spans: Sequence[tuple[int, int]]) -> int:
    """In how many of the spans (first and end frame) the lips are closed at least once."""
    return sum(bool(closed[first:end].any()) for first, end in spans)


def closures_by_chance(closed: np.ndarray, spans: Sequence[tuple[int, int]], speech: tuple[int, int]) -> float:
    """The same count where the lips' motion has nothing to do with the sound: the mean over all shifts of it within ``speech``.

    Frames of ``speech`` (first and end) are rotated by every whole number but 0; lips that never open close by chance everywhere.
    """
    first, end = speech
    counts = []
    for shift in range(1, end - first):
        moved = closed.copy()
        moved[first:end] = np.roll(closed[first:end], shift)
        counts.append(closures(moved, spans))
    return float(np.mean(counts)) if counts else float(closures(closed, spans))


def lip_leak(mouth_aspect: np.ndarray, ratio: float = LIP_LEAK_RATIO) -> float:
    """Share of frames whose mouth aspect ratio exceeds ``ratio`` (KeySync's LipLeak when the audio is silent)."""
    found = np.asarray(mouth_aspect, float)
    found = found[np.isfinite(found)]
    return float((found > ratio).mean()) if len(found) else math.nan


def motion_share(moved: np.ndarray, wanted: np.ndarray) -> float:
    """How far lips move compared with how far they should: ratio of the deviations of two opening curves. 1 is as far."""
    length = min(len(moved), len(wanted))
    first, second = np.asarray(moved[:length], float), np.asarray(wanted[:length], float)
    both = np.isfinite(first) & np.isfinite(second)
    return float(first[both].std() / max(second[both].std(), 1e-6)) if both.any() else math.nan


def detail(image: Tensor, box: Sequence[float]) -> float:
    """Fine detail of a (3, H, W) picture in [-1, 1] inside ``box`` (xyxy, pixels): variance of its grey Laplacian."""
    return float(_curvature(image, box).var())


def true_detail(image: Tensor, truth: Tensor, box: Sequence[float]) -> float:
    """How much of the fine detail of :func:`detail` lies where it should: correlation of two Laplacians, 0 for invented grain."""
    return correlation(*(_curvature(picture, box).flatten().cpu().numpy() for picture in (image, truth)))


def _curvature(image: Tensor, box: Sequence[float]) -> Tensor:
    rows, columns = box_slices(box, image.shape[-2], image.shape[-1])
    return laplacian((image[:, rows, columns].float().mean(0) + 1) * 127.5)


def psnr(first: Tensor, second: Tensor, box: Sequence[float] | None = None) -> float:
    """PSNR in dB of two (3, H, W) pictures in [-1, 1], inside ``box`` (xyxy, pixels) where one is given."""
    return psnr_from_error(squared_error(first, second, box))


def squared_error(first: Tensor, second: Tensor, box: Sequence[float] | None = None) -> float:
    """Mean squared error of two (3, H, W) pictures in [-1, 1], on a [0, 1] scale."""
    difference = (first.float().clamp(-1, 1) - second.float().clamp(-1, 1)) / 2
    if box is not None:
        rows, columns = box_slices(box, difference.shape[-2], difference.shape[-1])
        difference = difference[..., rows, columns]
    return float(difference.square().mean())


def psnr_from_error(mean_squared_error: float) -> float:
    """PSNR in dB for a peak of 1."""
    return -10 * math.log10(max(mean_squared_error, 1e-10))


def box_slices(box: Sequence[float], height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a box, kept inside the picture and never empty."""
    left, top = min(max(int(box[0]), 0), width - 1), min(max(int(box[1]), 0), height - 1)
    right, bottom = min(max(math.ceil(box[2]), left + 1), width), min(max(math.ceil(box[3]), top + 1), height)
    return slice(top, bottom), slice(left, right)


def outside_is_identical(source: Frame, edited: Frame, reached: np.ndarray) -> bool:
    """Whether two frames are bit-identical in every plane wherever ``reached`` (H, W) bool is False.

    A chroma sample counts as reached when any pixel that it colours is.
    """
    for plane, (before, after) in enumerate(zip(source.planes, edited.planes, strict=True)):
        columns, rows = (1 << shift for shift in (source.chroma_shift if plane else (0, 0)))  # pixels per sample
        fill = [(0, before.shape[0] * rows - reached.shape[0]), (0, before.shape[1] * columns - reached.shape[1])]
        blocks = np.pad(reached, fill).reshape(before.shape[0], rows, before.shape[1], columns)
        if ((before != after) & ~blocks.any((1, 3))).any():
            return False
    return True


def flops_of(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in ``run()`` (1 multiply-add = 2)."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peak_resident_bytes() -> int | None:
    """Most memory that this process has held so far; None where the system cannot tell."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def resident_bytes() -> int | None:
    """Memory that this process holds now; None where the system cannot tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:  # only Linux says it there
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def markdown_table(measures: Sequence[Measure], command: str = "") -> str:
    """The table for a model card, with the command that produced it."""
    lines = ["| measure | value | target | passed | over | note |", "|---|---|---|---|---|---|"]
    for m in measures:
        value = _as_text(m.value)
        passed = {True: "yes", False: "**no**", None: ""}[m.passed]
        lines.append(f"| {m.name} | {value} | {m.target} | {passed} | {m.count} | {m.note} |")
    if command:
        lines += ["", f"Command: `{command}`"]
    return "\n".join(lines) + "\n"


def side_by_side_table(columns: Mapping[str, Sequence[Measure]], command: str = "") -> str:
    """The same measures of two editors or more, a column each; what cannot be compared is left out."""
    names = [row.name for row in next(iter(columns.values()))]
    found = {who: {row.name: row for row in rows} for who, rows in columns.items()}
    lines = [f"| measure | {' | '.join(columns)} | over |", "|---" * (len(columns) + 2) + "|"]
    for name in names:
        row = [found[who].get(name) for who in columns]
        if all(measure is not None for measure in row):
            lines.append(f"| {name} | {' | '.join(_as_text(measure.value) for measure in row)} | {row[0].count} |")
    if command:
        lines += ["", f"Command: `{command}`"]
    return "\n".join(lines) + "\n"


def _as_text(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"
