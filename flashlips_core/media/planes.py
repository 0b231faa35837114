"""Pixel layouts: any decoded picture becomes upright planar YUV, and planar YUV becomes what an encoder takes.

Everything but packed and RGB formats is moved, never resampled: planes are views of the decoder's memory, and chroma is
only ever repeated, so a layout change can be undone exactly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import av
import numpy as np

from ..types import FlashLipsError, Frame

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]

RANGE_UNKNOWN, RANGE_LIMITED, RANGE_FULL = 0, 1, 2  # FFmpeg's AVColorRange
COLORSPACE_RGB, COLORSPACE_BT709 = 0, 1  # FFmpeg's AVColorSpace

_PLANAR_YUV = re.compile(r"yuv(?P<alpha>a?)(?P<full>j?)(?P<sampling>420|422|444|440|411|410)p(?P<depth>\d*)(?P<order>le|be)?")
_GRAY = re.compile(r"gray(?P<depth>\d*)(?P<order>le|be)?")
_REPEATS = {"411": ("422", 2, 1), "410": ("420", 2, 2)}  # layouts that Frame does not have: (wider one, columns, rows)


@dataclass(frozen=True)
class Orientation:
    """How a stored picture becomes upright: transpose first, then flip."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    rotation: int = 0  # the same in degrees clockwise, mirroring left out


@dataclass(frozen=True)
class Layout:
    """A planar YUV format taken apart."""

    sampling: str  # "420", "422", "444", "440"
    depth: int

    @property
    def name(self) -> str:
        return f"yuv{self.sampling}p" + ("" if self.depth == 8 else f"{self.depth}le")

    @property
    def shift(self) -> tuple[int, int]:
        """log2 of the chroma subsampling, (horizontal, vertical)."""
        return int(self.sampling in ("420", "422")), int(self.sampling in ("420", "440"))


def orientation_of(picture: av.VideoFrame) -> Orientation:
    """Read the display matrix of a decoded picture: p' = a p + c q, q' = b p + d q, with q downwards."""
    side_data = picture.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].tolist()
    rotation = round(-picture.rotation / 90) * 90 % 360
    if abs(a) >= abs(b):
        return Orientation(False, d < 0, a < 0, rotation)
    return Orientation(True, b < 0, c < 0, rotation)


def color_of(picture: av.VideoFrame) -> tuple[int, int]:
    """(color_range, colorspace) of the planar YUV that :func:`planar` makes of a picture."""
    color_range, colorspace = int(picture.color_range), int(picture.colorspace)
    if picture.format.is_rgb or picture.format.name == "pal8":
        return RANGE_LIMITED, COLORSPACE_BT709
    if picture.format.name.startswith("yuvj"):
        return RANGE_FULL, colorspace
    return color_range, 2 if colorspace == COLORSPACE_RGB else colorspace


def planar(picture: av.VideoFrame, orientation: Orientation) -> tuple[Planes, Layout]:
    """Upright planes of a decoded picture; views wherever the format allows it."""
    planes, layout = _stored_planes(picture)
    if orientation.transpose and layout.sampling in ("422", "440"):
        planes, layout = resample_chroma(planes, layout, "444"), Layout("444", layout.depth)
    return tuple(_upright(plane, orientation) for plane in planes), layout


def resample_chroma(planes: Planes, layout: Layout, sampling: str) -> Planes:
    """Widen chroma to a finer sampling by repeating samples; the size of luma decides where the last one stops."""
    right, down = (old - new for old, new in zip(layout.shift, Layout(sampling, layout.depth).shift, strict=True))
    luma, *chroma = planes
    rows, columns = luma.shape
    wide = [np.repeat(np.repeat(plane, 1 + right, axis=1), 1 + down, axis=0) for plane in chroma]
    new = Layout(sampling, layout.depth).shift
    return luma, *(plane[: -(-rows >> new[1]) or rows, : -(-columns >> new[0]) or columns] for plane in wide)


def change_depth(planes: Planes, old: int, new: int) -> Planes:
    """Move samples to another bit depth: shifted up, or rounded down and kept in range."""
    if new == old:
        return planes
    if new > old:
        return tuple(plane.astype(np.uint16) << (new - old) for plane in planes)
    half, shift = 1 << (old - new - 1), old - new
    kind = np.uint8 if new == 8 else np.uint16
    return tuple(np.minimum((plane.astype(np.uint32) + half) >> shift, (1 << new) - 1).astype(kind) for plane in planes)


def parse_layout(pix_fmt: str) -> Layout:
    """Take the name of a planar YUV format apart."""
    match = _PLANAR_YUV.fullmatch(pix_fmt)
    if match is None or match["sampling"] in _REPEATS:
        raise FlashLipsError(f"Frames must be planar YUV such as yuv420p or yuv422p10le, got {pix_fmt}.")
    return Layout(match["sampling"], int(match["depth"] or 8))


