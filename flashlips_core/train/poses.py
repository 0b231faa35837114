"""Train the pose model: audio features to lip poses by conditional flow matching, silence to rest.

Resumable; run again whenever labels or the audio encoder change.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checkpoint
from ..audio import AudioEncoder, load_audio_encoder
from ..flow import FlowBatch, flow_matching_loss
from ..loading import load_network
from ..models.pose_transformer import POSE_150M, POSE_MINI, PoseTransformer, PoseTransformerConfig, source_mean
from ..poses.sampling import SamplerSettings, sample_poses
from ..types import SAMPLE_RATE, AudioFeatures, FlashLipsError, Progress
from .audio import Corpus, read_corpus
from .batches.material import Material
from .batches.told import half_whitening
from .batches.tracks import PoseLabels, PoseSounds, PoseTracks, SoundOf, pose_correlation, quiet_tone
from .lip import labelled
from .loop.processes import is_first_process
from .loop.settings import of_full_size, setting
from .loop.trainer import MakeBatch, TrainConfig, fit
from .run import Run, named
from .speech import corpus_file, fit_pose_teacher, with_told

log = logging.getLogger(__name__)

NETWORKS = {"mini": POSE_MINI, "150m": POSE_150M}


@dataclass(frozen=True)
class PoseSettings(TrainConfig):
    """Stage 2: audio to lip poses by flow matching."""

    network: str = setting("mini", "mini, or 150m (the paper's)")
    steps: int = 1500
    batch: int = setting(10, "windows per step")
    num_frames: int = setting(64, "of a window; 25 are a second")
    ema: float = 0.995
    log_every: int = 100
    audio_dropout: float = setting(0.1, "share of the windows without sound, for guidance (paper: classifier-free)")
    variants: int = setting(3, "renditions of each clip's sound")
    voice_shift: float = setting(6.0, "semitones by which all but the first are moved at most: other people's voices")
    threads: int = setting(1, "of PyTorch on a CPU")
    start: str | None = setting(None, "a pose model to go on from")
    # see models/pose_transformer.py
    components: int = setting(0, "of each row, that are listened to; 0: all. For large speech networks")
    told: bool = setting(False, "also learn the recordings of the stage audio-corpus, with told poses")


# 150 M parameters, AdamW at a constant 5e-5; batch and steps are ours
FULL = of_full_size(
    PoseSettings(
        network="150m", steps=400_000, batch=4, num_frames=100, lr=5e-5, schedule="constant", ema=0.9999, log_every=50
    )
)  # fmt: skip


def poses(run: Run[PoseSettings]) -> Path:
    """Flow matching from audio features to the labelled poses."""
    named("pose model", NETWORKS, run.settings.network)
    labels, encoder = PoseLabels.load(labelled(run)), load_audio_encoder(run.own_or_bundled("audio-encoder"))
    corpus = read_corpus(corpus_file(run)) if run.settings.told else None
    out = run.folder / "pose-model.safetensors"
    return train(run.config("run_poses"), labels, run.material, encoder, out, corpus, run.progress)


def train(
    settings: PoseSettings,
    labels: PoseLabels,
    material: Material,
    encoder: AudioEncoder,
    out: Path,
    corpus: Corpus | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train and save a pose model; returns the checkpoint's path, ``out``. Resumes from ``settings.run_dir``.

    Args:
        corpus: recordings that are learnt with told poses beside the lips.
    """
    torch.set_num_threads(settings.threads)
    cache = Path(settings.run_dir) / "sounds.npz"
    sounds = PoseSounds.build(
        labels, material.sound, encoder, cache, settings.variants, settings.voice_shift, settings.seed, progress
    )
    tracks = PoseTracks.build(labels, sounds)
    if corpus is not None:
        tracks = with_told(tracks, corpus, fit_pose_teacher(corpus, labels), encoder, settings.seed)
    held_out = held_out_clips(labels, "val", material.sound, encoder, limit=8)
    jaw = JawReadout.fit(labels, material.jaw)

    def step(network: nn.Module, batch: FlowBatch, generator: torch.Generator) -> dict[str, Tensor]:
        return {"flow": flow_matching_loss(network, batch, generator, settings.audio_dropout)}

    def validate(network: nn.Module, step: int) -> dict[str, float]:
        return score(network, labels, held_out, encoder, SamplerSettings(), jaw)

    network = started_network(settings.start, encoder) if settings.start else build_network(settings, labels, tracks, encoder)
    batches: MakeBatch = lambda generator: tracks.batch(settings.batch, settings.num_frames, generator)  # noqa: E731
    best = fit(network, batches, step, settings, validate, progress)
    if is_first_process():
        checkpoint.save(best, out, "pose-model", training_notes(settings, labels, tracks, encoder, material))
    return out


