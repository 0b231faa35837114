"""Crops, detector and tracker, on synthetic faces; YuNet itself with random weights, and with its own where they are."""

from __future__ import annotations

import ast
import logging
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from painted_faces import BLUE, RED, PatchDetector, clip_of, draw

from flashlips_core.face import crop_box, load_detector, reference_face, smooth_boxes, track_faces, track_scenes
from flashlips_core.face.detect import YuNetDetector, _priors
from flashlips_core.face.track import thumbnail
from flashlips_core.media import read_frames
from flashlips_core.types import FlashLipsError, Frame

ROOT = Path(__file__).resolve().parents[1]
YUNET = ROOT.parent / "shared" / "weights" / "yunet_final.pth"
GRID = ROOT.parent / "shared" / "data" / "grid_s1" / "test"


def centres(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def test_the_crop_is_a_square_with_the_mouth_below_its_middle() -> None:
    points = np.array([[100, 100], [140, 100], [120, 125], [104, 150], [136, 150]], np.float64)
    x0, y0, x1, y1 = crop_box(points)
    assert x1 - x0 == y1 - y0 == pytest.approx(2.8 * 50)
    assert (150 - y0) / (y1 - y0) == pytest.approx(0.625)
    moved = crop_box(np.stack([points, 2 * points + 5]))
    assert np.allclose(moved[1], 2 * moved[0] + 5)


def test_the_crop_imports_no_detector_library() -> None:
    tree = ast.parse((ROOT / "flashlips_core" / "face" / "crop.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not {"kornia", "cv2", "torch", "detect", "track"} & modules


@pytest.mark.parametrize("mode", ["smooth", "fixed-size", "auto"])
def test_smoothing_removes_shake_and_adds_no_lag(mode: str) -> None:
    t = np.arange(200.0)
    still = np.stack([100 + 0.7 * t, 80 + 5 * np.sin(t / 12), np.full(200, 60)], 1)
    noisy = still + np.random.default_rng(0).normal(0, 0.8, still.shape) * [1, 1, 1]
    truth, boxes = (np.concatenate([s[:, :2] - s[:, 2:] / 2, s[:, :2] + s[:, 2:] / 2], 1) for s in (still, noisy))
    smooth = smooth_boxes(boxes, np.ones(200, bool), Fraction(25), mode)
    shake = np.abs(np.diff(centres(smooth) - centres(truth), axis=0)).mean()
    assert shake < 0.25 * np.abs(np.diff(centres(boxes) - centres(truth), axis=0)).mean()
    assert np.abs(centres(smooth) - centres(truth)).max() < 1.5
    widths = smooth[:, 2] - smooth[:, 0]
    assert np.allclose(widths, smooth[:, 3] - smooth[:, 1], atol=1e-3)
    assert mode == "smooth" or np.ptp(widths) < 1e-3


def test_a_fixed_box_never_moves_and_a_cut_is_never_smoothed_over() -> None:
    boxes = np.tile([10.0, 10, 50, 50], (60, 1)) + np.random.default_rng(1).normal(0, 0.5, (60, 1))
    boxes[30:] += 100
    fixed = smooth_boxes(boxes, np.ones(60, bool), Fraction(25), "fixed", cuts=[30])
    assert len(np.unique(fixed, axis=0)) == 2
    smooth = smooth_boxes(boxes, np.ones(60, bool), Fraction(25), "smooth", cuts=[30])
    assert np.abs(smooth[29] - 10).min() < 2 and abs(smooth[30, 0] - smooth[29, 0] - 100) < 2


def test_absent_rows_repeat_the_nearest_box() -> None:
    boxes = np.tile([10.0, 10, 50, 50], (20, 1))
    boxes[5:10] = np.nan
    present = np.ones(20, bool)
    present[5:10] = False
    assert np.allclose(smooth_boxes(boxes, present, Fraction(25)), [10, 10, 50, 50])


def test_a_moving_face_is_followed() -> None:
    frames, info = clip_of(lambda t: [(70 + t, 80, 40, RED)], 40)
    seen = []
    track = track_faces(iter(frames), info, PatchDetector(), progress=lambda done, total: seen.append((done, total)))
    assert track.present.all() and len(track) == 40
    assert np.abs(centres(track.boxes)[:, 0] - (70 + np.arange(40))).max() < 2
    assert seen[-1] == (40, 40)


def test_every_nth_frame_interpolates_to_the_same_track() -> None:
    frames, info = clip_of(lambda t: [(60 + 1.5 * t, 80, 40, RED)], 43)
    each = track_faces(frames, info, PatchDetector(), every=1)
    fourth = track_faces(frames, info, PatchDetector(), every=4)
    assert fourth.present.all()
    assert np.abs(each.boxes - fourth.boxes)[:40].max() < 2.5


def test_short_gaps_are_bridged_and_long_ones_pass_through() -> None:
    frames, info = clip_of(lambda t: [] if t in (10, 11) or 25 <= t < 40 else [(80 + t, 80, 40, RED)], 60)
    track = track_faces(frames, info, PatchDetector())
    assert np.flatnonzero(~track.present).tolist() == list(range(25, 40))
    assert abs(centres(track.boxes)[10, 0] - 90) < 2
    assert np.isfinite(track.boxes).all()


def test_largest_left_right_and_index_choose_the_face() -> None:
    frames, info = clip_of(lambda t: [(60, 80, 36, RED), (170, 80, 50, BLUE)], 12)
    x = {w: centres(track_faces(frames, info, PatchDetector(), which=w).boxes)[0, 0] for w in ("largest", "left", "right", 0, 1)}
    assert all(abs(x[w] - 170) < 3 for w in ("largest", "right", 1))
    assert all(abs(x[w] - 60) < 3 for w in ("left", 0))
    with pytest.raises(FlashLipsError, match="no face 2: it shows 2 faces, numbered 0 to 1 from the left"):
        track_faces(frames, info, PatchDetector(), which=2)
    with pytest.raises(FlashLipsError, match="Unknown face"):
        track_faces(frames, info, PatchDetector(), which="middle")


def test_a_reference_picture_finds_the_same_face_wherever_it_is() -> None:
    from flashlips_core.face.track import thumbnail

    reference = reference_face(thumbnail(draw([(120, 80, 40, RED)]), 240), PatchDetector())
    frames, info = clip_of(lambda t: [(60, 80, 50, BLUE), (170, 80, 40, RED)], 10)
    assert abs(centres(track_faces(frames, info, PatchDetector(), which=reference).boxes)[0, 0] - 170) < 3


def test_a_cut_ends_the_face_and_its_smoothing() -> None:
    frames, info = clip_of(lambda t: [(70, 80, 40, RED)], 20)
    frames += [draw([(170, 60, 40, RED)], background=150, seed=5) for _ in range(20)]
    track = track_faces(frames, info, PatchDetector())
    assert track.present.all()
    x = centres(track.boxes)[:, 0]
    assert np.abs(x[:20] - 70).max() < 2 and np.abs(x[20:] - 170).max() < 2


def test_several_faces_give_several_tracks_most_seen_first() -> None:
    frames, info = clip_of(lambda t: [(60, 80, 50, RED)] + ([(170, 80, 46, BLUE)] if t < 20 else []), 30)
    [(_, tracks)] = track_scenes(frames, info, PatchDetector())
    assert [int(t.present.sum()) for t in tracks] == [30, 20]


def test_no_face_in_any_frame_is_one_clear_sentence() -> None:
    frames, info = clip_of(lambda t: [], 5)
    with pytest.raises(FlashLipsError, match="No face in any of the 5 frames"):
        track_faces(frames, info, PatchDetector())


def random_yunet() -> torch.nn.Module:
    yunet = pytest.importorskip("kornia.models.yunet")
    torch.manual_seed(0)
    return yunet.YuNet("test", pretrained=False)


def test_yunet_batched_equals_single_and_decodes_as_kornia_does() -> None:
    detector = YuNetDetector(random_yunet(), threshold=0.45)
    images = np.random.default_rng(0).integers(0, 255, (2, 97, 129, 3), dtype=np.uint8)
    batched, single = detector.find(images), [detector.find(image[None])[0] for image in images]
    assert [len(faces) for faces in batched] == [len(faces) for faces in single]
    pairs = [pair for faces in zip(batched, single, strict=True) for pair in zip(*faces, strict=True)]
    assert all(np.allclose(a.points, b.points, atol=1e-3) for a, b in pairs)
    from kornia.models.yunet.processors import PriorBox

    theirs = PriorBox([[10, 16, 24], [32, 48], [64, 96], [128, 192, 256]], [8, 16, 32, 64], False, (97, 129))()
    assert torch.allclose(_priors(97, 129), theirs * torch.tensor([129, 97, 129, 97]), atol=1e-3)


def test_weights_come_from_a_file_a_folder_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in random_yunet().state_dict().items()}, tmp_path / "yunet.safetensors")
    monkeypatch.setenv("FLASHLIPS_MODELS", str(tmp_path))
    for weights in (tmp_path / "yunet.safetensors", tmp_path, None):
        assert isinstance(load_detector(weights, download=False), YuNetDetector)


@pytest.mark.parametrize("name", ["yunet.safetensors", "yunet_final.pth", "missing.pth"])
def test_wrong_or_missing_weights_are_refused(tmp_path: Path, name: str) -> None:
    if name != "missing.pth":
        (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(FlashLipsError, match="get|give"):
        load_detector(tmp_path / name)


def test_without_weights_the_cascade_warns_once_or_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("cv2")
    monkeypatch.delenv("FLASHLIPS_MODELS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        try:
            detector = load_detector(download=False)
        except FlashLipsError as error:
            assert "yunet_final.pth" in str(error) and "opencv-python-headless" in str(error)
            return
    assert len(caplog.records) == 1 and "cascade" in caplog.text
    assert detector.detect(np.zeros((64, 64, 3), np.uint8)) == []


@pytest.mark.skipif(not (YUNET.is_file() and GRID.is_dir()), reason="needs ../shared: YuNet's weights and GRID")
def test_a_real_face_is_found_and_its_crop_does_not_shake() -> None:
    import av

    frames = []
    with av.open(str(sorted(GRID.glob("*.mp4"))[0])) as container:
        for picture in container.decode(video=0):
            rows = [np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width].copy() for p in picture.planes]
            frames.append(Frame(tuple(rows), picture.format.name, 0))
            if len(frames) == 30:
                break
    _, info = clip_of(lambda t: [], 0)
    detector = load_detector(YUNET)
    track = track_faces(frames, info, detector)
    assert track.present.all()
    assert 140 < np.median(track.boxes[:, 2] - track.boxes[:, 0]) < 190
    assert np.abs(np.diff(track.boxes, 2, axis=0)).mean() < 0.1
    assert detector.find(np.zeros((2, 96, 96, 3), np.uint8)) == [[], []]


def test_decoded_frames_are_looked_at_without_a_warning_and_stay_locked(plain_clip, rotated_clip, ten_bit_clip):
    for path in (plain_clip, rotated_clip, ten_bit_clip):
        frame = next(read_frames(path))
        before = frame.planes[0].copy()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert max(thumbnail(frame, 32).shape) == 32
        assert not frame.planes[0].flags.writeable and np.array_equal(frame.planes[0], before)
