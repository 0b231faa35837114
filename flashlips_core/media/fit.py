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

from ..types import FlashLipsError, Frame
from .read import probe, read_from

logger = logging.getLogger(__name__)

LengthMode = Literal["cut", "loop", "ping-pong", "hold", "silence"]

PIECE_BYTES = 128 * 2**20  # decoded frames held while going backwards: 41 frames of 1080p in 8-bit 4:2:0
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


def plan_frames(num_frames: int, fps: Fraction, audio_duration: Fraction, mode: LengthMode = "cut") -> FramePlan:
    """Fit ``num_frames`` of picture to ``audio_duration`` seconds of sound.

    cut: both end with the shorter one. loop, ping-pong, hold: the picture goes on until the sound ends (from the start,
    backwards, or on its last frame); shorter sound leaves the picture whole, its end silent. silence: the picture keeps
    its length. ``write_video`` cuts or pads the sound to the picture, whatever the mode.
    """
    if mode not in get_args(LengthMode):
        raise FlashLipsError(f"Unknown length mode '{mode}'; choose one of {', '.join(get_args(LengthMode))}.")
    if num_frames < 1 or audio_duration <= 0:
        raise FlashLipsError(
            f"Got {num_frames} frames and {float(audio_duration):.3f} s of sound; both must be longer than zero."
        )
    num_heard = math.ceil(audio_duration * fps)
    num_shown = {"cut": min(num_frames, num_heard), "silence": num_frames}.get(mode, max(num_frames, num_heard))
    shown = np.arange(num_shown, dtype=np.int64)
    if mode == "loop":
        shown %= num_frames
    elif mode == "ping-pong" and num_frames > 1:
        # the first and the last frame are not shown twice where the direction turns
        shown = num_frames - 1 - np.abs(shown % (2 * num_frames - 2) - (num_frames - 1))
    return FramePlan(np.minimum(shown, num_frames - 1), mode)


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
    indices, done = plan.indices, 0
    last: tuple[int, Frame] | None = None
    while done < len(indices):
        run = _next_run(indices, done)
        if last is not None and run[0] == last[0]:
            done += 1
            yield last
            continue
        source = _backwards(path, run, stamps, last[1]) if run[-1] < run[0] else _forwards(path, run, stamps)
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


def _forwards(path: str | Path, run: np.ndarray, stamps: array) -> Iterator[tuple[int, Frame]]:
    start, stop = int(run[0]), int(run[-1]) + 1
    seek_pts = stamps[start] if 0 < start < len(stamps) else None
    for index, frame in enumerate(read_from(path, start, stop, seek_pts), start):
        if index == len(stamps):
            stamps.append(frame.pts)
        yield index, frame


def _backwards(path: str | Path, run: np.ndarray, stamps: array, like: Frame) -> Iterator[tuple[int, Frame]]:
    low, high = int(run[-1]), int(run[0]) + 1
    size = min(PIECE_FRAMES, max(1, PIECE_BYTES // sum(plane.nbytes for plane in like.planes)))
    for top in range(high, low, -size):
        bottom = max(low, top - size)
        piece = list(read_from(path, bottom, top, stamps[bottom]))
        yield from zip(range(top - 1, bottom - 1, -1), reversed(piece), strict=True)
