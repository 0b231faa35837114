"""What the stages hand to each other: small, frozen, checked once.

T frames, D feature size, P pose numbers (12). Boxes are ``xyxy`` in pixels of the upright frame; time is a frame index or an
exact ``Fraction`` of seconds, never float seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

POSE_DIM = 12  # 8 expression + 4 mouth-crop numbers (paper, lip encoder)
NUM_LANDMARKS = 99  # of a face, in the order of ``face.points``
SAMPLE_RATE = 16_000  # every audio encoder listens at 16 kHz
AUDIO_PIECE = 1 << 16  # samples handed on at a time

Progress = Callable[[int, int], None]
"""``progress(done, total)``, called after each frame or step; it may raise to stop the work."""

Waiting = Callable[[], None]
"""``waiting()``, called several times a second while nothing new can be counted; it may raise to stop the work."""


class FlashLipsError(ValueError):
    """Something the user can mend: says what was got, what was expected, and what to do."""


@dataclass(frozen=True)
class ClipInfo:
    """What a media file holds, as seen upright."""

    path: str
    width: int  # pixels, after rotation
    height: int
    fps: Fraction  # average frames per second
    num_frames: int  # the container's count, or duration * fps where it keeps none
    duration: Fraction  # seconds
    time_base: Fraction  # seconds per pts tick
    rotation: int  # degrees clockwise applied to make frames upright: 0, 90, 180, 270
    pix_fmt: str
    color_range: int  # FFmpeg's AVColorRange
    colorspace: int  # FFmpeg's AVColorSpace
    color_primaries: int
    color_trc: int
    is_variable_rate: bool
    audio_rate: int | None  # Hz, None without audio
    audio_channels: int | None
    pixel_aspect: Fraction = Fraction(1)  # width of a pixel over its height, seen upright
    clock_start: Fraction = Fraction(0)  # seconds where the clock starts, if the container starts it anywhere (MPEG-TS)
    light: tuple[str, ...] = ()  # HDR's mastering display and light levels, in x265's words
    stamps: tuple[int, ...] | None = None  # pts of every frame, in order, where the rate is variable or nothing states a count


@dataclass(frozen=True)
class Frame:
    """One upright picture kept as it was coded: planar YUV, small until it is on the device.

    ``planes`` are Y, U, V as (rows, columns) arrays, uint8 for 8-bit formats and uint16 above. Frames are shared between
    threads: nobody writes into ``planes``; an edit makes a new Frame.
    """

    planes: tuple[np.ndarray, np.ndarray, np.ndarray]
    pix_fmt: str  # planar YUV, e.g. "yuv420p", "yuv422p10le"
    pts: int  # in time_base ticks
    color_range: int = 0
    colorspace: int = 0

    @property
    def height(self) -> int:
        return self.planes[0].shape[0]

    @property
    def width(self) -> int:
        return self.planes[0].shape[1]

    @property
    def chroma_shift(self) -> tuple[int, int]:
        """log2 of the chroma subsampling, (horizontal, vertical)."""
        rows, columns = self.planes[1].shape
        return int(self.width > columns), int(self.height > rows)

    @property
    def bit_depth(self) -> int:
        """Bits per sample: the digits behind ``p`` in the format's name, 8 without any."""
        digits = self.pix_fmt.rpartition("p")[2].removesuffix("le").removesuffix("be")
        return int(digits) if digits.isdigit() else 8