def started_network(start: str, encoder: AudioEncoder) -> PoseTransformer:
    """The pose model to go on from, which must listen to the same encoder."""
    network = load_network("pose-model", start)
    if network.config.audio_kind != encoder.kind:
        raise FlashLipsError(f"{start} listens to '{network.config.audio_kind}', the encoder is '{encoder.kind}'.")
    return network.requires_grad_(True)


def build_network(settings: PoseSettings, labels: PoseLabels, tracks: PoseTracks, encoder: AudioEncoder) -> PoseTransformer:
    """The preset, fitted to the encoder's features and the labels' rest pose; the same weights for the same seed."""
    preset: PoseTransformerConfig = dataclasses.replace(
        NETWORKS[settings.network], audio_kind=encoder.kind, audio_dim=tracks.audio.shape[1], pose_dim=labels.poses.shape[1],
        row_components=settings.components,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = PoseTransformer(preset)
    network.rest_pose.copy_(torch.from_numpy(labels.rest))
    if settings.components:
        set_components(network, tracks.audio)
    else:
        mean, std = tracks.audio_stats
        network.audio_mean.copy_(torch.from_numpy(mean))
        network.audio_std.copy_(torch.from_numpy(std))
    fit_forecast(network, tracks, settings)
    return network


def set_components(network: PoseTransformer, audio: np.ndarray) -> None:
    """Let the network listen to the leading components of these features' rows, (F, A): the more of speech, the better."""
    some = audio[:: max(1, len(audio) // 50_000)].reshape(-1, len(network.row_mean))
    mean, basis = half_whitening(some, network.config.row_components)
    network.row_mean.copy_(torch.from_numpy(mean))
    network.row_basis.copy_(torch.from_numpy(basis))


@torch.inference_mode()
def fit_forecast(
    network: PoseTransformer, tracks: PoseTracks, settings: PoseSettings, num_frames: int = 60_000, ridge: float = 0.01
) -> None:
    """Fill the network's linear forecast by ridge regression on training crops, padded at the edges as in ``forward``."""
    kernel, generator = network.config.forecast_kernel, torch.Generator().manual_seed(settings.seed)
    moments, count = 0.0, 0
    while count < num_frames:
        batch = tracks.batch(32, settings.num_frames, generator)
        audio = F.pad(network.listened(batch.audio), (0, 0, kernel // 2, kernel // 2))
        heard = audio.unfold(1, kernel, 1).flatten(2)  # B T A * kernel
        person = source_mean(batch.sources)[:, None].expand(-1, heard.shape[1], -1)
        row = torch.cat([heard, person, torch.ones_like(heard[..., :1]), batch.poses], dim=2)[batch.weight > 0]
        moments, count = moments + row.T @ row, count + len(row)
    moments, num_poses = moments.double() / count, network.config.pose_dim
    inputs = len(moments) - num_poses
    penalty = ridge * torch.eye(inputs, dtype=torch.float64)
    weights = torch.linalg.solve(moments[:inputs, :inputs] + penalty, moments[:inputs, inputs:]).T  # P, inputs
    joint = torch.cat([-weights, torch.eye(num_poses, dtype=torch.float64)], dim=1)
    network.forecast_spread.copy_((joint @ moments @ joint.T).diagonal().sqrt())
    heard, person, bias = weights.split([inputs - num_poses - 1, num_poses, 1], dim=1)
    network.forecast_audio.copy_(heard.reshape(network.forecast_audio.shape))
    network.forecast_source.copy_(person)
    network.forecast_bias.copy_(bias[:, 0])


def training_notes(
    settings: PoseSettings, labels: PoseLabels, tracks: PoseTracks, encoder: AudioEncoder, material: Material
) -> dict:
    """What the checkpoint says of its training."""
    clips = labels.split("train")
    people = {labels.speakers[i] for i in clips}
    found = np.concatenate([labels.clip(i)[0][labels.clip(i)[1]] for i in clips])
    return {
        "licence": material.licence,
        "data": f"{material.title}, {len(clips)} clips of {len(people)} people, and silence",
        "steps": settings.steps, "batch": settings.batch, "frames": settings.num_frames, "learning_rate": settings.lr,
        "seed": settings.seed, "audio": encoder.kind, "minutes": round(len(tracks.poses) / 25 / 60, 1),
        "pose_mean": found.mean(0).round(3).tolist(), "pose_std": found.std(0).round(3).tolist(),
    }  # fmt: skip


# Held-out measures


@dataclass(frozen=True)
class HeldOutClip:
    """One clip that was not trained on."""

    index: int  # in the labels
    features: AudioFeatures
    sources: Tensor  # (K, P)


def held_out_clips(
    labels: PoseLabels, split: str, sound_of: SoundOf, encoder: AudioEncoder, limit: int | None = None
) -> list[HeldOutClip]:
    """Clips of a split with their features, and 4 source poses spread over the clip."""
    clips = []
    for index in labels.split(split)[:limit]:
        poses, found = labels.clip(index)
        sources = poses[found][np.linspace(0, found.sum() - 1, 4).astype(int)]
        features = encoder.encode(torch.from_numpy(sound_of(labels.ids[index])))
        clips.append(HeldOutClip(index, features, torch.from_numpy(sources)))
    return clips


@dataclass(frozen=True)
class JawReadout:
    """Jaw opening measured by MediaPipe, and the ridge regression that reads it from poses."""

    measured: np.ndarray  # (N,) one per frame of the labels, NaN where unknown
    weights: np.ndarray  # (P + 1,) the last one is the offset

    def read(self, poses: np.ndarray) -> np.ndarray:
        return poses @ self.weights[:-1] + self.weights[-1]

    @staticmethod
    def fit(labels: PoseLabels, jaw_of: Callable[[str], np.ndarray | None]) -> JawReadout | None:
        """Fitted on the training clips that were measured; None where there are none. ``jaw_of``: from a clip's id, (T,)."""
        measured = np.full(len(labels.poses), np.nan, np.float32)
        for index, id in enumerate(labels.ids):
            if (jaw := jaw_of(id)) is not None:
                measured[labels.starts[index] : labels.starts[index + 1]] = jaw
        measured[~labels.found] = np.nan
        frames = np.concatenate([np.arange(labels.starts[i], labels.starts[i + 1]) for i in labels.split("train")])
        frames = frames[np.isfinite(measured[frames])]
        if not len(frames):
            return None
        x = np.concatenate([labels.poses[frames], np.ones((len(frames), 1))], 1)
        return JawReadout(measured, np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ measured[frames]))


@torch.inference_mode()
def score(
    network: PoseTransformer,
    labels: PoseLabels,
    clips: list[HeldOutClip],
    encoder: AudioEncoder,
    settings: SamplerSettings,
    jaw: JawReadout | None,
) -> dict[str, float]:
    """How well sampled poses follow held-out speech, and how close to rest they stay in silence.

    ``correlation``: per clip and dimension, averaged with the label's variance as weight. ``jaw``: of the jaw opening read
    from sampled poses with the measured one, mean over clips. ``jaw_spread``: its deviation as a share of the measured one.
    ``silence``: root mean square distance from the rest pose over quiet sounds, in deviations of speech.
    """
    was_training = network.training
    network.eval()
    rows: list[dict[str, float]] = []
    for clip in clips:
        poses, found = labels.clip(clip.index)
        sampled = sample_poses(network, clip.features, clip.sources, settings).values.numpy()
        frames = np.flatnonzero(found[: len(sampled)])
        row = {"correlation": pose_correlation(sampled[frames], poses[frames])}
        if jaw is not None:
            measured, opening = jaw.measured[labels.starts[clip.index] + frames], jaw.read(sampled[frames])
            known = np.isfinite(measured)
            if known.sum() > 2 and measured[known].std() > 0:
                row["jaw"] = float(np.corrcoef(opening[known], measured[known])[0, 1])
                row["jaw_spread"] = float(opening[known].std() / measured[known].std())
        rows.append(row)
    network.train(was_training)
    names = dict.fromkeys(name for row in rows for name in row)
    scores = {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
    return scores | {"silence": silence_distance(network, [clip.sources for clip in clips], encoder, settings)}


def silence_distance(
    network: PoseTransformer, sources: list[Tensor], encoder: AudioEncoder, settings: SamplerSettings, seed: int = 0
) -> float:
    """Root mean square distance of sampled poses from rest over two seconds of a quiet sound for each of ``sources``."""
    random = np.random.default_rng(seed)
    distances = []
    for source in sources:
        features = encoder.encode(torch.from_numpy(quiet_tone(random, 2 * SAMPLE_RATE)))
        poses = sample_poses(network, features, source, settings).values
        distances.append((poses - network.rest_pose.to(poses)).square().mean())
    return float(torch.stack(distances).mean().sqrt()) if distances else float("nan")
