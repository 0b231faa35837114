"""A person's way of speaking: a pose model learns on from one clip of them, by the loss of stage 2 (flow matching).

What is kept is the best on the clip's held-out end.

T poses at 25 per second, P pose numbers, A audio numbers per pose, K source poses, E emotion numbers.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...audio.rates import POSE_RATE, features_at_pose_rate
from ...checks import check_output
from ...flow import FlowBatch, flow_matching_loss
from ...loading import LoadedPart
from ...poses.motion import resample
from ...poses.sampling import SamplerSettings, check_features, sample_poses
from ...types import AudioFeatures, FlashLipsError, LipPoses, Progress
from ..batches.tracks import PoseTracks, pose_correlation
from ..loop.trainer import MakeBatch, Step, step_generator
from .best_so_far import BestSoFar, Tuned, Tuning, key_of, trainable
from .person import FEWEST_FRAMES, GAP_S, HELD_OUT_SHARE

CONSENT = "Made from one person's speech; use it only as that person agreed to."
SHORTEST_S = 10.0  # of both sound and face; less holds too few sounds
FEWEST_HELD_OUT = 10  # poses
NUM_SOURCES = 8  # poses of the learnt part that a dub would know
NOISES = 8  # draws of noise and time that each look averages over, the same every time
LOOK_SEED = 4242


@dataclasses.dataclass(frozen=True)
class StyleTuning(Tuning):
    """The defaults suit the bundled pose model on a CPU."""

    steps: int = 300
    lr: float = 1e-4
    num_frames: int = 64  # of a training window
    audio_dropout: float = 0.1  # as in training, so that guidance still works


@dataclasses.dataclass(frozen=True)
class StyleCheck:
    """One look at the held-out end."""

    smallest_span: ClassVar[float] = 0.01  # of scores: less is drawn flat

    step: int
    loss: float  # flow matching
    correlation: float  # of sampled poses with the person's own, mean over numbers by their variance
    size: float  # deviation of sampled poses over that of the person's own: 1 is as lively

    @property
    def score(self) -> float:
        """The best has the highest."""
        return -self.loss

    def as_dict(self) -> dict[str, float]:
        return dataclasses.asdict(self)

    def sentence(self) -> str:
        """For people."""
        return f"loss {self.loss:.3f}, correlation {self.correlation:.2f}, size {self.size:.2f}"


@dataclasses.dataclass(frozen=True)
class Speech:
    """What a person was heard to say beside what their lips did, split in time."""

    learnt: PoseTracks
    audio: Tensor  # (T, A) of the held-out end
    poses: Tensor  # (T, P)
    features: AudioFeatures  # the same end, as the encoder gave it
    sources: Tensor  # (K, P) out of the learnt part
    emotion: Tensor | None = None  # (E,)

    @property
    def seconds(self) -> float:
        return float((len(self.learnt.poses) + len(self.poses)) / POSE_RATE)


def split_speech(
    features: AudioFeatures, poses: LipPoses, emotion: Tensor | None = None, shortest_s: float = SHORTEST_S
) -> Speech:
    """Lay a clip's poses under its sound.

    Raises:
        FlashLipsError: Sound and picture together are too short.
    """
    audio = features_at_pose_rate(features.values, features.rate_hz)
    values = resample(poses, POSE_RATE).values
    count = min(len(audio), len(values))
    if count < max(shortest_s * POSE_RATE, FEWEST_FRAMES):
        raise FlashLipsError(
            f"Sound and lip poses have {float(count / POSE_RATE):.1f} s in common, too short to learn from; "
            f"use {shortest_s:g} s or more, best 20 s to 5 min."
        )
    first = count - max(round(HELD_OUT_SHARE * count), FEWEST_HELD_OUT)
    stop = first - round(GAP_S * POSE_RATE)
    learnt = PoseTracks(
        starts=np.array([0, stop]), audio=audio[:stop].half().numpy(), poses=values[:stop].numpy(), found=np.ones(stop, bool),
        person=np.zeros(1, int),
    )  # fmt: skip
    ends = [round(n * features.rate_hz / POSE_RATE) for n in (first, count)]
    rest = dataclasses.replace(features, values=features.values[ends[0] : ends[1]], level_db=features.level_db[ends[0] : ends[1]])
    sources = values[np.linspace(0, stop - 1, NUM_SOURCES).round().astype(int)]
    return Speech(learnt, audio[first:count], values[first:count], rest, sources, emotion)


def speech_batches(speech: Speech, batch: int, num_frames: int) -> MakeBatch:
    """Windows of the learnt part."""
    length = min(num_frames, len(speech.learnt.poses))

    def make(generator: torch.Generator) -> FlowBatch:
        return with_emotion(speech.learnt.batch(batch, length, generator), speech.emotion)

    return make


def with_emotion(batch: FlowBatch, emotion: Tensor | None) -> FlowBatch:
    """The same emotion for every item."""
    return batch if emotion is None else dataclasses.replace(batch, emotion=emotion.expand(len(batch.poses), -1))


def style_step(audio_dropout: float) -> Step:
    """Flow matching, as the pose model was trained."""

    def step(network: nn.Module, batch: FlowBatch, generator: torch.Generator) -> dict[str, Tensor]:
        return {"flow": flow_matching_loss(network, batch, generator, audio_dropout)}

    return step


@torch.no_grad()
def look_at(network: nn.Module, speech: Speech, step: int) -> StyleCheck:
    """The held-out end by the loss, and by what is sampled for it."""
    device = next(network.parameters()).device
    whole = [x[None].expand(NOISES, *x.shape).to(device) for x in (speech.poses, speech.audio, speech.sources)]
    batch = FlowBatch(*whole, weight=torch.ones(NOISES, len(speech.poses), device=device))
    emotion = None if speech.emotion is None else speech.emotion.to(device)
    loss = flow_matching_loss(network, with_emotion(batch, emotion), step_generator(LOOK_SEED, 0), audio_dropout=0.0)
    sampled = sample_poses(network, speech.features, speech.sources, SamplerSettings(), speech.emotion).values
    count = min(len(sampled), len(speech.poses))
    sampled, own = sampled[:count].numpy(), speech.poses[:count].numpy()
    size = float(np.sqrt(sampled.var(0).sum() / max(own.var(0).sum(), 1e-9)))
    return StyleCheck(step, float(loss), pose_correlation(sampled, own), size)


def tune_style(
    pose_model: LoadedPart,
    features: AudioFeatures,
    poses: LipPoses,
    out: str | Path,
    settings: StyleTuning = StyleTuning(),
    emotion: Tensor | None = None,
    shortest_s: float = SHORTEST_S,
    progress: Progress | None = None,
    watch: Callable[[list[StyleCheck], None], None] | None = None,
    device: torch.device | str | None = None,
) -> Tuned:
    """Let a pose model learn one person's way of speaking and write it to ``out``; the network that is given stays as it is.

    Args:
        features: of the clip's sound, by the encoder that the pose model listens to.
        poses: what the lips do meanwhile, by the lip encoder.
        emotion: (E,) embedding of the sound, for pose models that take one.
        progress: counts steps, or seconds where minutes are the limit; what it raises stops the run and keeps the best so far.
        watch: gets all checks after each one, and None.
        device: where a copy of the pose model is trained; None: where it is.
    Raises:
        FlashLipsError: The features are another encoder's, the clip is too short, or ``out`` cannot be written or is another's.
    """
    out = Path(out)
    check_output(out, [], (".safetensors",))
    check_features(pose_model.network, features)
    with torch.inference_mode(False), torch.enable_grad():
        features = dataclasses.replace(features, values=features.values.clone())  # may have been made in inference mode
        speech = split_speech(features, LipPoses(poses.values.clone(), poses.fps), emotion, shortest_s)
        base = trainable(pose_model.network, device).requires_grad_(False)

        def notes(checks: list[StyleCheck], check: StyleCheck) -> dict[str, Any]:
            about = {"base": pose_model.name, "trained_on": {"seconds": round(speech.seconds, 2)}, "consent": CONSENT}
            return pose_model.notes | about

        key = key_of(base, [torch.from_numpy(speech.learnt.poses), speech.audio], settings)
        kept = BestSoFar(
            out, "pose-model", settings, key, StyleCheck, lambda network, step: (look_at(network.eval(), speech, step), None),
            notes, progress, watch,
        )  # fmt: skip
        with kept.alone():
            kept.open(base)
            network = copy.deepcopy(base).requires_grad_(True)
            batches = speech_batches(speech, settings.batch, settings.num_frames)
            ended = kept.fit(network, batches, style_step(settings.audio_dropout))
    return Tuned(str(out), ended, kept.checks)
