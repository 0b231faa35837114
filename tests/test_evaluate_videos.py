"""``eval --videos``: known answers on drawn faces, and the whole command on a real clip where the witness is at hand."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from drawn_motion import COUNT, EYES, SIZE, motion_of, pictures, written
from toy_dubs import SteadyFace
from witness import LANDMARKER, SHARED, needs_mediapipe

from flashlips_core.cli import main
from flashlips_core.evaluate.session import Session
from flashlips_core.evaluate.videos import dubs as eval_videos
from flashlips_core.evaluate.videos import measures as vm
from flashlips_core.evaluate.videos import page
from flashlips_core.evaluate.videos import rows as eval_videos_rows
from flashlips_core.evaluate.videos.dubs import Request
from flashlips_core.face.motion import motion_from_faces
from flashlips_core.pipeline import DubSettings, LipSync
from flashlips_core.types import FlashLipsError

GRID = SHARED / "data" / "grid_s1" / "test"
needs_grid = pytest.mark.skipif(not GRID.is_dir(), reason="GRID (../shared/data) is not here")


def soft(frames: np.ndarray) -> np.ndarray:
    """The same under a 3 by 3 mean."""
    wide = np.pad(frames.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    return np.mean([wide[:, y : y + SIZE, x : x + SIZE] for y in range(3) for x in range(3)], axis=0).astype(np.uint8)


def compared(tmp_path: Path, dub: np.ndarray, gaps: np.ndarray | None = None) -> dict:
    """The numbers of one dub of :func:`pictures`."""
    still = motion_of(np.full(COUNT, 0.1))
    source, made = written(tmp_path / "a.mp4", pictures()), written(tmp_path / "b.mp4", dub)
    frames = zip(vm.upright_frames(source), vm.upright_frames(made), strict=True)
    return vm.picture_numbers(frames, (still, still if gaps is None else motion_of(gaps)))


# ---- heads and lips --------------------------------------------------------------------------------------------------------


def test_a_head_is_moving_when_it_travels_or_rolls_and_not_when_its_landmarks_tremble():
    gaps, rng = np.full(50, 0.1), np.random.default_rng(0)
    trembling = vm.head_motion(motion_of(gaps, rng.normal(0, 0.3, (50, 2))), 25)
    assert not trembling.is_moving and trembling.speed < 0.2
    away = np.arange(50)[:, None] * np.array([[EYES * 0.5 / 25, 0]])  # half an eye distance a second
    moved = vm.head_motion(motion_of(gaps, away), 25)
    assert moved.is_moving and moved.speed == pytest.approx(0.5, rel=0.1) and moved.roll_deg < 0.1
    rolled = vm.head_motion(motion_of(gaps, roll_deg=10 * np.sin(np.arange(50) / 25)), 25)
    assert rolled.is_moving and rolled.roll_deg == pytest.approx(9.5, abs=1.5)  # of 0 to 10, without both ends
    assert rolled.yaw < 0.01


def test_lips_that_do_half_of_what_was_asked_follow_it_and_move_half_as_far():
    asked = 0.15 + 0.1 * np.sin(np.arange(60) / 3)
    found = vm.lip_numbers(motion_of(asked / 2), asked)
    scale = 48 / EYES  # openings are over the distance of the irises
    assert found["r"] == pytest.approx(1) and found["lag"] == 0
    for name in ("size", "size_quantiles", "slope"):
        assert found[name] == pytest.approx(0.5 / scale, rel=0.01)


def test_lips_that_come_late_score_lower_and_the_lag_says_by_how_much():
    asked = 0.15 + 0.1 * np.sin(np.arange(60) / 2)
    late = vm.lip_numbers(motion_of(np.roll(asked, 3)[5:]), asked[5:])
    assert late["lag"] == 3 and late["r_best_lag"] > 0.99 > 0.3 > late["r"]


def test_nothing_is_said_about_lips_when_nobody_knows_what_was_asked():
    assert set(vm.lip_numbers(motion_of(np.full(5, 0.1)), None).values()) == {None}


# ---- pictures --------------------------------------------------------------------------------------------------------------


def test_the_source_itself_has_all_its_detail_and_colour(tmp_path):
    found = compared(tmp_path, pictures())
    for name in ("detail", "detail_native", "detail_true", "finest", "chin", "unrest"):
        assert found[name] == pytest.approx(1, abs=1e-4), name
    assert found["colour"] == 0 and abs(found["colour_alike"]) < 1 and found["detail_alike"] == pytest.approx(1, abs=0.1)


def test_a_soft_dub_has_less_of_every_detail(tmp_path):
    found = compared(tmp_path, soft(pictures()))
    for name in ("detail", "detail_native", "detail_true", "detail_alike", "chin"):
        assert found[name] < 0.5, name


def test_stripes_over_a_soft_dub_raise_the_amount_of_detail_but_not_what_counts_as_true(tmp_path):
    blurred = soft(pictures())
    stripes = blurred.astype(float)
    stripes[:, ::2] += 12
    stripes[:, 1::2] -= 12
    (tmp_path / "c").mkdir()
    plain, striped = compared(tmp_path, blurred), compared(tmp_path / "c", stripes.clip(0, 255).astype(np.uint8))
    assert striped["detail"] > 2 * plain["detail"] and striped["finest"] > 1.1 > plain["finest"]
    assert striped["detail_true"] < plain["detail_true"] + 0.25 < striped["detail"]


def test_a_redder_dub_is_said_to_be_redder_and_a_flickering_one_restless(tmp_path):
    red = pictures().astype(float)
    red[..., 0] += 3
    red[..., 1] -= 1
    assert compared(tmp_path, red.clip(0, 255).astype(np.uint8))["colour"] == pytest.approx(3, abs=0.2)
    flicker = pictures().astype(float)
    flicker[::2] += 5
    (tmp_path / "c").mkdir()
    assert compared(tmp_path / "c", flicker.clip(0, 255).astype(np.uint8))["unrest"] > 1.5


def test_frames_without_a_face_do_not_count_and_none_at_all_gives_no_number():
    lost = motion_from_faces([None] * COUNT)
    pairs = zip(pictures(), pictures(), strict=True)
    assert set(vm.picture_numbers(pairs, (motion_of(np.full(COUNT, 0.1)), lost)).values()) == {None}


def test_a_large_face_is_measured_at_the_size_of_the_editors_crop_too():
    import torch

    grain = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 200)).astype(np.float32))
    assert vm._smaller(grain, 0.5).shape == (100, 100) and vm._smaller(grain, 1.0) is grain


def test_power_of_stripes_lies_in_one_bin_by_frequency_and_direction():
    import torch

    x = torch.arange(64)
    waves = torch.cos(2 * math.pi * 0.25 * x)
    across, down = vm.spectrum(waves.expand(64, 64)), vm.spectrum(waves[:, None].expand(64, 64))
    for power, angle in ((across, 0), (down, vm.ANGLES // 2)):
        assert power[:, angle].sum() + power[:, angle - 1].sum() > 0.95 * power.sum()
        assert power[3:5].sum() > 0.95 * power.sum()  # a quarter of a cycle a pixel lies between bins 3 and 4 of 8


def test_a_sheet_shows_source_over_dub_spread_and_in_a_row_where_the_lips_move_most(tmp_path):
    curve = np.zeros(60)
    curve[40:50] = np.arange(10) % 2
    views = vm.mouth_views(motion_of(np.full(60, 0.1)), curve)
    assert len(views.frames["spread over the clip"]) == 10
    assert set(range(41, 49)) <= set(views.frames["in a row"]) and len(views.frames["in a row"]) == 10
    for index in range(60):
        views.look(index, np.full((SIZE, SIZE, 3), 1, np.uint8), np.full((SIZE, SIZE, 3), 2, np.uint8))
    rows = views.rows()
    assert [len(row) for row in rows.values()] == [10] * 4
    assert {row[0].shape for row in rows.values()} == {(67, 83, 3)}
    assert [int(row[0].max()) for row in rows.values()] == [1, 2, 1, 2]


# ---- rows and page ---------------------------------------------------------------------------------------------------------


def numbers(clip: str, r: float | None, moving: bool = False, **more: float) -> dict:
    return {"clip": clip, "voice": "v", "moving": moving, "frames": 10, "without_face": 0, "r": r, "colour": -1.5} | more


def test_still_and_moving_heads_have_rows_of_their_own_and_the_lowest_is_of_all():
    rows = {row.name: row for row in eval_videos_rows.rows_of([numbers("a", 0.95), numbers("b", 0.6, True)], [])}
    gap = eval_videos_rows.GAP
    assert rows[f"{gap}: still heads"].value == 0.95 and rows[f"{gap}: still heads"].passed
    assert rows[f"{gap}: moving heads"].value == 0.6 and not rows[f"{gap}: moving heads"].passed
    assert rows[f"{gap}: lowest"].value == 0.6 and rows[f"{gap}: lowest"].count == 2
    assert rows["colour of the lower face, worst clip"].value == 1.5 and rows["colour of the lower face, worst clip"].passed
    assert rows["detail in the mouth box, lowest clip"].value is None


def test_the_page_holds_its_pictures_and_the_other_runs_numbers(tmp_path):
    from PIL import Image

    (tmp_path / "sheets").mkdir()
    Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "sheets" / "b.png")
    dubs = [numbers("good", 0.99, detail=1.0), numbers("bad<", 0.1, detail=0.3, sheet="b.png")]
    rows = [row.as_dict() for row in eval_videos_rows.rows_of(dubs, [])]
    result = {"command": "eval", "measures": rows, "dubs": dubs, "clips": [], "skipped": [{"clip": "c.mp4", "why": "no face"}]}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(result | {"dubs": [numbers("good", 0.5)]}))
    text = page.write_page(tmp_path / "page.html", result, tmp_path / "sheets", other).read_text()
    assert text.index("Worst: bad&lt;") < text.index("Worst: good") and "data:image/jpeg;base64," in text
    assert "(0.5)" in text and "+0" in text and "no face" in text and "bad<" not in text
    other.write_text("[]")
    with pytest.raises(FlashLipsError, match="other.json is not the result.json"):
        page.write_page(tmp_path / "page.html", result, tmp_path, other)


# ---- the command -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--weights", "w"], "There is nothing to measure; give --data"),
        (["--videos", "EMPTY", "--weights", "w"], "No clips in"),
        (["--videos", "CLIPS", "--weights", "w"], "There is nothing to say"),
        (["--videos", "CLIPS", "--weights", "w", "--voice", "nowhere.wav"], "There is no file nowhere.wav; check --voice"),
        (["--videos", "CLIPS", "--weights", "w", "--voice", "CLIP", "--frames", "1"], "--frames is 1; 3 or more"),
        (["--videos", "CLIPS", "--weights", "w", "--voice", "CLIP", "--only", "zebra"], "named after zebra"),
        (["--videos", "CLIPS", "--weights", "w", "--voice", "CLIP"], "No MediaPipe face landmarker at"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(options, sentence, plain_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("flashlips_core.cli.evaluate.load_lipsync", lambda args: object())
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": str(tmp_path / "empty"), "CLIPS": str(plain_clip.parent), "CLIP": str(plain_clip)}
    arguments = [places.get(word, word) for word in options]
    assert main(["eval", *arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


@needs_mediapipe
@needs_grid
def test_a_folder_is_dubbed_measured_and_shown_and_its_dubs_can_be_measured_again(model_folder, plain_clip, tmp_path):  # noqa: F811
    folder = tmp_path / "clips"
    folder.mkdir()
    clip = sorted(GRID.rglob("*.mp4"))[0]
    (folder / "one.mp4").symlink_to(clip)
    (folder / "nobody.mp4").symlink_to(plain_clip)
    lipsync = LipSync.load(model_folder, device="cpu", detector=SteadyFace())
    session = Session(lipsync, LANDMARKER, tmp_path / "out", settings=DubSettings(preset="ultrafast", batch=4))
    made = eval_videos.run(Request(folder, [clip], frames=10, own_voice=True, own_lips=True), session, "eval")
    assert [d["clip"] for d in made["dubs"]] == ["one"] and made["dubs"][0]["frames"] == 10
    assert [s["clip"] for s in made["skipped"]] == ["nobody.mp4"] and "no face in nobody.mp4" in made["table"]
    assert {"own_r", "read_r"} <= set(made["clips"][0]) and made["dubs"][0]["frames_per_second"] > 0
    for name in ("result.json", "table.md", "page.html", f"sheets/one--{clip.stem}.png", f"dubs/one--{clip.stem}.opening.npy"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    with open(tmp_path / "out" / "clips.csv", newline="") as file:
        assert [row["clip"] for row in csv.DictReader(file)] == ["one"]

    again = Session(lipsync, LANDMARKER, tmp_path / "again")
    result = tmp_path / "out" / "result.json"
    wanted = Request(folder, [clip], frames=10, dubs=tmp_path / "out" / "dubs", against=result)
    found = eval_videos.run(wanted, again, "eval")
    assert found["dubs"] == made["dubs"]


@needs_mediapipe
@needs_grid
def test_what_the_witness_saw_in_a_source_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    import os

    clip = written(tmp_path / "a.mp4", pictures())
    session, cache = SimpleNamespace(landmarker=LANDMARKER), tmp_path / "seen"
    first = eval_videos.seen(session, clip, 4, cache)
    assert len(first) == 4 and len(list(cache.iterdir())) == 1
    looked = []
    monkeypatch.setattr(eval_videos, "measure_frames", lambda *a: looked.append(a) or first)
    assert np.array_equal(eval_videos.seen(session, clip, 4, cache).landmarks, first.landmarks, equal_nan=True) and not looked
    os.utime(clip, (1, 1))
    eval_videos.seen(session, clip, 4, cache)
    assert len(looked) == 1