@dataclass(frozen=True)
class FaceTrack:
    """Where one face is in every frame of one clip.

    ``squares`` are the crops that the editor sees, not detector boxes; rows of absent frames repeat the nearest present one,
    so that interpolation never jumps.
    """

    boxes: np.ndarray  # (T, 4) float32, xyxy: the squares before they are turned
    points: np.ndarray  # (T, 5, 2) float32: eyes (image left, image right), nose tip, mouth corners (image left, right)
    present: np.ndarray  # (T,) bool
    width: int
    height: int
    fps: Fraction
    roll: np.ndarray | None = None  # (T,) float32 radians, clockwise on screen; None: all upright
    landmarks: np.ndarray | None = None  # (T, 99, 2) float32 pixels, see ``face.points``; None: nobody has looked
    scene: np.ndarray | None = None  # (T,) int32, which of the clip's scenes a frame belongs to; None: there is one

    def __post_init__(self) -> None:
        counts = {name: len(value) for name, value in self.arrays().items()}
        if len(set(counts.values())) != 1:
            raise FlashLipsError(
                f"A track's arrays must have a row per frame, got {', '.join(f'{n} {name}' for name, n in counts.items())}."
            )
        for name, value in self.arrays().items():
            shape = {"boxes": (4,), "points": (5, 2), "landmarks": (99, 2)}.get(name, ())
            if value.shape[1:] != shape:
                raise FlashLipsError(f"A track's {name} must be (frames, {', '.join(map(str, shape))}), got {value.shape}.")
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise FlashLipsError(f"A track's {name} hold what is no number (NaN or infinite); track the clip again.")
        if self.fps <= 0:
            raise FlashLipsError(f"A track's frames per second must be above 0, got {float(self.fps):g}.")

    def __len__(self) -> int:
        return len(self.boxes)

    def arrays(self) -> dict[str, np.ndarray]:
        """What has a row for each frame, by name."""
        values = {name: getattr(self, name) for name in ("boxes", "points", "present", "roll", "landmarks", "scene")}
        return {name: value for name, value in values.items() if value is not None}

    def rows(self, part: slice | np.ndarray) -> FaceTrack:
        """The track of some of the frames."""
        return replace(self, **{name: value[part] for name, value in self.arrays().items()})

    @property
    def squares(self) -> np.ndarray:
        """What to cut: (T, 5) float32, ``x0 y0 x1 y1 roll``, as ``compose`` takes it."""
        roll = np.zeros(len(self), np.float32) if self.roll is None else self.roll
        return np.concatenate([self.boxes, roll[:, None]], 1)

    @property
    def usual_side(self) -> float:
        """Median side of the boxes, in frame pixels."""
        return float(np.median(self.boxes[:, 2] - self.boxes[:, 0]))

    def first(self, count: int) -> FaceTrack:
        """The track of the clip's first frames, as a dub that ends with its sound has them."""
        return self.rows(slice(count))


@dataclass(frozen=True)
class Audio:
    """Decoded sound at its own rate."""

    samples: Tensor  # (channels, N) float32 in [-1, 1], cpu
    sample_rate: int  # Hz

    @property
    def channels(self) -> int:
        return self.samples.shape[0]

    @property
    def duration(self) -> Fraction:
        return Fraction(self.samples.shape[-1], self.sample_rate)

    def pieces(self) -> Iterator[Tensor]:
        """The sound from its start: (channels, n) each."""
        yield from self.samples.split(AUDIO_PIECE, dim=1)


class Recording(Protocol):
    """Sound that can be heard any number of times, piece by piece: an :class:`Audio`, or one that stays in its file."""

    @property
    def sample_rate(self) -> int: ...

    @property
    def channels(self) -> int: ...

    @property
    def duration(self) -> Fraction: ...

    def pieces(self) -> Iterator[Tensor]: ...


@dataclass(frozen=True)
class AudioFeatures:
    """What an audio encoder hears, one row per feature frame."""

    values: Tensor  # (N, D) float32, cpu
    rate_hz: Fraction  # rows per second
    kind: str  # the encoder's name, e.g. "flashlips-mel-conv", "wav2vec2-base:12"; a pose model accepts one kind
    level_db: Tensor  # (N,) float32: loudness of each row in dB full scale, for the silence gate

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class LipPoses:
    """The lip pose of each frame, standardised per dimension on the training set (0 mean, unit deviation)."""

    values: Tensor  # (T, 12) float32, cpu
    fps: Fraction  # poses per second

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or not self.values.is_floating_point():
            kind = f"{tuple(self.values.shape)} {self.values.dtype}"
            raise FlashLipsError(f"Poses must be (frames, {POSE_DIM}) floats, got {kind}.")
        if self.fps <= 0:
            raise FlashLipsError(f"Poses per second must be above 0, got {float(self.fps):g}.")
        if not torch.isfinite(self.values).all():
            raise FlashLipsError("The poses hold values that are not numbers (NaN or infinite); make them again.")

    def __len__(self) -> int:
        return len(self.values)


def device_of(name: str | torch.device | None) -> torch.device:
    """The device a user means: the named one, else CUDA, else Apple's MPS, else the CPU."""
    if name is not None and str(name) != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def dtype_for(device: torch.device) -> torch.dtype:
    """bf16 where a CUDA card computes it natively, fp16 on older cards, fp32 elsewhere.

    CPUs stay in fp32: on a 2-core AVX512-BF16 machine oneDNN ran these convolutions at 150 GFLOP/s in bf16, 260 in fp32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float32
