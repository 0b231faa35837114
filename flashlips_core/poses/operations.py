"""Edits of a pose track as a short list of operations in JSON: what a timeline editor writes and Python applies.

The text is a list of objects, applied in order; ``"op"`` names the operation, every other field may be left out::

    [{"op": "gain", "expression": 1.2, "start": 10, "stop": 60, "fade": 5},
     {"op": "keys", "dimension": 8, "points": [[0, 0.0], [12, 1.5], [20, 0.0]]}]

Times are frames of the track, counted from 0; numbers may have fractions where the table says number. Pose numbers are
standardised: 1.0 is one deviation of the training set. "Rest" is the closed, relaxed mouth.

Every operation takes ``start`` (frame, 0), ``stop`` (the frame after the last, null = the track's end) and ``fade`` (number of
frames, 0): it acts fully in start .. stop - 1 and ramps linearly over ``fade`` further frames on either side.

=========  ==============================================================================================================
gain       Moves further from rest (above 1) or less far. ``expression`` (number -10..10, 1): pose numbers 0 to 7;
           ``mouth`` (number -10..10, 1): 8 to 11.
smooth     Averages over time. ``deviation`` (number 0..1000, 1): standard deviation of the Gaussian in frames.
shift      Moves the motion in time; what lies beyond the ends is held. ``frames`` (number, 0): positive = later.
hold       Freezes the pose. ``frame`` (frame, null = ``start``): whose pose is held.
mix        Goes over to the other track, resampled to this one's rate and length. ``amount`` (number 0..1, 1);
           ``mask`` (true/false, false): multiplies the amount by the mask of each frame.
gate       Brings the lips to rest where the sound holds no speech. ``threshold_db`` (number -100..0, -32): speech ends
           below this level, relative to the clip's speech; ``attack``, ``hold``, ``release`` (numbers of frames 0..1000,
           null = 0.12 s, 0.16 s, 0.2 s): the lips open this long before the sound, stay this long after it, and take
           this long to close.
keys       Adds a hand-drawn curve to one pose number. ``dimension`` (0..11, 0); ``points`` (list of [frame,
           number -1000..1000], frames ascending): linear between points, held before the first and after the last.
rest       Brings the lips to rest. ``amount`` (number 0..1, 1).
draw       Makes what the mouth does on screen follow a hand-drawn curve. ``curve`` (name, "opening"): one of ``shapes.NAMED``,
           or "number 0" to "number 11"; ``points`` as in keys, but what the curve is to be, not what is added.
copy       Repeats another range: frame ``start`` gets the pose of frame ``source`` (frame, 0), the next that of the next, and
           so on; what lies beyond the track's ends is held.
=========  ==============================================================================================================

The format is frozen: shared graphs hold it. New fields get defaults that change nothing; unknown ones are refused, so an old
version never drops an edit silently. T frames, P pose numbers (12).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import Field, dataclass, fields, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..types import POSE_DIM, AudioFeatures, FlashLipsError, LipPoses
from . import motion as tracks
from .fields import MOST_FRAMES, curve_points, flag, number, shape_name, whole
from .shapes import shape
from .silence import silence_gate


@dataclass(frozen=True)
class Surroundings:
    """What some operations need besides the track."""

    rest: Tensor  # (P,) the closed, relaxed mouth
    other: LipPoses | None = None  # for mix
    features: AudioFeatures | None = None  # for gate
    mask: Tensor | None = None  # (T,) or (1,), for mix: 0 keeps this track


# ---- operations ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """One edit over a range of frames; subclasses say what it does to the whole track."""

    name: ClassVar[str]

    start: int = whole(0, 0, MOST_FRAMES)
    stop: int | None = whole(None, 1, MOST_FRAMES)
    fade: float = number(0, 0, MOST_FRAMES)

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if allowed := option.metadata["check"](value):
                raise FlashLipsError(f"'{option.name}' must be {allowed}, got {_shown(value)}.")
            if isinstance(value, list):
                object.__setattr__(self, option.name, tuple(tuple(point) for point in value))  # as frozen as the rest
        if self.stop is not None and self.stop <= self.start:
            raise FlashLipsError(f"'stop' must be above 'start', got {self.stop} and {self.start}.")

    def change(self, poses: LipPoses, around: Surroundings) -> Tensor:
        """The pose numbers of the whole track after the edit, (T, P)."""
        raise NotImplementedError

    def apply(self, poses: LipPoses, around: Surroundings) -> LipPoses:
        """The track with the edit inside its range."""
        if self.start >= len(poses):
            last = len(poses) - 1
            raise FlashLipsError(f"'start' is frame {self.start}, but the track has frames 0 to {last} only; move the range.")
        weight = torch.from_numpy(self.weights(len(poses)))[:, None]
        return replace(poses, values=torch.lerp(poses.values, self.change(poses, around), weight))

    def weights(self, num_frames: int) -> np.ndarray:
        """How much the edit acts on each frame, (T,) float32 in [0, 1]."""
        stop = num_frames if self.stop is None else self.stop
        frame = np.arange(num_frames)
        outside = np.maximum(np.maximum(self.start - frame, frame - (stop - 1)), 0)
        return np.clip(1 - outside / (self.fade + 1), 0, 1).astype(np.float32)


@dataclass(frozen=True)
class Gain(Operation):
    """More or less motion around rest."""

    name = "gain"
    expression: float = number(1, -10, 10)
    mouth: float = number(1, -10, 10)

    def change(self, poses: LipPoses, around: Surroundings) -> Tensor:
        return tracks.gain(poses, self.expression, self.mouth, around.rest).values


@dataclass(frozen=True)
class Smooth(Operation):
    """Calmer motion."""

    name = "smooth"
    deviation: float = number(1, 0, 1000)

    def change(self, poses: LipPoses, around: Surroundings) -> Tensor:
        return tracks.smooth(poses, float(self.deviation / poses.fps)).values


@dataclass(frozen=True)
class Shift(Operation):
    """Later or earlier motion."""

    name = "shift"
    frames: float = number(0, -MOST_FRAMES, MOST_FRAMES)

    def change(self, poses: LipPoses, around: Surroundings) -> Tensor:
        return tracks.shift(poses, float(self.frames / poses.fps)).values


@dataclass(frozen=True)
class Hold(Operation):
    """One frozen pose."""

    name = "hold"
    frame: int | None = whole(None, 0, MOST_FRAMES)

    def change(self, poses: LipPoses, around: Surroundings) -> Tensor:
        frame = self.start if self.frame is None else self.frame
        if frame >= len(poses):
            raise FlashLipsError(f"'frame' is {frame}, but the track has frames 0 to {len(poses) - 1} only; choose one of them.")
        return poses.values[frame].expand_as(poses.values)


@dataclass(frozen=True)
class Mix(Operation):
    """Over to the other track."""

    name = "mix"
    amount: float = number(1, 0, 1)
    mask: bool = flag(False)

    def change(self, poses: LipPoses, around: Surroundings) -> Tensor:
        if around.other is None:
            raise FlashLipsError("There is no other track to mix in; connect one to 'other'.")
        other = tracks.resample(around.other, poses.fps, len(poses))
        return tracks.mix(poses, other, self._amounts(len(poses), around.mask)).values

    def _amounts(self, num_frames: int, mask: Tensor | None) -> Tensor:
        if not self.mask:
            return torch.full((num_frames,), float(self.amount))
        if mask is None:
            raise FlashLipsError("There is no mask to mix by; connect one to 'mask', or leave the field out.")
        if len(mask) not in (1, num_frames):
            raise FlashLipsError(f"The mask has {len(mask)} frames, the track has {num_frames}; give one for each frame, or one.")
        return self.amount * mask.float().cpu().expand(num_frames)


@dataclass(frozen=True)
class Gate(Operation):
    """Closed lips in silence."""

    name = "gate"
    threshold_db: float = number(-32, -100, 0)
    attack: float | None = number(None, 0, 1000)
    hold: float | None = number(None, 0, 1000)
    release: float | None = number(None, 0, 1000)

    def change(self, poses: LipPoses, around: Surroundings) -> Tensor:
        if around.features is None:
            raise FlashLipsError("There is no sound to gate by; connect Encode Audio to 'features'.")
        if not len(around.features.level_db):
            raise FlashLipsError("These audio features do not say how loud the sound is; make them with FlashLips' Encode Audio.")
        settings: dict[str, float] = {"threshold_db": self.threshold_db}
        for name in ("attack", "hold", "release"):
            if (frames := getattr(self, name)) is not None:
                settings[f"{name}_s"] = float(frames / poses.fps)
        return silence_gate(poses, around.features, around.rest, **settings).values


@dataclass(frozen=True)
class Keys(Operation):
    """A curve drawn by hand, added to one pose number."""

    name = "keys"
    dimension: int = whole(0, 0, POSE_DIM - 1)
    points: tuple[tuple[int, float], ...] = curve_points()

    def change(self, poses: LipPoses, around: Surroundings) -> Tensor:
        values = poses.values.clone()
        if self.points:
            values[:, self.dimension] += _along(self.points, len(poses))
        return values


@dataclass(frozen=True)
class Rest(Operation):
    """Lips at rest."""

    name = "rest"
    amount: float = number(1, 0, 1)

    def change(self, poses: LipPoses, around: Surroundings) -> Tensor:
        return torch.lerp(poses.values, around.rest.to(poses.values).expand_as(poses.values), float(self.amount))


@dataclass(frozen=True)
class Draw(Operation):
    """What the mouth does on screen follows a curve drawn by hand."""

    name = "draw"
    curve: str = shape_name("opening")
    points: tuple[tuple[int, float], ...] = curve_points()

    def change(self, poses: LipPoses, around: Surroundings) -> Tensor:
        if not self.points:
            return poses.values
        return shape(self.curve).moved(poses.values, _along(self.points, len(poses)))


@dataclass(frozen=True)
class Copy(Operation):
    """The motion of another range."""

    name = "copy"
    source: int = whole(0, 0, MOST_FRAMES)

    def change(self, poses: LipPoses, around: Surroundings) -> Tensor:
        if self.source >= len(poses):
            last = len(poses) - 1
            raise FlashLipsError(f"'source' is {self.source}, but the track has frames 0 to {last} only; choose one of them.")
        rows = torch.arange(len(poses)) + (self.source - self.start)
        return poses.values[rows.clamp(0, len(poses) - 1)]


def _along(points: Sequence[tuple[int, float]], num_frames: int) -> Tensor:
    """A curve's height at each frame, (T,)."""
    frames, heights = zip(*points, strict=True)
    return torch.from_numpy(np.interp(np.arange(num_frames), frames, heights)).float()


