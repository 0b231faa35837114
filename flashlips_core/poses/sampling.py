"""Lip poses from audio features: windows of a clip, one ODE each, joined by their committed frames; whole or as a stream.

T pose frames (25 per second), P pose numbers, A audio numbers per pose frame, K source poses, E emotion numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ..audio.rates import POSE_RATE, frames_ready, gather, row_position, rows_per_pose
from ..flow import SOLVERS, frame_noise, integrate
from ..models.pose_transformer import PoseTransformer
from ..types import AudioFeatures, FlashLipsError, LipPoses, Progress


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


def check_features(network: PoseTransformer, features: AudioFeatures) -> None:
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


@torch.inference_mode()
def sample_window(
    network: PoseTransformer,
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


class PoseStream:
    """Audio features in, poses out, window by window; whatever the split of the pushes, the poses are the same."""

    def __init__(
        self,
        network: PoseTransformer,
        kind: str,
        rate_hz: Fraction,
        sources: Tensor | None = None,
        settings: SamplerSettings | None = None,
        emotion: Tensor | None = None,
    ):
        """``sources`` (K, P) default to the rest pose."""
        config = network.config
        _check_kind(config.audio_kind, kind)
        self.network, self.rate_hz, self.emotion = network, Fraction(rate_hz), emotion
        self.settings = settings or SamplerSettings()
        self.sources = network.rest_pose[None].cpu() if sources is None else sources
        if self.sources.ndim != 2 or self.sources.shape[1] != config.pose_dim:
            raise FlashLipsError(f"Source poses must be (K, {config.pose_dim}), got {tuple(self.sources.shape)}.")
        self._rows = torch.zeros(0, config.audio_dim // rows_per_pose(self.rate_hz))  # encoder rows still needed
        self._first_row = 0  # index of _rows[0]
        self._num_done = 0  # poses given out
        self._tail = torch.zeros(0, config.pose_dim)  # the last committed poses, at most ``prefix``

    def push(self, features: AudioFeatures | Tensor) -> LipPoses:
        """Add encoder rows (N, D); returns the poses that became final, possibly none."""
        values = features if isinstance(features, Tensor) else features.values
        _check_rows(values, self._rows.shape[1])
        self._rows = torch.cat([self._rows, values.float()])
        return self._run(frames_ready(self._first_row + len(self._rows), self.rate_hz), is_last=False)

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
            audio = gather(self._rows, self.rate_hz, frames, self._first_row)
            noise = frame_noise(settings.seed, frames, self._tail.shape[1])
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
        needed = math.floor(row_position(self.rate_hz, self._num_done - len(self._tail), 0))
        self._rows = self._rows[max(0, needed - self._first_row) :]
        self._first_row = max(self._first_row, needed)


def sample_poses(
    network: PoseTransformer,
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
