"""Which source frame each generated frame shows, and where the face is in both.

T generated frames that are measured. A lip gap is over the distance of the outer eye corners, whoever found the landmarks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from ...face import NoFaceError
from ...face.motion import FaceMotion, measure_frames, motion_from_faces
from ...face.points import LANDMARKS
from ...pipeline import LipSync
from ...types import ClipInfo, FaceTrack, FlashLipsError, Waiting
from ..videos.measures import upright_frames

SAME_RATE = 0.002  # share by which frame rates may differ: 30000/1001 is 30
SAME_SHAPE = 0.02  # share by which widths over heights may differ: sizes are rounded to multiples of 2 or 16
LEAST_FRAMES = 5  # that both show


@dataclass(frozen=True)
class Matching:
    """How two videos lie over each other."""

    rows: np.ndarray  # (T,) int: the source frame that each generated frame shows
    fps: float  # of the generated video
    size: tuple[int, int] | None  # the source's width and height, which both are compared at; None: another framing
    notes: list[str] = field(default_factory=list)  # what was done, or could not be

    def __len__(self) -> int:
        return len(self.rows)


def match(generated: ClipInfo, source: ClipInfo, most: int | None = None) -> Matching:
    """Frame by frame where the rates are the same, else by time; as long as both last, and ``most`` frames at most."""
    ratio, notes = float(source.fps / generated.fps), []
    is_same_rate = abs(ratio - 1) <= SAME_RATE
    shown = np.arange(generated.num_frames)
    shown = shown if is_same_rate else np.floor((shown + 0.5) * ratio).astype(int)
    rows = shown[shown < source.num_frames][:most]
    if not is_same_rate:
        rates = f"{float(generated.fps):.4g} frames per second, its source {float(source.fps):.4g}"
        notes.append(f"{rates}: compared by time, {len(rows)} frames")
    elif generated.num_frames != source.num_frames:
        notes.append(f"{generated.num_frames} frames, its source {source.num_frames}: the first {len(rows)} are compared")
    if len(rows) < LEAST_FRAMES:
        raise FlashLipsError(f"{_name(generated)} and {_name(source)} share {len(rows)} frames; {LEAST_FRAMES} are needed.")
    size, sizes = (
        (source.width, source.height),
        f"{generated.width}x{generated.height}, its source {source.width}x{source.height}",
    )
    if abs(generated.width / generated.height * source.height / source.width - 1) > SAME_SHAPE:
        notes.append(f"{sizes}: another framing, so pictures cannot be compared")
        size = None
    elif (generated.width, generated.height) != size:
        notes.append(f"{sizes}: made as large as it")
    return Matching(rows, float(generated.fps), size, notes)


def _name(clip: ClipInfo) -> str:
    return Path(clip.path).name


def by_time(curve: np.ndarray, fps: float, matching: Matching) -> np.ndarray:
    """A curve of another video at the generated frames' times; NaN where it has ended. (N,) -> (T,)"""
    rows = np.floor((np.arange(len(matching)) + 0.5) * fps / matching.fps + 1e-6).astype(int)
    return np.where(rows < len(curve), np.asarray(curve, float)[rows.clip(max=len(curve) - 1)], np.nan)


def paired_frames(
    generated: Path, source: Path, matching: Matching, waiting: Waiting | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(source, generated) frames (H, W, 3) uint8 RGB, both of the source's size."""
    originals, position, shown = readable_frames(source), -1, None
    for row, made in zip(matching.rows, readable_frames(generated, waiting), strict=False):
        while position < row:
            shown, position = next(originals, None), position + 1
        if shown is None:
            return
        yield shown, _resized(made, matching.size)


def _resized(frame: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    if size is None or frame.shape[1::-1] == size:
        return frame
    import cv2

    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if frame.shape[1] > size[0] else cv2.INTER_CUBIC)


def readable_frames(path: Path, waiting: Waiting | None = None) -> Iterator[np.ndarray]:
    """Frames, and a sentence where the file is damaged; ``waiting`` is called after each."""
    import av

    try:
        for frame in upright_frames(path):
            yield frame
            if waiting is not None:
                waiting()
    except av.error.FFmpegError as error:
        raise FlashLipsError(f"{path.name} cannot be decoded ({error.strerror}); write it again.") from error


# ---- who looks -------------------------------------------------------------------------------------------------------------


class Witness(Protocol):
    """Finds one face's landmarks in each frame of a video."""

    name: str

    def see(self, path: Path, stop: int, waiting: Waiting | None = None) -> FaceMotion:
        """What it sees in the first ``stop`` frames; ``waiting`` is called for each and may raise to stop the work."""
        ...


@dataclass(frozen=True)
class MediaPipe:
    """An outside witness: no network of ours has a say."""

    landmarker: Path
    name: str = "MediaPipe's face landmarker"

    def see(self, path: Path, stop: int, waiting: Waiting | None = None) -> FaceMotion:
        frames = (frame for _, frame in zip(range(stop), readable_frames(path, waiting), strict=False))
        return measure_frames(frames, self.landmarker)


@dataclass(frozen=True)
class OwnLandmarks:
    """The bundled landmark network, which needs no download; the same that dubs are tracked with."""

    lipsync: LipSync
    name: str = "the bundled landmark network"

    def see(self, path: Path, stop: int, waiting: Waiting | None = None) -> FaceMotion:
        try:
            track = self.lipsync.track(path, stop=stop, progress=None if waiting is None else lambda *_: waiting())
        except NoFaceError:
            return motion_from_faces([None] * stop)
        return motion_of(track)


def motion_of(track: FaceTrack) -> FaceMotion:
    """A track's landmarks as MediaPipe's; its blendshapes, which only MediaPipe knows, are 0."""
    if track.landmarks is None:
        raise FlashLipsError(
            "This detector gives no landmarks; leave --detector out, or give MediaPipe's landmarker (--weights)."
        )
    faces = []
    for points, is_present in zip(track.landmarks, track.present, strict=True):
        whole = np.full((478, 2), np.nan, np.float32)
        whole[list(LANDMARKS)] = points
        faces.append((whole, np.zeros(52, np.float32)) if is_present else None)
    return motion_from_faces(faces)


def rows_of(motion: FaceMotion, rows: Sequence[int] | np.ndarray) -> FaceMotion:
    """Some of the frames, in any order; frames that it does not have show no face."""
    known = [None if row >= len(motion) or not motion.found[row] else row for row in rows]
    return motion_from_faces([None if row is None else (motion.landmarks[row], motion.blendshapes[row]) for row in known])
