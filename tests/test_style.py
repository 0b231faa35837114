"""A pose model learns how one person speaks: real networks at toy sizes, a voice and lips that are made up."""

from __future__ import annotations

import dataclasses
import functools
import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from toy_dubs import make_track, toy_networks

from flashlips_core import checkpoint
from flashlips_core.cli import main
from flashlips_core.loading import LoadedPart, load_part
from flashlips_core.pipeline import LipSync
from flashlips_core.train.batches.tracks import pose_correlation
from flashlips_core.train.finetune.report import CURVE, curve_picture
from flashlips_core.train.finetune.speech import StyleCheck, StyleTuning, look_at, split_speech, tune_style
from flashlips_core.types import AudioFeatures, FlashLipsError, LipPoses

QUICK = StyleTuning(steps=4, batch=4, check_every=2, save_every_s=0)


def heard_and_seen(seconds: float = 12.0, kind: str = "flashlips-mel-conv") -> tuple[AudioFeatures, LipPoses]:
    """Noise that is heard, and lips that follow its first number, far from rest."""
    count = round(25 * seconds)
    values = torch.randn(2 * count, 16, generator=torch.Generator().manual_seed(0))
    features = AudioFeatures(values, Fraction(50), kind, torch.zeros(2 * count))
    return features, LipPoses(3 + values[::2, :1].expand(-1, 12).clone(), Fraction(25))


@pytest.fixture(scope="module")
def pose_model() -> LoadedPart:
    network = toy_networks()["pose-model"].requires_grad_(False).eval()
    torch.nn.init.zeros_(network.out.weight)
    return LoadedPart(network, "pose-model", "base", {"licence": "test"})


@pytest.fixture
def tune(pose_model, tmp_path):
    """``tune(name, **settings)`` runs into a file of the test's folder."""

    def run(name="me", progress=None, watch=None, heard=None, **changes):
        features, poses = heard or heard_and_seen()
        settings = dataclasses.replace(QUICK, **changes)
        out = tmp_path / f"{name}.safetensors"
        return tune_style(pose_model, features, poses, out, settings, progress=progress, watch=watch)

    return run


def test_the_end_is_held_out_and_sound_and_lips_stay_together():
    features, poses = heard_and_seen()
    speech = split_speech(features, poses)
    assert (len(speech.learnt.poses), len(speech.poses)) == (300 - 45 - 12, 45)
    assert np.allclose(speech.learnt.poses[:, 0], 3 + speech.learnt.audio[:, 0].astype(np.float32), atol=2e-3)
    assert torch.allclose(speech.poses[:, 0], 3 + speech.audio[:, 0])
    assert torch.equal(speech.features.values, features.values[-90:]) and len(speech.features.level_db) == 90
    assert all((speech.poses != source).any(1).all() for source in speech.sources)


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30_000, 1001), Fraction(50)])
def test_a_clip_of_any_rate_is_laid_under_its_sound(fps):
    features, _ = heard_and_seen()
    times = (torch.arange(round(12 * fps)) + 0.5) / float(fps)
    speech = split_speech(features, LipPoses(times[:, None].expand(-1, 12).clone(), fps))
    own = np.concatenate([speech.learnt.poses[:, 0], speech.poses[:, 0].numpy()])
    frames = np.concatenate([np.arange(len(speech.learnt.poses)), np.arange(300 - len(speech.poses), 300)])
    assert abs(own - (frames + 0.5) / 25).max() < 0.03


def test_it_learns_the_persons_lips_and_keeps_the_best(tune, pose_model, tmp_path):
    before = {name: value.clone() for name, value in pose_model.network.state_dict().items()}
    done = tune(steps=40, lr=3e-3, check_every=10)
    assert [check.step for check in done.checks] == [0, 10, 20, 30, 40]
    assert done.best.loss < 0.8 * done.before.loss
    info = checkpoint.info(tmp_path / "me.safetensors")
    assert info.role == "pose-model" and info.notes["base"] == "base" and info.notes["steps"] == done.best.step
    assert info.notes["trained_on"]["seconds"] == pytest.approx(11.52) and "agreed" in info.notes["consent"]
    part = load_part("pose-model", tmp_path / "me.safetensors")
    again = look_at(part.network, split_speech(*heard_and_seen()), done.best.step)
    assert again.loss == pytest.approx(done.best.loss, rel=0.02)  # the file is in half precision
    assert all(torch.equal(before[name], value) for name, value in pose_model.network.state_dict().items())


