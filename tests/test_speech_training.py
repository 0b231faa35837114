"""Ordinary speech in training: the corpus, the encoder that gives Whisper's components, told poses beside real ones."""

from __future__ import annotations

import wave

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flashlips_core.audio.encoders import MelConvAudioEncoder
from flashlips_core.models.audio_encoder import MEL_CONV_LARGE, MelConvConfig, MelConvEncoder
from flashlips_core.train import audio, speech
from flashlips_core.train.audio import AudioTrainConfig, Clip, Corpus, Teacher, build_corpus
from flashlips_core.train.batches import told as told_poses
from flashlips_core.train.batches.tracks import PoseLabels, PoseTracks
from flashlips_core.train.loop.trainer import TrainConfig
from flashlips_core.train.presets import run_stage
from flashlips_core.types import FlashLipsError

COMPONENTS, FRAMES = 4, 40
TINY = MelConvConfig(width=16, blocks=1, dim=COMPONENTS)


def voice(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    level = np.repeat(np.clip(random.random(FRAMES) - 0.3, 0.02, 1), 640)
    return (0.5 * level * random.uniform(-1, 1, FRAMES * 640)).astype(np.float32)


@pytest.fixture
def teacher(tmp_path, monkeypatch) -> Teacher:
    """A tiny encoder of Whisper's kind with random weights."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    monkeypatch.setattr(told_poses, "COMPONENTS", COMPONENTS)
    sizes = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = WhisperEncoder(WhisperConfig(**sizes))
    save_file({f"encoder.{k}": v.half().contiguous() for k, v in network.state_dict().items()}, tmp_path / "teacher.safetensors")
    return Teacher(tmp_path / "teacher.safetensors", config=sizes)


@pytest.fixture
def corpus(teacher) -> Corpus:
    clips = [Clip(voice(i), "s1" if i < 2 else "people", id=f"clip{i}") for i in range(4)]
    return build_corpus(clips + [Clip(voice(i), speech.SPEECH) for i in range(4, 8)], teacher, renditions=1)


@pytest.fixture
def labels(corpus) -> PoseLabels:
    """Lips that follow the corpus's first clips."""
    poses = [speech.rows_of(corpus, clip)[::2, :1] * np.linspace(1, 2, 12, dtype=np.float32) for clip in range(4)]
    starts, found = np.arange(5) * FRAMES, np.ones(4 * FRAMES, bool)
    ids = [f"clip{i}" for i in range(4)]
    return PoseLabels(ids, ids, ["train"] * 4, np.ones(4, bool), starts, np.concatenate(poses), found, np.zeros(12, np.float32))


def test_other_voices_say_the_same_and_keep_their_names():
    clips = speech.with_other_voices([Clip(voice(0), "s1", id="a"), Clip(voice(1), "speech")])
    assert [(c.group, c.id, len(c.samples)) for c in clips[2:]] == [(c.group, c.id, len(c.samples)) for c in clips[:2]]
    assert not np.allclose(clips[2].samples, clips[0].samples, atol=0.01)


def test_recordings_are_cut_into_pieces_that_the_teacher_can_hear(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "notes.txt").write_text("no sound")
    with wave.open(str(tmp_path / "deep" / "long.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
        file.writeframes((np.random.default_rng(0).standard_normal(8000 * 50) * 3000).astype("<i2").tobytes())
    pieces = list(speech.recordings(tmp_path))
    assert [round(len(piece.samples) / 16000) for piece in pieces] == [24, 24, 2] and {p.group for p in pieces} == {"speech"}


def test_a_corpus_remembers_its_clips_and_older_ones_have_no_names(corpus, tmp_path):
    corpus.save(tmp_path / "corpus.npz")
    assert audio.read_corpus(tmp_path / "corpus.npz").ids.tolist() == ["clip0", "clip1", "clip2", "clip3", "", "", "", ""]
    np.savez(tmp_path / "older.npz", **{k: v for k, v in vars(corpus).items() if k != "ids"})
    assert len(audio.read_corpus(tmp_path / "older.npz").ids) == 0
    with pytest.raises(FlashLipsError, match="run the stage 'audio-corpus' first"):
        audio.read_corpus(tmp_path / "none.npz")


def test_the_pose_teacher_hears_the_clips_that_have_lips(corpus, labels):
    fitted = speech.fit_pose_teacher(corpus, labels)
    told, (seen, _) = fitted.tell(speech.rows_of(corpus, 2)), labels.clip(2)
    assert fitted.basis.shape == (16, COMPONENTS) and np.corrcoef(told[:, 0], seen[:, 0])[0, 1] > 0.5
    with pytest.raises(FlashLipsError, match="No clip of the corpus has lips"):
        speech.fit_pose_teacher(Corpus(**vars(corpus) | {"ids": np.full(8, "")}), labels)


def test_what_the_encoder_is_asked_to_tell_is_what_the_teacher_tells(corpus, labels):
    fitted = speech.fit_pose_teacher(corpus, labels)
    network = speech.ComponentDistillation(MelConvEncoder(TINY), fitted, np.ones(12))
    rows = speech.rows_of(corpus, 5)
    components = torch.from_numpy((rows - fitted.mean) @ fitted.basis)[None]
    told = network.told(components)[0].numpy() + fitted.offset
    inner = fitted.tell(rows)[told_poses.REACH : -told_poses.REACH] / told_poses.STRETCH
    assert np.allclose(told, inner, atol=1e-4)


def test_an_encoder_learns_components_and_what_lies_outside_a_clip_asks_for_nothing(corpus, labels, tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "degrade", lambda samples, generator: samples)
    sounds = torch.from_numpy(corpus.samples / 32768.0).float()
    level = sounds.reshape(-1, 320).square().mean(1).add(1e-4).log().numpy()
    mixed = np.stack([level, level**2, np.roll(level, 1)], 1) @ np.random.default_rng(0).standard_normal((3, 16))
    corpus = Corpus(**vars(corpus) | {"targets": mixed.astype(np.float16)})
    fitted = speech.fit_pose_teacher(corpus, labels)
    config = TrainConfig(str(tmp_path / "run"), steps=80, lr=5e-3, log_every=1, save_every_s=1e9, ema=0.9)
    crops = AudioTrainConfig(batch=4, crop_rows=100, components=COMPONENTS)  # longer than the clips
    encoder = MelConvAudioEncoder(speech.train_components(corpus, fitted, config, TINY, crops, 0.5))
    features = [encoder.encode(part).values.numpy() for part in sounds.split(FRAMES * 640)]
    wanted = (mixed - fitted.mean) @ fitted.basis
    assert np.square(np.concatenate(features) - wanted).mean() < 0.3 * wanted.var(0).mean()
    with pytest.raises(FlashLipsError, match="gives 128 numbers, the teacher hears 4"):
        speech.train_components(corpus, fitted, config, MelConvConfig(), crops, 0.5)


def test_told_voices_stand_beside_real_ones_and_about_other_people(corpus, labels):
    fitted, encoder = speech.fit_pose_teacher(corpus, labels), MelConvAudioEncoder(MelConvEncoder(TINY).eval())
    real = PoseTracks(
        labels.starts, np.zeros((4 * FRAMES, 2 * COMPONENTS), np.float16), labels.poses, labels.found, np.array([0, 0, 1, -1])
    )
    both = speech.with_told(real, corpus, fitted, encoder)
    assert len(both.person) == 8 and both.is_told.tolist() == [False] * 4 + [True] * 4
    assert both.audio.shape == (8 * FRAMES, 2 * COMPONENTS)
    told, wanted = both.poses[4 * FRAMES : 5 * FRAMES], fitted.tell(speech.rows_of(corpus, 4))
    assert np.allclose(told - told[:1], wanted - wanted[:1], atol=1e-4)


def test_stages_that_listen_name_what_is_missing(tmp_path):
    (tmp_path / "grid_people").mkdir()
    with pytest.raises(FlashLipsError, match="run the stage 'audio-corpus' first"):
        run_stage("audio-encoder", tmp_path, tmp_path, tmp_path / "run", {})
    with pytest.raises(FlashLipsError, match="run the stage 'prepare' first"):
        run_stage("audio-corpus", tmp_path, tmp_path, tmp_path / "run", {})


def test_the_large_encoder_keeps_its_size_and_its_features_have_a_name_of_their_own():
    with torch.device("meta"):
        network = MelConvEncoder(MEL_CONV_LARGE)
    assert sum(p.numel() for p in network.parameters()) == 2_752_304 and network.context == 31
    assert speech.KIND == "flashlips-mel-conv-3"
