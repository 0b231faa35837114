"""Training of the pose model on toy clips: what it is fed, and that it learns."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from flashlips_core.flow import flow_matching_loss
from flashlips_core.loading import load_network
from flashlips_core.train.batches import told as told_poses
from flashlips_core.train.batches import tracks as pose_tracks
from flashlips_core.train.batches.material import Material, open_material
from flashlips_core.train.batches.tracks import (
    FRAME_SAMPLES,
    PoseLabels,
    PoseSounds,
    PoseTracks,
    padded_poses,
    padded_sound,
    quiet_tone,
    speaker_of,
)
from flashlips_core.train.batches.voices import shifted_voice
from flashlips_core.train.poses import PoseSettings, build_network, train
from flashlips_core.types import AudioFeatures, FlashLipsError

CLIPS = ["s1/train/a", "s1/train/b", "grid_people/train/s2/c", "grid_people/train/s33/d", "s1/val/e"]
FRAMES = 30


class Loudness:
    """An encoder of two numbers per 20 ms: loudness, and loudness squared."""

    kind = "loudness"

    def encode(self, samples: torch.Tensor) -> AudioFeatures:
        rows = torch.nn.functional.pad(samples, (0, -len(samples) % 320)).reshape(-1, 320)
        level = rows.square().mean(1).sqrt()
        return AudioFeatures(torch.stack([level, level**2], 1), Fraction(50), self.kind, 20 * (level + 1e-5).log10())


def speech(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise whose loudness opens and closes the mouth. Returns samples and (FRAMES, 12) poses."""
    random = np.random.default_rng(seed)
    level = np.clip(np.convolve(random.random(FRAMES + 4), np.ones(5) / 5, "valid") - 0.4, 0.02, 1).astype(np.float32)
    samples = np.repeat(level, FRAME_SAMPLES) * random.uniform(-1, 1, FRAMES * FRAME_SAMPLES).astype(np.float32)
    return samples, (10 * level[:, None] * np.linspace(0.5, 1, 12) - 1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Toy:
    """What is learnt from, and how."""

    folder: Path
    settings: PoseSettings

    @property
    def labels(self) -> PoseLabels:
        return PoseLabels.load(self.folder / "labels.npz")

    @property
    def material(self) -> Material:
        return open_material(self.folder / "data", self.folder)

    def trained(self, encoder: Loudness, out: str = "pose-model.safetensors", **changes: object) -> Path:
        settings = dataclasses.replace(self.settings, **changes)
        return train(settings, self.labels, self.material, encoder, self.folder / out)


@pytest.fixture
def toy(tmp_path) -> Toy:
    """A data folder of sounds, and the labels that belong to them."""
    poses = []
    for seed, clip in enumerate(CLIPS):
        samples, pose = speech(seed)
        path = tmp_path / "data" / clip.replace("s1/", "grid_s1/", 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sound(path.with_suffix(".mp4"), samples)
        poses.append(pose)
    found, rest = np.ones(FRAMES * len(CLIPS), bool), np.full(12, -1, np.float32)
    lengths = [FRAMES] * len(CLIPS)
    np.savez(tmp_path / "labels.npz", ids=CLIPS, num_frames=lengths, poses=np.concatenate(poses), found=found, rest=rest)
    return Toy(tmp_path, PoseSettings(str(tmp_path / "run"), steps=6, batch=4, num_frames=20, validate_every=6))


def write_sound(path: Path, samples: np.ndarray) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_labels_name_their_speakers_and_leave_out_those_out_of_sync(toy):
    labels = toy.labels
    assert [labels.ids[i] for i in labels.split("train")] == CLIPS[:3]
    assert [speaker_of(i) for i in CLIPS] == ["s1", "s1", "s2", "s33", "s1"]


def test_missing_labels_are_named(tmp_path):
    with pytest.raises(FlashLipsError, match="No pose labels"):
        PoseLabels.load(tmp_path / "none.npz")


def test_silence_around_a_clip_closes_the_mouth_smoothly():
    samples, poses = speech(0)
    rest = np.full(12, -1, np.float32)
    found = np.ones(FRAMES, bool)
    for seed in range(20):
        sound, before, after = padded_sound(np.random.default_rng(seed), samples, FRAMES)
        track, sure = padded_poses(poses, found, rest, before, after)
        assert len(sound) == len(track) * FRAME_SAMPLES and len(sure) == len(track)
        assert np.array_equal(track[before : before + FRAMES], poses)
        if before >= 6:
            np.testing.assert_allclose(track[0], rest)
        if after >= 6:
            np.testing.assert_allclose(track[-1], rest)
        steps = np.abs(np.diff(track[:, 11]))
        assert steps.max() <= max(np.abs(np.diff(poses[:, 11])).max(), 0.45 * np.abs(poses - rest).max())


@pytest.mark.parametrize("seed", range(12))
def test_quiet_sounds_are_quiet_and_finite(seed):
    like = speech(1)[0] * 0.1
    sound = quiet_tone(np.random.default_rng(seed), 8000, like)
    assert sound.dtype == np.float32 and len(sound) == 8000 and np.isfinite(sound).all()
    assert np.sqrt((sound**2).mean()) < 0.02


@pytest.mark.parametrize("semitones", [-6.0, -1.5, 4.0])
def test_another_voice_says_the_same_at_the_same_time(semitones):
    random = np.random.default_rng(0)
    beats = np.repeat(random.random(60) > 0.5, 800).astype(np.float32)  # on and off, 50 ms each
    tone = beats * np.sin(2 * np.pi * 440 * np.arange(len(beats)) / 16_000).astype(np.float32)
    moved = shifted_voice(tone, semitones)
    assert moved.dtype == np.float32 and len(moved) == len(tone)
    pitch = np.abs(np.fft.rfft(moved)).argmax() * 16_000 / len(moved)
    assert pitch == pytest.approx(440 * 2 ** (semitones / 12), rel=0.02)
    loudness = [np.sqrt(np.square(sound).reshape(-1, 80).mean(1)) for sound in (tone, moved)]
    lags = range(-12, 13)  # of 5 ms
    scores = [np.corrcoef(loudness[0][20:-20], np.roll(loudness[1], -lag)[20:-20])[0, 1] for lag in lags]
    assert abs(lags[int(np.argmax(scores))]) <= 4 and max(scores) > 0.7


def test_a_voice_that_is_not_moved_stays_as_it_is():
    samples, _ = speech(0)
    assert shifted_voice(samples, 0.0) is samples and len(shifted_voice(samples[:0], 3.0)) == 0


def test_one_rendition_has_the_clips_own_voice_and_the_others_have_others(toy, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(pose_tracks, "shifted_voice", lambda samples, semitones: asked.append(semitones) or samples)
    sounds(toy, Loudness(), tmp_path / "a.npz", variants=4, voice_shift=5.0)
    assert len(asked) == 3 * 3 and max(map(abs, asked)) <= 5 and min(asked) < -1 and max(asked) > 1  # three clips are learnt from


class Squared(Loudness):
    def encode(self, samples: torch.Tensor) -> AudioFeatures:
        return super().encode(samples**2)


def test_sounds_are_encoded_once_for_an_encoder_and_outlive_the_labels(toy, tmp_path):
    cache, file = tmp_path / "run" / "sounds.npz", tmp_path / "labels.npz"
    first = sounds(toy, Loudness(), cache)
    stamp, labels = cache.stat().st_mtime_ns, dict(np.load(file))
    np.savez(file, **labels | {"poses": labels["poses"] + 1})
    assert np.array_equal(sounds(toy, Loudness(), cache).audio, first.audio)
    assert cache.stat().st_mtime_ns == stamp
    assert not np.array_equal(sounds(toy, Squared(), cache).audio, first.audio)


def sounds(toy: Toy, encoder: Loudness, cache: Path, variants: int = 3, voice_shift: float = 6.0) -> PoseSounds:
    return PoseSounds.build(toy.labels, toy.material.sound, encoder, cache, variants, voice_shift, 0)


def make_tracks(toy: Toy, tmp_path: Path) -> PoseTracks:
    return PoseTracks.build(toy.labels, sounds(toy, Loudness(), tmp_path / "sounds.npz"))


def test_a_batch_is_a_function_of_the_generator(toy, tmp_path):
    tracks = make_tracks(toy, tmp_path)
    one, two = (tracks.batch(4, 20, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.poses, two.poses) and torch.equal(one.audio, two.audio) and torch.equal(one.sources, two.sources)
    assert one.poses.shape == (4, 20, 12) and one.audio.shape == (4, 20, 4)


def test_the_forecast_is_better_than_the_prior_before_any_step(toy, tmp_path):
    tracks = make_tracks(toy, tmp_path)
    network = build_network(toy.settings, toy.labels, tracks, Loudness()).eval()
    batch = tracks.batch(32, 20, torch.Generator().manual_seed(1))
    with torch.inference_mode():
        loss = flow_matching_loss(network, batch, torch.Generator().manual_seed(2), audio_dropout=0.0)
        network.forecast_audio.zero_()
        network.forecast_source.zero_()
        network.forecast_bias.zero_()
        network.forecast_spread.fill_(1.0)
        prior = flow_matching_loss(network, batch, torch.Generator().manual_seed(2), audio_dropout=0.0)
    assert loss < 0.7 * prior


def test_training_writes_a_checkpoint_that_loads_and_a_finished_run_gives_it_again(toy, tmp_path):
    path = toy.trained(Loudness())
    network = load_network("pose-model", path)
    assert network.config.audio_kind == "loudness"
    assert torch.equal(network.rest_pose, torch.full((12,), -1.0))
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    again = load_network("pose-model", toy.trained(Loudness())).state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_training_goes_on_from_another_pose_model(toy, tmp_path):
    first = toy.trained(Loudness())
    second = toy.trained(Loudness(), "next.safetensors", start=str(first), run_dir=str(tmp_path / "next"), lr=1e-12)
    before, after = (load_network("pose-model", path).state_dict() for path in (first, second))
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before)

    class Other(Loudness):
        kind = "other"

    with pytest.raises(FlashLipsError, match="listens to 'loudness', the encoder is 'other'"):
        toy.trained(Other(), "third.safetensors", start=str(first), run_dir=str(tmp_path / "third"))


# Told poses


def mumbling(seed: int, frames: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Rows in which two of 20 numbers open the mouth and the largest only say who speaks. -> (2 frames, 20), (frames, 12)"""
    random = np.random.default_rng(seed)
    opening = np.convolve(random.random(frames + 4), np.ones(5) / 5, "valid") - 0.5
    rows = 0.05 * random.standard_normal((2 * frames, 20))
    rows[:, :2] += 3 * np.repeat(opening, 2)[:, None]
    rows[:, 2] += 5 * random.random()
    return rows.astype(np.float32), (opening[:, None] * np.linspace(1, 2, 12) + random.random()).astype(np.float32)


@pytest.fixture
def few_components(monkeypatch):
    monkeypatch.setattr(told_poses, "COMPONENTS", 4)


def test_a_teacher_tells_how_lips_move_to_a_voice_that_it_never_heard(few_components):
    clips = [mumbling(seed) for seed in range(8)]
    rows, poses = zip(*clips[:7], strict=True)
    teacher = told_poses.PoseTeacher.fit(np.concatenate(rows), rows, poses, [1.0] * 7)
    heard, seen = clips[7]
    told = teacher.tell(heard)
    assert told.shape == seen.shape and np.corrcoef(told[:, 0], seen[:, 0])[0, 1] > 0.9
    assert abs(told.mean()) < abs(seen.mean())  # about the speaker's mean, which is not told


def test_told_tracks_are_people_of_their_own_and_a_third_of_the_crops(few_components):
    real = PoseTracks(
        np.array([0, 30, 60, 90]), np.zeros((90, 4), np.float16), np.zeros((90, 12), np.float32), np.ones(90, bool),
        np.array([0, 1, -1]),
    )  # fmt: skip
    told = told_poses.told_tracks(
        [np.ones((20, 12), np.float32), np.ones((25, 12), np.float32)], [np.ones((22, 4), np.float16)] * 2, np.full((1, 12), 2.0)
    )
    both = told_poses.joined(real, told)
    assert both.starts.tolist() == [0, 30, 60, 90, 110, 132] and both.person.tolist() == [0, 1, -1, 2, 3]
    assert [group.tolist() for group in both.groups] == [[0], [1], [2], [3, 4]]
    assert np.isclose(both.shares[3], pose_tracks.TOLD_SHARE) and np.isclose(both.shares.sum(), 1)
    batch = both.batch(64, 10, torch.Generator().manual_seed(0))
    is_told = (batch.audio.mean((1, 2)) > 0.5).float()
    assert 0.1 < is_told.mean() < 0.6 and (batch.poses[is_told > 0] == 3).all()


def test_tracks_without_told_poses_are_drawn_as_before():
    plain = PoseTracks(np.array([0, 30, 60]), np.zeros((60, 4)), np.zeros((60, 12)), np.ones(60, bool), np.array([0, 1]))
    assert plain.shares[3] == 0 and np.isclose(plain.shares[:2].sum(), 1)


def test_a_model_of_few_components_does_not_hear_the_rest(toy, tmp_path):
    labels, encoder = toy.labels, Loudness()
    tracks = PoseTracks.build(labels, sounds(toy, encoder, tmp_path / "s.npz", 1))
    network = build_network(dataclasses.replace(toy.settings, components=1), labels, tracks, encoder).eval()
    assert network.config.listened_dim == 2 and network.forecast_audio.shape[1] == 2
    audio = torch.from_numpy(tracks.audio[:20]).float()[None]
    across = torch.linalg.svd(network.row_basis.T)[2][-1]  # a direction that the component leaves out
    unheard = audio + 5 * across.repeat(2)
    assert torch.allclose(network.listened(audio), network.listened(unheard), atol=1e-3)
    assert not torch.allclose(network.listened(audio), network.listened(audio + network.row_basis[:, 0].repeat(2)), atol=1e-3)