_KINDS = (Gain, Smooth, Shift, Hold, Mix, Gate, Keys, Rest, Draw, Copy)
OPERATIONS: dict[str, type[Operation]] = {kind.name: kind for kind in _KINDS}


def simple_operations(
    fps: Fraction,
    expression: float = 1.0,
    mouth: float = 1.0,
    smoothing_ms: float = 0.0,
    offset_ms: float = 0.0,
    mix: float = 0.0,
    is_masked: bool = False,
    is_gated: bool = False,
) -> list[Operation]:
    """What a few sliders ask for, as operations on a whole track of ``fps`` poses per second.

    The gate comes before the offset: it looks at the sound, and an offset moves the lips against it on purpose.
    """
    per_ms = float(fps) / 1000
    operations: list[Operation] = []
    if mix:
        operations.append(Mix(amount=mix, mask=is_masked))
    if (expression, mouth) != (1, 1):
        operations.append(Gain(expression=expression, mouth=mouth))
    if smoothing_ms:
        operations.append(Smooth(deviation=smoothing_ms * per_ms))
    if is_gated:
        operations.append(Gate())
    if offset_ms:
        operations.append(Shift(frames=offset_ms * per_ms))
    return operations


# ---- the list --------------------------------------------------------------------------------------------------------------


def from_json(text: str) -> list[Operation]:
    """The operations of a JSON list; empty text is an empty list."""
    if not text.strip():
        return []
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise FlashLipsError(f"The operations are no JSON ({error.msg} at {where}); write a list such as {_EXAMPLE}.") from error
    except RecursionError as error:
        raise FlashLipsError(f"The operations are nested too deeply; write a list such as {_EXAMPLE}.") from error
    if not isinstance(items, list):
        raise FlashLipsError(f"The operations must be a JSON list such as {_EXAMPLE}, got {_shown(items)}.")
    return [_parsed(place, item) for place, item in enumerate(items, 1)]


