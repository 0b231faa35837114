"""A part of a clip, or a batch of images, as a file of its own: nearly lossless, for the stages that work file to file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from ..stream import counted, prefetch
from ..types import Audio, ClipInfo, FlashLipsError, Frame, Progress, Recording
from .listen import open_sound
from .planes import COLORSPACE_BT709, RANGE_LIMITED, Orientation, planar
from .read import probe, read_from
from .write import write_video

CRF = 6  # x264: no loss that could be seen, at a few times the size of CRF 16
PRESET = "ultrafast"
LARGEST_DENOMINATOR = 1_000_000  # frame rates arrive as floats: 29.97 is 2997/100 again


def write_part(
    source: str | Path,
    out: str | Path,
    start_s: float,
    duration_s: float = 0,
    progress: Progress | None = None,
    show: Callable[[Frame], None] | None = None,
) -> None:
    """Write the frames from ``start_s`` on, ``duration_s`` long (0: to the end), with their sound, as a clip that starts at 0."""
    clip = probe(source)
    start = int(Fraction(start_s) / clip.time_base)
    stop = int((Fraction(start_s) + Fraction(duration_s)) / clip.time_base) if duration_s else None
    with closing(prefetch(_between(source, start, stop))) as frames:
        first = next(frames, None)
        if first is None:
            raise FlashLipsError(
                f"{Path(source).name} has no frame at {start_s:g} s, it is {float(clip.duration):.2f} s long; trim it elsewhere."
            )
        back = first.pts - round(clip.clock_start / clip.time_base)
        shifted = (replace(frame, pts=frame.pts - back) for frame in itertools.chain([first], frames))
        expected = max(1, round((Fraction(duration_s) or clip.duration - Fraction(start_s)) * clip.fps))
        sound = _sound_from(source, first.pts * clip.time_base - _picture_start(source)) if clip.audio_rate else None
        write_video(out, counted(shifted, expected, progress, show), clip, sound, crf=CRF, preset=PRESET, is_exact=True)


def write_images(
    images: Tensor,
    fps: float | Fraction,
    out: str | Path,
    audio: Audio | None = None,
    progress: Progress | None = None,
    show: Callable[[Frame], None] | None = None,
) -> None:
    """Write RGB images (T, H, W, 3 or 4) in [0, 1] as a clip, converted one at a time."""
    rate = Fraction(fps).limit_denominator(LARGEST_DENOMINATOR)
    if not len(images) or rate <= 0:
        raise FlashLipsError(f"Got {len(images)} images at {float(fps):g} frames per second; a video needs both above 0.")
    clip = images_clip(len(images), images.shape[2], images.shape[1], rate)
    write_video(out, counted(_pictures(images), len(images), progress, show), clip, audio, crf=CRF, preset=PRESET, is_exact=True)


def images_clip(count: int, width: int, height: int, fps: Fraction) -> ClipInfo:
    """What a clip of ``count`` images says of itself: BT.709, limited range, one tick per frame."""
    colour = dict(pix_fmt="yuv420p", color_range=RANGE_LIMITED, color_primaries=1, color_trc=1, colorspace=COLORSPACE_BT709)
    times = dict(fps=fps, num_frames=count, duration=count / fps, time_base=1 / fps, is_variable_rate=False)
    return ClipInfo("images", width, height, **times, rotation=0, **colour, audio_rate=None, audio_channels=None)


def _between(source: str | Path, start: int, stop: int | None) -> Iterator[Frame]:
    """Frames with ``start`` <= pts < ``stop``, entered near the start where the file allows it."""
    with closing(read_from(source, seek_pts=start if start > 0 else None)) as frames:
        for frame in frames:
            if stop is not None and frame.pts >= stop:
                return
            if frame.pts >= start:
                yield frame


def _picture_start(source: str | Path) -> Fraction:
    """When the clip's first picture is shown, by its own clock, in seconds."""
    clip = probe(source)
    with closing(read_from(source, stop=1)) as frames:
        return next(frames).pts * clip.time_base


def _sound_from(source: str | Path, seconds: Fraction) -> Recording:
    """The clip's sound from this long after its first picture on; silence where there is none."""
    sound = open_sound(source)
    skipped = max(0, round(seconds * sound.sample_rate))
    if skipped >= sound.num_samples:
        return Audio(torch.zeros(sound.channels, 1), sound.sample_rate)
    return replace(sound, skipped=skipped, num_samples=sound.num_samples - skipped)


def _pictures(images: Tensor) -> Iterator[Frame]:
    for index, image in enumerate(images):
        rgb = (image[..., :3].detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        planes, layout = planar(picture, Orientation())
        yield Frame(planes, layout.name, index, RANGE_LIMITED, COLORSPACE_BT709)
