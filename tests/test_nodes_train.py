"""Prepare Dataset and both Fine-Tune nodes in the real ComfyUI, with the bundled networks, on the demo's head."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from graphs import upstream

from flashlips_core import LipSync, checkpoint
from flashlips_core.media import load_audio, probe, read_frames, write_video

pytestmark = pytest.mark.comfy

DEMO = Path(__file__).resolve().parents[1] / "flashlips_core" / "demo" / "face.mp4"
NUM_FRAMES = 52  # two seconds, and as many frames as still have neighbours in the held-out end


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """The demo's head at half its size, with the sound of those frames."""
    path = tmp_path_factory.mktemp("clip") / "me.mp4"
    info, sound = probe(DEMO), load_audio(DEMO)
    small = (replace(frame, planes=tuple(plane[::2, ::2] for plane in frame.planes)) for frame in read_frames(DEMO))
    sound = replace(sound, samples=sound.samples[:, : sound.sample_rate * NUM_FRAMES // 25])
    write_video(path, islice(small, NUM_FRAMES), replace(info, width=info.width // 2, height=info.height // 2), sound)
    return path


@pytest.fixture
def graph(engine, clip) -> dict:
    return {
        "video": node("FlashLipsLoadVideo", path=str(clip)),
        "codec": node("FlashLipsLoadCodec", name="bundled-fast"),
        "reader": node("FlashLipsLoadLipEncoder", name="bundled"),
        "editor": node("FlashLipsLoadEditor", name="bundled-fast"),
        "dataset": node(
            "FlashLipsPrepareDataset", video=["video", 0], vae=["codec", 0], lip_encoder=["reader", 0], shortest=2.0,
            editor=["editor", 0],
        ),
        "tuned": node(
            "FlashLipsFineTuneLipEditor", editor=["editor", 0], dataset=["dataset", 0], vae=["codec", 0],
            lip_encoder=["reader", 0], name="mine", steps=1, batch=4, lora_rank=2,
        ),
    }  # fmt: skip


def test_a_codec_learns_the_face_and_the_editor_learns_through_it(engine, graph) -> None:
    graph["face"] = node("FlashLipsFineTuneCodec", vae=["codec", 0], dataset=["dataset", 0], name="face", steps=2, batch=2)
    graph["tuned"] = node(**_changed(graph["tuned"], vae=["face", 0], name="through_face"))
    run = engine.run(graph, ("face", "tuned"))
    assert run.is_success, run.errors
    assert tuple(run.outputs["face"][1].shape) == (1, 256, 768, 3) and run.previewed >= {"face"}
    folder = engine.base / "models" / "flashlips"
    notes = checkpoint.info(folder / "face.safetensors").notes
    assert notes["latents"] == "bundled-fast" and "agreed" in notes["consent"]
    editors = checkpoint.info(folder / "through_face.safetensors").notes
    assert editors["codec"] == "bundled-fast" and editors["codec_file"] == "face.safetensors"
    loaded = node("FlashLipsLoadCodec", name="face.safetensors")
    wrong = {**graph, "codec": loaded, "editor": node("FlashLipsLoadEditor", name="bundled"), "tuned": node(
        **_changed(graph["tuned"], vae=["codec", 0], name="never"))}  # fmt: skip
    assert "was trained with the codec 'bundled', this one is 'bundled-fast'" in engine.run(wrong, ("dataset",)).errors["dataset"]


def test_frames_that_were_cut_for_another_editor_are_refused(engine, graph) -> None:
    del graph["dataset"]["inputs"]["editor"]
    run = engine.run(graph, ("dataset", "tuned"))
    crop_px = LipSync().crop_px
    assert f"crops of {crop_px} px" in run.outputs["dataset"][1]
    assert f"The editor sees crops of 256 px, these frames have {crop_px}; prepare them for this editor" in run.errors["tuned"]


def test_a_clip_becomes_an_editor_that_the_loader_lists(engine, graph) -> None:
    run = engine.run(graph, ("dataset", "tuned"))
    assert run.is_success, run.errors
    assert "me.mp4: 2.1 s with a face" in run.outputs["dataset"][1]
    editor, curve, sheet = run.outputs["tuned"]
    assert tuple(curve.shape) == (1, 256, 768, 3) and sheet.shape[1] > 4 * 100 and 0 <= float(sheet.min()) < 0.2
    notes = checkpoint.info(engine.base / "models" / "flashlips" / "mine.safetensors").notes
    assert notes["base"] == "bundled-fast" and notes["trained_on"]["file"] == "me.mp4" and "GRID" in notes["licence"]
    again = engine.run({"loaded": node("FlashLipsLoadEditor", name="mine.safetensors")}, ("loaded",))
    assert again.is_success, again.errors
    # the same settings go on and find everything done; others are refused, because the name is taken
    refused = engine.run({**graph, "tuned": node(**_changed(graph["tuned"], seed=1))}, ("tuned",))
    assert "mine.safetensors is there already" in refused.errors["tuned"]


def _changed(entry: dict, **inputs: object) -> dict:
    return {"class_type": entry["class_type"], **entry["inputs"], **inputs}


def test_cancel_keeps_the_best_so_far_and_the_next_run_goes_on(engine, graph) -> None:
    models = engine.base / "models" / "flashlips"
    out = models / "stopped.safetensors"
    material = {name: entry for name, entry in graph.items() if name != "tuned"}
    assert engine.run(material, "dataset").is_success

    def train(steps: int, stop_at: int | None = None) -> list[int]:
        """Run as far as ``steps``, or press Cancel at that one of its reports; returns the steps that were reported."""
        tuned = node(**_changed(graph["tuned"], name="stopped", steps=steps))
        run = engine.run({**material, "tuned": tuned}, "tuned", interrupt_at=("progress", stop_at) if stop_at else None)
        assert "dataset" in run.cached and not run.errors
        assert run.is_interrupted if stop_at else run.is_success
        assert not list(models.rglob("*.part"))
        return [data["value"] for name, data in run.events if name == "progress"]

    assert train(1)[-1] == 1
    best = out.read_bytes()
    [stopped] = train(50, stop_at=1)
    assert stopped in (1, 2)  # within the next step, unless that was quicker than the first report
    assert out.read_bytes() == best
    loaded = engine.run({**material, "loaded": node("FlashLipsLoadEditor", name="stopped.safetensors")}, ("dataset", "loaded"))
    assert loaded.is_success, loaded.errors
    reported = train(4)
    assert min(reported) >= stopped and reported[-1] == 4  # what was done when Cancel came is not lost
    checks = json.loads((out.with_suffix(".run") / "checks.json").read_text(encoding="utf-8"))
    assert [check["step"] for check in checks] == [0, 1, 4]


def test_what_cannot_be_trained_on_is_one_sentence(engine, graph) -> None:
    short = {**graph, "dataset": node(**_changed(graph["dataset"], shortest=10.0))}
    assert "shows the face for 2.1 s, too short to learn from" in engine.run(short, ("dataset",)).errors["dataset"]
    named = {**graph, "tuned": node(**_changed(graph["tuned"], name="../mine"))}
    assert "cannot be a file's name" in engine.run(named, ("tuned",)).errors["tuned"]


# ---- the pose model --------------------------------------------------------------------------------------------------------


@pytest.fixture
def speech(engine, clip) -> dict:
    return {
        "video": node("FlashLipsLoadVideo", path=str(clip)),
        "reader": node("FlashLipsLoadLipEncoder", name="bundled"),
        "listener": node("FlashLipsLoadAudioEncoder", name="bundled"),
        "pose_model": node("FlashLipsLoadPoseModel", name="bundled"),
        "features": node("FlashLipsEncodeAudio", audio_encoder=["listener", 0], audio=["video", 1]),
        "poses": node("FlashLipsEncodePoses", lip_encoder=["reader", 0], video=["video", 0]),
        "style": node(
            "FlashLipsFineTunePoseModel", pose_model=["pose_model", 0], features=["features", 0], poses=["poses", 0],
            name="style", steps=2, batch=2, shortest=2.0,
        ),
        "sampled": node("FlashLipsSamplePoses", pose_model=["style", 0], features=["features", 0]),
    }  # fmt: skip


def test_a_clip_becomes_a_pose_model_that_the_loader_lists(engine, speech) -> None:
    run = engine.run(speech, ("style", "sampled"))
    assert run.is_success, run.errors
    _, curve = run.outputs["style"]
    assert tuple(curve.shape) == (1, 256, 768, 3) and run.previewed >= {"style"}
    notes = checkpoint.info(engine.base / "models" / "flashlips" / "style.safetensors").notes
    assert notes["base"] == "bundled" and notes["trained_on"]["seconds"] > 1 and "agreed" in notes["consent"]
    again = engine.run({"loaded": node("FlashLipsLoadPoseModel", name="style.safetensors")}, ("loaded",))
    assert again.is_success, again.errors
    refused = engine.run({**speech, "style": node(**_changed(speech["style"], seed=1))}, ("style",))
    assert "style.safetensors is there already" in refused.errors["style"]


def test_cancel_keeps_the_pose_models_best_so_far(engine, speech) -> None:
    out = engine.base / "models" / "flashlips" / "stopped_style.safetensors"
    longer = {**speech, "style": node(**_changed(speech["style"], name="stopped_style", steps=500))}
    assert engine.run(upstream(longer, "features", "poses"), ("features", "poses")).is_success
    run = engine.run(upstream(longer, "style"), "style", interrupt_at=("progress", 2))
    assert run.is_interrupted and not run.errors and checkpoint.info(out).notes["steps"] == 0
    assert not list(out.parent.rglob("*.part"))


def test_what_no_pose_model_can_learn_from_is_one_sentence(engine, speech) -> None:
    short = {**speech, "style": node(**_changed(speech["style"], shortest=10.0))}
    assert "Sound and lip poses have 2.1 s in common, too short" in engine.run(short, ("style",)).errors["style"]
    deaf = {**speech, "listener": node("FlashLipsLoadAudioEncoder", name="log-mel")}
    assert "load the audio encoder it was trained with" in engine.run(deaf, ("style",)).errors["style"]
