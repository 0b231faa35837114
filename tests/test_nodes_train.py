"""Prepare Dataset and Fine-Tune Lip Editor in the real ComfyUI, with the bundled networks, on the demo's head."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from flashlips_core import LipSync, checkpoint
from flashlips_core.media import probe, read_frames, write_video

pytestmark = pytest.mark.comfy

DEMO = Path(__file__).resolve().parents[1] / "flashlips_core" / "demo" / "face.mp4"
NUM_FRAMES = 52  # two seconds, and as many frames as still have neighbours in the held-out end


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """The demo's head at half its size, without sound."""
    path = tmp_path_factory.mktemp("clip") / "me.mp4"
    info = probe(DEMO)
    small = (replace(frame, planes=tuple(plane[::2, ::2] for plane in frame.planes)) for frame in read_frames(DEMO))
    write_video(path, islice(small, NUM_FRAMES), replace(info, width=info.width // 2, height=info.height // 2))
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
