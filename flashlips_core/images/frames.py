"""Batches of float images, for those who have no file: as frames to track, as crops to edit, and pasted back.

B images, C channels, H W their size, S crop side in pixels. Values may lie in any range, [-1, 1] or [0, 1]; images and crops
of one call in the same. Nothing is rounded to 8 bits but the frames, which are only looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..compose import is_turned, pixel_alpha, pixel_window, restoring, sampling
from ..turned import Square, turned_back, turned_cut
from ..types import ClipInfo, FaceTrack, FlashLipsError, Frame, Progress

# BT.601, limited range, which is what the detector assumes: rows Y, U, V from R, G, B in [0, 1] (ITU-R BT.601, 8 bit).
RGB_TO_YUV = torch.tensor([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
YUV_ZERO = torch.tensor([16.0, 128.0, 128.0])
BT601, LIMITED_RANGE = 6, 1  # FFmpeg's AVColorSpace, AVColorRange
ShowImage = Callable[[Tensor], None]
"""Gets each picture when it is done, (C, H, W) in the range of its batch."""


# ---- to be looked at -------------------------------------------------------------------------------------------------------


def as_frames(images: Tensor) -> Iterator[Frame]:
    """Images as frames for the face tracker, made one at a time. (B, 3, H, W) in [0, 1] -> 8-bit yuv444p."""
    for index, image in enumerate(images):
        rgb = image.detach().float().cpu().clamp(0, 1)
        yuv = torch.einsum("yc,chw->yhw", RGB_TO_YUV, rgb) + YUV_ZERO[:, None, None]
        planes = tuple(yuv.round_().clamp_(0, 255).byte().contiguous().numpy())
        yield Frame(planes, "yuv444p", index, LIMITED_RANGE, BT601)


def images_info(images: Tensor, fps: Fraction) -> ClipInfo:
    """What a file of these images would say of itself. (B, C, H, W)."""
    if fps <= 0:
        raise FlashLipsError(f"Frames per second must be above 0, got {float(fps):g}.")
    count, _, height, width = images.shape
    colour = dict(pix_fmt="yuv444p", color_range=LIMITED_RANGE, colorspace=BT601, color_primaries=BT601, color_trc=BT601)
    times = dict(fps=fps, num_frames=count, duration=count / fps, time_base=1 / fps, is_variable_rate=False)
    return ClipInfo("images", width, height, **times, rotation=0, **colour, audio_rate=None, audio_channels=None)


def check_track_of_images(track: FaceTrack, images: Tensor) -> None:
    """Refuse a track that was not made of these images. (B, C, H, W)."""
    count, _, height, width = images.shape
    if (track.width, track.height) != (width, height):
        raise FlashLipsError(
            f"The track is of a clip of {track.width}x{track.height} pixels, the images have {width}x{height}; "
            "track these images, or give the ones that were tracked, before any resize."
        )
    if len(track) != count:
        raise FlashLipsError(
            f"The track has {len(track)} frames, the image batch {count}; track these images, or give all that were tracked."
        )


def check_rate(track: FaceTrack, fps: Fraction) -> None:
    """Refuse images at another rate than their track's."""
    if abs(fps - track.fps) * len(track) > track.fps:  # more than a frame apart at the end
        raise FlashLipsError(
            f"The images run at {float(fps):g} frames per second, their track at {float(track.fps):g}; give both the same rate."
        )


# ---- crops out and back ----------------------------------------------------------------------------------------------------


def cut_images(
    images: Tensor,
    boxes: np.ndarray | Tensor,
    size: int,
    progress: Progress | None = None,
    show: ShowImage | None = None,
) -> Tensor:
    """The box of each image, resized with antialiasing; edges are replicated where it leaves the picture.

    Args:
        images: (B, C, H, W).
        boxes: (B, 4) xyxy pixels, or (B, 5) with a roll, see ``compose``.

    Returns (B, C, size, size) float32 on the images' device.
    """
    _check_counts(images, boxes=boxes)
    crops = torch.empty(len(images), images.shape[1], size, size, device=images.device)
    for done, (crop, image, box) in enumerate(zip(crops, images, boxes.tolist(), strict=True), 1):
        crop.copy_(_cut(image, box, size))
        if show is not None:
            show(crop)
        if progress is not None:
            progress(done, len(images))
    return crops


def paste_images(
    images: Tensor,
    boxes: np.ndarray | Tensor,
    crops: Tensor,
    alpha: Tensor,
    progress: Progress | None = None,
    show: ShowImage | None = None,
) -> Tensor:
    """Blend crops into copies of their images. Where alpha is 0, and outside the boxes, pixels keep their bits.

    Args:
        images: (B, C, H, W).
        boxes: (B, 4) xyxy pixels, or (B, 5) with a roll, see ``compose``.
        crops: (B, C, S, S) in the images' range; (B, C, rows, columns) is stretched over the box.
        alpha: (B, 1, S, S) in [0, 1]; a crop whose alpha is 0 everywhere leaves its image as it is.

    Returns (B, C, H, W) of the images' dtype, device and memory layout.
    """
    _check_counts(images, boxes=boxes, crops=crops, alpha=alpha)
    if crops.shape[1] != images.shape[1]:
        raise FlashLipsError(f"The crops have {crops.shape[1]} channels, the images {images.shape[1]}; give both as RGB.")
    result = images.clone()
    for done, (image, box, crop, weight) in enumerate(zip(result, boxes.tolist(), crops, alpha, strict=True), 1):
        _paste(image, box, crop.to(image.device, torch.float32), weight.float().cpu())
        if show is not None:
            show(image)
        if progress is not None:
            progress(done, len(images))
    return result


