"""Training sets: from videos to shards, whatever stops the build; filters; the command."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_sets import FRAMES, QUICK, ROOT, DemoFace, at, demo, lipsync, write_clip  # noqa: F401
from waves import write_wave

from flashlips_core.audio import to_mono_16k
from flashlips_core.cli import main
from flashlips_core.compose import cut
from flashlips_core.dataset import build as building
from flashlips_core.dataset import videos as measuring
from flashlips_core.dataset.build import build
from flashlips_core.dataset.filters import Limits
from flashlips_core.dataset.read import ShardCrops, ShardReader, read_index
from flashlips_core.dataset.store import STORED_MARGIN
from flashlips_core.face import detect
from flashlips_core.face.motion import LANDMARKER_FILE
from flashlips_core.media import load_audio, read_frames
from flashlips_core.pipeline import LipSync
from flashlips_core.types import FlashLipsError, Frame

LANDMARKER = ROOT.parent / "shared" / "weights" / LANDMARKER_FILE


@pytest.fixture(scope="module")
def videos(demo, tmp_path_factory) -> Path:
    """Two people with one good clip each, and a file that is none."""
    frames, sound = demo
    folder = tmp_path_factory.mktemp("videos")
    write_clip(folder / "ann" / "first take.mp4", frames, at(sound, 0))
    write_clip(folder / "bob" / "take.mp4", frames[:50], at(sound, 0, 2))
    (folder / "bob" / "notes.mp4").write_text("This is not a video. " * 40)
    return folder


@pytest.fixture(scope="module")
def built(videos, lipsync, tmp_path_factory) -> Path:
    """An uninterrupted build in small shards, with latents."""
    out = tmp_path_factory.mktemp("built") / "set"
    build([videos], out, lipsync, replace(QUICK, has_latents=True))
    return out


def dark(frame: Frame) -> Frame:
    return replace(frame, planes=(np.full_like(frame.planes[0], 16), *frame.planes[1:]))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- the whole way ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_videos_becomes_samples_with_all_that_training_reads(built, videos, demo, lipsync):
    samples = {s.about["source"].split("/", 1)[1]: s for s in ShardReader(built)}
    assert sorted(samples) == ["ann/first take.mp4", "bob/take.mp4"]
    sample = samples["ann/first take.mp4"]
    assert len(sample) == sample.about["num_frames"] == FRAMES and sample.about["identity"] == "ann"
    assert {k: tuple(v.shape) for k, v in sample.labels.items()} == {
        "poses": (75, 12), "opening": (75,), "points": (75, 5, 2), "boxes": (75, 5), "references": (75, 8),
        "latents": (75, 4, 8, 8),
    }  # fmt: skip
    assert len(sample.samples) == FRAMES * 640
    heard = to_mono_16k(load_audio(videos / "ann" / "first take.mp4"))[: FRAMES * 640]
    assert (sample.samples[: len(heard)] - heard.clamp(-1, 1)).abs().max() < 1e-4
    crops, box = sample.crops([30])[0], sample.labels["boxes"][30]
    assert crops.shape == (3, 80, 80)  # the square of 64 px, and a quarter more
    inner = cut(list(read_frames(videos / "ann" / "first take.mp4"))[30], box.tolist(), 64)
    assert (crops[:, 8:72, 8:72] - inner).abs().mean() < 0.02  # JPEG's loss
    assert (lipsync.codec.encode(inner[None]) - sample.labels["latents"][30].float()).abs().mean() < 0.02
    assert (lipsync.encode_lips(inner[None]) - sample.labels["poses"][30]).abs().max() < 0.05


def test_an_unreadable_video_is_reported_and_left_out(built):
    counts = read_index(built)["counts"]
    assert (counts["videos"], counts["unreadable"], counts["kept"]) == (3, 1, 2)
    assert "notes.mp4 cannot be read" in (built / "report.html").read_text()


def test_nothing_of_the_work_is_left_and_other_tools_can_read_the_shards(built):
    assert sorted(contents(built)) == ["build.json", "index.json", "report.html", "samples.jsonl", "train-00000.tar"]
    with tarfile.open(built / "train-00000.tar") as archive:
        names = archive.getnames()
    keys = [name.partition(".")[0] for name in names]
    assert len([key for i, key in enumerate(keys) if i == 0 or keys[i - 1] != key]) == 2  # each sample in one run
    assert {name.partition(".")[2] for name in names} >= {"json", "safetensors", "wav", "0000.jpg", "0074.jpg"}


def test_the_report_needs_nothing_else_and_shows_faces(built):
    page = (built / "report.html").read_text()
    assert page.count("src='data:image/jpeg;base64,") == 2 and "<svg" in page
    assert not re.search(r"https?://|src='(?!data:)|href=", page)


class Stop(BaseException):
    """As Ctrl-C: no part of the code catches it."""


@pytest.mark.parametrize("moment", ["first video", "second video", "between shards", "before the index"])
def test_a_stopped_build_goes_on_to_the_same_bytes(moment, built, videos, lipsync, tmp_path, monkeypatch):
    settings, out = replace(QUICK, has_latents=True), tmp_path / "set"
    with monkeypatch.context() as patch:
        progress = None
        if moment.endswith("video"):
            wanted, calls = moment == "second video", []

            def progress(done, total):
                states = len(list((out / "work").glob("*.json")))
                calls.append(done)
                if states == wanted and (out / "work").is_dir() and len(calls) > 3:
                    raise Stop
        elif moment == "between shards":
            patch.setattr(building, "pack", lambda plan, made, out, keep=building.pack: keep(plan, made, out) or raising())
        else:
            patch.setattr(building, "_shard_row", lambda *a: raising())
        with pytest.raises(Stop):
            build([videos], out, lipsync, settings, progress)
    assert not list(out.rglob("*.part")) and not (out / "index.json").exists()
    build([videos], out, lipsync, settings)
    assert contents(out) == contents(built)


def raising():
    raise Stop


def test_a_killed_build_leaves_no_half_shard_and_resumes_to_the_same_bytes(demo, tmp_path, lipsync):
    """A real kill, by a signal that nothing can catch, while samples are being written."""
    frames, sound = demo
    for name in ("a", "b"):
        write_clip(tmp_path / "in" / name / "clip.mp4", frames[:50], at(sound, 0, 2))
    script = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}, {str(ROOT / "tests" / "comfy")!r}]
from toy_sets import QUICK, DemoFace
from flashlips_core.dataset import build as b, videos
from flashlips_core.pipeline import LipSync
real = videos.write_whole
def dying(path, write):
    if path.suffix == ".tar" and any(path.parent.parent.glob("*.json")):  # the second video's sample
        def half(file):
            write(file); file.flush(); os.kill(os.getpid(), signal.SIGKILL)
        return real(path, half)
    return real(path, write)
videos.write_whole = dying
b.build([sys.argv[1]], sys.argv[2], LipSync.load(device="cpu", detector=DemoFace()), QUICK)
"""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "in", killed], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert not list(killed.glob("*.tar*")) and list((killed / "work").rglob("*.part"))
    for out in (killed, whole):
        build([tmp_path / "in"], out, lipsync, QUICK)
    assert contents(killed) == contents(whole)


