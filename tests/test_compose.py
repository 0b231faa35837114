"""The crop goes out and back without touching anything else."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch

from flashlips_core.compose import AlphaSettings, alpha_from_latents, cut, cut_batch, paste
from flashlips_core.types import FlashLipsError, Frame

FORMATS = ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le", "yuvj420p"]
BOX = (20.3, 14.7, 84.1, 78.5)


def make_frame(pix_fmt: str = "yuv420p", width: int = 129, height: int = 97, color_range: int = 1, colorspace: int = 1) -> Frame:
    """Smooth in-gamut colours; odd size."""
    kind = av.VideoFormat(pix_fmt, width, height)
    unit = 1 << (kind.components[0].bits - 8)
    y, x = np.mgrid[:height, :width]
    v, u = np.mgrid[: kind.chroma_height(height), : kind.chroma_width(width)]
    luma = 120 + 40 * np.sin(x / 7) * np.cos(y / 9)
    planes = (luma, 128 + 12 * np.sin(u / 11), 128 + 12 * np.cos(v / 8))
    kept = tuple(np.rint(p * unit).astype(np.uint8 if unit == 1 else np.uint16) for p in planes)
    return Frame(kept, pix_fmt, 7, color_range, colorspace)


def changes(a: Frame, b: Frame) -> list[np.ndarray]:
    return [np.abs(p.astype(int) - q.astype(int)) for p, q in zip(a.planes, b.planes, strict=True)]


@pytest.mark.parametrize("pix_fmt", FORMATS)
@pytest.mark.parametrize("colorspace", [0, 1, 5, 9])
def test_cut_then_paste_gives_the_frame_back(pix_fmt: str, colorspace: int) -> None:
    frame = make_frame(pix_fmt, colorspace=colorspace)
    pasted = paste(frame, BOX, cut(frame, BOX, 96), torch.ones(1, 96, 96))
    unit = 1 << (frame.bit_depth - 8)
    assert pasted.pts == frame.pts
    for change in changes(frame, pasted):
        assert change.max() <= 1 * unit
        assert change.mean() < 0.05 * unit


@pytest.mark.parametrize("pix_fmt", FORMATS)
def test_alpha_zero_leaves_every_bit(pix_fmt: str) -> None:
    frame = make_frame(pix_fmt)
    pasted = paste(frame, BOX, torch.rand(3, 64, 64), torch.zeros(1, 64, 64))
    assert all(np.array_equal(a, b) for a, b in zip(frame.planes, pasted.planes, strict=True))


@pytest.mark.parametrize("pix_fmt", FORMATS)
def test_pixels_outside_alpha_keep_luma_and_chroma(pix_fmt: str) -> None:
    frame = make_frame(pix_fmt)
    before = [plane.copy() for plane in frame.planes]
    alpha = torch.zeros(1, 64, 64)
    alpha[:, 30:50, 17:41] = 1
    pasted = paste(frame, BOX, -torch.ones(3, 64, 64), alpha)
    assert all(np.array_equal(a, b) for a, b in zip(frame.planes, before, strict=True)), "the source was written into"
    scale = 64 / (BOX[2] - BOX[0])
    y, x = np.mgrid[: frame.height, : frame.width]
    u, v = (x + 0.5 - BOX[0]) * scale, (y + 0.5 - BOX[1]) * scale
    outside = (u < 15.5) | (u > 42.5) | (v < 28.5) | (v > 51.5)
    shift_x, shift_y = frame.chroma_shift
    luma, *chroma = changes(frame, pasted)
    assert luma.max() > 20
    assert not luma[outside].any()
    for plane in chroma:
        spread = plane.repeat(1 << shift_y, 0).repeat(1 << shift_x, 1)[: frame.height, : frame.width]
        assert not spread[outside].any()


@pytest.mark.parametrize(("colorspace", "color_range"), [(1, 1), (1, 2), (6, 1), (9, 2)])
def test_greys_and_white_are_exact(colorspace: int, color_range: int) -> None:
    white, black = (255, 0) if color_range == 2 else (235, 16)
    for value, expected in ((white, 1.0), (black, -1.0)):
        planes = (np.full((32, 32), value, np.uint8), np.full((16, 16), 128, np.uint8), np.full((16, 16), 128, np.uint8))
        crop = cut(Frame(planes, "yuv420p", 0, color_range, colorspace), (4, 4, 20, 20), 24)
        assert torch.allclose(crop, torch.full_like(crop, expected), atol=0.005)


def test_bt709_red_is_red() -> None:
    """BT.709 limited: pure red is Y 63, Cb 102, Cr 240 (ITU-R BT.709, 8 bit)."""
    planes = tuple(np.full((32, 32), value, np.uint8) for value in (63, 102, 240))
    crop = cut(Frame(planes, "yuv444p", 0, 1, 1), (0, 0, 32, 32), 8)
    assert torch.allclose(crop[:, 4, 4], torch.tensor([1.0, -1.0, -1.0]), atol=0.02)


def test_boxes_that_leave_the_picture_replicate_its_edges() -> None:
    frame = make_frame()
    crop = cut(frame, (-40.0, -40.0, 24.0, 24.0), 64)
    assert torch.allclose(crop[:, :30, :30], crop[:, :1, :1].expand(-1, 30, 30), atol=0.02)
    pasted = paste(frame, (-40.0, -40.0, 24.0, 24.0), crop, torch.ones(1, 64, 64))
    assert max(change.max() for change in changes(frame, pasted)) <= 1
    assert paste(frame, (500.0, 500.0, 600.0, 600.0), crop, torch.ones(1, 64, 64)) is frame


def test_shrinking_is_antialiased() -> None:
    luma = np.where(np.arange(512) % 2, 235, 16).astype(np.uint8)[None].repeat(512, 0)
    planes = (luma, *(np.full((256, 256), 128, np.uint8) for _ in range(2)))
    crop = cut(Frame(planes, "yuv420p", 0, 1, 1), (0, 0, 512, 512), 64)
    assert crop[:, 4:-4, 4:-4].abs().max() < 0.02


def test_moving_the_box_by_a_pixel_moves_the_crop_by_a_pixel() -> None:
    frame = make_frame("yuv444p")
    a, b = cut(frame, (20, 20, 52, 52), 32), cut(frame, (21, 20, 53, 52), 32)
    assert torch.allclose(a[:, :, 1:], b[:, :, :-1], atol=1e-5)


def test_rounding_has_no_bias() -> None:
    generator = np.random.default_rng(0)
    noise = generator.integers(60, 190, (96, 96)).astype(np.uint8)
    frame = Frame((noise, *(np.full((48, 48), 128, np.uint8) for _ in range(2))), "yuv420p", 0, 1, 1)
    pasted = paste(frame, (8.3, 8.6, 88.3, 88.6), cut(frame, (8.3, 8.6, 88.3, 88.6), 160), torch.ones(1, 160, 160))
    assert abs(float((pasted.planes[0].astype(int) - noise).mean())) < 0.05


def test_batched_cut_equals_single_cuts() -> None:
    frames = [make_frame(), make_frame("yuv422p")]
    boxes = np.array([BOX, (5.5, 3.25, 60.5, 58.25)], np.float32)
    batch = cut_batch(frames, boxes, 48)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(batch[i], cut(frames[i], boxes[i], 48)) for i in range(2))


def test_an_empty_box_is_refused() -> None:
    with pytest.raises(FlashLipsError, match="empty"):
        cut(make_frame(), (10.0, 10.0, 10.0, 10.0), 32)


def test_alpha_is_exactly_zero_where_latents_did_not_change() -> None:
    source = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    edited = source + 0.02  # below the threshold
    edited[0, :, 18:24, 12:20] += 1.0
    alpha = alpha_from_latents(source, edited, 256)
    assert alpha.shape == (2, 1, 256, 256)
    assert alpha[0, 0, 19 * 8 : 23 * 8, 13 * 8 : 19 * 8].min() == 1
    assert not alpha[1].any()
    assert not alpha[0, :, : 13 * 8].any()
    assert alpha.min() >= 0 and alpha.max() <= 1


def test_alpha_vanishes_at_the_crops_border_even_if_all_changed() -> None:
    alpha = alpha_from_latents(torch.zeros(1, 4, 32, 32), torch.ones(1, 4, 32, 32), 256, AlphaSettings(border=2))[0, 0]
    assert alpha[128, 128] == 1
    assert not torch.cat([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]]).any()
