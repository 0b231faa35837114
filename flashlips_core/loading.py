"""From what a user names (nothing, a file, a folder, a hub id) to a loaded network."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from . import checkpoint
from .audio.speech_models import ENCODERS
from .face.cascades import LandmarkDetector
from .face.detect import Detector, found_weights, load_detector
from .face.following import Follower
from .face.landmarks import FaceLandmarker
from .models.editor import Editor
from .models.editor_transformer import EditorTransformer, EditorTransformerConfig
from .models.editor_unet import EditorUNet, EditorUNetConfig
from .models.landmark_net import LandmarkNet, LandmarkNetConfig
from .models.lip_encoder import LipEncoder, LipEncoderConfig
from .models.pose_transformer import PoseTransformer, PoseTransformerConfig
from .types import FlashLipsError, device_of

log = logging.getLogger(__name__)

Name = str | Path
"""What a network is loaded by: "bundled", a file, a folder or a hub id."""
Device = torch.device | str

CROP_PX = 256  # where the editor's checkpoint does not say what it was trained on

# role: {network: its config}. A checkpoint names the class, so classes keep their names
NETWORKS: dict[str, dict[type[nn.Module], type]] = {
    "editor": {EditorUNet: EditorUNetConfig, EditorTransformer: EditorTransformerConfig},
    "lip-encoder": {LipEncoder: LipEncoderConfig},
    "pose-model": {PoseTransformer: PoseTransformerConfig},
    "landmarks": {LandmarkNet: LandmarkNetConfig},
}
CODEC_FILE = "codec_file"  # note of a fine-tuned editor: the fine-tuned codec that it learnt through, a file beside its own
STAGE_1 = "editor-masked"  # role of an editor before its mask-free refinement
ROLES = ("codec", "editor", "pose-model", "audio-encoder", "lip-encoder")


@overload
def load_network(role: Literal["editor"], source: Name = ..., device: Device = ..., dtype: torch.dtype = ...) -> Editor: ...
@overload
def load_network(
    role: Literal["lip-encoder"], source: Name = ..., device: Device = ..., dtype: torch.dtype = ...
) -> LipEncoder: ...
@overload
def load_network(
    role: Literal["pose-model"], source: Name = ..., device: Device = ..., dtype: torch.dtype = ...
) -> PoseTransformer: ...
@overload
def load_network(
    role: Literal["landmarks"], source: Name = ..., device: Device = ..., dtype: torch.dtype = ...
) -> LandmarkNet: ...
@overload
def load_network(role: str, source: Name = ..., device: Device = ..., dtype: torch.dtype = ...) -> nn.Module: ...
def load_network(role: str, source: Name = "bundled", device: Device = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load an editor, lip encoder, pose model or landmark network, frozen and in eval mode.

    Args:
        role: "editor", "lip-encoder", "pose-model" or "landmarks".
        source: "bundled", another of ``checkpoint.BUNDLED`` (editors), a checkpoint, a folder with ``<role>.safetensors``, or
            a Hugging Face id of such a folder.
    """
    builders = {network.__name__: _builder(network, config) for network, config in NETWORKS[role].items()}
    path = find_checkpoint(role, source)
    if role == "editor" and checkpoint.info(path).role == STAGE_1:
        role = STAGE_1
    network = checkpoint.load(path, role, builders, device, dtype)
    return network.to(memory_format=torch.channels_last) if role != "pose-model" else network


@dataclass(frozen=True)
class LoadedPart:
    """A loaded network with what its file says of it."""

    network: nn.Module
    role: str
    name: str
    notes: dict[str, Any] = field(default_factory=dict)  # "crop_px", licence, training
    path: Path | None = None  # its file

    @property
    def is_stage_1(self) -> bool:
        """Whether this is an editor that has seen masked frames only."""
        return self.role == STAGE_1

    @property
    def crop_px(self) -> int:
        """Side of the square crops that an editor was trained on."""
        return int(self.notes.get("crop_px", CROP_PX))

    @property
    def codec(self) -> str:
        """Which of the bundled codecs an editor was trained with."""
        return codec_of_editor(self.name, self.notes)

    @property
    def codec_source(self) -> str | Path:
        """What to load an editor's codec by: the fine-tuned one beside its file that it learnt through, or :attr:`codec`."""
        return fine_tuned_codec(self.path, self.notes) or self.codec


