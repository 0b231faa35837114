"""Editors side by side, and before and after fine-tuning: real networks at toy sizes; a fixed witness stands for MediaPipe."""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ClipSpec, make_clip
from torch import nn
from toy_dubs import CROP_PX, SteadyFace, toy_networks
from witness import toy_motion

from flashlips_core import checkpoint
from flashlips_core import measures as m
from flashlips_core.cli import COMMANDS, main
from flashlips_core.cli.evaluate import command_of
from flashlips_core.evaluate import editors
from flashlips_core.evaluate.material import SUITES, TARGETS, Suite, gather
from flashlips_core.evaluate.session import Session
from flashlips_core.face.motion import FaceMotion
from flashlips_core.loading import STAGE_1, load_part
from flashlips_core.media import probe, read_frames
from flashlips_core.pipeline import DubSettings, LipSync
from flashlips_core.train.finetune.speech import StyleTuning, tune_style
from flashlips_core.types import FlashLipsError

TINY = Suite(own=2, people=1, driven=1, silent=1, spoken=1, frames=2)
TICKS = 3600  # of the clips' time base in a frame
FRAMES = 50  # of each of the person's clips: five hold the ten seconds that fine-tuning asks for


@dataclass
class WatchedSession(Session):
    """A session whose witness always sees the same mouth."""

    def motion(self, path: Path) -> FaceMotion:
        return toy_motion(probe(path).num_frames)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path):
    """Two talking clips of s1 and seven of s4."""
    own, person = tmp_path / "grid_s1" / "test", tmp_path / "grid_people" / "test" / "s4"
    own.mkdir(parents=True)
    person.mkdir(parents=True)
    for name in ("a", "b"):
        make_clip(own, ClipSpec(name=f"{name}.mp4", audio_rate=16_000, pts=tuple(range(0, 10 * TICKS, TICKS))))
    for index in range(editors.NUM_LEARNT + 2):
        pts = tuple(range(0, FRAMES * TICKS, TICKS))
        make_clip(person, ClipSpec(name=f"{index}.mp4", pts=pts, audio_rate=16_000, audio_s=Fraction(2)))
    return tmp_path


def session_with(folder: Path, out: Path, crop_px: int) -> WatchedSession:
    """Toy networks for crops of one size."""
    for role, network in toy_networks().items():
        checkpoint.save(network, folder / f"{role}.safetensors", role, {"crop_px": crop_px})
    return WatchedSession(LipSync.load(folder, device="cpu", detector=SteadyFace()), Path("nowhere"), out)


def values(rows) -> dict[str, float | None]:
    return {row.name: row.value for row in rows}


def test_a_masked_editor_and_a_refined_one_are_measured_in_their_own_modes(data, tmp_path):
    session = session_with(tmp_path / "models", tmp_path / "out", CROP_PX)
    still = toy_networks()["editor"]
    nn.init.zeros_(still.conv_out.weight)
    nn.init.zeros_(still.conv_out.bias)
    paths = []
    for name, network, role in (("still", still, "editor"), ("masked", toy_networks()["editor"], STAGE_1)):
        checkpoint.save(network, tmp_path / f"{name}.safetensors", role, {"crop_px": CROP_PX})
        paths.append(str(tmp_path / f"{name}.safetensors"))
    columns = editors.compare(session, gather(data, data, None, TINY, TARGETS["basic"]), paths)
    assert list(columns) == ["still", "masked"]
    assert (tmp_path / "out" / "masked" / "silent" / "test-a-by-silence.mp4").is_file()
    level = "outside the mouth: mean change as pasted, of 255"
    first, second = (values(rows) for rows in columns.values())
    assert first[level] == pytest.approx(0, abs=1e-2) and second[level] > 0.1
    assert first.keys() == second.keys() and "silent audio: LipLeak" in first
    assert editors._names(["x/a.safetensors", "y/a.safetensors", "b"]) == ["a-1", "a-2", "b"]


def test_an_editor_is_measured_before_and_after_fine_tuning_on_other_clips_of_the_person(data, tmp_path, monkeypatch):
    hardly = StyleTuning(steps=1, batch=2, lr=1e-9)
    monkeypatch.setattr(editors, "tune_style", functools.partial(tune_style, settings=hardly))
    out = tmp_path / "out"
    session = session_with(tmp_path / "models", out, 256)
    given = gather(data, data, None, TINY, TARGETS["basic"])
    columns, tuning = editors.before_and_after(session, given, cpu_minutes=1e-6)
    assert tuning.best_step == 0 and tuning.ended == "1e-06 CPU minutes" and tuning.cpu_s > 0
    assert list(columns) == ["before", "decoder", "decoder, editor", "decoder, editor, pose model"]
    before, *tuned = (values(rows) for rows in columns.values())
    assert before["mouth detail, output over source"] > 0
    assert before["mouth changed and restored, as pasted: mouth box PSNR, dB"] > 10
    for after in tuned:
        assert before.keys() == after.keys()
        for name, value in before.items():  # no step was better: the files hold the same networks, in half precision
            assert after[name] == (None if value is None else pytest.approx(value, rel=0.02, abs=0.02)), name
    assert probe(out / "s4.mp4").num_frames == editors.NUM_LEARNT * FRAMES
    assert "held out" in tuning.sentence() and "s4.mp4" in tuning.sentence() and "best of 1 steps" in tuning.style
    assert "jaw correlation: s4, audio of another of their clips" in before
    assert {checkpoint.info(out / f"s4{what}.safetensors").role for what in ("", "-style")} == {"editor", "pose-model"}
    with pytest.raises(FlashLipsError, match="holds a fine-tuning already"):
        editors.before_and_after(session, given, cpu_minutes=1)


