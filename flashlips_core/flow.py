"""Conditional flow matching for lip poses: the path, the loss, ODE steps, and windowed sampling that streams.

B batch, T pose frames (25 per second), P pose numbers, A audio numbers per pose frame, K source poses, E emotion numbers.

The path runs from noise to data, z_t = (1 - t) eps + t z, so its velocity is u = z - eps (paper, stage 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from .types import AudioFeatures, FlashLipsError, LipPoses, Progress

POSE_RATE = Fraction(25)  # poses per second of every pose model; resampled to the clip's own rate later
SOLVERS = ("euler", "midpoint", "heun")

Velocity = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class SamplerSettings:
    """How poses are drawn. A window is ``prefix`` committed frames, ``hop`` new ones and ``lookahead`` that are thrown away.

    Defaults suit the bundled model on held-out speech: more heat follows its jaw less well, more steps gain nothing.
    Latency of the streaming form is ``hop + lookahead`` frames.
    """

    steps: int = 4
    solver: str = "euler"  # one of SOLVERS; midpoint and heun call the network twice a step
    guidance: float = 1.0  # 1: the conditional velocity alone; higher follows the audio harder
    temperature: float = 0.3  # scales the initial noise: 0 is the same calm take every time, 1 is the trained spread
    seed: int = 0
    prefix: int = 12  # frames
    hop: int = 48
    lookahead: int = 15

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise FlashLipsError(f"The sampler has no solver '{self.solver}'; choose one of {', '.join(SOLVERS)}.")
        if self.steps < 1 or self.hop < 1 or self.prefix < 0 or self.lookahead < 0:
            got = f"{self.steps}, {self.hop}, {self.prefix} and {self.lookahead}"
            raise FlashLipsError(f"Sampling needs steps and hop of 1 or more, prefix and lookahead of 0 or more; got {got}.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0 and math.isfinite(self.guidance)):
            raise FlashLipsError(f"Temperature must be >= 0 and guidance finite; got {self.temperature} and {self.guidance}.")

    @property
    def window(self) -> int:
        """Frames that the network sees at once."""
        return self.prefix + self.hop + self.lookahead


# Path and loss


@dataclass(frozen=True)
class FlowBatch:
    """One training batch of poses and what they are conditioned on."""

    poses: Tensor  # (B, T, P)
    audio: Tensor  # (B, T, A)
    sources: Tensor  # (B, K, P)
    weight: Tensor  # (B, T) 1 where the label counts, 0 where the face was not found
    emotion: Tensor | None = None  # (B, E)


def flow_matching_loss(
    network: nn.Module, batch: FlowBatch, generator: torch.Generator, audio_dropout: float = 0.1, max_prefix: int = 16
) -> Tensor:
    """E || v(z_t, t, c) - (z - eps) ||^2 over the frames that are not committed; a mean over frames and dims.

    Half of the items get a committed prefix of 1 to ``max_prefix`` frames, as windows after the first have.
    """
    z = batch.poses
    num_items, num_frames = z.shape[:2]
    random = torch.rand(4, num_items, generator=generator).to(z.device)
    t = random[0]
    drop_audio = random[1] < audio_dropout
    lengths = torch.where(random[2] < 0.5, (random[3] * max_prefix).long() + 1, 0)
    known = torch.arange(num_frames, device=z.device) < lengths[:, None]  # B T
    noise = torch.randn(z.shape, generator=generator).to(z)
    z_t = torch.lerp(noise, z, t[:, None, None])
    z_t = torch.where(known[..., None], z, z_t)
    velocity = network(z_t, t, batch.audio, batch.sources, batch.emotion, known, drop_audio)
    weight = batch.weight * ~known
    error = (velocity - (z - noise)).float().square().mean(dim=-1)
    return (error * weight).sum() / weight.sum().clamp_min(1.0)


def check_features(network: nn.Module, features: AudioFeatures) -> None:
    """Refuse what another encoder than the pose model's has heard, or what is no sound."""
    _check_kind(network.config.audio_kind, features.kind)
    _check_rows(features.values, network.config.audio_dim // rows_per_pose(features.rate_hz))


def _check_kind(wanted: str, kind: str) -> None:
    if kind != wanted:
        raise FlashLipsError(f"This pose model listens to '{wanted}', got '{kind}'; load the audio encoder it was trained with.")


def _check_rows(values: Tensor, width: int) -> None:
    if values.ndim != 2 or values.shape[1] != width:
        raise FlashLipsError(
            f"This pose model takes {width} audio numbers per row, got {tuple(values.shape)}; "
            "load the audio encoder it was trained with."
        )
    if not torch.isfinite(values).all():
        raise FlashLipsError("The audio features hold NaN or infinite numbers; check the audio file.")


# Noise and ODE


def frame_noise(seed: int, frames: range, dim: int) -> Tensor:
    """Standard normal noise for each absolute frame index, the same however the clip is split. Returns (len(frames), dim).

    Counter-based: SplitMix64 of (seed, frame, dim) gives two uniforms, Box-Muller makes them normal.
    """
    frame = np.arange(frames.start, frames.stop, dtype=np.int64).astype(np.uint64)[:, None]
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.array(seed & (2**64 - 1), dtype=np.uint64)) ^ frame)
        counter = key + np.arange(2 * dim, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    uniform = ((_mix(counter) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # 53 bits, never 0
    radius, angle = np.sqrt(-2 * np.log(uniform[:, :dim])), 2 * np.pi * uniform[:, dim:]
    return torch.from_numpy((radius * np.cos(angle)).astype(np.float32))


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def integrate(velocity: Velocity, z: Tensor, steps: int, solver: str) -> Tensor:
    """Follow ``velocity(z, t)`` from t = 0 to t = 1 in equal steps of the named solver."""
    h = 1.0 / steps
    for step in range(steps):
        t = step * h
        first = velocity(z, t)
        if solver == "euler":
            z = z + h * first
        elif solver == "midpoint":
            z = z + h * velocity(z + 0.5 * h * first, t + 0.5 * h)
        elif solver == "heun":
            z = z + 0.5 * h * (first + velocity(z + h * first, t + h))
        else:
            raise FlashLipsError(f"The sampler has no solver '{solver}'; choose one of {', '.join(SOLVERS)}.")
    return z


@torch.inference_mode()
def sample_window(
    network: nn.Module,
    noise: Tensor,
    committed: Tensor,
    audio: Tensor,
    sources: Tensor,
    emotion: Tensor | None,
    settings: SamplerSettings,
) -> Tensor:
    """Poses of one window, (T, P).

    Args:
        noise: (T, P) initial state.
        committed: (N, P) finished poses of the first N frames; they are held at every evaluation of the network.
        audio: (T, A). sources: (K, P). emotion: (E,) or None.
    """
    parameter = next(network.parameters())
    place = {"device": parameter.device, "dtype": parameter.dtype}
    is_guided = settings.guidance != 1.0
    copies = 2 if is_guided else 1
    known = torch.arange(len(noise)) < len(committed)
    known_rows = known.to(parameter.device).expand(copies, -1)
    drop_audio = torch.tensor([False, True][:copies], device=parameter.device)
    audio, sources = (x.to(**place).expand(copies, -1, -1) for x in (audio, sources))
    emotion = None if emotion is None else emotion.to(**place).expand(copies, -1)

    def velocity(z: Tensor, t: float) -> Tensor:
        times = torch.full((copies,), t, device=parameter.device)
        v = network(z.to(**place).expand(copies, -1, -1), times, audio, sources, emotion, known_rows, drop_audio).float().cpu()
        v = v[1] + settings.guidance * (v[0] - v[1]) if is_guided else v[0]
        return v.masked_fill(known[:, None], 0.0)  # committed frames stand still

    start = torch.cat([committed, settings.temperature * noise[len(committed) :]])
    return integrate(velocity, start, settings.steps, settings.solver)


# Audio features at the pose rate


def features_at_pose_rate(values: Tensor, rate_hz: Fraction) -> Tensor:
    """Rows of an audio encoder gathered per pose frame: (N, D) -> (ceil(25 N / rate), G * D).

    G = rate / 25, rounded, rows are laid side by side: pairs at 50 Hz. Rates that are no multiple of 25 are
    interpolated linearly; beyond the last row, the last row is repeated.
    """
    num_frames = -(-len(values) * POSE_RATE // Fraction(rate_hz))
    return _gather(values, rate_hz, range(0, num_frames), 0)


def rows_per_pose(rate_hz: Fraction) -> int:
    """Encoder rows laid side by side in one pose frame: 2 for 50 Hz."""
    return max(1, round(Fraction(rate_hz) / POSE_RATE))


def _row_position(rate_hz: Fraction, frame: int, part: int) -> Fraction:
    """Where part 0..G-1 of a pose frame lies among the encoder's rows."""
    return Fraction(rate_hz) / POSE_RATE * (frame + Fraction(part, rows_per_pose(rate_hz)))


def _frames_ready(num_rows: int, rate_hz: Fraction) -> int:
    """Pose frames whose every part lies on rows that have arrived."""
    parts = rows_per_pose(rate_hz)
    frame = Fraction(num_rows - 1) * POSE_RATE / Fraction(rate_hz) - Fraction(parts - 1, parts)
    return max(0, math.floor(frame) + 1)


def _gather(values: Tensor, rate_hz: Fraction, frames: range, first_row: int) -> Tensor:
    """Pose rows for ``frames``; ``values`` begins at the encoder's row ``first_row``."""
    parts = rows_per_pose(rate_hz)
    step = Fraction(rate_hz) / (POSE_RATE * parts)
    numerator = np.arange(frames.start * parts, frames.stop * parts, dtype=np.int64) * step.numerator
    low, rest = np.divmod(numerator, step.denominator)
    last = len(values) - 1
    low_rows = torch.from_numpy(low - first_row).clamp(max=last)
    high_rows = torch.from_numpy(low - first_row + (rest > 0)).clamp(max=last)
    share = torch.from_numpy((rest / step.denominator).astype(np.float32))[:, None]
    return torch.lerp(values[low_rows], values[high_rows], share).reshape(len(frames), -1)


# Sampling


class PoseStream:
    """Audio features in, poses out, window by window; whatever the split of the pushes, the poses are the same."""

    def __init__(
        self,
        network: nn.Module,
        kind: str,
        rate_hz: Fraction,
        sources: Tensor | None = None,
        settings: SamplerSettings | None = None,
        emotion: Tensor | None = None,
        first_frame: int = 0,
    ):
        """Start at absolute pose frame ``first_frame``, which keys the noise; ``sources`` (K, P) default to the rest pose."""
        config = network.config
        _check_kind(config.audio_kind, kind)
        self.network, self.rate_hz, self.emotion = network, Fraction(rate_hz), emotion
        self.settings = settings or SamplerSettings()
        self.sources = network.rest_pose[None].cpu() if sources is None else sources
        if self.sources.ndim != 2 or self.sources.shape[1] != config.pose_dim:
            raise FlashLipsError(f"Source poses must be (K, {config.pose_dim}), got {tuple(self.sources.shape)}.")
        self._first_frame = first_frame
        self._rows = torch.zeros(0, config.audio_dim // rows_per_pose(self.rate_hz))  # encoder rows still needed
        self._first_row = 0  # index of _rows[0]
        self._num_done = 0  # poses given out
        self._tail = torch.zeros(0, config.pose_dim)  # the last committed poses, at most ``prefix``

    def push(self, features: AudioFeatures | Tensor) -> LipPoses:
        """Add encoder rows (N, D); returns the poses that became final, possibly none."""
        values = features if isinstance(features, Tensor) else features.values
        _check_rows(values, self._rows.shape[1])
        self._rows = torch.cat([self._rows, values.float()])
        return self._run(_frames_ready(self._first_row + len(self._rows), self.rate_hz), is_last=False)

    def flush(self) -> LipPoses:
        """The audio is over: returns the remaining poses."""
        num_rows = self._first_row + len(self._rows)
        return self._run(math.ceil(num_rows * POSE_RATE / self.rate_hz), is_last=True)

    def _run(self, num_ready: int, is_last: bool) -> LipPoses:
        """Sample every window that can be; the windows' edges depend on frame indices alone."""
        settings, out = self.settings, []
        while True:
            wanted = self._num_done + settings.hop + settings.lookahead
            if self._num_done >= num_ready or (wanted > num_ready and not is_last):
                break
            stop = min(wanted, num_ready)
            frames = range(self._num_done - len(self._tail), stop)
            audio = _gather(self._rows, self.rate_hz, frames, self._first_row)
            absolute = range(self._first_frame + frames.start, self._first_frame + frames.stop)
            noise = frame_noise(settings.seed, absolute, self._tail.shape[1])
            poses = sample_window(self.network, noise, self._tail, audio, self.sources, self.emotion, settings)
            new = poses[len(self._tail) :][: settings.hop]
            out.append(new)
            self._commit(new)
        return LipPoses(torch.cat(out) if out else self._tail[:0], POSE_RATE)

    def _commit(self, new: Tensor) -> None:
        """Remember the tail of the new poses and forget audio that no later window needs."""
        self._num_done += len(new)
        keep = self.settings.prefix
        self._tail = torch.cat([self._tail, new])[-keep:] if keep else self._tail[:0]
        needed = math.floor(_row_position(self.rate_hz, self._num_done - len(self._tail), 0))
        self._rows = self._rows[max(0, needed - self._first_row) :]
        self._first_row = max(self._first_row, needed)


def sample_poses(
    network: nn.Module,
    features: AudioFeatures,
    sources: Tensor | None = None,
    settings: SamplerSettings | None = None,
    emotion: Tensor | None = None,
    progress: Progress | None = None,
) -> LipPoses:
    """Lip poses of a whole clip at 25 per second; equal to any way of streaming it.

    Args:
        features: From the encoder that the network was trained with.
        sources: (K, P) poses of the person to be dubbed; None: the model's rest pose.
        emotion: (E,) audio-emotion embedding, for networks that take one.
    """
    if len(features) == 0:
        raise FlashLipsError("The audio is empty: no features to make poses from; choose an audio file with sound in it.")
    stream = PoseStream(network, features.kind, features.rate_hz, sources, settings, emotion)
    chunk, poses = max(1, round(features.rate_hz)), []
    for start in range(0, len(features), chunk):
        poses.append(stream.push(features.values[start : start + chunk]).values)
        if progress is not None:
            progress(min(start + chunk, len(features)), len(features))
    return LipPoses(torch.cat([*poses, stream.flush().values]), POSE_RATE)
