"""One run of a stage: where it reads and writes, and with which settings."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from .. import checkpoint
from ..dataset.store import CropStore, has_store
from ..types import FlashLipsError, Progress
from .batches.material import HEADS, Material, open_material
from .loop.processes import is_first_process, own_device
from .loop.settings import values_of
from .loop.trainer import TrainConfig

log = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T", bound=TrainConfig)
N = TypeVar("N")


@dataclass(frozen=True)
class Run(Generic[S]):
    """Where a stage reads and writes. Each stage finds in ``folder`` what earlier ones left there."""

    data: Path
    weights: Path  # frozen teachers: TAESDXL, Whisper tiny
    folder: Path
    settings: S
    progress: Progress | None = None
    preset: str = "mini"

    @functools.cached_property
    def material(self) -> Material:
        """What ``data`` holds."""
        return open_material(self.data, self.folder)

    @property
    def device(self) -> str:
        """Where all of a stage computes, judges too: the device that is named, else this process's own card, or the CPU."""
        return getattr(self.settings, "device", None) or own_device()

    def config(self: Run[T], name: str) -> T:
        """The settings as the loop takes them, with their folder ``name`` and their device."""
        return replace(self.settings, run_dir=str(self.folder / name), device=self.device)

    def save(self, network: nn.Module, role: str, file: str | None = None, **notes: Any) -> Path:
        """Write a checkpoint with its training notes, named after its role unless ``file`` says otherwise."""
        path = self.folder / f"{file or role}.safetensors"
        made_by = {"preset": self.preset, "options": values_of(self.settings), "torch": torch.__version__}
        licence = f"{self.material.licence}; {self.material.credit}"
        if is_first_process():
            checkpoint.save(network, path, role, {"version": "0.1.0", "licence": licence} | made_by | notes)
        return path

    def own(self, role: str, named: str | None = None) -> str:
        """A checkpoint that a setting names, or the run's own file of that role."""
        return named or str(self.folder / f"{role}.safetensors")

    def own_or_bundled(self, role: str) -> str:
        """The run's network, or the bundled one where its stage was left out."""
        path = self.folder / f"{role}.safetensors"
        if path.is_file():
            return str(path)
        log.warning("No %s in %s: the bundled one is used.", path.name, self.folder)
        return "bundled"

    @property
    def has_heads(self) -> bool:
        """Whether the stage "heads" has stored rendered ones."""
        return has_store(self.folder / HEADS)

    def face_stores(self) -> list[CropStore]:
        """Training faces, and the rendered heads where they exist."""
        stores = [self.material.faces(name) for name in self.material.face_stores]
        return stores + ([CropStore(self.folder / HEADS)] if self.has_heads else [])


def named(what: str, known: Mapping[str, N], name: str) -> N:
    """The one of that name, which a setting ``network`` chose."""
    if name not in known:
        raise FlashLipsError(f"No {what} is called '{name}'; choose network={' or '.join(known)}.")
    return known[name]