def test_clips_are_joined_frame_by_frame_and_must_be_of_one_kind(clip, tmp_path):
    first, second = clip(name="a.mp4"), clip(name="b.mp4")
    joined = editors.join_clips([first, second], tmp_path / "joined.mp4")
    frames, wanted = list(read_frames(joined)), [*read_frames(first), *read_frames(second)]
    assert len(frames) == len(wanted) and probe(joined).fps == probe(first).fps and not probe(joined).is_variable_rate
    for made, frame in zip(frames, wanted, strict=True):
        assert np.abs(made.planes[0].astype(int) - frame.planes[0]).mean() < 2
    with pytest.raises(FlashLipsError, match="c.mp4 has another size"):
        editors.join_clips([first, clip(name="c.mp4", size=(32, 32))], tmp_path / "other.mp4")


def test_a_masked_editor_is_not_fine_tuned_and_says_so_before_the_long_work(data, tmp_path):
    session = session_with(tmp_path / "models", tmp_path / "out", 256)
    masked = tmp_path / "masked.safetensors"
    checkpoint.save(toy_networks()["editor"], masked, STAGE_1, {"crop_px": 256})
    session = editors.with_editor(session, load_part("editor", masked), "masked")
    with pytest.raises(FlashLipsError, match="masked frames only"):
        editors.before_and_after(session, gather(data, data, None, TINY, TARGETS["basic"]), 1)
    assert not session.out.exists()


def test_too_few_clips_of_the_person_are_named(data, tmp_path):
    (data / "grid_people" / "test" / "s4" / "0.mp4").unlink()
    session = session_with(tmp_path / "models", tmp_path / "out", 256)
    given = gather(data, data, None, TINY, TARGETS["basic"])
    with pytest.raises(FlashLipsError, match="Found 6 clips under .*s4; 7 or more"):
        editors.before_and_after(session, given, 1)
    with pytest.raises(FlashLipsError, match="Found 4 clips under .*s4 after 2; 7 or more"):
        editors.before_and_after(session, given, 1, skipped=2)


def test_the_command_chooses_and_writes_its_table(data, tmp_path, monkeypatch, capsys):
    rows = {"before": [m.shown("a", 0.5, 1)], "after": [m.shown("a", 0.75, 1)]}
    seen, settings = [], []

    def before_and_after(session, given, cpu_minutes, skipped):
        seen.append((given.suite, cpu_minutes, skipped))
        settings.append(session.settings)
        return rows, editors.Tuning("clips.", "a face.", "much.", "no gain", 50, 25, 60, 90)

    monkeypatch.setattr(editors, "before_and_after", before_and_after)
    lipsync = session_with(tmp_path / "models", tmp_path, CROP_PX).lipsync
    monkeypatch.setattr("flashlips_core.cli.evaluate.load_lipsync", lambda args: lipsync)
    common = ["eval", "--data", str(data), "--out", str(tmp_path / "o"), "--quiet"]
    assert main([*common, "--finetune", "20", "--suite", "full"]) == 0 and seen == [(SUITES["full"], 20, 0)]
    written = json.loads((tmp_path / "o" / "table.json").read_text())
    assert "| a | 0.5 | 0.75 | 1 |" in written["table"] and "1.5 CPU minutes" in written["table"]
    assert written["table"].endswith("Faces were found by Steady.\n") and written["detector"] == "Steady"
    assert written["tuning"]["best_step"] == 25 and "--finetune 20" in written["command"]
    assert main([*common, "--finetune", "20", "--references", "4", "--sharpen", "0"]) == 0
    assert settings == [DubSettings(), DubSettings(num_references=4, sharpen=0.0)]
    assert main([*common, "--finetune", "20", "--skip", "10"]) == 0 and seen[-1] == (SUITES["quick"], 20, 10)
    assert "--finetune 20.0 --skip 10" in json.loads((tmp_path / "o" / "table.json").read_text())["command"]
    for wrong in (["--skip", "10"], ["--finetune", "20", "--skip", "-1"]):
        assert main([*common, *wrong]) == 2 and "give how many of the person's first clips" in capsys.readouterr().err
    assert main([*common, "--finetune", "20", "--parts", "voice"]) == 2
    assert "leave them out with --compare or --finetune" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*common, "--finetune", "-1"])


def test_the_command_in_the_table_names_what_was_chosen_and_no_defaults():
    parser = argparse.ArgumentParser()
    COMMANDS["eval"].add(parser)
    command = "python -m flashlips_core eval --data 'my data' --suite quick"
    assert command_of(parser.parse_args(["--data", "my data"])) == command
    chosen = ["--parts", "voice", "speech", "--targets", "strict", "--speech", "s", "--references", "4", "--sharpen", "0.5"]
    assert command_of(parser.parse_args(["--data", "my data", *chosen])) == f"{command} {' '.join(chosen)}"
