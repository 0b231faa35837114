"""Image batches are tracked as frames, cut in floats, and pasted back without touching anything else."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from flashlips_core.compose import cut, whole_picture
from flashlips_core.images.frames import (
    as_frames,
    check_track_of_images,
    cut_images,
    images_info,
    paste_alpha,
    paste_images,
    soft_edge,
)
from flashlips_core.media import read_frames
from flashlips_core.types import FaceTrack, FlashLipsError

BOX = (20.3, 14.7, 84.1, 78.5)  # 63.8 pixels wide
DEMO = "flashlips_core/demo/face.mp4"


def make_images(count: int = 2, height: int = 97, width: int = 129) -> torch.Tensor:
    """Smooth colours in [0, 1] with 23 bits each, none of which a rounding to 8 bits would leave. (B, 3, H, W)."""
    y, x = torch.meshgrid(torch.arange(height) / 9, torch.arange(width) / 7, indexing="ij")
    waves = [0.5 + 0.4 * torch.sin(x * (1 + c / 3) + i) * torch.cos(y - c) for i in range(count) for c in range(3)]
    return torch.stack(waves).view(count, 3, height, width)


def make_boxes(count: int = 2) -> np.ndarray:
    return np.tile(np.array(BOX, np.float32), (count, 1))


def make_track(count: int = 2, width: int = 129, height: int = 97, absent: tuple[int, ...] = ()) -> FaceTrack:
    present = ~np.isin(np.arange(count), absent)
    return FaceTrack(make_boxes(count), np.zeros((count, 5, 2), np.float32), present, width, height, Fraction(25))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Decibels, for values that span 1."""
    return float(-10 * torch.log10((a - b).square().mean()))


def real_images(count: int = 3) -> torch.Tensor:
    """Pictures of the bundled face, 512x512, in [0, 1]."""
    frames = read_frames(DEMO, 0, count)
    return torch.stack([(whole_picture(frame, 512) + 1) / 2 for frame in frames])


def test_images_become_frames_of_the_same_colours() -> None:
    images = make_images()
    frames = list(as_frames(images))
    assert [(f.width, f.height, f.bit_depth, f.chroma_shift) for f in frames] == [(129, 97, 8, (0, 0))] * 2
    back = torch.stack([(whole_picture(frame, 129) + 1) / 2 for frame in frames])
    assert (back - images).abs().max() < 1.6 / 255


def test_images_info_describes_the_batch_and_refuses_a_rate_of_zero() -> None:
    info = images_info(make_images(5), Fraction(30000, 1001))
    assert (info.width, info.height, info.num_frames, info.fps) == (129, 97, 5, Fraction(30000, 1001))
    with pytest.raises(FlashLipsError, match="above 0"):
        images_info(make_images(), Fraction(0))


def test_crops_of_images_are_the_crops_of_their_frames() -> None:
    images = make_images()
    crops = cut_images(images * 2 - 1, make_boxes(), 96)
    of_frames = torch.stack([cut(frame, BOX, 96) for frame in as_frames(images)])
    assert crops.shape == (2, 3, 96, 96) and (crops - of_frames).abs().max() < 2 * 2 / 255


@pytest.mark.parametrize("size", [64, 96, 256])
def test_cut_then_paste_gives_smooth_images_back(size: int) -> None:
    images, shown = make_images(), []
    crops = cut_images(images, make_boxes(), size, show=shown.append)
    pasted = paste_images(images, make_boxes(), crops, torch.ones(2, 1, size, size), show=shown.append)
    assert all(map(torch.equal, shown, [*crops, *pasted]))
    x0, y0, x1, y1 = (round(v) for v in BOX)
    assert psnr(pasted[..., y0:y1, x0:x1], images[..., y0:y1, x0:x1]) > 50
    assert not torch.equal(pasted, images)


def test_cut_then_paste_keeps_a_real_face_where_the_crop_is_as_large_as_the_box() -> None:
    images = real_images()
    boxes = np.tile(np.array([[130.4, 140.2, 386.4, 396.2]], np.float32), (3, 1))
    for size, bound in ((256, 46), (384, 48), (512, 48)):
        pasted = paste_images(images, boxes, cut_images(images, boxes, size), torch.ones(3, 1, size, size))
        assert psnr(pasted[..., 141:396, 131:386], images[..., 141:396, 131:386]) > bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pixels_outside_alpha_are_bit_identical(dtype: torch.dtype) -> None:
    images = make_images().to(dtype)
    before = images.clone()
    alpha = torch.zeros(2, 1, 64, 64)
    alpha[0, :, 20:40, 10:30] = torch.rand(20, 20)
    pasted = paste_images(images, make_boxes(), torch.rand(2, 3, 64, 64), alpha)
    assert torch.equal(images, before), "the source was written into"
    assert pasted.dtype == dtype and torch.equal(pasted[1], images[1])
    scale = (BOX[2] - BOX[0]) / 64
    y0, y1 = int(BOX[1] + 19 * scale), int(BOX[1] + 41 * scale) + 1
    x0, x1 = int(BOX[0] + 9 * scale), int(BOX[0] + 31 * scale) + 1
    assert not torch.equal(pasted[0, :, y0:y1, x0:x1], images[0, :, y0:y1, x0:x1])
    pasted[0, :, y0:y1, x0:x1] = images[0, :, y0:y1, x0:x1]
    assert torch.equal(pasted, images)


