"""Pictures to look at: contact sheets, side-by-side video frames, the plot of sound against motion.

T frames. Images are (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..types import ClipInfo, Frame, LipPoses

GAP_PX = 4
LABEL_PX = 14


def contact_sheet(rows: Mapping[str, Sequence[np.ndarray]], path: str | Path, scale: int = 1) -> Path:
    """Write labelled rows of images as one PNG; ``scale`` repeats each pixel, so that no detail is invented or lost."""
    from PIL import Image, ImageDraw

    images = {label: [np.repeat(np.repeat(i, scale, 0), scale, 1) for i in row] for label, row in rows.items()}
    height = GAP_PX + sum(LABEL_PX + max(i.shape[0] for i in row) + GAP_PX for row in images.values())
    width = GAP_PX + max(sum(i.shape[1] + GAP_PX for i in row) for row in images.values())
    sheet = Image.new("RGB", (width, height), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    top = GAP_PX
    for label, row in images.items():
        draw.text((GAP_PX, top), label, fill=(230, 230, 230))
        left, top = GAP_PX, top + LABEL_PX
        for image in row:
            sheet.paste(Image.fromarray(np.ascontiguousarray(image)), (left, top))
            left += image.shape[1] + GAP_PX
        top += max(i.shape[0] for i in row) + GAP_PX
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def cut_pixels(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The whole pixels of a box (xyxy), the same size whatever the box's fractions; parts outside the image are black."""
    width, height = (max(round(float(box[i + 2] - box[i])), 1) for i in (0, 1))
    left, top = round(float(box[0])), round(float(box[1]))
    result = np.zeros((height, width, 3), np.uint8)
    rows = slice(max(top, 0), min(top + height, image.shape[0]))
    columns = slice(max(left, 0), min(left + width, image.shape[1]))
    if rows.start < rows.stop and columns.start < columns.stop:
        result[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = image[rows, columns]
    return result


def mouth_view(crop_box: Sequence[float]) -> np.ndarray:
    """The part of the editor's square that shows mouth and chin (xyxy frame pixels)."""
    left, top, right, bottom = (float(v) for v in crop_box)
    side = right - left
    # shares of the crop: the mouth lies at (0.5, 0.625), the closed chin at 0.84
    return np.array([left + 0.24 * side, top + 0.42 * side, right - 0.24 * side, bottom - 0.1 * side])


def pick_frames(paths: Mapping[str, str | Path], indices: Sequence[int]) -> dict[str, list[np.ndarray]]:
    """The frames at ``indices`` of several videos, decoded one clip after the other; a clip that ends sooner repeats its last."""
    wanted, rows = sorted(set(indices)), {}
    for label, path in paths.items():
        found: dict[int, np.ndarray] = {}
        for index, image in enumerate(_decode(path)):
            if index in wanted:
                found[index] = image
            if index >= wanted[-1]:
                break
        last = max(found, default=None)
        rows[label] = [found.get(i, found[last]) for i in indices] if last is not None else []
    return rows


def write_mouth_sheet(
    path: str | Path, videos: Mapping[str, str | Path], crop_boxes: np.ndarray, num_columns: int = 10, scale: int = 2
) -> Path:
    """Mouths of several versions of one clip at full resolution, one row per version. ``crop_boxes`` (T, 4) of the clip."""
    indices = spread(len(crop_boxes), num_columns)
    frames = pick_frames(videos, indices)
    views = [mouth_view(crop_boxes[i]) for i in indices]
    rows = {label: [cut_pixels(f, v) for f, v in zip(row, views, strict=True)] for label, row in frames.items() if row}
    return contact_sheet(rows, path, scale)


def spread(num_frames: int, count: int) -> list[int]:
    """``count`` frame indices, evenly spread and away from the ends."""
    return sorted({int((i + 0.5) * num_frames / count) for i in range(min(count, num_frames))})


def side_by_side(left: Iterable[Frame], right: Iterable[Frame]) -> Iterator[Frame]:
    """Two clips of one size and format as one of twice the width, plane by plane, without a colour conversion."""
    for a, b in zip(left, right, strict=False):
        even = a.width - a.width % 2  # an odd left half would put the right half's chroma between two samples
        planes = []
        for plane, (p, q) in enumerate(zip(a.planes, b.planes, strict=True)):
            columns = even >> a.chroma_shift[0] if plane else even
            planes.append(np.concatenate([p[:, :columns], q[:, :columns]], axis=1))
        yield replace(a, planes=tuple(planes))


def side_by_side_info(info: ClipInfo) -> ClipInfo:
    """What :func:`side_by_side` gives for two clips like ``info``."""
    return replace(info, width=2 * (info.width - info.width % 2), rotation=0)


def plot_motion(
    path: str | Path, level_db: np.ndarray, level_rate: float, poses: LipPoses, openings: Mapping[str, np.ndarray], fps: float
) -> Path:
    """Sound level, the 12 pose curves and mouth openings over the same seconds, as a PNG.

    Args:
        level_db: (N,) loudness, ``level_rate`` values per second.
        openings: label -> (T,) curve at ``fps``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    sound, curves, opening = figure.subplots(3, 1, sharex=True, height_ratios=[1, 2, 1])
    sound.fill_between(np.arange(len(level_db)) / level_rate, np.maximum(level_db, -80), -80, color="tab:gray")
    sound.set_ylabel("sound, dB full scale")
    values = poses.values.numpy()
    seconds = np.arange(len(values)) / float(poses.fps)
    for index in range(values.shape[1]):
        curves.plot(seconds, values[:, index] + 4 * index, linewidth=0.9, label=str(index + 1))
    curves.set_yticks([4 * i for i in range(values.shape[1])], [str(i + 1) for i in range(values.shape[1])])
    curves.set_ylabel("lip pose numbers (standardised)")
    for label, curve in openings.items():
        opening.plot(np.arange(len(curve)) / fps, curve, linewidth=1.2, label=label)
    opening.set_ylabel("mouth opening")
    opening.set_xlabel("seconds")
    opening.legend(loc="upper right")
    figure.savefig(path, dpi=110)
    return Path(path)


def _decode(path: str | Path) -> Iterator[np.ndarray]:
    import av

    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")
