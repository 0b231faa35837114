"""What is refused before the work starts, each in one sentence that says what to do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .system.files import LONGEST_NAME
from .types import ClipInfo, FaceTrack, FlashLipsError


def check_output(out: str | Path, inputs: Sequence[Any], suffixes: Sequence[str] = (), overwrite: bool = True) -> None:
    """Say before the work what would keep the result from being written, or would destroy an input."""
    out = Path(out)
    if suffixes and out.suffix.lower() not in suffixes:
        raise FlashLipsError(f"Cannot write '{out.name}': the suffix must be one of {', '.join(suffixes)}.")
    if len(os.fsencode(out.name)) > LONGEST_NAME or "\0" in str(out):
        raise FlashLipsError(
            f"Cannot write '{out.name[:40]}...': the name is longer than {LONGEST_NAME} bytes or has forbidden characters; "
            "choose a shorter one."
        )
    if not out.parent.is_dir() or out.is_dir():
        what = f"{out} is a folder" if out.is_dir() else f"there is no folder {out.parent}"
        raise FlashLipsError(f"Cannot write {out}: {what}; name a file in a folder that exists.")
    if not os.access(out.parent, os.W_OK):
        raise FlashLipsError(f"Cannot write into {out.parent}: permission denied; choose another folder for the output.")
    if not out.exists():
        return
    if not out.is_file():
        raise FlashLipsError(f"Cannot write {out}: it is a device or a pipe, not a file; choose another name.")
    for path in inputs:
        if isinstance(path, (str, Path)) and Path(path).exists() and out.samefile(path):
            raise FlashLipsError(f"The output {out} is also an input, which it would destroy; choose another name.")
    if not overwrite:
        raise FlashLipsError(f"{out} exists already; choose another name or allow overwriting.")


def no_face_in(path: str | Path) -> FlashLipsError:
    """The error for a clip that shows nobody."""
    return FlashLipsError(
        f"No face in any frame of {Path(path).name}; pick a clip with a visible face, or lower the detection threshold."
    )


def check_track(track: FaceTrack, clip: ClipInfo) -> None:
    """Refuse a track of a clip of another size or rate, and one that shows nobody."""
    if (track.width, track.height) != (clip.width, clip.height):
        sizes = f"{track.width}x{track.height} pixels, {Path(clip.path).name} has {clip.width}x{clip.height}"
        raise FlashLipsError(f"The track is of a clip of {sizes}; track this file again.")
    if abs(track.fps - clip.fps) * len(track) > track.fps:  # more than a frame apart at the end
        rates = f"{float(track.fps):g} frames per second, {Path(clip.path).name} has {float(clip.fps):g}"
        raise FlashLipsError(f"The track is of a clip of {rates}; track this file again.")
    if not track.present.any():
        raise no_face_in(clip.path)


def check_whole_track(track: FaceTrack, clip: ClipInfo) -> None:
    """Refuse a track of another clip, told by its number of frames too; containers without a count may be a little off."""
    check_track(track, clip)
    if abs(len(track) - clip.num_frames) > max(2, clip.num_frames // 100):
        raise FlashLipsError(
            f"The track has {len(track)} frames, {Path(clip.path).name} has {clip.num_frames}; track this file again."
        )
