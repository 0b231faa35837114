"""Follow faces through a clip: detections per frame -> one steady crop per frame.

T frames, K faces. The pictures that the detector sees are small and made from the YUV planes; no full RGB frame is ever made.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..types import ClipInfo, FaceTrack, FlashLipsError, Frame, Progress
from .appearance import face_patch, histogram_distance, likeness, luma_histogram, standardised, thumbnail
from .crop import Stabilise, crop_box, nearest_present, smooth_boxes
from .detect import Detector
from .detection import Detection, overlap
from .head_pose import canonical_squares

logger = logging.getLogger(__name__)

BATCH = 16  # frames per call of the detector
LONGEST_GAP_S = 0.2  # a face lost for less is interpolated; for longer, those frames pass through untouched
FORGET_S = 1.0  # a face lost for longer is a new one
LOOK_WIDE_S = 1.0  # how often the whole frame is searched for new and smaller faces
SAME_FACE = 0.85  # patch correlation above which two appearances are one person (GRID: 0.9 in a take, 0.6 between people)
LIKE_REFERENCE = 0.4  # patch correlation below which a scene is taken not to hold the reference's face
CUT_DISTANCE = 0.12  # share of luma that changes value at a cut; on GRID speech changes 0.02, a cut to somebody else 0.13 and up
LANDMARK_STEADINESS = 0.5  # landmarks shake less than a detector's points: squares follow the head more closely
CUT_RATIO = 4.0  # a cut also stands out this much from the frames before it, a pan does not


@dataclass(frozen=True)
class FaceReference:
    """A face to look for: its appearance, and optionally where it was."""

    patch: np.ndarray  # (3, PATCH, PATCH) float32, standardised
    box: np.ndarray | None = None  # (4,) crop box as shares of the frame's width and height; breaks ties between look-alikes


class NoFaceError(FlashLipsError):
    """No frame of the clip has a face."""


Which = str | int | FaceReference
"""Which face: "largest", "left", "right" (judged anew in each scene), n for the n-th from the left (0 first), or a reference."""


@dataclass
class _Face:
    """One face within one scene, as it is followed."""

    frames: list[int] = field(default_factory=list)
    detections: list[Detection] = field(default_factory=list)
    patches: list[np.ndarray] = field(default_factory=list)

    @property
    def size(self) -> float:
        """Median side of its box times the number of sightings: how much of the scene it fills."""
        return len(self.frames) * float(np.median([_side(d.box) for d in self.detections])) ** 2

    @property
    def x(self) -> float:
        return float(np.median([d.box[[0, 2]].mean() for d in self.detections]))

    @property
    def patch(self) -> np.ndarray:
        return standardised(np.mean(self.patches, axis=0))


@dataclass
class _Clip:
    faces: list[_Face]
    cuts: list[int]
    num_frames: int
    width: int
    height: int


def track_faces(
    frames: Iterable[Frame],
    info: ClipInfo,
    detector: Detector,
    which: Which = "largest",
    every: int = 1,
    stabilise: Stabilise = "smooth",
    threshold: float = 0.5,
    progress: Progress | None = None,
) -> FaceTrack:
    """Follow one face. Raises FlashLipsError if no frame has it.

    Args:
        every: look in every n-th frame and interpolate the points between.
        threshold: lowest detection score that counts as a face.

    Squares turn with the head where the detector has a follower, which measures landmarks; else all stand upright.
    """
    clip = _watch(frames, info, detector, every, threshold, progress)
    chosen = [face for scene in _by_scene(clip) for face in _choose(scene, which, clip)]
    if not chosen:
        raise _no_such_face(clip, which, threshold)
    return _to_track(chosen, clip, info, every, stabilise)


def _now(threshold: float) -> str:
    return f"now {threshold}; in ComfyUI: Track Face's 'threshold'"


def _no_such_face(clip: _Clip, which: Which, threshold: float) -> FlashLipsError:
    """The error for a clip that does not show the face that was asked for."""
    most = max(len(_columns(_real(scene))) for scene in _by_scene(clip))
    lower = f"lower the detection threshold ({_now(threshold)})"
    if isinstance(which, FaceReference):
        return FlashLipsError(f"No face in the clip looks like the reference; take a clearer picture of that person, or {lower}.")
    found = "1 face, number 0" if most == 1 else f"{most} faces, numbered 0 to {most - 1} from the left"
    return FlashLipsError(f"The clip has no face {which}: it shows {found}; choose one that is there, or {lower}.")


def track_scenes(
    frames: Iterable[Frame],
    info: ClipInfo,
    detector: Detector,
    threshold: float = 0.5,
    progress: Progress | None = None,
) -> list[tuple[int, list[FaceTrack]]]:
    """Follow everybody, each scene on its own: its first frame, and one track of its frames per person, the most seen first."""
    clip = _watch(frames, info, detector, 1, threshold, progress)
    edges = [0, *clip.cuts, clip.num_frames]
    found = []
    for scene in _by_scene(clip):
        place = int(np.searchsorted(clip.cuts, scene[0].frames[0], side="right"))
        part = slice(edges[place], edges[place + 1])
        whole = (_to_track(p, clip, info, 1, "smooth") for p in _people(scene))
        found.append((part.start, [track.rows(part) for track in whole]))
    return found


def _people(faces: Sequence[_Face]) -> list[list[_Face]]:
    """Appearances joined to the person that they look most like, the most seen person first."""
    people: list[list[_Face]] = []
    for face in sorted(faces, key=lambda f: -f.size):
        free = [p for p in people if not any(_meet(face, other) for other in p)]
        best = max(free, key=lambda p: likeness(face.patch, p[0].patch), default=None)
        if best is not None and likeness(face.patch, best[0].patch) > SAME_FACE:
            best.append(face)
        else:
            people.append([face])
    return sorted(people, key=lambda p: -sum(face.size for face in p))


def reference_face(rgb: np.ndarray, detector: Detector) -> FaceReference:
    """The largest face of an (H, W, 3) uint8 picture, to be looked for in a clip."""
    faces = detector.detect(rgb)
    if not faces:
        raise FlashLipsError("The reference picture has no face; choose one with a visible face.")
    points = max(faces, key=lambda face: _side(face.box)).points
    return FaceReference(face_patch(rgb, points), crop_box(points) / np.tile([rgb.shape[1], rgb.shape[0]], 2).astype(np.float32))


# ---- watching the clip -----------------------------------------------------------------------------------------------------


def _watch(
    frames: Iterable[Frame], info: ClipInfo, detector: Detector, every: int, threshold: float, progress: Progress | None
) -> _Clip:
    if every < 1:
        raise FlashLipsError(f"Detection must run every 1st to n-th frame, got {every}; give 1 or more.")
    watcher = _Watcher(detector, float(info.fps), every, threshold)
    count, shape = 0, (info.width, info.height)
    for count, frame in enumerate(frames, start=1):
        watcher.push(frame)
        shape = (frame.width, frame.height)
        if progress is not None:
            progress(count, max(info.num_frames, count))
    watcher.flush()
    if not watcher.faces:
        raise NoFaceError(
            f"No face in any of the {count} frames; pick a clip with a visible face, or lower the detection threshold "
            f"({_now(threshold)})."
        )
    return _Clip(watcher.faces, watcher.cuts, count, *shape)


class _Watcher:
    """Takes frames in order, finds cuts, detects in batches at the size that suits the scene, and joins detections to faces."""

    def __init__(self, detector: Detector, fps: float, every: int, threshold: float) -> None:
        self.detector, self.every, self.threshold = detector, every, threshold
        self.wide_every = max(round(LOOK_WIDE_S * fps), 1)
        self.forget = max(FORGET_S * fps, 3 * every)
        self.faces: list[_Face] = []
        self.cuts: list[int] = []
        self._open: list[_Face] = []  # faces of this scene that may be seen again
        self._waiting: list[tuple[int, Frame]] = []
        self._histogram: np.ndarray | None = None
        self._usual = 0.0  # recent mean of the histogram distance
        self._scale: float | None = None  # None: nothing is known of this scene yet
        self._count = 0

    def push(self, frame: Frame) -> None:
        index, self._count = self._count, self._count + 1
        if self._is_cut(frame):
            self.flush()
            self.cuts.append(index)
            self._open, self._scale = [], None
        start = self.cuts[-1] if self.cuts else 0
        if (index - start) % self.every:
            return
        if self._scale is None or (index - start) % self.wide_every < self.every:
            self.flush()
            self._look_wide(frame)
        self._waiting.append((index, frame))
        if len(self._waiting) == BATCH:
            self.flush()

    def _is_cut(self, frame: Frame) -> bool:
        histogram, last = luma_histogram(frame), self._histogram
        self._histogram = histogram
        if last is None:
            return False
        distance = histogram_distance(last, histogram)
        usual, self._usual = self._usual, 0.8 * self._usual + 0.2 * min(distance, CUT_DISTANCE)
        return distance > max(CUT_DISTANCE, CUT_RATIO * usual)

    def flush(self) -> None:
        """Detect in the waiting frames, and follow."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        size = self._scale * max(waiting[0][1].width, waiting[0][1].height)
        pictures = np.stack([thumbnail(frame, size) for _, frame in waiting])
        if self.detector.follower is not None:
            for (index, frame), picture in zip(waiting, pictures, strict=True):
                self._follow(index, frame, picture, self._moved_on(index, frame) or self._measured(frame, picture))
            return
        smallest = 0.5 * self.detector.face_px
        for (index, frame), picture, faces in zip(waiting, pictures, self.detector.find(pictures, smallest), strict=True):
            self._follow(index, frame, picture, self._counted(faces, frame, picture))

    def _moved_on(self, index: int, frame: Frame) -> list[Detection]:
        """The faces of the frame before, found again from where their landmarks were; [] where a new search is needed."""
        start = self.cuts[-1] if self.cuts else 0
        last = [face.detections[-1].landmarks for face in self._open if face.frames[-1] == index - self.every]
        if not last or len(last) < len(self._open) or (index - start) % self.wide_every < self.every:
            return []
        found = self.detector.follower.follow(frame, np.stack(last))
        return found if len(found) == len(last) else []

    def _measured(self, frame: Frame, picture: np.ndarray) -> list[Detection]:
        """The detector's faces, those that have a face's landmarks."""
        faces = self._counted(self.detector.find(picture[None], 0.5 * self.detector.face_px)[0], frame, picture)
        return self.detector.follower.measure(frame, faces)

    def _look_wide(self, frame: Frame) -> None:
        """Search the whole frame, and choose the size at which the scene's faces are measured."""
        longest = max(frame.width, frame.height)
        picture = thumbnail(frame, min(self.detector.max_side, longest))
        faces = self._counted(self.detector.find(picture[None])[0], frame, picture)
        scale = self.detector.best_scale(faces, longest)
        if self._scale is None or (faces and not 0.75 < scale / self._scale < 1.33):  # a new size moves points a little: rarely
            self._scale = scale

    def _counted(self, faces: Sequence[Detection], frame: Frame, picture: np.ndarray) -> list[Detection]:
        """Detections above the threshold, in frame pixels."""
        factor = frame.width / picture.shape[1]
        return [face.scaled(factor) for face in faces if face.score >= self.threshold]

    def _follow(self, index: int, frame: Frame, picture: np.ndarray, detections: list[Detection]) -> None:
        self._open = [face for face in self._open if index - face.frames[-1] <= self.forget]
        last = [face.detections[-1].box for face in self._open]
        pairs = [(_fit(box, d.box), i, j) for i, box in enumerate(last) for j, d in enumerate(detections)]
        taken_faces, taken = set(), {}
        for fit, i, j in sorted(pairs, key=lambda p: -p[0]):
            if fit > 0 and i not in taken_faces and j not in taken:
                taken_faces.add(i)
                taken[j] = self._open[i]
        for j, detection in enumerate(detections):
            face = taken.get(j)
            if face is None:
                face = _Face()
                self.faces.append(face)
                self._open.append(face)
            if len(face.frames) % 10 == 0 and len(face.patches) < 50:
                face.patches.append(face_patch(picture, detection.points * (picture.shape[1] / frame.width)))
            face.frames.append(index)
            face.detections.append(detection)