def test_several_processes_make_the_same_bytes_as_one(built, videos, lipsync, tmp_path):
    out, steps = tmp_path / "set", []
    build([videos], out, lipsync, replace(QUICK, has_latents=True), lambda *step: steps.append(step), workers=2)
    assert contents(out) == contents(built) and len(steps) == 3


class Deadly(DemoFace):
    """As if memory ran out in a worker."""

    def find(self, images, smallest_px=12.0):
        os._exit(9)


def test_a_killed_worker_is_one_sentence_and_no_process_is_left(videos, tmp_path):
    with pytest.raises(FlashLipsError, match="A worker was killed .exit code 9.*fewer workers"):
        build([videos], tmp_path / "set", LipSync.load(device="cpu", detector=Deadly()), QUICK, workers=2)
    assert not multiprocessing.active_children() and not list(tmp_path.rglob("*.part"))


def test_a_finished_build_is_not_done_again_and_other_settings_are_refused(built, videos, lipsync):
    before = contents(built)
    settings = replace(QUICK, has_latents=True)
    assert build([videos], built, lipsync, settings)["kept"] == 2
    with pytest.raises(FlashLipsError, match="other videos, settings or networks"):
        build([videos], built, lipsync, replace(settings, seed=1))
    assert contents(built) == before


# ---- what the editor's training reads --------------------------------------------------------------------------------------


def test_a_set_without_landmarks_says_what_the_editor_lacks(built):
    with pytest.raises(FlashLipsError, match="built without landmarks.*--landmarker"):
        ShardCrops(built)


@pytest.mark.skipif(not LANDMARKER.is_file(), reason="needs MediaPipe's face landmarker in ../shared")
def test_the_editors_looks_are_encoded_from_shards(demo, lipsync, tmp_path):
    pytest.importorskip("mediapipe")
    from flashlips_core.train.batches.frames import encode_looks, load_frames

    write_clip(tmp_path / "in" / "ann" / "clip.mp4", demo[0][:30], at(demo[1], 0, 1.2))
    settings = replace(QUICK, crop_px=256, landmarker=str(LANDMARKER), limits=Limits(min_seconds=1.0, min_sync=-1, max_lag=12))
    build([tmp_path / "in"], tmp_path / "set", lipsync, settings)
    store = ShardCrops(tmp_path / "set")
    assert len(store) == 30 and store.speakers.tolist() == ["ann"] and store.frame_of.tolist() == list(range(30))
    assert store.batch(np.array([3, 7])).shape == (2, 3, 320, 320) and round(256 * STORED_MARGIN) == 320
    lips = store.landmarks[:, :40]
    assert (lips[..., 1] > 0.45).all() and (lips[..., 1] < 0.85).all() and abs(lips[..., 0].mean() - 0.5) < 0.1
    encode_looks(
        store, lipsync.codec, lipsync.lip_encoder, tmp_path / "looks", looks=1, frames=6, seed=0, strength=1.0, crop_px=256
    )
    assert load_frames([tmp_path / "looks"]).latents.shape == (6, 4, 32, 32)


