"""Make a clip as long as its new sound: which source frame each output frame shows, and a stream of those frames.

Frames are never kept: a loop opens the file again, a backward stretch is decoded in short pieces from the nearest
key frame on, so memory does not grow with the clip.
"""

from __future__ import annotations

import logging
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ..types import ClipInfo, FlashLipsError, Frame
from .read import probe, read_from

logger = logging.getLogger(__name__)

LengthMode = Literal["auto", "cut", "loop", "ping-pong", "hold", "silence"]

PADDING_S = 0.05  # a clip's own sound ends so much after its picture, because coded sound comes in blocks
PIECE_BYTES = 128 * 2**20  # decoded frames held while going backwards: 41 frames of 1080p in 8-bit 4:2:0
SAME_TIME_S = 1e-6  # what sums of seconds may be off
PIECE_FRAMES = 250  # x264's longest distance between key frames: a longer piece saves no decoding


@dataclass(frozen=True)
class FramePlan:
    """Which source frame each output frame shows."""

    indices: np.ndarray  # (N,) int64, the first is 0
    mode: LengthMode

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def num_source_frames(self) -> int:
        """Source frames that are shown at all: 0 to this, exclusive."""
        return int(self.indices.max()) + 1


def plan_frames(
    num_frames: int, fps: Fraction, audio_duration: Fraction, mode: LengthMode = "cut", shown_s: np.ndarray | None = None
) -> FramePlan:
    """Fit ``num_frames`` of picture to ``audio_duration`` seconds of sound.

    auto: as long as the sound: a longer picture is cut, a shorter one goes on backwards and forwards, a still is held.
    cut: both end with the shorter one. loop, ping-pong, hold: the picture goes on until the sound ends (from the start,
    backwards, or on its last frame); shorter sound leaves the picture whole, its end silent. silence: the picture keeps
    its length. ``write_video`` cuts or pads the sound to the picture, whatever the mode.

    Args:
        shown_s: (num_frames,) seconds that each frame is shown, where they differ, see :func:`shown_seconds`.
    """
    if mode not in get_args(LengthMode):
        raise FlashLipsError(f"Unknown length mode '{mode}'; choose one of {', '.join(get_args(LengthMode))}.")
    if num_frames < 1 or audio_duration <= 0 or fps <= 0:
        raise FlashLipsError(
            f"Got {num_frames} frames at {float(fps):g} a second and {float(audio_duration):.3f} s of sound; "
            "all must be more than zero."
        )
    num_heard = math.ceil(audio_duration * fps) if shown_s is None else _frames_heard(shown_s, fps, audio_duration, mode)
    whole_s = num_frames / fps if shown_s is None else float(shown_s.sum())
    if mode == "auto" and 0 < audio_duration - whole_s <= PADDING_S:
        num_heard = num_frames
    lengths = {"auto": num_heard, "cut": min(num_frames, num_heard), "silence": num_frames}
    num_shown = lengths.get(mode, max(num_frames, num_heard))
    shown = np.arange(num_shown, dtype=np.int64)
    if mode == "loop":
        shown %= num_frames
    elif mode in ("auto", "ping-pong") and num_frames > 1:
        # the first and the last frame are not shown twice where the direction turns
        shown = num_frames - 1 - np.abs(shown % (2 * num_frames - 2) - (num_frames - 1))
    return FramePlan(np.minimum(shown, num_frames - 1), mode)


def shown_seconds(clip: ClipInfo, num_frames: int) -> np.ndarray | None:
    """How long each of a clip's first frames is shown, the last one for a nominal frame; None where all are alike."""
    if not clip.is_variable_rate or clip.stamps is None or num_frames > len(clip.stamps):
        return None
    steps = np.diff(np.array(clip.stamps[:num_frames], np.float64)) * float(clip.time_base)
    return np.append(steps, float(1 / clip.fps))