def _fit(last: np.ndarray, box: np.ndarray) -> float:
    """How well a detection continues a face: overlap, or nearness where they do not overlap; 0 if it cannot be the same face."""
    ratio = _side(box) / max(_side(last), 1e-6)
    if not 0.6 < ratio < 1.67:
        return 0.0
    distance = np.hypot(*((box[:2] + box[2:]) / 2 - (last[:2] + last[2:]) / 2)) / max(_side(box), _side(last))
    return overlap(last, box) + max(0.0, 0.7 - distance)


# ---- choosing --------------------------------------------------------------------------------------------------------------


def _by_scene(clip: _Clip) -> list[list[_Face]]:
    edges = np.array(clip.cuts, dtype=np.int64)
    groups: dict[int, list[_Face]] = {}
    for face in clip.faces:
        groups.setdefault(int(np.searchsorted(edges, face.frames[0], side="right")), []).append(face)
    return [groups[key] for key in sorted(groups)]


def _choose(scene: list[_Face], which: Which, clip: _Clip) -> list[_Face]:
    """The chosen face of a scene, with later sightings of it after a long gap; [] where the scene lacks it."""
    largest = max(scene, key=lambda f: f.size)
    real = _real(scene)
    if isinstance(which, FaceReference):
        first = max(scene, key=lambda f: _resemblance(f, which, clip))
        if likeness(first.patch, which.patch) < LIKE_REFERENCE:
            return []
    elif which == "largest":
        first = largest
    elif which in ("left", "right"):
        first = min(real, key=lambda f: f.x if which == "left" else -f.x)
    elif isinstance(which, int):
        columns = _columns(real)
        if not 0 <= which < len(columns):
            return []
        first = columns[which]
    else:
        raise FlashLipsError(f"Unknown face '{which}'; choose largest, left, right, a number from 0, or a reference picture.")
    chosen = [first]
    for face in sorted((f for f in scene if f is not first), key=lambda f: -f.size):
        if not any(_meet(face, other) for other in chosen) and likeness(face.patch, first.patch) > SAME_FACE:
            chosen.append(face)
    return chosen