def soft_edge(height: int, width: int, feather: float) -> Tensor:
    """Alpha of a crop: 1 inside, falling smoothly to 0 over ``feather`` pixels at its border. -> (1, height, width)."""
    if feather <= 0:
        return torch.ones(1, height, width)
    rows, columns = ((torch.arange(n).minimum(torch.arange(n - 1, -1, -1)) + 0.5) / feather for n in (height, width))
    ramp = rows.clamp(0, 1)[:, None] * columns.clamp(0, 1)
    return (ramp * ramp * (3 - 2 * ramp))[None]  # smoothstep


def paste_alpha(track: FaceTrack, crops: Tensor, feather: float, mask: Tensor | None = None) -> Tensor:
    """Where to paste each crop: not in frames without a face, softly at the border, within the mask.

    Args:
        crops: (B, C, rows, columns).
        feather: width of the soft border in pixels of the crop.
        mask: (B or 1, rows, columns) in [0, 1], 1 = paste; of another size, it is stretched over the crop.

    Returns (B, 1, rows, columns) float32 on the CPU.
    """
    count, (height, width) = len(crops), crops.shape[-2:]
    if count != len(track):
        raise FlashLipsError(
            f"Got {count} crops for a track of {len(track)} frames; give one for each frame, also where there is no face."
        )
    alpha = soft_edge(height, width, feather) * torch.from_numpy(track.present).view(-1, 1, 1, 1)
    if mask is None:
        return alpha
    if len(mask) not in (1, count):
        raise FlashLipsError(f"The mask has {len(mask)} frames, the crops {count}; give one mask, or one for each crop.")
    if mask.shape[-2] * width != mask.shape[-1] * height:
        raise FlashLipsError(
            f"The mask has {mask.shape[-1]}x{mask.shape[-2]} pixels, the crops {width}x{height}; draw it on the crops."
        )
    stretched = F.interpolate(mask.float().cpu()[:, None], size=(height, width), mode="bilinear", antialias=True)
    return alpha * stretched.clamp(0, 1)


def _cut(image: Tensor, box: Sequence[float], size: int) -> Tensor:
    """The box of one image (C, H, W). -> (C, size, size) float32."""
    if is_turned(box):
        picture = image.cpu().permute(1, 2, 0).float().numpy()
        return _within(image.float(), torch.from_numpy(turned_cut(picture, Square.of(box), size)).permute(2, 0, 1))
    rows, top, bottom = sampling(box[1], box[3], size, image.shape[1])
    columns, left, right = sampling(box[0], box[2], size, image.shape[2])
    region = image[:, top:bottom, left:right].float()
    return _within(region, rows.to(region) @ region @ columns.to(region).T)


def _paste(image: Tensor, box: Sequence[float], crop: Tensor, alpha: Tensor) -> None:
    """Blend one crop (C, S, S) into ``image`` (C, H, W), in place."""
    window = pixel_window(box, image.shape[2], image.shape[1])
    if window is None or not alpha.any():
        return
    weight, (left, top) = pixel_alpha(box, alpha[0], window)
    height, width = weight.shape
    if not weight.size:
        return
    edited = _restored(crop, box, (left, top, left + width, top + height)).to(image.device)
    region = image[:, top : top + height, left : left + width]
    weight = torch.from_numpy(weight).to(edited)
    mixed = torch.lerp(region.float(), edited, weight).to(region.dtype)
    region.copy_(torch.where(weight > 0, mixed, region))


def _restored(crop: Tensor, box: Sequence[float], window: tuple[int, int, int, int]) -> Tensor:
    """A crop (C, S, S) at the window's pixels, left top right bottom. -> (C, rows, columns)."""
    left, top, right, bottom = window
    if is_turned(box):
        turned = turned_back(crop.cpu().permute(1, 2, 0).numpy(), Square.of(box), window)
        return _within(crop, torch.from_numpy(turned).permute(2, 0, 1).to(crop))
    rows, first_row = restoring(box[1], box[3], crop.shape[1], top, bottom - top)
    columns, first_column = restoring(box[0], box[2], crop.shape[2], left, right - left)
    source = crop[:, first_row : first_row + rows.shape[1], first_column : first_column + columns.shape[1]]
    return _within(source, rows.to(source) @ source @ columns.to(source).T)


def _within(source: Tensor, resampled: Tensor) -> Tensor:
    """Cubic resampling overshoots at edges: nothing becomes brighter or darker than what it was made of."""
    return resampled.clamp_(*source.aminmax())


def _check_counts(images: Tensor, **others: np.ndarray | Tensor) -> None:
    for name, values in others.items():
        if len(values) != len(images):
            raise FlashLipsError(f"Got {len(images)} images and {len(values)} {name}; give one for each image.")