# ---- the command -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch):
    """``command(*arguments)`` runs ``data build`` and returns its exit code."""
    monkeypatch.setattr(detect, "load_detector", lambda *a, **k: DemoFace())

    def run(*arguments):
        options = ["--device", "cpu", "--crop-px", "64", "--val", "0", "--test", "0", "--min-seconds", "1"]
        return main(["data", "build", *map(str, arguments), *options])

    return run


def test_the_command_builds_and_reports(command, videos, tmp_path, capsys):
    assert command(videos / "bob" / "take.mp4", "--out", tmp_path / "set", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["kept"] == 1 and result["splits"]["train"]["frames"] == 50 and Path(result["report"]).is_file()
    assert command(videos / "bob" / "take.mp4", "--out", tmp_path / "set") == 0
    assert "1 of 1 stretches of a face" in capsys.readouterr().out


BAD = {
    "no such path": "No videos at",
    "no videos in it": "No videos at",
    "no face in any": "No face in any of the 1 videos",
    "all unreadable": "No face in any of the 1 videos (1 cannot be read)",
    "a file in the way": "Cannot write",
    "another folder": "is not empty and holds no training set",
    "crop size": "multiple of 64",
    "shares": "leave some to train on",
    "lengths": "cannot be",
    "no landmarker": "No MediaPipe face landmarker",
    "no table": "neither 'folder', 'file' nor a CSV",
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_sentence_and_exit_code_2(case, command, videos, demo, tmp_path, capsys):
    source, out, options = videos / "bob" / "take.mp4", tmp_path / "set", []
    match case:
        case "no such path":
            source = tmp_path / "none"
        case "no videos in it":
            write_wave(tmp_path / "voice.wav", np.ones(800))
            source = tmp_path
        case "no face in any":
            source = write_clip(tmp_path / "in" / "dark.mp4", [dark(f) for f in demo[0][:5]], None)
        case "all unreadable":
            source = videos / "bob" / "notes.mp4"
        case "a file in the way":
            out.write_text("a file")
        case "another folder":
            out.mkdir()
            (out / "holiday.jpg").write_text("a picture")
        case "crop size":
            options = ["--crop-px", "100"]
        case "shares":
            options = ["--val", "0.7", "--test", "0.4"]
        case "lengths":
            options = ["--max-seconds", "0.5"]
        case "no landmarker":
            options = ["--landmarker", tmp_path / "none.task"]
        case "no table":
            options = ["--identity", tmp_path / "none.csv"]
    arguments = ["data", "build", source, "--out", out, "--device", "cpu", "--crop-px", "64", "--quiet"]
    assert main([*map(str, arguments), *map(str, options)]) == 2
    error = capsys.readouterr().err
    assert BAD[case] in error and error.count("\n") == 1 and error.endswith(".\n")
    assert not list(tmp_path.rglob("*.part")) and not (out / "index.json").exists()


def test_a_full_disk_is_one_sentence_and_the_build_goes_on_afterwards(videos, lipsync, tmp_path, built):
    """The system itself refuses: no file of this process may pass 200 kB."""
    script = f"""
import resource, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}, {str(ROOT / "tests" / "comfy")!r}]
from dataclasses import replace
from toy_sets import QUICK, DemoFace
from flashlips_core.dataset.build import build
from flashlips_core.pipeline import LipSync
from flashlips_core.types import FlashLipsError
lipsync = LipSync.load(device="cpu", detector=DemoFace())
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    build([sys.argv[1]], sys.argv[2], lipsync, replace(QUICK, has_latents=True))
except FlashLipsError as error:
    print(error)
"""
    pytest.importorskip("resource", reason="limits on file sizes are POSIX's")
    out = tmp_path / "set"
    done = subprocess.run([sys.executable, "-c", script, videos, out], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "File too large" in done.stdout and "make room" in done.stdout, done.stderr
    assert not list(out.rglob("*.part")) and not (out / "index.json").exists()
    build([videos], out, lipsync, replace(QUICK, has_latents=True))
    assert contents(out) == contents(built)


def test_ctrl_c_gives_130_and_leaves_no_half_file(command, videos, tmp_path, monkeypatch, capsys):
    def interrupted(self, samples):
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring.SampleMaker, "finish", interrupted)
    assert command(videos, "--out", tmp_path / "set") == 130
    assert "Stopped" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.tar"))
