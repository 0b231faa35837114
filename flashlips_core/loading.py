"""From what a user names (nothing, a file, a folder, a hub id) to a loaded network."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import checkpoint
from .types import FlashLipsError, device_of, dtype_for

log = logging.getLogger(__name__)

CROP_PX = 256  # where the editor's checkpoint does not say what it was trained on

# role: {network class: module of models/}; by convention its config class is <network class>Config
NETWORKS = {
    "editor": {"EditorUNet": "editor_unet", "EditorTransformer": "editor_transformer"},
    "lip-encoder": {"LipEncoder": "lip_encoder"},
    "pose-model": {"PoseTransformer": "pose_transformer"},
    "landmarks": {"LandmarkNet": "landmark_net"},
}
CODEC_FILE = "codec_file"  # note of a fine-tuned editor: the fine-tuned codec that it learnt through, a file beside its own
STAGE_1 = "editor-masked"  # role of an editor before its mask-free refinement
ROLES = ("codec", "editor", "pose-model", "audio-encoder", "lip-encoder")


def load_network(
    role: str, source: str | Path = "bundled", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Load an editor, lip encoder, pose model or landmark network, frozen and in eval mode.

    Args:
        role: "editor", "lip-encoder", "pose-model" or "landmarks".
        source: "bundled", another of ``checkpoint.BUNDLED`` (editors), a checkpoint, a folder with ``<role>.safetensors``, or
            a Hugging Face id of such a folder.
    """
    builders = {name: _builder(name, module) for name, module in NETWORKS[role].items()}
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


def load_tracker(weights: str | Path | None = None, device: str | torch.device | None = None, download: bool = False) -> Any:
    """A face detector, with the bundled landmark network to follow faces by.

    YuNet where its weights are given, found (see :func:`face.detect.load_detector`) or may be downloaded, since it finds small
    faces better; else cascades and the landmark network, which need nothing else.
    """
    from .face.cascades import LandmarkDetector
    from .face.detect import found_weights, load_detector
    from .face.following import Follower
    from .face.landmarks import FaceLandmarker

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
        if fields.get("model_type") in ("wav2vec2", "hubert", "wavlm", "whisper"):
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
        message = f"'{hub_id}' is no folder here and {file} could not be downloaded ({reason}); give a local file."
        raise FlashLipsError(message) from error