def encodable_layout(layout: Layout, formats: list[str], is_exact: bool, is_even: bool) -> Layout:
    """The layout to encode ``layout`` in.

    Args:
        formats: what the encoder takes.
        is_exact: keep every sample: chroma that the encoder cannot take is repeated, more than ten bits stay. Otherwise what
            players open: 4:2:0 in 8 or 10 bits.
        is_even: both sides of the picture are even, or the encoder takes odd ones in 4:2:0.
    """
    sampling, depth = layout.sampling, layout.depth
    if is_exact:
        horizontal, vertical = layout.shift
        sampling = "444" if sampling == "440" or not is_even and (horizontal or vertical) else sampling
    else:
        sampling, depth = "420", 8 if depth == 8 else 10
    matches = [match for match in map(_PLANAR_YUV.fullmatch, formats) if match and not match["alpha"] and not match["full"]]
    offered = [Layout(match["sampling"], int(match["depth"] or 8)) for match in matches]
    same = [o for o in offered if o.sampling == sampling] or [o for o in offered if o.sampling == "444"]
    if not same:
        raise FlashLipsError(f"The encoder cannot take {layout.name}; choose libx264 or another container.")
    enough = [option for option in same if option.depth >= depth]
    return min(enough, key=lambda option: option.depth) if enough else max(same, key=lambda option: option.depth)


def to_picture(frame: Frame, layout: Layout, size: tuple[int, int] | None = None) -> av.VideoFrame:
    """A picture for the encoder, its planes copied from ``frame`` and laid out as ``layout``.

    Args:
        size: (width, height), as much as a pixel larger than the frame: its last column and row are then repeated.
    """
    old, planes = parse_layout(frame.pix_fmt), frame.planes
    is_finer = all(new >= was for new, was in zip(layout.shift, old.shift, strict=True)) and layout.sampling != old.sampling
    stored = Layout(old.sampling if is_finer else layout.sampling, layout.depth)
    if old.sampling != stored.sampling:
        planes = resample_chroma(planes, old, stored.sampling)
    planes = change_depth(planes, old.depth, layout.depth)
    picture = av.VideoFrame(*(size or (frame.width, frame.height)), stored.name)
    for source, target in zip(planes, picture.planes, strict=True):
        view = _plane_view(target, source.dtype)[: target.height, : target.width]
        view[: source.shape[0], : source.shape[1]] = source
        view[source.shape[0] :, : source.shape[1]] = source[-1:]
        view[:, source.shape[1] :] = view[:, source.shape[1] - 1 : source.shape[1]]
    return picture.reformat(format=layout.name) if is_finer else picture


def _stored_planes(picture: av.VideoFrame) -> tuple[Planes, Layout]:
    name = picture.format.name
    if match := _GRAY.fullmatch(name):
        return _gray_planes(picture, match)
    match = _PLANAR_YUV.fullmatch(name)
    if match is None:
        return _stored_planes(_repack(picture))
    depth = int(match["depth"] or 8)
    planes = tuple(_samples(plane, depth, match["order"]) for plane in picture.planes[:3])
    sampling = match["sampling"]
    if sampling in _REPEATS:
        sampling, columns, rows = _REPEATS[sampling]
        high = -(-picture.height // (1 + (sampling == "420")))
        wide = -(-picture.width // 2)
        planes = planes[0], *(np.repeat(np.repeat(p, columns, axis=1), rows, axis=0)[:high, :wide] for p in planes[1:])
    return planes, Layout(sampling, depth)


def _gray_planes(picture: av.VideoFrame, match: re.Match[str]) -> tuple[Planes, Layout]:
    depth = int(match["depth"] or 8)
    luma = _samples(picture.planes[0], depth, match["order"])
    chroma = np.full((-(-luma.shape[0] // 2), -(-luma.shape[1] // 2)), 1 << (depth - 1), luma.dtype)
    return (luma, chroma, chroma), Layout("420", depth)


def _repack(picture: av.VideoFrame) -> av.VideoFrame:
    """Semi-planar, packed and RGB pictures as the planar YUV format that holds as much."""
    bits = max(component.bits for component in picture.format.components)
    depth = next((d for d in (8, 10, 12, 16) if d >= bits), 16)
    if picture.format.is_rgb or picture.format.name == "pal8":
        target = Layout("444", 8 if picture.format.name == "pal8" else depth).name
        return picture.reformat(format=target, dst_colorspace="ITU709", dst_color_range="MPEG")
    horizontal, vertical = picture.format.chroma_width(64) < 64, picture.format.chroma_height(64) < 64
    sampling = {(True, True): "420", (True, False): "422", (False, True): "440", (False, False): "444"}[horizontal, vertical]
    return picture.reformat(format=Layout(sampling, depth).name)


def _samples(plane: av.video.plane.VideoPlane, depth: int, order: str | None) -> np.ndarray:
    """A read-only view of one plane, native byte order."""
    kind = np.dtype(np.uint8) if depth == 8 else np.dtype(">u2" if order == "be" else "<u2")
    view = _plane_view(plane, kind)[: plane.height, : plane.width]
    if order == "be":
        view = view.astype(np.uint16)
    view.flags.writeable = False
    return view


def _plane_view(plane: av.video.plane.VideoPlane, kind: np.dtype) -> np.ndarray:
    """All of a plane's memory, padding included, as rows."""
    return np.frombuffer(plane, kind).reshape(plane.height, -1)


def _upright(plane: np.ndarray, orientation: Orientation) -> np.ndarray:
    if orientation.transpose:
        plane = plane.T
    if orientation.flip_rows:
        plane = plane[::-1]
    if orientation.flip_columns:
        plane = plane[:, ::-1]
    return plane if plane.flags.c_contiguous or plane.strides[1] == plane.itemsize else _read_only(np.ascontiguousarray(plane))


def _read_only(plane: np.ndarray) -> np.ndarray:
    plane.flags.writeable = False
    return plane
