"""From what a user names (nothing, a file, a folder, a hub id) to a loaded network."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import nn

from . import checkpoint
from .types import FlashLipsError

# role: {network class: module of models/}; by convention its config class is <network class>Config
NETWORKS = {
    "editor": {"EditorUNet": "editor_unet", "EditorTransformer": "editor_transformer"},
    "lip-encoder": {"LipEncoder": "lip_encoder"},
    "pose-model": {"PoseTransformer": "pose_transformer"},
}


def load_network(role: str, source: str | Path = "bundled", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load an editor, lip encoder or pose model, frozen and in eval mode.

    Args:
        role: "editor", "lip-encoder" or "pose-model".
        source: "bundled", a checkpoint, a folder with ``<role>.safetensors``, or a Hugging Face id of such a folder.
    """
    builders = {name: _builder(name, module) for name, module in NETWORKS[role].items()}
    network = checkpoint.load(find_checkpoint(role, source), role, builders, device, dtype)
    return network.to(memory_format=torch.channels_last) if role != "pose-model" else network


def find_checkpoint(role: str, source: str | Path = "bundled") -> Path:
    """The checkpoint that ``source`` means for this role."""
    path = Path(source).expanduser()
    if str(source) == "bundled":
        return checkpoint.bundled(role)
    if path.is_dir():
        path = path / f"{role}.safetensors"
    elif not path.exists() and not path.suffix and not path.is_absolute() and str(source).count("/") == 1:
        return _download(str(source), f"{role}.safetensors")
    if not path.is_file():
        raise FlashLipsError(f"No {role} at {source}; name a .safetensors file, a folder with {role}.safetensors, or leave it out for the bundled one.")
    return path


def _builder(name: str, module: str) -> checkpoint.Builder:
    def build(fields: dict) -> nn.Module:
        home = importlib.import_module(f".models.{module}", __package__)
        return getattr(home, name)(checkpoint.config_from_dict(getattr(home, f"{name}Config"), fields))

    return build


def _download(hub_id: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, file))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FlashLipsError(f"'{hub_id}' is no folder here and {file} could not be downloaded ({reason}); give a local file.") from error