def load_part(
    role: str, source: str | Path = "bundled", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedPart:
    """:func:`load_network` that keeps the file's notes."""
    path = find_checkpoint(role, source)
    info = checkpoint.info(path)
    return LoadedPart(load_network(role, path, device, dtype), info.role, path.stem, info.notes, path)


def bundled_pose_model(kind: str) -> Path:
    """The bundled pose model that listens to features of this kind; the default one where none does."""
    files = sorted(checkpoint.BUNDLED_DIR.glob("pose-model*.safetensors"))
    listening = (path for path in files if checkpoint.info(path).config["audio_kind"] == kind)
    return next(listening, checkpoint.bundled("pose-model"))


def load_tracker(weights: str | Path | None = None, device: str | torch.device | None = None, download: bool = False) -> Detector:
    """A face detector, with the bundled landmark network to follow faces by.

    YuNet where its weights are given, found (see :func:`face.detect.load_detector`) or may be downloaded, since it finds small
    faces better; else cascades and the landmark network, which need nothing else.
    """
    device = device_of(device)
    landmarker = FaceLandmarker(load_network("landmarks", "bundled", device), device)
    has_yunet = weights is not None or download or found_weights() is not None
    detector = load_detector(weights, device, download) if has_yunet else LandmarkDetector(landmarker)
    detector.follower = Follower(landmarker)
    return detector


def codec_of_editor(name: str, notes: Mapping[str, Any]) -> str:
    """The bundled codec that an editor works with: its notes say it, or its name where it is bundled itself ("editor-fast")."""
    twin = name.replace("editor", "bundled", 1)
    return notes.get("codec") or (twin if twin in checkpoint.bundled_names("codec") else checkpoint.BUNDLED[0])


def fine_tuned_codec(editor: Path | None, notes: Mapping[str, Any]) -> Path | None:
    """The file of the fine-tuned codec that an editor learnt through, or None; where it is missed a warning says so."""
    if editor is None or CODEC_FILE not in notes:
        return None
    file = editor.parent / Path(notes[CODEC_FILE]).name
    if file.is_file():
        return file
    log.warning("%s learnt through %s, which is not beside it: put it there; the bundled codec is used.", editor.name, file.name)
    return None


def role_of(path: str | Path) -> str | None:
    """What a file is a checkpoint for, by its header; None for anything that is not ours. A stage-1 editor is an "editor"."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return _role_of(str(path), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1024)
def _role_of(path: str, mtime_ns: int, size: int) -> str | None:
    try:
        role = checkpoint.info(path).role
    except (FlashLipsError, KeyError, ValueError):
        return None
    return "editor" if role == STAGE_1 else role


def folder_role(folder: str | Path) -> str | None:
    """What a folder in Hugging Face's format can be used for: "audio-encoder", "codec", or None."""
    folder = Path(folder)
    if all(any(folder.glob(f"taesdxl_{half}*.safetensors")) for half in ("encoder", "decoder")):
        return "codec"
    for config in (folder / "config.json", folder / "vae" / "config.json"):
        try:
            fields = json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(fields, dict):
            continue
        if fields.get("_class_name") in ("AutoencoderKL", "AutoencoderTiny"):
            return "codec"
        if fields.get("model_type") in ENCODERS:
            return "audio-encoder"
    return None


def find_checkpoint(role: str, source: str | Path = "bundled") -> Path:
    """The checkpoint that ``source`` means for this role."""
    path = Path(source).expanduser()
    if str(source) in checkpoint.BUNDLED:
        return checkpoint.bundled(role, str(source))
    if path.is_dir():
        path = path / f"{role}.safetensors"
    elif not path.exists() and not path.suffix and not path.is_absolute() and str(source).count("/") == 1:
        return _download(str(source), f"{role}.safetensors")
    if not path.is_file():
        raise FlashLipsError(f"No {role} at {source}; name a .safetensors file or a folder with {role}.safetensors.")
    return path


def _builder(network: type[nn.Module], config: type) -> checkpoint.Builder:
    return lambda fields: network(checkpoint.config_from_dict(config, fields))


def _download(hub_id: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, file))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"'{hub_id}' is no folder here and {file} could not be downloaded ({reason}); give a local file."
        raise FlashLipsError(message) from error
