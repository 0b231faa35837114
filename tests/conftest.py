"""Clips of every awkward kind, made with PyAV when a test asks for them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent / "comfy"))

import av
import numpy as np
import pytest
from comfy_fixtures import (  # noqa: F401
    bare_engine,
    browser,
    engine,
    page,
    server,
    start_engine,
    start_engine_with_pack,
    start_server,
)
from toy_dubs import lipsync, model_folder  # noqa: F401

from flashlips_core.types import Frame

NUM_FRAMES = 25


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is skipped where ../shared is absent is marked by that; ``shared`` stands only where a test looks for itself."""
    for item in items:
        if any("../shared" in mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif")):
            item.add_marker("shared")


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """How a synthetic clip is made."""

    name: str = "clip.mp4"
    size: tuple[int, int] | None = (64, 48)  # width, height in pixels; None for sound alone
    pix_fmt: str = "yuv420p"
    codec: str = "libx264"
    pts: tuple[int, ...] = tuple(range(0, NUM_FRAMES * 3600, 3600))
    time_base: Fraction = Fraction(1, 90_000)
    rate: Fraction = Fraction(25)  # what the header says
    rotation: int = 0  # degrees counter-clockwise in the display matrix
    is_mirrored: bool = False
    color: tuple[int, int, int, int] = (1, 1, 1, 1)  # range, matrix, primaries, transfer
    aspect: Fraction | None = None
    audio_rate: int | None = None
    audio_channels: int = 2
    audio_s: Fraction = Fraction(1)
    audio_start_s: int = 0
    audio_codec: str = "aac"
    options: tuple[tuple[str, str], ...] = (("crf", "0"), ("g", "10"))
    container_options: tuple[tuple[str, str], ...] = ()


def picture_planes(index: int, width: int, height: int, pix_fmt: str) -> list[np.ndarray]:
    """Planes that tell frames and places apart: a gradient, a bright corner at the top left, a level per frame."""
    kind = av.VideoFormat(pix_fmt, width, height)
    scale = 1 << (kind.components[0].bits - 8)
    rows, columns = np.mgrid[:height, :width]
    luma = 40 + columns * 80 // width + rows * 40 // height + index * 2
    luma[: height // 4, : width // 4] = 230
    chroma_size = (kind.chroma_height(height), kind.chroma_width(width))
    blue = np.full(chroma_size, 90 + index)
    red = 100 + np.broadcast_to(np.arange(chroma_size[1]), chroma_size) % 64
    return [(plane * scale).astype(np.uint8 if scale == 1 else np.uint16) for plane in (luma, blue, red)]


def tone(rate: int, channels: int, seconds: Fraction) -> np.ndarray:
    """A different sine in each channel: (channels, N) float32."""
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * (220 + 110 * c) * time) for c in range(channels)]).astype(np.float32)


def make_clip(folder: Path, spec: ClipSpec) -> Path:
    """Write the clip and return its path."""
    path = folder / spec.name
    with av.open(str(path), "w", options=dict(spec.container_options)) as output:
        video = _add_video(output, spec) if spec.size else None
        sound = None
        if spec.audio_rate:
            layout = {1: "mono", 2: "stereo", 6: "5.1"}[spec.audio_channels]
            sound = output.add_stream(spec.audio_codec, rate=spec.audio_rate, layout=layout)
        if video:
            for index, pts in enumerate(spec.pts):
                output.mux(video.encode(_picture(spec, index, pts)))
            output.mux(video.encode())
        if sound:
            samples = tone(spec.audio_rate, spec.audio_channels, spec.audio_s)
            frame = av.AudioFrame.from_ndarray(samples, "fltp", sound.layout.name)
            frame.sample_rate, frame.time_base = spec.audio_rate, Fraction(1, spec.audio_rate)
            frame.pts = spec.audio_start_s * spec.audio_rate
            output.mux(sound.encode(frame))
            output.mux(sound.encode())
    return path


def _add_video(output: av.container.OutputContainer, spec: ClipSpec) -> av.VideoStream:
    options = dict(spec.options) if spec.codec == "libx264" else {}
    video = output.add_stream(spec.codec, rate=spec.rate, options=options)
    video.width, video.height = spec.size
    video.pix_fmt = spec.pix_fmt
    video.time_base = video.codec_context.time_base = spec.time_base
    context = video.codec_context
    context.color_range, context.colorspace, context.color_primaries, context.color_trc = spec.color
    if spec.aspect:
        context.sample_aspect_ratio = spec.aspect
    if spec.is_mirrored:
        video.set_display_matrix([-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30])
    elif spec.rotation:
        video.set_display_rotation(spec.rotation)
    return video


def _picture(spec: ClipSpec, index: int, pts: int) -> av.VideoFrame:
    picture = av.VideoFrame(*spec.size, spec.pix_fmt)
    for source, target in zip(picture_planes(index, *spec.size, spec.pix_fmt), picture.planes, strict=True):
        rows = np.frombuffer(target, source.dtype).reshape(target.height, -1)
        rows[:, : target.width] = source
    picture.pts, picture.time_base = pts, spec.time_base
    return picture


def same_frames(left: list[Frame], right: list[Frame]) -> bool:
    """Whether two lists hold the same pictures in the same layout; timestamps may differ."""
    return len(left) == len(right) and all(
        a.pix_fmt == b.pix_fmt and all(map(np.array_equal, a.planes, b.planes)) for a, b in zip(left, right, strict=True)
    )


@pytest.fixture
def clip(tmp_path: Path) -> Callable[..., Path]:
    """``clip(name=..., pix_fmt=..., ...)`` makes a clip by :class:`ClipSpec` and returns its path."""
    return lambda **fields: make_clip(tmp_path, ClipSpec(**fields))


@pytest.fixture
def plain_clip(clip) -> Path:
    return clip()


@pytest.fixture
def rotated_clip(clip) -> Path:
    """A phone's portrait clip: stored 64x48, shown 48x64."""
    return clip(name="rotated.mp4", rotation=-90)


@pytest.fixture
def variable_rate_clip(clip) -> Path:
    return clip(name="vfr.mp4", pts=(0, 1000, 5000, 5001, 9000, 12600, 30000, 30333, 48000), options=(("crf", "0"), ("bf", "0")))


@pytest.fixture
def ten_bit_clip(clip) -> Path:
    return clip(name="ten_bit.mp4", pix_fmt="yuv420p10le")


@pytest.fixture
def odd_clip(clip) -> Path:
    return clip(name="odd.mkv", size=(63, 47), codec="ffv1", time_base=Fraction(1, 1000), pts=tuple(range(0, 1000, 40)))


@pytest.fixture
def talking_clip(clip) -> Path:
    """One second with stereo sound at 44.1 kHz."""
    return clip(name="talking.mp4", audio_rate=44_100)


@pytest.fixture
def audio_only(clip) -> Path:
    return clip(name="voice.m4a", size=None, audio_rate=44_100)


@pytest.fixture
def truncated_clip(clip) -> Path:
    """A clip whose header is whole and whose second half is missing."""
    path = clip(name="truncated.mp4", size=(256, 192), container_options=(("movflags", "faststart"),))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.fixture
def headless_clip(clip) -> Path:
    """A broken-off recording: the index at the end of the file is missing."""
    path = clip(name="headless.mp4", size=(256, 192))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path