def test_a_stopped_run_goes_on_to_the_same_end(tune):
    whole = tune("whole", steps=4)

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune("parts", steps=4, progress=stop)
    resumed = tune("parts", steps=4)
    assert [check.step for check in resumed.checks] == [0, 2, 4]
    for ours, theirs in zip(resumed.checks, whole.checks, strict=True):
        assert dataclasses.astuple(ours) == pytest.approx(dataclasses.astuple(theirs), rel=1e-4)


def test_it_works_where_tensors_are_made_in_inference_mode(tmp_path):
    with torch.inference_mode():
        part = LoadedPart(toy_networks()["pose-model"], "pose-model", "base")
        done = tune_style(part, *heard_and_seen(), tmp_path / "me.safetensors", QUICK)
    assert done.checks[-1].step == 4


def test_models_that_listen_to_emotion_get_the_clips(tmp_path):
    toy = toy_networks()["pose-model"]
    network = type(toy)(dataclasses.replace(toy.config, emotion_dim=5))
    part = LoadedPart(network, "pose-model", "base")
    done = tune_style(part, *heard_and_seen(), tmp_path / "me.safetensors", QUICK, emotion=torch.ones(5))
    assert done.checks[-1].step == 4


@pytest.mark.parametrize(
    ("heard", "message"),
    [
        (heard_and_seen(8.0), r"have 8.0 s in common, too short to learn from; use 10 s or more"),
        (heard_and_seen(kind="log-mel"), "listens to 'flashlips-mel-conv', got 'log-mel'"),
    ],
)
def test_what_cannot_be_learnt_from_is_one_sentence(tune, heard, message, tmp_path):
    with pytest.raises(FlashLipsError, match=message):
        tune(heard=heard)
    assert not list(tmp_path.iterdir())


def test_another_clips_result_is_not_overwritten(tune):
    tune()
    with pytest.raises(FlashLipsError, match="comes from another clip, pose-model or setting"):
        tune(heard=heard_and_seen(13.0))


def test_the_curve_rises_as_the_loss_falls():
    curve = curve_picture([StyleCheck(0, 0.5, 0.1, 1.0), StyleCheck(10, 0.4, 0.2, 1.0)])
    rows, columns = (curve == CURVE).all(-1).nonzero()
    assert rows[columns.argmin()] > rows[columns.argmax()] + 100


def test_correlation_counts_what_moves():
    own = np.random.default_rng(0).standard_normal((50, 3)) * [1, 1, 0]
    assert pose_correlation(2 * own + 1, own) == pytest.approx(1)
    assert pose_correlation(own * [1, -1, 1], own) == pytest.approx(0, abs=0.5)
    assert pose_correlation(np.zeros((50, 3)), own) == 0


# ---- the command -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def toys(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    for role, network in toy_networks().items():
        checkpoint.save(network, folder / f"{role}.safetensors", role, {"licence": "test", "crop_px": 256})
    return folder


def test_the_command_trains_editor_and_style_from_one_clip(toys, clip, tmp_path, monkeypatch, capsys):
    frames = 60
    video = clip(name="me.mp4", pts=tuple(range(0, frames * 3600, 3600)), audio_rate=22_050, audio_s=Fraction(12, 5))
    monkeypatch.setattr(LipSync, "track", lambda self, *args, **kwargs: make_track(frames))
    monkeypatch.setattr("flashlips_core.train.finetune.person.SHORTEST_S", 1.0)
    monkeypatch.setattr("flashlips_core.train.finetune.speech.SHORTEST_S", 1.0)
    monkeypatch.setattr("flashlips_core.train.finetune.speech.StyleTuning", functools.partial(StyleTuning, steps=2, batch=4))
    out, style = tmp_path / "mine.safetensors", tmp_path / "mine-style.safetensors"
    words = ["--video", str(video), "--out", str(out), "--style", str(style), "--models", str(toys), "--steps", "1"]
    assert main(["train", "finetune", *words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["path"] == str(out) and result["style"]["path"] == str(style)
    assert checkpoint.info(style).role == "pose-model" and result["style"]["after"]["size"] >= 0
    assert main(["train", "finetune", *words]) == 0  # both are done: they go on to their end at once
    assert "Way of speaking, on held-out speech: loss" in capsys.readouterr().out


def test_a_clip_without_sound_has_no_way_of_speaking(toys, clip, tmp_path, capsys):
    video = clip(name="me.mp4")
    words = ["--video", str(video), "--models", str(toys), "--style", str(tmp_path / "s.safetensors")]
    assert main(["train", "finetune", *words, "--out", str(tmp_path / "mine.safetensors")]) == 2
    assert "me.mp4 has no sound to learn a way of speaking from" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.safetensors"))