def test_channels_last_batches_stay_so_and_give_the_same_result() -> None:
    images, crops, alpha = make_images(), torch.rand(2, 3, 64, 64), torch.rand(2, 1, 64, 64)
    plain = paste_images(images, make_boxes(), crops, alpha)
    comfy = images.movedim(1, -1).contiguous()  # as ComfyUI's IMAGE
    pasted = paste_images(comfy.movedim(-1, 1), make_boxes(), crops, alpha).movedim(1, -1)
    assert pasted.is_contiguous() and torch.equal(pasted.movedim(-1, 1), plain)


def test_a_crop_that_leaves_the_picture_comes_back_into_it() -> None:
    images, boxes = make_images(1), np.array([[-30.5, -20.25, 40.0, 50.25]], np.float32)
    crops = cut_images(images, boxes, 128)
    pasted = paste_images(images, boxes, crops, torch.ones(1, 1, 128, 128))
    assert psnr(pasted, images) > 50
    assert torch.equal(pasted[..., 51:, :], images[..., 51:, :]) and torch.equal(pasted[..., 41:], images[..., 41:])
    away = np.array([[500.0, 500, 600, 600]], np.float32)
    assert torch.equal(paste_images(images, away, crops, torch.ones(1, 1, 128, 128)), images)


def test_resampling_stays_within_the_values_it_is_made_of() -> None:
    images = (torch.rand(1, 3, 97, 129, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    crops = cut_images(images, make_boxes(1), 200)
    assert crops.min() >= 0 and crops.max() <= 1
    pasted = paste_images(images, make_boxes(1), crops, torch.ones(1, 1, 200, 200))
    assert pasted.min() >= 0 and pasted.max() <= 1


def test_crops_may_come_back_larger_than_they_went_out() -> None:
    images = make_images()
    large = cut_images(images, make_boxes(), 256)
    alpha = paste_alpha(make_track(), large, feather=16)
    assert psnr(paste_images(images, make_boxes(), large, alpha), images) > 50


def test_the_soft_edge_is_one_inside_and_nothing_at_the_border() -> None:
    alpha = soft_edge(64, 96, 12)
    assert alpha.shape == (1, 64, 96)
    assert (alpha[0, 12:52, 12:84] == 1).all()
    assert alpha[0, 0].max() < 0.01 and alpha[0, :, 0].max() < 0.01
    assert (alpha[0, 32].diff()[:48] >= 0).all()
    assert (soft_edge(8, 8, 0) == 1).all()


def test_frames_without_a_face_and_masked_pixels_are_not_pasted() -> None:
    crops = torch.rand(3, 3, 64, 64)
    assert paste_alpha(make_track(3, absent=(1,)), crops, 0).amax((1, 2, 3)).tolist() == [1, 0, 1]
    mask = torch.zeros(1, 128, 128)
    mask[:, 64:] = 1
    alpha = paste_alpha(make_track(3, absent=(1,)), crops, 0, mask)
    assert (alpha[0, :, :31] == 0).all() and (alpha[0, :, 33:] == 1).all()
    images = make_images(3)
    pasted = paste_images(images, make_boxes(3), crops, alpha)
    assert torch.equal(pasted[1], images[1]) and not torch.equal(pasted[0], images[0])


def test_what_does_not_belong_together_is_refused_in_a_sentence() -> None:
    images, boxes, crops = make_images(), make_boxes(), torch.rand(2, 3, 64, 64)
    with pytest.raises(FlashLipsError, match="640x480 pixels, the images have 129x97"):
        check_track_of_images(make_track(2, 640, 480), images)
    with pytest.raises(FlashLipsError, match="track has 3 frames, the image batch 2"):
        check_track_of_images(make_track(3), images)
    with pytest.raises(FlashLipsError, match="2 images and 1 crops"):
        paste_images(images, boxes, crops[:1], torch.ones(2, 1, 64, 64))
    with pytest.raises(FlashLipsError, match="4 channels"):
        paste_images(images, boxes, torch.rand(2, 4, 64, 64), torch.ones(2, 1, 64, 64))
    with pytest.raises(FlashLipsError, match="mask has 5 frames"):
        paste_alpha(make_track(), crops, 8, torch.ones(5, 64, 64))
    with pytest.raises(FlashLipsError, match="mask has 129x97 pixels, the crops 64x64"):
        paste_alpha(make_track(), crops, 8, torch.ones(2, 97, 129))
