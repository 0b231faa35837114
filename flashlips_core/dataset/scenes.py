"""Cut a video into stretches of one face: 25 frames a second, one candidate per person, scene and uninterrupted stretch.

T frames at 25 per second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..face import Detector, track_scenes
from ..media import probe, read_frames
from ..stream import prefetch
from ..types import ClipInfo, FaceTrack, Frame, Progress

RATE = Fraction(25)  # frames per second of everything that is trained
LONGEST_ABSENCE = 25  # frames; a face that is away for longer starts a new candidate
DECODED_AHEAD = 16


@dataclass(frozen=True)
class Candidate:
    """One stretch of one face."""

    person: int  # within its scene, the most seen first
    start: int  # frame of the video at 25 per second
    track: FaceTrack  # of these frames only

    @property
    def stop(self) -> int:
        return self.start + len(self.track)

    @property
    def seconds(self) -> float:
        return len(self.track) / float(RATE)


def read_at_rate(path: str | Path, info: ClipInfo) -> Iterator[Frame]:
    """The frames that a viewer sees at the instants (k + 1/2) / 25 s after the first one; some twice, or not at all."""
    with closing(prefetch(read_frames(path), DECODED_AHEAD)) as frames:
        yield from at_rate(frames, info)


def at_rate(frames: Iterator[Frame], info: ClipInfo) -> Iterator[Frame]:
    """:func:`read_at_rate` of frames that are read already."""
    shown, first, count = None, 0, 0
    for frame in frames:
        if shown is None:
            first = frame.pts
        else:
            while (count + Fraction(1, 2)) / RATE < (frame.pts - first) * info.time_base:
                yield shown
                count += 1
        shown = frame
    if shown is not None:
        end = (shown.pts - first) * info.time_base + 1 / info.fps
        while (count + Fraction(1, 2)) / RATE < end:
            yield shown
            count += 1


def find_candidates(
    path: str | Path, detector: Detector, threshold: float, max_seconds: float, progress: Progress | None = None
) -> list[Candidate]:
    """Everybody in the video, in order of their first frames. Raises FlashLipsError if it cannot be read or has no face.

    Args:
        threshold: Lowest detection score that counts as a face.
        max_seconds: Longer stretches are parted into equal candidates no longer than this.
    """
    info = probe(path)
    steady = replace(info, fps=RATE, time_base=1 / RATE, num_frames=max(1, round(info.duration * RATE)))
    with closing(read_at_rate(path, info)) as frames:
        scenes = track_scenes(frames, steady, detector, threshold=threshold, progress=progress)
    found = []
    for start, tracks in scenes:
        for person, track in enumerate(tracks):
            for a, b in stretches(track.present, round(max_seconds * RATE)):
                part = track.rows(slice(a, b))
                found.append(Candidate(person, start + a, part))
    return sorted(found, key=lambda c: (c.start, c.person))


def stretches(present: np.ndarray, longest: int) -> list[tuple[int, int]]:
    """(start, stop) of what lies between long absences, parted evenly into no more than ``longest`` frames each. (T,) bool."""
    rows = np.flatnonzero(present)
    if not len(rows):
        return []
    breaks = np.flatnonzero(np.diff(rows) > LONGEST_ABSENCE)
    starts, stops = rows[[0, *(breaks + 1)]], rows[[*breaks, len(rows) - 1]] + 1
    result = []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        parts = -(-(stop - start) // max(longest, 1))
        edges = np.linspace(start, stop, parts + 1).round().astype(int).tolist()
        result += list(zip(edges[:-1], edges[1:], strict=True))
    return result