def _frames_heard(shown_s: np.ndarray, fps: Fraction, audio_duration: Fraction, mode: LengthMode) -> int:
    """How many frames begin before the sound ends, where each is shown for a time of its own."""
    steps = np.concatenate([shown_s[:-1], shown_s[-2::-1]]) if mode in ("auto", "ping-pong") and len(shown_s) > 1 else shown_s
    rest, whole = float(audio_duration), float(steps.sum())
    if mode in ("cut", "silence", "hold") or len(shown_s) == 1:
        beyond = max(0.0, rest - whole) * float(fps)  # the last frame goes on
        return int((np.cumsum(steps) - steps < rest - SAME_TIME_S).sum()) + math.ceil(beyond - SAME_TIME_S)
    times = int(rest // whole)
    rest -= times * whole
    return times * len(steps) + int((np.cumsum(steps) - steps < rest - SAME_TIME_S).sum())


def read_planned(path: str | Path, plan: FramePlan) -> Iterator[Frame]:
    """Yield the planned frames, stamped anew: steps between neighbouring frames keep the source's timing.

    If the file holds fewer frames than the plan expects, its last one stands in; "cut" and "silence" end there instead.
    """
    info = probe(path)
    nominal = 1 / (info.fps * info.time_base)
    clock: Fraction | None = None
    index, pts = 0, 0
    for new_index, frame in _shown(path, plan):
        if clock is None:
            clock = Fraction(frame.pts)
        else:
            clock += abs(frame.pts - pts) if abs(new_index - index) == 1 else nominal
        index, pts = new_index, frame.pts
        yield replace(frame, pts=round(clock))


def _shown(path: str | Path, plan: FramePlan) -> Iterator[tuple[int, Frame]]:
    """(source index, frame) of every output frame, in order."""
    stamps = array("q")  # timestamps of the source frames seen so far: where to enter the file again
    jumps: list[Fraction] = []  # of the file's clock: behind one it cannot be entered
    indices, done = plan.indices, 0
    last: tuple[int, Frame] | None = None
    while done < len(indices):
        run = _next_run(indices, done)
        if last is not None and run[0] == last[0]:
            done += 1
            yield last
            continue
        source = _backwards(path, run, stamps, last[1], jumps) if run[-1] < run[0] else _forwards(path, run, stamps, jumps)
        expected = done + len(run)
        for last in source:
            done += 1
            yield last
        if done < expected:
            logger.warning("%s ends after %d frames, %d were expected.", Path(path).name, len(stamps), plan.num_source_frames)
            if plan.mode in ("cut", "silence"):
                return
            indices = np.minimum(indices, len(stamps) - 1)


def _next_run(indices: np.ndarray, start: int) -> np.ndarray:
    """The longest stretch from ``start`` on that goes one frame forwards, or one backwards, at a time."""
    steps = np.diff(indices[start:])
    if not len(steps) or abs(steps[0]) != 1:
        return indices[start : start + 1]
    ends = np.flatnonzero(steps != steps[0])
    return indices[start : start + 1 + (ends[0] if len(ends) else len(steps))]


def _forwards(path: str | Path, run: np.ndarray, stamps: array, jumps: list[Fraction]) -> Iterator[tuple[int, Frame]]:
    start, stop = int(run[0]), int(run[-1]) + 1
    seek_pts = stamps[start] if 0 < start < len(stamps) else None
    for index, frame in enumerate(read_from(path, start, stop, seek_pts, jumps), start):
        if index == len(stamps):
            stamps.append(frame.pts)
        yield index, frame


def _backwards(
    path: str | Path, run: np.ndarray, stamps: array, like: Frame, jumps: list[Fraction]
) -> Iterator[tuple[int, Frame]]:
    low, high = int(run[-1]), int(run[0]) + 1
    size = min(PIECE_FRAMES, max(1, PIECE_BYTES // sum(plane.nbytes for plane in like.planes)))
    for top in range(high, low, -size):
        bottom = max(low, top - size)
        piece = list(read_from(path, bottom, top, stamps[bottom], jumps))
        yield from zip(range(top - 1, bottom - 1, -1), reversed(piece), strict=True)