class Parts:
    """The networks of a lip-sync. Every part may be an object, or a name to load it by when it is first needed.

    Args:
        editor, pose_model, audio_encoder, lip_encoder: "bundled", a path, a hub id, or the loaded part. A network that comes as
            a :class:`LoadedPart` keeps what its file says of it.
        codec: The same; None is the one that the editor was trained with: bundled, or a fine-tuned one beside its file.
        detector: weights of the face detector, an object with its ``detect``, or a function that gives one when it is first
            needed; None for the default one.
        emotion_encoder: path, hub id or object, for pose models that take an audio-emotion embedding; None goes without.
        device: None picks CUDA, MPS or the CPU.
        dtype: of codec, editor and lip encoder; None picks by device.
        crop_px: side of the square that the editor sees; None takes what the editor was trained on.
    """

    def __init__(
        self,
        codec: Any = None,
        editor: Any = "bundled",
        pose_model: Any = "bundled",
        audio_encoder: Any = "bundled",
        lip_encoder: Any = "bundled",
        detector: Any = None,
        emotion_encoder: Any = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        crop_px: int | None = None,
    ) -> None:
        self.device = device_of(device)
        self.dtype = dtype or dtype_for(self.device)
        self._given = {"codec": codec, "editor": editor, "pose-model": pose_model, "audio-encoder": audio_encoder}
        self._given |= {"lip-encoder": lip_encoder, "detector": detector, "emotion-encoder": emotion_encoder}
        self._crop_px = crop_px

    @classmethod
    def load(cls, folder: str | Path | None = None, **parts: Any) -> Parts:
        """The bundled model, or the ``<role>.safetensors`` files of a folder with bundled parts for what it lacks.

        Args:
            parts: As for the class; they win over the folder.
        """
        if folder is not None:
            folder = Path(folder).expanduser()
            if not folder.is_dir():
                raise FlashLipsError(f"No model folder at {folder}; name one with <role>.safetensors files, or leave it out.")
            names = {role.replace("-", "_"): folder / f"{role}.safetensors" for role in ROLES}
            parts = {name: path for name, path in names.items() if path.is_file()} | parts
        return cls(**parts)

    def load_all(self) -> None:
        """Load every part now; each is otherwise loaded when it is first needed."""
        for name in ("codec", "editor", "lip_encoder", "pose_model", "audio_encoder", "emotion_encoder", "detector"):
            getattr(self, name)

    @functools.cached_property
    def codec(self) -> Any:
        """Pixels to latents and back."""
        from .codec import load_codec

        source = self._editors_codec() if self._given["codec"] is None else self._given["codec"]
        return load_codec(source, self.device, self.dtype) if isinstance(source, (str, Path)) else source

    def _editors_codec(self) -> str | Path:
        """The codec that belongs to the editor."""
        editor = self._given["editor"]
        if isinstance(editor, LoadedPart):
            return editor.codec_source
        if not self._is_name("editor"):
            return checkpoint.BUNDLED[0]
        path = find_checkpoint("editor", editor)
        notes = checkpoint.info(path).notes
        return fine_tuned_codec(path, notes) or codec_of_editor(path.stem, notes)

    @functools.cached_property
    def editor(self) -> nn.Module:
        """Latents, references and a pose to edited latents."""
        return self._network("editor", self.dtype)

    @functools.cached_property
    def lip_encoder(self) -> nn.Module:
        """Crops to lip poses."""
        return self._network("lip-encoder", self.dtype)

    @functools.cached_property
    def pose_model(self) -> nn.Module:
        """Audio features to lip poses; "bundled" is the one that listens to the audio encoder."""
        bundled = checkpoint.BUNDLED[0]
        if self._given["pose-model"] == bundled and self._given["audio-encoder"] != bundled:
            return load_network("pose-model", bundled_pose_model(self.audio_encoder.kind), self.device)
        return self._network("pose-model", torch.float32)

    @functools.cached_property
    def audio_encoder(self) -> Any:
        """16 kHz samples to audio features."""
        from .audio import load_audio_encoder

        given = self._given["audio-encoder"]
        return load_audio_encoder(given, device=self.device) if self._is_name("audio-encoder") else given

    @functools.cached_property
    def emotion_encoder(self) -> Any:
        """16 kHz samples to an emotion embedding, or None."""
        from .audio import load_emotion_encoder

        given = self._given["emotion-encoder"]
        return load_emotion_encoder(given, self.device) if self._is_name("emotion-encoder") else given

    @functools.cached_property
    def detector(self) -> Any:
        """Pictures to faces."""
        given = self._given["detector"]
        if given is None or self._is_name("detector"):
            return load_tracker(given, self.device)
        return given() if callable(given) else given

    @functools.cached_property
    def crop_px(self) -> int:
        """Side of the square that the editor sees."""
        return self._crop_px or int(self._editor_notes.get("crop_px", CROP_PX))

    @functools.cached_property
    def _editor_notes(self) -> dict[str, Any]:
        if isinstance(self._given["editor"], LoadedPart):
            return self._given["editor"].notes
        return checkpoint.info(find_checkpoint("editor", self._given["editor"])).notes if self._is_name("editor") else {}

    @functools.cached_property
    def is_stage_1(self) -> bool:
        """Whether the editor's file says that it has seen masked frames only."""
        if isinstance(self._given["editor"], LoadedPart):
            return self._given["editor"].is_stage_1
        return self._is_name("editor") and checkpoint.info(find_checkpoint("editor", self._given["editor"])).role == STAGE_1

    def _is_name(self, role: str) -> bool:
        return isinstance(self._given[role], (str, Path))

    def _network(self, role: str, dtype: torch.dtype) -> nn.Module:
        given = self._given[role]
        if self._is_name(role):
            return load_network(role, given, self.device, dtype)
        return given.network if isinstance(given, LoadedPart) else given
