"""Tracks and poses as small files beside a video: safetensors and JSON, so that a re-dub need not compute them again."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from .checkpoint import read_tensors, write_tensors
from .types import FaceTrack, FlashLipsError, LipPoses

VERSION = 1


def save_track(track: FaceTrack, path: str | Path) -> None:
    """Write a face track."""
    tensors = {name: torch.from_numpy(values).contiguous() for name, values in track.arrays().items()}
    _write(path, "track", tensors, {"width": track.width, "height": track.height, "fps": str(track.fps)})


def load_track(path: str | Path) -> FaceTrack:
    """Read what :func:`save_track` wrote."""
    tensors, fields = _read(path, "track")
    arrays = {name: value.numpy() for name, value in tensors.items()}
    return FaceTrack(**arrays, width=fields["width"], height=fields["height"], fps=Fraction(fields["fps"]))


def save_poses(poses: LipPoses, path: str | Path) -> None:
    """Write lip poses."""
    _write(path, "poses", {"values": poses.values.contiguous()}, {"fps": str(poses.fps)})


def load_poses(path: str | Path) -> LipPoses:
    """Read what :func:`save_poses` wrote."""
    tensors, fields = _read(path, "poses")
    return LipPoses(tensors["values"], Fraction(fields["fps"]))


def _write(path: str | Path, role: str, tensors: dict[str, Tensor], fields: dict[str, Any]) -> None:
    header = {"format": "flashlips", "version": VERSION, "role": role, "config": fields, "notes": {}}
    try:
        write_tensors(path, tensors, header)
    except (OSError, SafetensorError) as error:
        raise FlashLipsError(f"Cannot write {path} ({error}); choose a folder that exists and may be written.") from error


def _read(path: str | Path, role: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, header = read_tensors(path)
    if header["role"] != role:
        raise FlashLipsError(f"{Path(path).name} holds '{header['role']}', but '{role}' is needed here; choose another file.")
    return tensors, header["config"]
