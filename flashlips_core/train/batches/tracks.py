"""Training data of the pose model: stretches of sound with the lip poses that belong to it, silence included.

F pose frames of all tracks one after another (25 per second, 640 samples each), P pose numbers, A audio numbers per frame.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...audio import AudioEncoder
from ...audio.rates import POSE_RATE, features_at_pose_rate
from ...flow import FlowBatch
from ...types import SAMPLE_RATE, FlashLipsError, Progress
from .material import UNSYNCED
from .voices import shifted_voice

log = logging.getLogger(__name__)

SoundOf = Callable[[str], np.ndarray]
"""From a clip's id to its samples, mono at 16 kHz, float32."""

FRAME_SAMPLES = int(SAMPLE_RATE / POSE_RATE)
CLOSING_FRAMES = 5  # a mouth takes about 0.2 s to come to rest
SILENT_TRACKS = 120  # tracks without any speech
SILENT_FRAMES = 125
MAX_SOURCES = 8  # source poses of a batch: none for a tenth of the batches, else 1 to this many
AUDIO_NOISE, AUDIO_LOST = 0.15, 0.05  # in deviations of each number; share of an item's numbers replaced by their mean
SILENT_SHARE, OTHERS_SHARE = 0.12, 0.35  # of the crops: silent tracks; at least, people other than the one with most clips
TOLD_SHARE = 0.35  # of the crops, where there are tracks whose poses were told, not seen
SILENT_GROUP = 2  # of PoseTracks.groups


