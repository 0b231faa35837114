"""Train the bundled audio encoder: distil Whisper tiny's encoder, and keep what the mouth does in the features.

The network hears a degraded rendition of a clip and predicts two things through linear heads that are discarded afterwards:
Whisper's features of the clean rendition (on their first principal components), and the measured motion of the speaker's
mouth, where there is video. A corpus (sound, teacher features, motion) is built once and kept in one file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..audio.samples import resample
from ..models.audio_encoder import ROW_SAMPLES, MelConvConfig, MelConvEncoder
from ..types import SAMPLE_RATE, FlashLipsError, Progress
from .batches.told import half_whitening
from .loop.trainer import TrainConfig, fit

log = logging.getLogger(__name__)

MOTION_SHAPES = (
    "jawOpen", "mouthClose", "mouthPucker", "mouthFunnel", "mouthRollLower", "mouthRollUpper", "mouthShrugLower",
    "mouthShrugUpper", "mouthLowerDownLeft", "mouthUpperUpLeft", "mouthStretchLeft", "mouthPressLeft", "mouthSmileLeft",
)  # fmt: skip
NUM_MOTIONS = len(MOTION_SHAPES) + 2  # and the lips' inner height and outer width, in eye distances
FRAMES_HZ = 25  # rate of the motion labels
PACK_ROWS = 1500  # Whisper's encoder always hears 30 s
PACK_GAP = 15  # rows of silence between the clips of one pack


@dataclass(frozen=True)
class Clip:
    """One utterance for training."""

    samples: np.ndarray  # (S,) float32, 16 kHz
    group: str  # clips are drawn group by group, so that one speaker does not fill the batches
    motion: np.ndarray | None = None  # (T, NUM_MOTIONS) at 25 Hz, standardised per speaker
    id: str = ""  # by which labels know it


@dataclass(frozen=True)
class Corpus:
    """All clips end to end. K clips, R rows of 320 samples."""

    samples: np.ndarray  # (R * 320,) int16
    starts: np.ndarray  # (K,) first row of each clip
    rows: np.ndarray  # (K,) rows of each clip
    groups: np.ndarray  # (K,) names
    targets: np.ndarray  # (R, D) float16: the teacher's features
    motion: np.ndarray  # (R, NUM_MOTIONS) float16, NaN where there is no video
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, "U1"))  # (K,) names by which labels know the clips; or none

    def save(self, path: str | Path) -> None:
        np.savez(path, **self.__dict__)

    @classmethod
    def load(cls, path: str | Path) -> Corpus:
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in arrays})


def read_corpus(path: str | Path) -> Corpus:
    """The corpus that the stage "audio-corpus" made."""
    if not Path(path).is_file():
        raise FlashLipsError(f"No corpus at {path}; run the stage 'audio-corpus' first.")
    return Corpus.load(path)


@dataclass(frozen=True)
class AudioTrainConfig:
    """What a batch is made of; ``shares`` are the chances of each group."""

    batch: int
    crop_rows: int
    shares: dict[str, float] = field(default_factory=dict)
    components: int = 128
    motion_weight: float = 0.5
    others: float = 0.0  # share of the crops behind which somebody else of the batch speaks; above 0 it needs torchaudio


# -- corpus ------------------------------------------------------------------------------------------------------------


def read_motion(path: str | Path) -> dict[str, np.ndarray]:
    """Mouth motion by clip id, (T, NUM_MOTIONS) at 25 Hz, not yet standardised, from a file of MediaPipe measurements."""
    with np.load(path, allow_pickle=False) as data:
        names = [str(name) for name in data["blendshape_names"]]
        shapes = data["blendshapes"][:, [names.index(name) for name in MOTION_SHAPES]].astype(np.float32)
        points = data["landmarks_px_x32"].astype(np.float32) / 32
        at = {int(index): place for place, index in enumerate(data["landmark_index"])}
        eyes = np.linalg.norm(points[:, at[33]] - points[:, at[263]], axis=-1)
        height = np.linalg.norm(points[:, at[13]] - points[:, at[14]], axis=-1) / eyes.clip(1)
        width = np.linalg.norm(points[:, at[61]] - points[:, at[291]], axis=-1) / eyes.clip(1)
        motion = np.concatenate([shapes, height[:, None], width[:, None]], axis=1)
        motion[~data["found"]] = np.nan
        ends = np.cumsum(data["num_frames"])
        return {str(clip): motion[end - n : end] for clip, end, n in zip(data["ids"], ends, data["num_frames"], strict=True)}


def standardise(motions: list[np.ndarray]) -> list[np.ndarray]:
    """Zero mean, unit deviation per number over the clips of one speaker."""
    pooled = np.concatenate(motions)
    mean, std = np.nanmean(pooled, axis=0), np.nanstd(pooled, axis=0)
    return [(m - mean) / np.maximum(std, 1e-4) for m in motions]


def at_speed(clip: Clip, speed: float) -> Clip:
    """The clip played faster (and higher) or slower by resampling; its motion keeps step."""
    down = round(speed * 100)
    if down == 100:
        return clip
    motion = clip.motion
    if motion is not None:
        times = np.arange(int(len(motion) * 100 / down)) * down / 100
        motion = np.stack([np.interp(times, np.arange(len(motion)), column) for column in motion.T], axis=1)
    samples = resample(torch.from_numpy(clip.samples), SAMPLE_RATE * down // 100)
    return Clip(samples.numpy(), clip.group, motion)


def build_corpus(
    clips: list[Clip], teacher: Teacher, renditions: int = 2, seed: int = 0, progress: Progress | None = None
) -> Corpus:
    """Give every clip its teacher features: once as it is, then at random speeds of 0.8..1.25."""
    rng = np.random.default_rng(seed)
    clips = clips + [at_speed(c, float(np.exp(rng.uniform(-0.22, 0.22)))) for _ in range(renditions - 1) for c in clips]
    rows = np.array([len(c.samples) // ROW_SAMPLES for c in clips])
    starts = np.concatenate([[0], np.cumsum(rows)[:-1]])
    samples = np.concatenate([c.samples[: n * ROW_SAMPLES] for c, n in zip(clips, rows, strict=True)])
    targets = np.zeros((rows.sum(), teacher.dim), np.float16)
    done = 0
    for index, features in teacher.listen([c.samples for c in clips]):
        targets[starts[index] : starts[index] + rows[index]] = features[: rows[index]]
        done += 1
        if progress is not None:
            progress(done, len(clips))
    motion = np.concatenate([_motion_rows(c.motion, n) for c, n in zip(clips, rows, strict=True)])
    pcm = (samples.clip(-1, 1) * 32767).astype(np.int16)
    groups, ids = (np.array([getattr(c, name) for c in clips]) for name in ("group", "id"))
    return Corpus(pcm, starts, rows, groups, targets, motion.astype(np.float16), ids)


def _motion_rows(motion: np.ndarray | None, rows: int) -> np.ndarray:
    """(T, M) at 25 Hz -> (rows, M) at 50 Hz; frame k is centred on row 2k + 0.5."""
    if motion is None:
        return np.full((rows, NUM_MOTIONS), np.nan)
    frames, at = np.arange(len(motion)), np.arange(rows) * FRAMES_HZ / 50 - 0.25
    out = np.stack([np.interp(at, frames, column) for column in motion.T], axis=1)
    out[at > len(motion) - 0.5] = np.nan
    return out


class Teacher:
    """Whisper's encoder on clips shorter than 30 s, several to a window."""

    def __init__(self, weights: str | Path, layer: int = -1, config: dict[str, Any] | None = None):
        from safetensors.torch import load_file
        from transformers import WhisperConfig, WhisperFeatureExtractor
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        tiny = {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536}
        self.encoder = WhisperEncoder(WhisperConfig(**(config or tiny))).eval()
        self.encoder.load_state_dict({k.removeprefix("encoder."): v.float() for k, v in load_file(weights).items()})
        self.extract = WhisperFeatureExtractor(feature_size=self.encoder.config.num_mel_bins)
        self.layer, self.dim = layer, self.encoder.config.d_model

    def listen(self, clips: list[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (clip index, (rows, dim) features); rows are centred as the bundled encoder's are."""
        pack: list[tuple[int, int, int]] = []  # clip, first row in the window, rows
        at = PACK_GAP
        for index, clip in enumerate(clips):
            rows = -(-len(clip) // ROW_SAMPLES)
            if rows + 2 * PACK_GAP > PACK_ROWS:
                raise FlashLipsError(f"A training clip of {rows / 50:.0f} s is too long; cut the speech into pieces under 29 s.")
            if at + rows + PACK_GAP > PACK_ROWS:
                yield from self._listen_pack(clips, pack)
                pack, at = [], PACK_GAP
            pack.append((index, at, rows))
            at += rows + PACK_GAP
        if pack:
            yield from self._listen_pack(clips, pack)

    @torch.inference_mode()
    def _listen_pack(self, clips: list[np.ndarray], pack: list[tuple[int, int, int]]) -> Iterator[tuple[int, np.ndarray]]:
        window = np.zeros(PACK_ROWS * ROW_SAMPLES, np.float32)
        for index, row, _ in pack:
            at = row * ROW_SAMPLES - ROW_SAMPLES // 2  # Whisper's row n is centred on sample 320 n, ours on 320 n + 160
            window[at : at + len(clips[index])] = clips[index]
        mels = self.extract(window, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        states = self.encoder(mels, output_hidden_states=True).hidden_states[self.layer][0].numpy()
        for index, row, rows in pack:
            yield index, states[row : row + rows]


# -- batches -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AudioBatch:
    """B crops of N rows: sound with context around it, and what to predict."""

    samples: Tensor  # (B, (N + 2 context) * 320)
    targets: Tensor  # (B, N, components), half-whitened
    motion: Tensor  # (B, N, NUM_MOTIONS), NaN where unknown


class Batches:
    """Draws crops from a corpus; the draw is a function of the generator alone."""

    def __init__(self, corpus: Corpus, config: AudioTrainConfig, context: int, onto: tuple[np.ndarray, np.ndarray] | None = None):
        """``onto``: mean and basis of the components, by default the corpus's own."""
        self.corpus, self.config, self.context = corpus, config, context
        names = sorted(set(corpus.groups.tolist()))
        self.members = [np.flatnonzero(corpus.groups == name) for name in names]
        self.shares = torch.tensor([config.shares.get(name, 1.0) for name in names])
        mean, basis = onto or half_whitening(corpus.targets, config.components)
        targets = (corpus.targets.astype(np.float32) - mean) @ basis
        limit = 4 * targets.std(axis=0)  # the teacher marks a few rows, such as the first of a silence, with huge values
        self.targets = targets.clip(-limit, limit).astype(np.float16)
        self.motion = corpus.motion.clip(-4, 4)  # shapes that hardly move in a speaker have spikes of 50 deviations and more

    def __call__(self, generator: torch.Generator) -> AudioBatch:
        groups = torch.multinomial(self.shares, self.config.batch, replacement=True, generator=generator).tolist()
        crops = [self._crop(self.members[group], generator) for group in groups]
        samples, targets, motion = (torch.stack(part) for part in zip(*crops, strict=True))
        if self.config.others:
            samples = with_others(samples, self.config.others, generator)
        return AudioBatch(degrade(samples, generator), targets, motion)

    def _crop(self, members: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """One crop; what lies outside its clip is silence, and asks for nothing."""
        corpus, length = self.corpus, self.config.crop_rows
        clip = members[_integer(len(members), generator)]
        rows, start = int(corpus.rows[clip]), int(corpus.starts[clip])
        first = _integer(max(rows - length, 0) + 1, generator)
        sound = np.zeros((length + 2 * self.context, ROW_SAMPLES), np.float32)
        low, high = max(first - self.context, 0), min(first + length + self.context, rows)
        sound[low - first + self.context : high - first + self.context] = (
            corpus.samples[(start + low) * ROW_SAMPLES : (start + high) * ROW_SAMPLES].reshape(-1, ROW_SAMPLES) / 32768.0
        )
        outputs = []
        for source in (self.targets, self.motion):
            rows_in = source[start + first : start + min(first + length, rows)].astype(np.float32)
            outputs.append(torch.from_numpy(np.pad(rows_in, ((0, length - len(rows_in)), (0, 0)), constant_values=np.nan)))
        return torch.from_numpy(sound.reshape(-1)), outputs[0], outputs[1]


def with_others(samples: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Some crops with the next one's voice 5 to 25 dB below their own, (B, S)."""
    from .batches.rooms import in_noise

    is_mixed = torch.rand(len(samples), generator=generator) < share
    below_db = (5 + 20 * torch.rand(len(samples), generator=generator)).tolist()
    mixed = [in_noise(own, other, db) for own, other, db in zip(samples, samples.roll(1, 0), below_db, strict=True)]
    return torch.where(is_mixed[:, None], torch.stack(mixed), samples)


def degrade(samples: Tensor, generator: torch.Generator) -> Tensor:
    """What microphones, rooms and codecs do: tone, band limits, a room, noise, level. (B, S) -> (B, S), timing kept."""
    batch, length = samples.shape
    uniform = lambda low, high: low + (high - low) * torch.rand(batch, 1, generator=generator)  # noqa: E731
    chance = lambda p: (torch.rand(batch, 1, generator=generator) < p).float()  # noqa: E731
    hz = torch.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    octaves = (hz.clamp_min(20) / 1000).log2()
    tone_db = chance(0.7) * (
        uniform(-3, 3) * octaves + uniform(-6, 6) * torch.sin(uniform(0.5, 1.5) * octaves + uniform(0, 6.28))
    )
    high_cut = torch.where(chance(0.3) > 0, uniform(3000, 7500), torch.tensor(1e5))
    low_cut = torch.where(chance(0.3) > 0, uniform(80, 350), torch.tensor(1.0))
    response = 10 ** (tone_db.clamp(-15, 15) / 20) / (1 + (hz / high_cut) ** 8) / (1 + (low_cut / hz.clamp_min(1)) ** 4)
    spectrum = torch.fft.rfft(samples) * response
    decay = torch.exp(-6.9 * torch.arange(length) / SAMPLE_RATE / uniform(0.1, 0.6))
    tail = torch.randn(batch, length, generator=generator) * decay
    tail = tail / tail.square().sum(1, keepdim=True).sqrt() * chance(0.3) * uniform(0.1, 0.8)
    tail[:, :1] += 1.0  # the direct sound stays where it was
    wet = torch.fft.irfft(spectrum * torch.fft.rfft(tail), length)
    level = wet.square().mean(1, keepdim=True).sqrt()
    noise = torch.fft.irfft(
        torch.fft.rfft(torch.randn(batch, length, generator=generator)) * 10 ** (uniform(-5, 1) * octaves / 20), length
    )
    noise = noise / noise.square().mean(1, keepdim=True).sqrt() * level * 10 ** (-uniform(8, 45) / 20) * chance(0.6)
    peak = (wet + noise).abs().amax(1, keepdim=True).clamp_min(1e-4)
    return (wet + noise) / peak * 10 ** (uniform(-26, 0) / 20)


def _integer(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (1,), generator=generator))


# -- training ----------------------------------------------------------------------------------------------------------


class Distillation(nn.Module):
    """The encoder with the two linear heads that only training needs."""

    def __init__(self, encoder: MelConvEncoder, components: int):
        super().__init__()
        self.encoder = encoder
        self.to_teacher = nn.Linear(encoder.config.dim, components)
        self.to_motion = nn.Conv1d(encoder.config.dim, NUM_MOTIONS, 5, padding=2)


def distillation_step(network: Distillation, batch: AudioBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """Squared errors over the rows that have a target."""
    features = network.encoder(batch.samples)  # B N D
    motion = network.to_motion(features.transpose(1, 2)).transpose(1, 2)
    return {"teacher": known_mse(network.to_teacher(features), batch.targets), "motion": known_mse(motion, batch.motion)}


def known_mse(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error where the target is not NaN."""
    known = target.isfinite()
    return F.mse_loss(torch.where(known, predicted, 0), torch.where(known, target, 0), reduction="sum") / known.sum().clamp_min(1)


def train_audio_encoder(
    corpus: Corpus,
    config: TrainConfig,
    audio: AudioTrainConfig,
    network: MelConvConfig,
    start: MelConvEncoder | None = None,
    progress: Progress | None = None,
) -> MelConvEncoder:
    """Train on a corpus; resumes from ``config.run_dir``. The returned encoder's features are standardised on the corpus.

    Args:
        start: An encoder to go on from, which sets the network's size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = MelConvEncoder(network) if start is None else start.requires_grad_(True)
        distillation = Distillation(encoder, audio.components)
    batches = Batches(corpus, audio, distillation.encoder.context)
    weights = {"teacher": 1.0, "motion": audio.motion_weight, **config.weights}
    best = fit(distillation, batches, distillation_step, replace(config, weights=weights), progress=progress)
    return standardise_features(best.encoder.cpu().eval(), batches, config.seed)


@torch.inference_mode()
def standardise_features(encoder: MelConvEncoder, batches: Batches, seed: int, num_batches: int = 16) -> MelConvEncoder:
    """Fold each feature's mean and deviation into the last layer, so that features are about zero mean, unit deviation."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.cat([encoder(batches(generator).samples).flatten(0, 1) for _ in range(num_batches)])
    mean, std = features.mean(0), features.std(0).clamp_min(1e-4)
    encoder.out.weight.div_(std[:, None])
    encoder.out.bias.sub_(mean).div_(std)
    return encoder
