"""The networks of a lip-sync, each loaded when it is first needed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import checkpoint
from .audio import AudioEncoder, EmotionEncoder, load_audio_encoder, load_emotion_encoder
from .codec import Codec, load_codec
from .face.detect import Detector
from .loading import (
    CROP_PX,
    ROLES,
    STAGE_1,
    LoadedPart,
    Name,
    bundled_pose_model,
    codec_of_editor,
    find_checkpoint,
    fine_tuned_codec,
    load_network,
    load_tracker,
)
from .models.editor import Editor
from .models.lip_encoder import LipEncoder
from .models.pose_transformer import PoseTransformer
from .types import FlashLipsError, device_of, dtype_for


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
        codec: Codec | Name | None = None,
        editor: Editor | LoadedPart | Name = "bundled",
        pose_model: PoseTransformer | LoadedPart | Name = "bundled",
        audio_encoder: AudioEncoder | Name = "bundled",
        lip_encoder: LipEncoder | LoadedPart | Name = "bundled",
        detector: Detector | Callable[[], Detector] | Name | None = None,
        emotion_encoder: EmotionEncoder | Name | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        crop_px: int | None = None,
    ) -> None:
        self.device = device_of(device)
        self.dtype = dtype or dtype_for(self.device)
        self._given: dict[str, Any] = {"codec": codec, "editor": editor, "pose-model": pose_model, "audio-encoder": audio_encoder}
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
            found = {name: path for name, path in names.items() if path.is_file()}
            if not found:
                wanted = ", ".join(path.name for path in names.values())
                raise FlashLipsError(f"No model in {folder}: there is none of {wanted}; name another folder, or leave it out.")
            parts = found | parts
        return cls(**parts)

    def load_all(self) -> None:
        """Load every part now; each is otherwise loaded when it is first needed."""
        for name in ("codec", "editor", "lip_encoder", "pose_model", "audio_encoder", "emotion_encoder", "detector"):
            getattr(self, name)

    @functools.cached_property
    def codec(self) -> Codec:
        """Pixels to latents and back."""
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
    def editor(self) -> Editor:
        """Latents, references and a pose to edited latents."""
        return self._network("editor", self.dtype)

    @functools.cached_property
    def lip_encoder(self) -> LipEncoder:
        """Crops to lip poses."""
        return self._network("lip-encoder", self.dtype)

    @functools.cached_property
    def pose_model(self) -> PoseTransformer:
        """Audio features to lip poses; "bundled" is the one that listens to the audio encoder."""
        bundled = checkpoint.BUNDLED[0]
        if self._given["pose-model"] == bundled and self._given["audio-encoder"] != bundled:
            return load_network("pose-model", bundled_pose_model(self.audio_encoder.kind), self.device)
        return self._network("pose-model", torch.float32)

    @functools.cached_property
    def audio_encoder(self) -> AudioEncoder:
        """16 kHz samples to audio features."""
        given = self._given["audio-encoder"]
        return load_audio_encoder(given, device=self.device) if self._is_name("audio-encoder") else given

    @functools.cached_property
    def emotion_encoder(self) -> EmotionEncoder | None:
        """16 kHz samples to an emotion embedding, or None."""
        given = self._given["emotion-encoder"]
        return load_emotion_encoder(given, self.device) if self._is_name("emotion-encoder") else given

    @functools.cached_property
    def detector(self) -> Detector:
        """Pictures to faces."""
        given = self._given["detector"]
        if given is None or self._is_name("detector"):
            return load_tracker(given, self.device)
        return given() if callable(given) else given

    @functools.cached_property
    def crop_px(self) -> int:
        """Side of the square that the editor sees."""
        return self._crop_px or int(self._editor_notes.get("crop_px", CROP_PX))

    @property
    def is_usual_crop(self) -> bool:
        """Whether the editor sees crops of the size that it was trained on, as far as its file says."""
        return self._crop_px is None or self._crop_px == int(self._editor_notes.get("crop_px", CROP_PX))

    @property
    def is_refined(self) -> bool:
        """Whether the editor's file says that it sees the mouth which it changes; not known of a bare network."""
        return not self.is_stage_1 and (self._is_name("editor") or isinstance(self._given["editor"], LoadedPart))

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

    def _network(self, role: str, dtype: torch.dtype) -> Any:
        given = self._given[role]
        if self._is_name(role):
            return load_network(role, given, self.device, dtype)
        return given.network if isinstance(given, LoadedPart) else given