@dataclass(frozen=True)
class PoseLabels:
    """Lip poses of labelled clips."""

    ids: list[str]  # "s1/train/bbaf2n"
    speakers: list[str]  # of each clip
    splits: list[str]  # of each clip: "train", "val", "test"
    has_voice: np.ndarray  # (clips,) bool: there is sound that belongs to the lips
    starts: np.ndarray  # (clips + 1,) offsets into the arrays below
    poses: np.ndarray  # (N, P) standardised
    found: np.ndarray  # (N,) bool
    rest: np.ndarray  # (P,)

    @staticmethod
    def load(path: str | Path) -> PoseLabels:
        """Read the ``.npz`` with ids, num_frames, poses, found, rest; and speakers, splits, has_voice unless ids say them."""
        if not Path(path).is_file():
            raise FlashLipsError(f"No pose labels at {path}; make them with the lip encoder's stage, then name the file.")
        file = np.load(path)
        starts = np.concatenate([[0], np.cumsum(file["num_frames"])])
        poses, rest = file["poses"].astype(np.float32), file["rest"].astype(np.float32)
        return PoseLabels(*_about_clips(file), starts, poses, file["found"], rest)

    def clip(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Poses and found of one clip."""
        part = slice(self.starts[index], self.starts[index + 1])
        return self.poses[part], self.found[part]

    def split(self, name: str) -> list[int]:
        """Clips of ``train``, ``val`` or ``test`` with a face and a voice."""
        return [i for i, split in enumerate(self.splits) if split == name and self.has_voice[i] and self.clip(i)[1].any()]


def _about_clips(file: Mapping[str, np.ndarray]) -> tuple[list[str], list[str], list[str], np.ndarray]:
    """Ids, speakers, splits, voices; files without the latter are GRID's, where ids say it."""
    ids = [str(i) for i in file["ids"]]
    if "splits" in file:
        return ids, [str(s) for s in file["speakers"]], [str(s) for s in file["splits"]], file["has_voice"].astype(bool)
    speakers = [speaker_of(i) for i in ids]
    return ids, speakers, [i.split("/")[1] for i in ids], np.array([s not in UNSYNCED for s in speakers])


def speaker_of(clip_id: str) -> str:
    """ "s1/train/bbaf2n" -> "s1", "grid_people/train/s2/bbae9n" -> "s2"."""
    parts = clip_id.split("/")
    return parts[2] if parts[0] == "grid_people" else parts[0]


def pose_correlation(sampled: np.ndarray, own: np.ndarray) -> float:
    """Of two motions (T, P): for each number, and their mean with the variance of ``own`` as weight."""
    apart = [values - values.mean(0) for values in (sampled, own)]
    spread = np.sqrt(np.prod([np.square(values).sum(0) for values in apart], axis=0))
    return float(np.average((apart[0] * apart[1]).sum(0) / np.maximum(spread, 1e-12), weights=own.var(0) + 1e-12))


# Sound


def quiet_tone(random: np.random.Generator, num_samples: int, like: np.ndarray | None = None) -> np.ndarray:
    """Sound without speech: digital zero, white or brownish noise from -90 to -40 dB, or the room of a recording."""
    from scipy.signal import lfilter

    kind = random.choice(4, p=[0.2, 0.25, 0.15, 0.4] if like is not None else [0.25, 0.45, 0.3, 0.0])
    if kind == 0 or num_samples == 0:
        return np.zeros(num_samples, np.float32)
    noise = random.standard_normal(num_samples).astype(np.float32)
    level = 10 ** (random.uniform(-90, -40) / 20)
    if kind == 2:
        noise = lfilter([1.0], [1.0, -0.97], noise)
    if kind == 3:
        room = quietest(like, SAMPLE_RATE // 5)
        spectrum = np.abs(np.fft.rfft(room * np.hanning(len(room))))
        shape = np.interp(np.linspace(0, 1, num_samples // 2 + 1), np.linspace(0, 1, len(spectrum)), spectrum)
        noise = np.fft.irfft(np.fft.rfft(noise) * shape, num_samples)
        level = room.std()
    return (noise / (noise.std() + 1e-12) * level).astype(np.float32)


def quietest(samples: np.ndarray, size: int) -> np.ndarray:
    """The quietest stretch of ``size`` samples that is not digital zero."""
    total = np.concatenate([[0], np.cumsum(samples.astype(np.float64) ** 2)])
    energy = (total[size:] - total[:-size])[:: size // 4]
    energy[energy < 1e-9 * size] = np.inf  # below -90 dB: padding
    return samples[np.argmin(energy) * (size // 4) :][:size] if np.isfinite(energy).any() else np.full(size, 1e-4, np.float32)


def padded_sound(random: np.random.Generator, samples: np.ndarray, num_frames: int) -> tuple[np.ndarray, int, int]:
    """A clip between two silences, at another loudness, now and then with noise. Returns samples and the silent frames."""
    before, after = (int(n) for n in random.integers(0, 45, 2))
    speech = np.zeros(num_frames * FRAME_SAMPLES, np.float32)
    speech[: min(len(samples), len(speech))] = samples[: len(speech)]
    if len(samples) < len(speech):
        speech[len(samples) :] = quiet_tone(random, len(speech) - len(samples), samples)
    silences = [quiet_tone(random, n * FRAME_SAMPLES, samples) for n in (before, after)]
    sound = np.concatenate([silences[0], speech, silences[1]]) * 10 ** (random.uniform(-14, 6) / 20)
    if random.random() < 0.3:
        sound = sound + quiet_tone(random, len(sound)) * 3
    return np.clip(sound, -1, 1).astype(np.float32), before, after


def padded_poses(
    poses: np.ndarray, found: np.ndarray, rest: np.ndarray, before: int, after: int
) -> tuple[np.ndarray, np.ndarray]:
    """The poses of a padded clip: the mouth comes from rest and returns to it. Returns poses, found."""
    first, last = (poses[found][i] for i in (0, -1))
    fade = np.clip(np.arange(1, max(before, after) + 1) / CLOSING_FRAMES, 0, 1)[:, None].astype(np.float32)
    fade = fade * fade * (3 - 2 * fade)
    lead = (first + (rest - first) * fade[:before])[::-1]
    trail = last + (rest - last) * fade[:after]
    sure = np.concatenate([np.ones(before, bool), found, np.ones(after, bool)])
    return np.concatenate([lead, poses, trail]), sure


# Tracks


@dataclass(frozen=True)
class PoseTracks:
    """Everything a pose model trains on, in memory."""

    starts: np.ndarray  # (tracks + 1,) offsets
    audio: np.ndarray  # (F, A) float16
    poses: np.ndarray  # (F, P) float32
    found: np.ndarray  # (F,) bool
    person: np.ndarray  # (tracks,) index into the people, -1: silent
    is_told: np.ndarray | None = None  # (tracks,) bool: the poses were told from the sound; None: all were seen

    @functools.cached_property
    def groups(self) -> list[np.ndarray]:
        """Track indices of the person with most clips, of the others, of silence, of told poses."""
        is_told = np.zeros(len(self.person), bool) if self.is_told is None else self.is_told
        is_seen = (self.person >= 0) & ~is_told
        most = np.bincount(self.person[is_seen]).argmax() if is_seen.any() else 0
        is_most = is_seen & (self.person == most)
        return [np.flatnonzero(which) for which in (is_most, is_seen & ~is_most, self.person < 0, is_told)]

    @functools.cached_property
    def frames_of(self) -> list[np.ndarray]:
        """Frames with a label, for each speaking track: where its source poses are drawn from."""
        return [np.flatnonzero(self.found[a:b]) + a for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)]

    @functools.cached_property
    def shares(self) -> np.ndarray:
        """Of each group in the crops. Where others have most of the clips, nobody needs to be held back for them. -> (4,)."""
        most, others, _, told = (len(group) for group in self.groups)
        others_share = max(OTHERS_SHARE, (1 - SILENT_SHARE) * others / max(most + others, 1))
        told_share = TOLD_SHARE if told else 0.0
        seen = np.array([1 - SILENT_SHARE - others_share, others_share]) * (1 - SILENT_SHARE - told_share) / (1 - SILENT_SHARE)
        shares = np.array([*seen, SILENT_SHARE, told_share]) * [len(g) > 0 for g in self.groups]
        return shares / shares.sum()

    def batch(self, size: int, num_frames: int, generator: torch.Generator) -> FlowBatch:
        """Random crops; audio gets noise (relative to each number's deviation) and loses a twentieth of its numbers."""
        random = np.random.default_rng(torch.randint(2**62, (1,), generator=generator).item())
        num_sources = 0 if random.random() < 0.1 else random.integers(1, MAX_SOURCES + 1)
        rows, sources = [], []
        for group in random.choice(4, size, p=self.shares):
            track = random.choice(self.groups[group])
            start = random.integers(self.starts[track], max(self.starts[track] + 1, self.starts[track + 1] - num_frames + 1))
            rows.append(np.minimum(np.arange(start, start + num_frames), self.starts[track + 1] - 1))
            owner = random.choice(np.concatenate(self.groups[:2])) if group == SILENT_GROUP else track  # silence may be anybody's
            sources.append(random.choice(self.frames_of[owner], num_sources))
        rows = np.stack(rows)
        audio = self.audio[rows].astype(np.float32)
        audio += AUDIO_NOISE * self.audio_stats[1] * random.standard_normal(audio.shape, np.float32)
        lost = random.random((size, 1, audio.shape[2])) < AUDIO_LOST
        audio = np.where(lost, self.audio_stats[0], audio)
        return FlowBatch(
            poses=torch.from_numpy(self.poses[rows]),
            audio=torch.from_numpy(audio),
            sources=torch.from_numpy(self.poses[np.stack(sources)]),
            weight=torch.from_numpy(self.found[rows]).float(),
        )

    @functools.cached_property
    def audio_stats(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each audio number."""
        some = self.audio[:: max(1, len(self.audio) // 50_000)].astype(np.float32)
        return some.mean(0), some.std(0) + 1e-3

    @staticmethod
    def build(labels: PoseLabels, sounds: PoseSounds) -> PoseTracks:
        """Lay the labels under the encoded sounds."""
        parts, person = [], []
        people = sorted(set(labels.speakers))
        for clip, before, after in zip(sounds.clip, sounds.before, sounds.after, strict=True):
            if clip < 0:
                parts.append((np.repeat(labels.rest[None], SILENT_FRAMES, 0), np.ones(SILENT_FRAMES, bool)))
                person.append(-1)
            else:
                parts.append(padded_poses(*labels.clip(clip), labels.rest, before, after))
                person.append(people.index(labels.speakers[clip]))
        poses, found = zip(*parts, strict=True)
        starts = np.concatenate([[0], np.cumsum([len(p) for p in poses])])
        return PoseTracks(starts, sounds.audio, np.concatenate(poses), np.concatenate(found), np.array(person))


@dataclass(frozen=True)
class PoseSounds:
    """Encoded sounds, which outlive the labels: the clips in several renditions, and silences."""

    audio: np.ndarray  # (F, A) float16, track after track
    clip: np.ndarray  # (tracks,) index into the labels, -1: silence
    before: np.ndarray  # (tracks,) silent frames before the clip
    after: np.ndarray  # (tracks,)

    @staticmethod
    def build(
        labels: PoseLabels,
        sound_of: SoundOf,
        encoder: AudioEncoder,
        cache: Path,
        variants: int,
        voice_shift: float,
        seed: int,
        progress: Progress | None = None,
    ) -> PoseSounds:
        """Encode the training clips, ``variants`` times each with other silences, gains and noise, or read the cache.

        Args:
            voice_shift: the first variant has the clip's own voice, the others one that is moved by up to so many semitones.
        """
        key = _key(labels, encoder, [variants, seed, voice_shift])
        if cache.is_file() and str(np.load(cache)["key"]) == key:
            return PoseSounds(**{k: v for k, v in np.load(cache).items() if k != "key"})
        random, clips = np.random.default_rng(seed), labels.split("train")
        if not clips:
            raise FlashLipsError("No training clip has both a face and sound, which this stage needs; add videos with sound.")
        parts: list[tuple[np.ndarray, int, int, int]] = []
        for done, index in enumerate(clips):
            samples, num_frames = sound_of(labels.ids[index]), len(labels.clip(index)[0])
            for variant in range(variants):
                voice = shifted_voice(samples, random.uniform(-voice_shift, voice_shift)) if variant else samples
                sound, before, after = padded_sound(random, voice, num_frames)
                parts.append((encode_frames(encoder, sound, before + num_frames + after), index, before, after))
            if progress is not None:
                progress(done + 1, len(clips))
        for _ in range(SILENT_TRACKS):
            room = sound_of(labels.ids[random.choice(clips)])
            sound = quiet_tone(random, SILENT_FRAMES * FRAME_SAMPLES, room)
            parts.append((encode_frames(encoder, sound, SILENT_FRAMES), -1, 0, 0))
        audio, clip, before, after = zip(*parts, strict=True)
        sounds = PoseSounds(np.concatenate(audio), np.array(clip), np.array(before), np.array(after))
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(cache, key=key, **vars(sounds))
        log.info("%d tracks, %.0f minutes", len(parts), len(sounds.audio) / float(POSE_RATE) / 60)
        return sounds


def encode_frames(encoder: AudioEncoder, samples: np.ndarray, num_frames: int) -> np.ndarray:
    """Features of a sound at the pose rate, exactly ``num_frames`` of them (the last one repeated), float16."""
    features = encoder.encode(torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32)))
    rows = features_at_pose_rate(features.values, features.rate_hz)
    return rows[torch.arange(num_frames).clamp(max=len(rows) - 1)].half().numpy()


def _key(labels: PoseLabels, encoder: AudioEncoder, settings: list[float]) -> str:
    """What the sounds depend on: the encoder's answer to a known sound, which clips there are, and how they are changed."""
    probe = torch.sin(torch.arange(SAMPLE_RATE) * 0.05) * torch.linspace(0, 0.5, SAMPLE_RATE)
    clips = json.dumps([[labels.ids[i], len(labels.clip(i)[0])] for i in labels.split("train")])
    digest = hashlib.sha256(encoder.encode(probe).values.numpy().tobytes() + clips.encode()).hexdigest()
    return json.dumps([encoder.kind, digest, *settings])