def apply_operations(
    poses: LipPoses, operations: Sequence[Operation], around: Surroundings, called: str = "Operation"
) -> LipPoses:
    """The track after all operations, in order. A wrong one is ``called`` by its position, 1 being the first."""
    if not len(poses):
        raise FlashLipsError("There are no poses to edit; the sound or the video behind them is empty.")
    for place, operation in enumerate(operations, 1):
        try:
            poses = operation.apply(poses, around)
        except FlashLipsError as error:
            raise FlashLipsError(f"{called} {place} ({operation.name}): {error}") from error
    return poses


_EXAMPLE = '[{"op": "gain", "mouth": 1.2}]'


def _parsed(place: int, item: Any) -> Operation:
    """One operation, strictly."""
    if not isinstance(item, dict):
        raise FlashLipsError(f"Operation {place} must be an object such as {_EXAMPLE[1:-1]}, got {_shown(item)}.")
    name = item.get("op")
    if not isinstance(name, str) or name not in OPERATIONS:
        allowed = ", ".join(OPERATIONS)
        raise FlashLipsError(f"Operation {place}: 'op' must be one of {allowed}, got {_shown(name)}.")
    options: dict[str, Field] = {option.name: option for option in fields(OPERATIONS[name])}
    unknown = [key for key in item if key not in options and key != "op"]
    if unknown:
        allowed = ", ".join(options)
        raise FlashLipsError(f"Operation {place} ({name}) does not know '{unknown[0]}'; its fields are {allowed}.")
    try:
        return OPERATIONS[name](**{key: value for key, value in item.items() if key != "op"})
    except FlashLipsError as error:
        raise FlashLipsError(f"Operation {place} ({name}): {error}") from error


def _shown(value: Any) -> str:
    """A value as JSON shows it, cut short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
