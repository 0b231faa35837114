"""The mean of checkpoints that one run led through: ``python -m flashlips_core average A B C --out D``.

Weights along one line of training lie in one valley, and their mean is often better than each (model soups, Wortsman et al. 2022,
arXiv:2203.05482): late weights know the training faces best, early ones strangers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from .. import checkpoint
from ..loading import load_part
from ..models.editor_unet import EditorUNet
from ..types import FlashLipsError


@torch.no_grad()
def average(paths: Sequence[str | Path], out: str | Path) -> None:
    """Write the mean of editors with the last one's notes; U-Nets with fewer blocks than that one are deepened first.

    Raises:
        FlashLipsError: There are fewer than two, or they are not of one kind, size and stage, or not for the same latents.
    """
    if len(paths) < 2:
        raise FlashLipsError("A mean needs two checkpoints or more; name the editors of one run, the newest last.")
    editors = [load_part("editor", path) for path in paths]
    last = editors[-1]
    for editor in editors:
        if (editor.role, editor.crop_px, editor.codec) != (last.role, last.crop_px, last.codec):
            raise FlashLipsError(
                f"{editor.name} was trained in another stage, on other crops or with another codec than {last.name}; "
                "name editors of one run."
            )
    parts = [_like(editor.network, last.network).state_dict() for editor in editors]
    last.network.load_state_dict({name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]})
    checkpoint.save(last.network, out, last.role, last.notes | {"averaged": [editor.name for editor in editors]})


def _like(network: torch.nn.Module, other: torch.nn.Module) -> torch.nn.Module:
    """The network, as deep as the other one."""
    if type(network) is not type(other):
        raise FlashLipsError(f"{type(network).__name__} and {type(other).__name__} have no mean; name editors of one kind.")
    if network.config == other.config:
        return network
    if not isinstance(other, EditorUNet):
        raise FlashLipsError("The editors have different sizes, so there is no mean of them; name editors of one run.")
    deeper = EditorUNet(other.config)
    deeper.start_from(network)
    return deeper
