"""Measures, evaluation, benchmark and demo: known answers on tiny data, the real witness where its file is at hand."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import nn
from toy_dubs import CROP_PX, SteadyFace, make_track, toy_networks
from witness import LANDMARKER, SHARED, needs_mediapipe, toy_motion

from flashlips_core import checkpoint
from flashlips_core import measures as m
from flashlips_core.bench import dubs, long_clip
from flashlips_core.codec import Codec
from flashlips_core.compose import paste
from flashlips_core.drawings import sheets
from flashlips_core.editing import CropEditor
from flashlips_core.evaluate import fidelity, session
from flashlips_core.face import motion as face_motion
from flashlips_core.media import probe, read_frames
from flashlips_core.pipeline import LipSync
from flashlips_core.types import FlashLipsError

# ---- curves ----------------------------------------------------------------------------------------------------------------


def test_correlation_is_one_for_a_scaled_copy_and_zero_for_a_mouth_that_does_not_move():
    curve = np.sin(np.arange(50) / 4)
    assert m.correlation(curve, 3 * curve + 1) == pytest.approx(1)
    assert m.correlation(curve, -curve) == pytest.approx(-1)
    assert m.correlation(curve, np.full(50, 0.3)) == 0


def test_frames_without_a_face_do_not_count_in_a_correlation():
    curve = np.sin(np.arange(50) / 4)
    seen = curve.copy()
    seen[10:15] = np.nan
    assert m.correlation(seen, curve) == pytest.approx(1)


@pytest.mark.parametrize("lag", [-3, 0, 4])
def test_the_best_lag_says_by_how_many_frames_the_lips_are_late(lag):
    curve = np.random.default_rng(0).normal(size=90)
    score, found = m.best_correlation(np.roll(curve, lag)[10:80], curve[10:80])
    assert found == lag and score > 0.95


def test_silence_share_is_zero_for_a_closed_mouth_and_one_for_the_source_itself():
    talking = np.clip(np.sin(np.arange(75) / 3), 0, None)
    assert m.silence_share(np.zeros(75), talking) == 0
    assert m.silence_share(talking, talking) == pytest.approx(1)


def test_lip_leak_is_the_share_of_open_frames_among_those_with_a_face():
    assert m.lip_leak(np.array([0.1, 0.3, np.nan, 0.2, 0.5])) == pytest.approx(0.5)


def test_lips_that_move_half_as_far_have_half_the_motion():
    wanted = np.array([0.0, 0.1, 0.2, np.nan, 0.1])
    assert m.motion_share(0.5 * wanted + 0.3, wanted) == pytest.approx(0.5)
    assert np.isnan(m.motion_share(np.full(3, np.nan), wanted))


def test_a_blurred_mouth_has_less_detail_than_a_sharp_one():
    sharp = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1)
    assert m.detail(blurred, (4, 4, 36, 36)) < 0.2 * m.detail(sharp, (4, 4, 36, 36))
    assert m.true_detail(sharp, sharp, (4, 4, 36, 36)) == pytest.approx(1)
    assert m.true_detail((sharp + blurred) / 2, sharp, (4, 4, 36, 36)) > 0.9
    assert abs(m.true_detail(sharp.flip(-1), sharp, (4, 4, 36, 36))) < 0.2


def test_a_row_without_a_value_neither_passes_nor_fails_and_says_why():
    rows = [m.at_least("a", 0.7, 0.6, 3), m.at_most("b", 0.7, 0.6, 3), m.not_measured("c", "no network")]
    assert [r.passed for r in rows] == [True, False, None]
    table = m.markdown_table(rows, "the command")
    assert "| c | not measured |  |  | 0 | no network |" in table and "`the command`" in table


# ---- pictures --------------------------------------------------------------------------------------------------------------


def test_editors_stand_side_by_side_with_what_both_have():
    first, second = [m.shown("a", 0.5, 3), m.shown("b", 1, 3)], [m.shown("a", 0.25, 3), m.not_measured("c", "no clips")]
    table = m.side_by_side_table({"masked": first, "refined": second}, "the command")
    assert table.splitlines()[0] == "| measure | masked | refined | over |" and "| a | 0.5 | 0.25 | 3 |" in table
    assert "| b" not in table and "| c" not in table and "`the command`" in table


def test_psnr_counts_only_what_lies_in_the_box():
    clean = torch.zeros(3, 16, 16)
    dirty = clean.clone()
    dirty[:, :8] = 0.2  # a tenth of the range
    assert m.psnr(dirty, clean, (0, 0, 16, 8)) == pytest.approx(20, abs=1e-3)
    assert m.psnr(dirty, clean, (0, 8, 16, 16)) == pytest.approx(100)


def test_flops_of_a_matrix_product_are_two_per_multiply_add():
    assert m.flops_of(lambda: torch.zeros(3, 5) @ torch.zeros(5, 7)) == 2 * 3 * 5 * 7


@pytest.mark.parametrize(
    "name, size, pix_fmt, codec", [("a.mp4", (64, 48), "yuv420p", "libx264"), ("b.mkv", (63, 47), "yuv422p", "ffv1")]
)
def test_what_pasting_changes_lies_inside_the_pixels_that_alpha_reaches(clip, name, size, pix_fmt, codec):
    fields = {} if codec == "libx264" else {"time_base": Fraction(1, 1000), "pts": tuple(range(0, 200, 40))}
    frame = next(read_frames(clip(name=name, size=size, pix_fmt=pix_fmt, codec=codec, **fields)))
    generator = torch.Generator().manual_seed(0)
    for side in (20.3, 43.7):
        box = np.array([9.6, 2.2, 9.6 + side, 2.2 + side], np.float32)
        alpha = torch.zeros(1, 64, 64)
        alpha[:, 30:40, 20:33] = 1
        edited = paste(frame, box, torch.rand(3, 64, 64, generator=generator) * 2 - 1, alpha)
        reached = fidelity.reached_pixels(alpha[0], box, frame.height, frame.width)
        assert m.outside_is_identical(frame, edited, reached)
        assert not m.outside_is_identical(frame, edited, np.zeros_like(reached))
        assert reached.sum() < 0.5 * side**2


def toy_crop_editor(is_still: bool, is_masked: bool = False) -> CropEditor:
    """Real classes at toy size; ``is_still``: an editor whose residual is zero."""
    networks = toy_networks()
    codec = Codec(networks["codec"].eval(), "toy", networks["codec"].halo)
    if is_still:
        nn.init.zeros_(networks["editor"].conv_out.weight)
        nn.init.zeros_(networks["editor"].conv_out.bias)
    return CropEditor(codec, networks["editor"].eval(), torch.zeros(1, 3, CROP_PX, CROP_PX), is_masked=is_masked)


def toy_face_frames(path: Path, count: int = 4) -> fidelity.FaceFrames:
    return fidelity.face_frames(path, make_track(), toy_motion(), sheets.spread(25, count), CROP_PX)


def test_an_editor_that_changes_nothing_reconstructs_as_well_as_the_codec(plain_clip):
    frames = toy_face_frames(plain_clip)
    scores = fidelity.reconstruction(toy_crop_editor(is_still=True), frames, torch.zeros(4, 12))
    assert scores["same frame"] == pytest.approx(scores["codec"]) == scores["changed mouth"]
    assert len(scores["pasted mouth"]) == 4


def test_a_masked_editor_reconstructs_without_seeing_the_lower_face(plain_clip):
    frames, editor = toy_face_frames(plain_clip), toy_crop_editor(is_still=True, is_masked=True)
    scores = fidelity.reconstruction(editor, frames, torch.zeros(4, 12))
    assert np.isfinite(scores["same frame"]).all() and scores["same frame"] != scores["codec"]


def test_frames_are_untouched_outside_alpha_whatever_the_editor_draws(plain_clip):
    frames = toy_face_frames(plain_clip)
    assert fidelity.untouched_frames(toy_crop_editor(is_still=False), frames, torch.randn(4, 12)) == 4


def test_a_restored_mouth_is_the_frames_own_and_is_compared_on_the_same_changed_frames(plain_clip):
    frames, poses = toy_face_frames(plain_clip), 3 * torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    still, other = toy_crop_editor(is_still=True), toy_crop_editor(is_still=False)
    assert torch.equal(fidelity.restored(still, still, frames, poses), frames.crops)
    changed = fidelity.restored(other, still, frames, poses)  # nothing is restored
    assert (changed - frames.crops).abs().mean() > 0.01
    restored = fidelity.restored(other, other, frames, poses)
    assert not torch.allclose(restored, changed, atol=0.01) and restored.shape == frames.crops.shape
    poses[2] = 0  # the pose that frame 0 is changed to, and that frame 2 is restored to
    elsewhere = fidelity.restored(other, still, frames, poses)
    assert [torch.equal(a, b) for a, b in zip(elsewhere, changed, strict=True)] == [False, True, True, True]


def test_what_is_changed_outside_the_mouth_is_nothing_for_a_still_editor_and_seen_for_another(plain_clip):
    frames = toy_face_frames(plain_clip)
    still = fidelity.outside_mouth(toy_crop_editor(is_still=True), frames, torch.randn(4, 12))
    assert all(values == pytest.approx([0] * 4, abs=1e-3) for values in still.values())
    poses = 3 * torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    moved = fidelity.outside_mouth(toy_crop_editor(is_still=False), frames, poses)
    assert all(max(values) > 0.05 for values in moved.values())


def test_two_codecs_are_compared_inside_the_face_in_all_four_pairings(plain_clip):
    network = toy_networks()["codec"].eval()
    first, second = Codec(network, "ours", None), Codec(network, "theirs", None)
    scores = fidelity.codec_comparison(first, second, [toy_face_frames(plain_clip)])
    assert set(scores) == {"ours > ours", "theirs > theirs", "ours > theirs", "theirs > ours"}
    assert len({round(s, 6) for s in scores.values()}) == 1
    assert fidelity.codec_flops(first, 64) > 0


def test_a_face_mask_covers_the_outline_and_not_the_corners(plain_clip):
    masks = toy_face_frames(plain_clip).face_masks
    assert masks[:, CROP_PX // 2, CROP_PX // 2].all() and not masks[:, 0, 0].any()


def test_a_contact_sheet_keeps_every_pixel(tmp_path):
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    sheet = np.array(Image.open(sheets.contact_sheet({"row": [image, image]}, tmp_path / "s.png", scale=2)))
    top, left = sheets.GAP_PX + sheets.LABEL_PX, sheets.GAP_PX
    assert np.array_equal(sheet[top : top + 40 : 2, left : left + 60 : 2], image)


def test_a_cut_that_leaves_the_picture_is_black_there_and_keeps_its_size():
    cut = sheets.cut_pixels(np.full((10, 10, 3), 7, np.uint8), (-4.2, 6.0, 6.8, 15.0))
    assert cut.shape == (9, 11, 3) and (cut[:4, 4:] == 7).all() and not cut[:, :4].any() and not cut[4:].any()


def test_side_by_side_holds_both_clips_samples(odd_clip):
    frames = list(read_frames(odd_clip, stop=2))
    both = next(sheets.side_by_side([frames[0]], [frames[1]]))
    assert both.width == sheets.side_by_side_info(probe(odd_clip)).width == 124
    assert np.array_equal(both.planes[0][:, :62], frames[0].planes[0][:, :62])
    assert np.array_equal(both.planes[0][:, 62:], frames[1].planes[0][:, :62])


# ---- motion ----------------------------------------------------------------------------------------------------------------


def test_the_gap_is_measured_in_the_faces_own_size_and_missing_faces_stay_missing():
    points = np.zeros((478, 2), np.float32)
    for _, lower in face_motion.INNER_PAIRS:
        points[lower] = (0, 3)
    points[291], points[263] = (12, 0), (30, 0)
    shapes = np.zeros(52, np.float32)
    shapes[25] = 0.4
    motion = face_motion.motion_from_faces([(points, shapes), None, (2 * points, shapes)])
    assert motion.lip_gap[[0, 2]] == pytest.approx([0.1, 0.1]) and motion.mouth_aspect[0] == pytest.approx(0.25)
    assert motion.jaw_open[0] == pytest.approx(0.4) and motion.found.tolist() == [True, False, True]


def test_a_missing_landmarker_is_named(tmp_path):
    with pytest.raises(FlashLipsError, match="No MediaPipe face landmarker at .*nowhere"):
        face_motion.measure_frames([], tmp_path / "nowhere.task")


@needs_mediapipe
def test_mediapipe_sees_a_real_mouth_move_and_no_face_in_noise():
    clips = sorted((SHARED / "data" / "grid_s1" / "test").glob("*.mp4"))
    if not clips:
        pytest.skip("no GRID clips in ../shared")
    frames = [frame for _, frame in zip(range(40), face_motion.rgb_frames(clips[0]), strict=False)][::4]
    noise = np.random.default_rng(0).integers(0, 255, frames[0].shape, dtype=np.uint8)
    motion = face_motion.measure_frames([*frames, noise], LANDMARKER)
    assert motion.found[:-1].all() and not motion.found[-1]
    assert m.correlation(motion.jaw_open, motion.lip_gap) > 0.8


# ---- evaluation ------------------------------------------------------------------------------------------------------------


def test_clips_are_taken_in_turn_from_each_person(tmp_path):
    for name in ("a/1", "a/2", "a/3", "b/1", "c/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.mp4").touch()
    taken = session.clips_under(tmp_path, 4)
    assert [p.relative_to(tmp_path).as_posix() for p in taken] == ["a/1.mp4", "b/1.mp4", "c/1.mp4", "a/2.mp4"]


def test_no_clip_is_dubbed_with_its_own_voice_and_a_seed_fixes_the_choice():
    clips = [Path(f"{i}.mp4") for i in range(9)]
    drivers = session.drivers_for(clips, clips)
    assert all(c != d for c, d in zip(clips, drivers, strict=True)) and drivers == session.drivers_for(clips, clips)
    with pytest.raises(FlashLipsError, match="two are needed"):
        session.drivers_for(clips[:1], clips[:1])


def test_silence_is_silent(tmp_path):
    path = session.write_silence(tmp_path / "s" / "silence.wav", 2)
    with av.open(str(path)) as container:
        samples = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
    assert samples.shape == (1, 32_000) and not samples.any()


# ---- benchmark and demo ----------------------------------------------------------------------------------------------------


def test_a_long_clip_is_1080p_and_repeats_the_face(clip, tmp_path):
    face = clip(pts=tuple(range(0, 5 * 3600, 3600)))
    info = probe(long_clip.write_long_clip(face, tmp_path / "long.mp4", Fraction(4, 5)))
    frames = list(read_frames(tmp_path / "long.mp4"))
    assert (info.width, info.height, info.fps, len(frames)) == (1920, 1080, 25, 20)
    assert np.array_equal(frames[2].planes[0], frames[12].planes[0])
    assert len({f.pts for f in frames}) == 20


def test_a_long_voice_has_the_asked_length(talking_clip, tmp_path):
    path = long_clip.write_long_voice(talking_clip, tmp_path / "long.wav", Fraction(5, 2))
    with av.open(str(path)) as container:
        assert container.duration / av.time_base == pytest.approx(2.5, abs=1e-3)


@pytest.fixture
def toy_folder(tmp_path):
    folder = tmp_path / "models"
    for role, network in toy_networks().items():
        checkpoint.save(network, folder / f"{role}.safetensors", role, {"crop_px": CROP_PX})
    return folder


def test_a_timed_run_is_file_to_file_and_says_what_is_inside(toy_folder, talking_clip):
    lipsync = LipSync.load(toy_folder, device="cpu", detector=SteadyFace())
    result = dubs.timed_runs(lipsync, talking_clip, talking_clip, repeats=1, batch=4)
    assert result["video"] == "64x48, 25 frames" and "file to file" in result["inside the timer"]
    assert result["frames per second, median"] == pytest.approx(25 / result["seconds, median"])
    assert sum(stage["share"] for stage in result["stages"]) == pytest.approx(1)
    names = [stage["name"] for stage in result["stages"]]
    assert names[0] == "decode the video" and names[-1] == "encode and write the video"


def test_what_stops_the_dub_whose_memory_is_measured_is_passed_on(toy_folder, plain_clip, tmp_path):
    with pytest.raises(FlashLipsError, match="No such|no file|No file|nowhere"):
        dubs.memory_of_dub(tmp_path / "nowhere.mp4", plain_clip, 4, toy_folder)


def test_memory_is_measured_beside_the_loaded_models(toy_folder, talking_clip, tmp_path):
    lipsync = LipSync.load(toy_folder, device="cpu", detector=SteadyFace())
    memory = dubs.traced_dub(lipsync, talking_clip, talking_clip, tmp_path / "out.mp4", batch=4)
    if memory.loaded is not None:
        assert 0 < memory.loaded <= memory.peak and memory.growth is not None
    shown = dubs.Memory(peak=2_000_000, loaded=None, growth=-600_000.0).in_mb(3)
    assert shown == {"MB, 3 min: peak": 2, "MB, 3 min: peak above the loaded models": None, "MB, 3 min: growth per minute": -1}


def test_growth_is_that_of_the_second_pass(monkeypatch):
    held = iter([500, 700, *range(1000, 1006)])
    monkeypatch.setattr(dubs, "resident_bytes", lambda: next(held))
    trace = dubs.MemoryTrace()
    for done in (1, 2, 5, 5, 6, 7, 8, 9, 10):  # a count that is repeated is not looked at again
        trace.progress(done, 10)
    assert trace.growth(fps=25) == pytest.approx(25 * 60)
    assert dubs.MemoryTrace().growth(25) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a named pipe tells whether the process that reads it is still there")
def test_the_process_whose_memory_is_measured_ends_with_a_killed_bench(toy_folder, tmp_path):
    pipe = tmp_path / "clip.mp4"
    os.mkfifo(pipe)  # the dub waits for it for ever
    code = "from flashlips_core.bench.dubs import memory_of_dub; "
    code += f"memory_of_dub({str(pipe)!r}, {str(pipe)!r}, 4, {str(toy_folder)!r})"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL)
    try:
        writer = eventually(lambda: os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))  # fails while nobody reads
        with pytest.raises(BlockingIOError):  # full: the reader is there
            while True:
                os.write(writer, bytes(65_536))
    finally:
        parent.kill()
        parent.wait()
    assert eventually(lambda: os.write(writer, bytes(1)), BrokenPipeError) is None
    os.close(writer)


def eventually(action: Callable[[], int], wanted: type[OSError] | None = None, patience_s: float = 60) -> int | None:
    """What ``action`` returns once it works, or None once it fails as ``wanted``."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            result = action()
            if wanted is None:
                return result
        except OSError as error:
            if wanted is not None and isinstance(error, wanted):
                return None
        time.sleep(0.05)
    raise AssertionError(f"did not come to pass in {patience_s} s")


@pytest.mark.parametrize("share", [1, 2], ids=["a voice as long as the clip", "a voice half as long"])
def test_the_demo_writes_its_four_files_and_says_where_they_are(toy_folder, talking_clip, tmp_path, share):
    pytest.importorskip("matplotlib")
    from flashlips_core.demo.__main__ import run_demo, summary

    lipsync = LipSync.load(toy_folder, device="cpu", detector=SteadyFace())
    noise = np.random.default_rng(0).integers(-9000, 9000, 16_000 // share, dtype=np.int16)
    with wave.open(str(tmp_path / "voice.wav"), "wb") as voice:
        voice.setparams((1, 2, 16_000, 0, "NONE", None))
        voice.writeframes(noise.tobytes())
    demo = run_demo(talking_clip, tmp_path / "voice.wav", tmp_path / "out", lambda step: lambda done, total: None, lipsync)
    for path in (demo.dubbed, demo.side_by_side, demo.sheet, demo.plot):
        assert path.stat().st_size > 0 and str(path) in summary(demo)
    assert probe(demo.side_by_side).width == 128 and probe(demo.side_by_side).audio_rate
    assert demo.frames == -(-25 // share) and set(demo.seconds) >= {"track the face", "edit and write"}