def _real(scene: list[_Face]) -> list[_Face]:
    """Without what is small beside the largest: a poster, a stray detection is nobody's "left"."""
    largest = max(face.size for face in scene)
    return [face for face in scene if face.size > 0.05 * largest]


def _columns(faces: list[_Face]) -> list[_Face]:
    """Faces from left to right; of two that are never seen together in one place, the larger."""
    kept: list[_Face] = []
    for face in sorted(faces, key=lambda f: -f.size):
        if not any(not _meet(face, k) and likeness(face.patch, k.patch) > SAME_FACE for k in kept):
            kept.append(face)
    return sorted(kept, key=lambda f: f.x)


def _resemblance(face: _Face, reference: FaceReference, clip: _Clip) -> float:
    alike = likeness(face.patch, reference.patch)
    if reference.box is None:
        return alike
    boxes = crop_box(np.stack([d.points for d in face.detections])) / np.array([clip.width, clip.height] * 2)
    return alike + 0.1 * overlap(np.median(boxes, axis=0), reference.box)


def _meet(a: _Face, b: _Face) -> bool:
    """Whether two faces are seen at the same time, which one person cannot be."""
    return a.frames[0] <= b.frames[-1] and b.frames[0] <= a.frames[-1]


# ---- from detections to a track --------------------------------------------------------------------------------------------


