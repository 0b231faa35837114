"""Tracks and poses as small files beside a video: safetensors and JSON, so that a re-dub need not compute them again."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import read_header, read_tensors, write_tensors
from .types import FaceTrack, FlashLipsError, LipPoses

VERSION = 1
MEDIA_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .flv .wmv .mpg .mpeg .ts .mts .m2ts .mxf .dv .ogv .3gp .gif .webp .png .jpg .jpeg .bmp .tif "
    ".tiff .exr .wav .mp3 .m4a .aac .flac .ogg .opus .wma .aif .aiff .ac3 .amr .srt .vtt".split()
)


def save_track(track: FaceTrack, path: str | Path) -> None:
    """Write a face track."""
    tensors = {name: torch.from_numpy(values).contiguous() for name, values in track.arrays().items()}
    _write(path, "track", tensors, {"width": track.width, "height": track.height, "fps": str(track.fps)})


def load_track(path: str | Path) -> FaceTrack:
    """Read what :func:`save_track` wrote. Raises FlashLipsError for anything else."""
    tensors, fields = _read(path, "track")
    arrays = {name: value.numpy() for name, value in tensors.items()}
    try:
        return FaceTrack(**arrays, width=int(fields["width"]), height=int(fields["height"]), fps=_rate(fields))
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise _not_whole(path, error) from error


def save_poses(poses: LipPoses, path: str | Path) -> None:
    """Write lip poses."""
    _write(path, "poses", {"values": poses.values.contiguous()}, {"fps": str(poses.fps)})


def load_poses(path: str | Path) -> LipPoses:
    """Read what :func:`save_poses` wrote. Raises FlashLipsError for anything else."""
    tensors, fields = _read(path, "poses")
    try:
        return LipPoses(tensors["values"].float(), _rate(fields))
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise _not_whole(path, error) from error


def check_sidecar(out: str | Path, role: str) -> None:
    """Refuse a name that media files have, and a file that is there and is something else than a ``role``."""
    out = Path(out)
    if out.suffix.lower() in MEDIA_SUFFIXES:
        raise FlashLipsError(f"Cannot write {role} as '{out.name}': that is a media file's name; choose {out.stem}.safetensors.")
    if out.exists():
        try:
            is_other = read_header(out)["role"] != role
        except FlashLipsError:
            is_other = True
        if is_other:
            raise FlashLipsError(f"{out} is there and is no {role} file, which it would destroy; choose another name.")


def _rate(fields: dict[str, Any]) -> Fraction:
    rate = Fraction(fields["fps"])
    if rate <= 0:
        raise ValueError(f"{rate} frames per second")
    return rate


def _not_whole(path: str | Path, error: Exception) -> FlashLipsError:
    return FlashLipsError(f"{Path(path).name} is damaged or was made by other software ({error}); make it again.")


def _write(path: str | Path, role: str, tensors: dict[str, Tensor], fields: dict[str, Any]) -> None:
    check_sidecar(path, role)
    header = {"format": "flashlips", "version": VERSION, "role": role, "config": fields, "notes": {}}
    write_tensors(path, tensors, header)


def _read(path: str | Path, role: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, header = read_tensors(path)
    if header["role"] != role:
        raise FlashLipsError(f"{Path(path).name} holds '{header['role']}', but '{role}' is needed here; choose another file.")
    return tensors, header["config"]
