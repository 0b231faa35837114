"""Turned squares: cut out of frames and pictures, and pasted back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flashlips_core.compose import cut, paste, pixel_window
from flashlips_core.images.frames import cut_images, paste_images
from flashlips_core.turned import Square, turned_back, turned_cut
from flashlips_core.types import FlashLipsError, Frame

FORMATS = ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"]


def smooth_picture(height: int = 120, width: int = 160) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (120 + 60 * np.sin(x / 9) * np.cos(y / 11) + 20 * np.sin((x + y) / 17)).astype(np.float32)


def make_frame(pix_fmt: str = "yuv420p") -> Frame:
    shift_x, shift_y = int("444" not in pix_fmt), int("420" in pix_fmt)
    unit, kind = (4, np.uint16) if "10" in pix_fmt else (1, np.uint8)
    luma = smooth_picture()
    chroma = (luma[:: 1 << shift_y, :: 1 << shift_x] - 120) / 4 + 128
    planes = tuple(np.rint(plane * unit).astype(kind) for plane in (luma, chroma, 256 - chroma))
    return Frame(planes, pix_fmt, 0, 1, 1)


@pytest.mark.parametrize("pix_fmt", FORMATS)
@pytest.mark.parametrize("roll", [-1.1, -0.3, 0.02, 0.7])
def test_a_turned_cut_pasted_back_gives_the_frame_back(pix_fmt: str, roll: float) -> None:
    frame = make_frame(pix_fmt)
    box = (40.3, 25.7, 110.3, 95.7, roll)
    alpha = torch.zeros(1, 140, 140)
    alpha[:, 10:-10, 10:-10] = 1
    pasted = paste(frame, box, cut(frame, box, 140), alpha)
    unit = 1 << (frame.bit_depth - 8)
    changed = 0
    for before, after in zip(frame.planes, pasted.planes, strict=True):
        change = np.abs(before.astype(int) - after.astype(int))
        assert change.max() <= 2 * unit
        assert change.mean() < 0.1 * unit
    black = paste(frame, box, -torch.ones(3, 140, 140), alpha)
    changed = (black.planes[0] != frame.planes[0]).sum()
    assert abs(changed / (70 * 120 / 140) ** 2 - 1) < 0.05  # the turned square's own area, not that of the box around it


def test_a_small_turn_is_near_the_upright_cut() -> None:
    frame = make_frame()
    upright, turned = (cut(frame, (30.0, 20.0, 110.0, 100.0, roll), 96) for roll in (0.0, 1e-6))
    assert torch.equal(upright, cut(frame, (30.0, 20.0, 110.0, 100.0), 96))
    assert (upright - turned).abs().max() < 0.03


@pytest.mark.parametrize("size", [48, 96])
def test_a_quarter_turn_is_the_picture_turned(size: int) -> None:
    picture = np.random.default_rng(0).random((96, 96)).astype(np.float32)
    square = Square(48.0, 48.0, 96.0, math.pi / 2)
    expected = turned_cut(np.rot90(picture).copy(), Square(48.0, 48.0, 96.0, 0.0), size)
    assert np.abs(turned_cut(picture, square, size) - expected).max() < 1e-3


def test_a_positive_roll_follows_a_head_that_leans_clockwise() -> None:
    """The square's right axis is (cos roll, sin roll) on screen, y down."""
    picture = np.zeros((100, 100), np.float32)
    angle = 0.5
    x, y = round(50 + 30 * math.cos(angle)), round(50 + 30 * math.sin(angle))
    picture[y - 1 : y + 2, x - 1 : x + 2] = 1
    crop = turned_cut(picture, Square(50.5, 50.5, 80.0, angle), 80)
    row, column = (float((crop * index).sum() / crop.sum()) for index in np.mgrid[:80, :80])
    assert abs(row - 39.5) < 1
    assert abs(column - 69.5) < 1


def test_turned_alpha_is_zero_outside_its_square() -> None:
    square = Square(50.0, 50.0, 40.0, 0.6)
    alpha = turned_back(np.ones((64, 64), np.float32), square, (0, 0, 100, 100), is_alpha=True)
    y, x = np.mgrid[:100, :100] + 0.5
    u = np.linalg.solve(square.axes, np.stack([x.ravel() - 50, y.ravel() - 50])).T.reshape(100, 100, 2)
    assert not alpha[np.abs(u).max(-1) > 0.5 + 0.02].any()
    assert (alpha[np.abs(u).max(-1) < 0.5 - 0.03] > 0.99).all()


def test_shrinking_turned_is_antialiased() -> None:
    stripes = (np.arange(512) % 2).astype(np.float32)[None].repeat(512, 0)
    crop = turned_cut(stripes, Square(256.0, 256.0, 320.0, 0.4), 40)
    assert np.abs(crop - 0.5).max() < 0.1


def test_a_turned_square_that_leaves_the_picture_replicates_its_edges() -> None:
    frame = make_frame()
    crop = cut(frame, (-60.0, -60.0, 30.0, 30.0, 0.4), 64)
    assert torch.isfinite(crop).all()
    pasted = paste(frame, (-60.0, -60.0, 30.0, 30.0, 0.4), crop, torch.ones(1, 64, 64))
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(frame.planes, pasted.planes, strict=True)) <= 6
    far = (900.0, 900.0, 960.0, 960.0, 0.4)
    assert torch.isfinite(cut(frame, far, 32)).all()
    assert paste(frame, far, crop, torch.ones(1, 64, 64)) is frame
    assert pixel_window(far, 160, 120) is None


def test_images_are_cut_and_pasted_as_frames_are() -> None:
    image = torch.from_numpy(smooth_picture()).expand(3, -1, -1)[None] / 255
    box = np.array([[40.3, 25.7, 110.3, 95.7, 0.5]])
    crops = cut_images(image, box, 140)
    alpha = torch.zeros(1, 1, 140, 140)
    alpha[..., 20:-20, 20:-20] = 1
    back = paste_images(image, box, crops, alpha)
    assert (back - image).abs().max() < 0.01
    marked = paste_images(image, box, torch.zeros_like(crops), alpha)
    assert torch.equal(marked[..., :20, :], image[..., :20, :])
    assert 0.9 < float((marked != image).all(1).sum()) / (70 * 100 / 140) ** 2 < 1.1


def test_a_roll_that_is_no_number_is_refused() -> None:
    with pytest.raises(FlashLipsError, match="track the clip again"):
        cut(make_frame(), (10.0, 10.0, 50.0, 50.0, float("nan")), 32)