def _to_track(faces: list[_Face], clip: _Clip, info: ClipInfo, every: int, stabilise: Stabilise) -> FaceTrack:
    is_measured = all(d.landmarks is not None for face in faces for d in face.detections)
    points = np.zeros((clip.num_frames, 5 + 99 * is_measured, 2), np.float64)
    present = np.zeros(clip.num_frames, bool)
    longest = max(every, int(LONGEST_GAP_S * float(info.fps)))
    edges = [0, *clip.cuts, clip.num_frames]
    for face in faces:
        known = np.array(face.frames)
        values = np.stack([np.concatenate([d.points, d.landmarks]) if is_measured else d.points for d in face.detections])
        scene = int(np.searchsorted(clip.cuts, known[0], side="right"))
        rows = np.arange(max(known[0] - every + 1, edges[scene]), min(known[-1] + every, edges[scene + 1]))
        after = np.searchsorted(known, rows).clip(max=len(known) - 1)
        before = np.searchsorted(known, rows, side="right").clip(min=1) - 1
        rows = rows[(known[after] - known[before] <= longest) & ~present[rows]]
        for axis in np.ndindex(points.shape[1:]):
            points[(rows, *axis)] = np.interp(rows, known, values[(slice(None), *axis)])
        present[rows] = True
    points = points[nearest_present(present)]
    logger.debug("%d of %d frames have the face, %d cuts", present.sum(), clip.num_frames, len(clip.cuts))
    scene = np.searchsorted(clip.cuts, np.arange(clip.num_frames), side="right").astype(np.int32)
    about = dict(width=clip.width, height=clip.height, fps=info.fps, scene=scene)
    five, landmarks = points[:, :5].astype(np.float32), points[:, 5:].astype(np.float32)
    if not is_measured:
        boxes = smooth_boxes(crop_box(five), present, info.fps, stabilise, clip.cuts)
        return FaceTrack(boxes, five, present, **about)
    squares, _ = canonical_squares(landmarks, present)
    squares = smooth_boxes(squares, present, info.fps, stabilise, clip.cuts, LANDMARK_STEADINESS)
    return FaceTrack(squares[:, :4], five, present, **about, roll=squares[:, 4], landmarks=landmarks)


def _side(box: np.ndarray) -> float:
    return float(max(box[2] - box[0], box[3] - box[1]))
