"""The command line: results, exit codes, one sentence for every bad input, and nothing left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from toy_dubs import SteadyFace, make_poses, make_track, planes_of
from waves import write_wave

from flashlips_core import checkpoint, parts
from flashlips_core.cli import COMMANDS, main
from flashlips_core.face import detect
from flashlips_core.pipeline import LipSync
from flashlips_core.sidecar import load_poses, load_track, save_poses, save_track
from flashlips_core.steps import LIP_MOTION

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def steady_face(monkeypatch):
    """The default tracker, so that no test needs a real face."""
    monkeypatch.setattr(parts, "load_tracker", lambda *a, **k: SteadyFace())


@pytest.fixture
def sync(model_folder, tmp_path):  # noqa: F811
    """``sync(video, audio, *options)`` runs the command into ``out/dubbed.mp4``."""
    (tmp_path / "out").mkdir(exist_ok=True)

    def run(video, audio, *options, out=tmp_path / "out" / "dubbed.mp4"):
        arguments = ["sync", str(video), *([] if audio is None else [str(audio)]), "--out", str(out)]
        return main([*arguments, "--models", str(model_folder), "--device", "cpu", "--preset", "ultrafast", *map(str, options)])

    return run


def write_nan_wave(path: Path) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_f32le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.full((1, 1024), np.nan, np.float32), "flt", "mono")
        frame.sample_rate, frame.pts = 16_000, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def test_sync_writes_the_dubbed_clip_and_reports_it_as_json(sync, talking_clip, audio_only, tmp_path, capsys):
    assert sync(talking_clip, audio_only, "--json") == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert (report["frames"], report["edited"], report["without_face"]) == (25, 25, 0) and report["seconds"]["cut"] > 0
    assert captured.err == ""
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["dubbed.mp4"]
    assert len(planes_of(tmp_path / "out" / "dubbed.mp4")) == 25


def test_track_and_poses_files_give_the_same_clip_as_one_command(sync, talking_clip, tmp_path, model_folder, capsys):  # noqa: F811
    models = ["--models", str(model_folder), "--device", "cpu"]
    track, poses = str(tmp_path / "track.safetensors"), str(tmp_path / "poses.safetensors")
    assert main(["track", str(talking_clip), "--out", track, *models]) == 0
    gain = ["--gain", str(LIP_MOTION)]  # what 'sync' does unasked
    assert main(["poses", str(talking_clip), "--out", poses, "--from-video", *gain, *models]) == 0
    assert len(load_track(track)) == len(load_poses(poses)) == 25
    one, two = tmp_path / "out" / "one.mkv", tmp_path / "out" / "two.mkv"
    assert sync(talking_clip, talking_clip, "--track", track, "--poses", poses, "--crf", 0, out=one) == 0
    assert sync(talking_clip, None, "--driving", talking_clip, "--crf", 0, out=two) == 0
    same = [np.array_equal(a[0], b[0]) for a, b in zip(planes_of(one), planes_of(two), strict=True)]
    assert all(same)
    assert "a face in 25 of 25 frames" in capsys.readouterr().out


def test_poses_from_sound_have_the_asked_rate(tmp_path, model_folder, capsys):  # noqa: F811
    out, voice = tmp_path / "poses.safetensors", write_wave(tmp_path / "voice.wav", 9000 * np.sin(np.arange(16_000) / 9))
    arguments = ["poses", str(voice), "--out", str(out), "--fps", "30000/1001", "--json", "--models", str(model_folder)]
    assert main([*arguments, "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["poses"] == len(load_poses(out)) == 30


BAD_INPUTS = {
    "no such file": "No file at",
    "no video stream": "has no video stream",
    "no audio": "has no audio stream",
    "nothing to lip-sync to": "nothing to lip-sync to",
    "no face": "No face in any",
    "zero length": "zero length",
    "NaN": "not numbers",
    "text": "cannot be read",
    "no index": "cannot be read",
    "truncated": "breaks off: 10 of 25 frames can be read",
    "truncated stream": "breaks off",
    "truncated voice": "breaks off",
    "corrupt checkpoint": "not a readable safetensors",
    "no checkpoint": "No editor at",
    "other role": "checkpoint for 'codec', but 'editor'",
    "other network": "does not fit",
    "pickle": "may be a pickle",
    "no folder": "there is no folder",
    "a folder": "is a folder",
    "suffix": "the suffix must be",
    "same file": "is also an input",
    "out of memory": "Out of memory",
    "other pose model": "listens to",
    "track of another clip": "track this file again",
    "no device": "cannot be used",
    "no face picture": "nor a picture",
    "mode": "invalid choice",
    "start": "invalid choice",
}


@pytest.fixture
def bad_input(talking_clip, audio_only, tmp_path, model_folder, clip, monkeypatch, request):  # noqa: F811
    """Video, voice, options and output of one kind of bad input."""
    good, voice, out = talking_clip, audio_only, tmp_path / "out" / "dubbed.mp4"

    def written(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    match request.param:
        case "no such file":
            return tmp_path / "none.mp4", voice, [], out
        case "no video stream":
            return voice, voice, [], out
        case "no audio":
            return good, clip(name="mute.mp4"), [], out
        case "nothing to lip-sync to":
            return good, None, [], out
        case "no face":
            monkeypatch.setattr(parts, "load_tracker", lambda *a, **k: Blind())
        case "zero length":
            return good, write_wave(tmp_path / "empty.wav", np.zeros(0)), [], out
        case "NaN":
            return good, write_nan_wave(tmp_path / "nan.wav"), [], out
        case "text":
            return written("notes.mp4", b"This is not a video." * 40), voice, [], out
        case "no index":
            return request.getfixturevalue("headless_clip"), voice, [], out
        case "truncated":
            return request.getfixturevalue("truncated_clip"), voice, [], out
        case "truncated stream":
            whole = clip(name="stream.flv", size=(256, 192)).read_bytes()
            return written("cut.flv", whole[: len(whole) // 2]), voice, [], out
        case "truncated voice":
            whole = write_wave(tmp_path / "whole.wav", 9000 * np.sin(np.arange(16_000) / 9)).read_bytes()
            return good, written("cut.wav", whole[:20_000]), [], out
        case "corrupt checkpoint":
            return (
                good,
                voice,
                ["--editor", written("half.safetensors", (model_folder / "editor.safetensors").read_bytes()[:500])],
                out,
            )
        case "no checkpoint":
            return good, voice, ["--editor", tmp_path / "none.safetensors"], out
        case "other role":
            return good, voice, ["--editor", model_folder / "codec.safetensors"], out
        case "other network":
            tensors, header = checkpoint.read_tensors(model_folder / "editor.safetensors")
            tensors.pop("conv_out.weight")
            checkpoint.write_tensors(tmp_path / "torn.safetensors", tensors, header)
            return good, voice, ["--editor", tmp_path / "torn.safetensors"], out
        case "pickle":
            torch.save({}, tmp_path / "editor.pt")
            return good, voice, ["--editor", tmp_path / "editor.pt"], out
        case "no folder":
            return good, voice, [], tmp_path / "nowhere" / "dubbed.mp4"
        case "a folder":
            (tmp_path / "out.mp4").mkdir()
            return good, voice, [], tmp_path / "out.mp4"
        case "suffix":
            return good, voice, [], tmp_path / "out" / "dubbed.txt"
        case "same file":
            return good, voice, [], good
        case "out of memory":
            monkeypatch.setattr(LipSync, "_read_mouths", full_memory)
        case "other pose model":
            return good, voice, ["--audio-encoder", "log-mel"], out
        case "track of another clip":
            save_track(make_track(size=(640, 480)), tmp_path / "track.safetensors")
            return good, voice, ["--track", tmp_path / "track.safetensors"], out
        case "no device":
            return good, voice, ["--device", "abacus"], out
        case "no face picture":
            return good, voice, ["--face", "middle"], out
        case "mode":
            return good, voice, ["--length", "stretch"], out
        case "start":
            return good, voice, ["--start", "middle"], out
    return good, voice, [], out


class Blind(detect.Detector):
    """Sees nobody."""

    def find(self, images, smallest_px=12.0):
        return [[] for _ in images]


def full_memory(self, *given):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")


@pytest.mark.parametrize("bad_input", BAD_INPUTS, indirect=True)
def test_bad_input_gives_one_sentence_exit_code_2_and_no_output(sync, bad_input, tmp_path, capsys, request):
    video, voice, options, out = bad_input
    before = video.read_bytes() if video.exists() else None
    try:
        code = sync(video, voice, *options, out=out)
    except SystemExit as stop:  # argparse's way
        code = stop.code
    captured = capsys.readouterr()
    expected = BAD_INPUTS[request.node.callspec.params["bad_input"]]
    assert code == 2 and captured.out == ""
    assert expected in captured.err and captured.err.count("\n") == 1 and captured.err.endswith(".\n")
    assert "Traceback" not in captured.err
    assert not list(tmp_path.rglob("dubbed*")) and not list(tmp_path.rglob("*.part"))
    assert before is None or video.read_bytes() == before


def test_ctrl_c_leaves_nothing_and_gives_130(sync, talking_clip, audio_only, tmp_path, monkeypatch, capsys):
    from flashlips_core import editing

    calls = []

    def interrupted(frame, *rest):
        calls.append(frame)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return frame

    monkeypatch.setattr(editing, "paste", interrupted)
    assert sync(talking_clip, audio_only) == 130
    assert "Stopped" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_poses_of_a_file_are_used_as_they_are(sync, talking_clip, tmp_path, monkeypatch, capsys):
    save_poses(make_poses(), tmp_path / "poses.safetensors")
    seen = []
    from flashlips_core import pipeline

    monkeypatch.setattr(pipeline, "plan_rows", lambda *a, keep=pipeline.plan_rows: seen.append(keep(*a)) or seen[0])
    assert sync(talking_clip, None, "--poses", tmp_path / "poses.safetensors") == 0
    assert torch.equal(seen[0].poses.values, make_poses().values)
    assert sync(talking_clip, None, "--poses", tmp_path / "poses.safetensors", "--gain", 1.2) == 2
    assert "used as they are; give --gain to the command 'poses'" in capsys.readouterr().err


def test_every_command_explains_itself_without_loading_a_model(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert "--json" in capsys.readouterr().out


def test_train_passes_settings_on_and_refuses_unknown_ones(monkeypatch, capsys):
    from flashlips_core.train import presets

    real = presets.run_stage

    def stage(name, data, weights, folder, options, progress, preset):
        if "stepz" in options:
            return real(name, data, weights, folder, options, progress, preset)
        return f"{name} {options} {preset}"

    monkeypatch.setattr(presets, "run_stage", stage)
    places = ["--data", "d", "--weights", "w"]
    assert main(["train", "codec", "steps=40", "rates=(1e-3, 2)", "note=a b", *places, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == "codec {'steps': 40, 'rates': (0.001, 2), 'note': 'a b'} mini"
    assert main(["train", "editor", "--preset", "full", "--lr=2e-4", "--network=unet-mini", "steps=3", *places, "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["path"]
    assert written == "editor {'steps': 3, 'lr': 0.0002, 'network': 'unet-mini'} full"
    assert main(["train", "codec", "stepz=40", *places]) == 2
    assert capsys.readouterr().err == "The stage 'codec' of preset 'mini' has no setting 'stepz'; did you mean steps?\n"
    with pytest.raises(SystemExit):
        main(["train", "codec", "--stepz=40", *places])
    assert "Unrecognized arguments: --stepz=40" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "editor", "--help"])
    assert "mini 12000; full 1000000" in capsys.readouterr().out


@pytest.mark.parametrize(("command", "options"), [("evaluate", ["eval", "--data", "d"]), ("bench", ["bench"])])
def test_measuring_shows_how_far_it_is(command, options, monkeypatch, capsys):
    steps = []

    def run(*given):
        progress = given[1].progress if command == "evaluate" else given[-1]  # of the session
        progress(1, 2)
        steps.append(given)
        return {"table": "measured"}

    monkeypatch.setattr("flashlips_core.bench.dubs.bench", run)
    monkeypatch.setattr("flashlips_core.cli.evaluate._of_table", run)
    monkeypatch.setattr("flashlips_core.cli.evaluate.load_lipsync", lambda args: None)
    assert main(options) == 0 and len(steps) == 1
    assert capsys.readouterr().out == "measured\n"


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "flashlips_core", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS)


def test_the_start_is_an_option_and_retrieved_unasked(sync, talking_clip, tmp_path):
    save_poses(make_poses(), tmp_path / "poses.safetensors")
    made = {}
    for options in ((), ("--start", "retrieved"), ("--start", "frame")):
        out = tmp_path / "out" / f"{len(made)}.mkv"
        assert sync(talking_clip, None, "--poses", tmp_path / "poses.safetensors", "--crf", 0, *options, out=out) == 0
        made[options] = np.stack([planes[0] for planes in planes_of(out)])
    unasked, retrieved, frame = made.values()
    assert np.array_equal(unasked, retrieved) and not np.array_equal(retrieved, frame)
