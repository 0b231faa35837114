"""Loaders: the bundled networks, files of models/flashlips, and public networks that the user asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..flashlips_core.downloads import AUDIO_ENCODERS, AUDIO_FILES, CODEC_FILES, CODECS, fetch
from ..flashlips_core.types import FlashLipsError
from . import bridge_models as models
from . import progress
from .sockets import EDITOR_TOOLTIP, Editor, LipEncoder, PoseModel, download_input

CATEGORY = "FlashLips/load"
FILES_TOOLTIP = "Bundled = the small one that comes with FlashLips; others are .safetensors files in models/flashlips."
DOWNLOAD = (
    "On = fetch a public network (names with a slash) from Hugging Face into models/flashlips, unless it is there. "
    "Off = never use the network."
)
AUDIO_KINDS = (models.FOLDER, "audio_encoders")
LOG_MEL = "log-mel"


class NetworkLoader(io.ComfyNode):
    """What the loaders of single networks share; each says which network it is."""

    NODE_ID: str
    NAME: str
    ROLE: str
    OUTPUT: io.Output
    DESCRIPTION_TEXT: str
    TOOLTIP = FILES_TOOLTIP

    @classmethod
    def define_schema(cls) -> io.Schema:
        options = models.model_files(cls.ROLE)
        name = io.Combo.Input("name", options=options, default=models.BUNDLED, optional=True, tooltip=cls.TOOLTIP)
        about = {"display_name": cls.NAME, "category": CATEGORY, "description": cls.DESCRIPTION_TEXT}
        return io.Schema(node_id=cls.NODE_ID, **about, inputs=[name], outputs=[cls.OUTPUT])

    @classmethod
    def fingerprint_inputs(cls, name: str = models.BUNDLED) -> str:
        return models.fingerprint(name)

    @classmethod
    def execute(cls, name: str = models.BUNDLED) -> io.NodeOutput:
        return io.NodeOutput(models.load_network(cls.ROLE, name))


class LoadEditor(NetworkLoader):
    """The network that changes the lips."""

    NODE_ID, NAME, ROLE = "FlashLipsLoadEditor", "Load Lip Editor", "editor"
    OUTPUT = Editor.Output(display_name="editor", tooltip="For Lip-Sync Video and the other edits.")
    DESCRIPTION_TEXT = "Loads a lip editor: the network that gives a face crop another mouth."
    TOOLTIP = EDITOR_TOOLTIP


class LoadLipEncoder(NetworkLoader):
    """The network that reads a lip pose from a crop."""

    NODE_ID, NAME, ROLE = "FlashLipsLoadLipEncoder", "Load Lip Encoder", "lip-encoder"
    OUTPUT = LipEncoder.Output(display_name="lip_encoder", tooltip="For Encode Lip Poses, and for the edits.")
    DESCRIPTION_TEXT = "Loads a lip encoder: the network that reads the 12 numbers of a lip pose from a face crop."


class LoadPoseModel(NetworkLoader):
    """The network that turns a voice into lip poses."""

    NODE_ID, NAME, ROLE = "FlashLipsLoadPoseModel", "Load Pose Model", "pose-model"
    OUTPUT = PoseModel.Output(display_name="pose_model", tooltip="For Sample Lip Poses.")
    DESCRIPTION_TEXT = (
        "Loads a pose model: the network that turns a voice into lip poses. Each listens to one kind of audio encoder; "
        "bundled becomes the one made for Whisper tiny when that has listened."
    )


class LoadCodec(io.ComfyNode):
    """Between pixels and latents."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsLoadCodec",
            display_name="Load Codec",
            category=CATEGORY,
            description="Loads what turns face crops into SDXL latents and back. It is an ordinary VAE: ComfyUI's VAE Encode and "
            "VAE Decode take it, and a VAE in SDXL's latent space from ComfyUI's Load VAE can be used in its place.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=models.codec_names(),
                    default=models.BUNDLED,
                    optional=True,
                    tooltip="Bundled = small, made for faces; bundled-fast belongs to the editor of that name. SDXL's own VAE is "
                    "the sharpest and by far the slowest, taesdxl lies between. Files of models/vae are listed where their name "
                    "says XL.",
                ),
                download_input(DOWNLOAD),
            ],
            outputs=[io.Vae.Output(display_name="vae", tooltip="The codec; an ordinary VAE of SDXL's latent space.")],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str = models.BUNDLED, download: bool = False) -> str:
        return models.fingerprint(name, "vae")

    @classmethod
    def execute(cls, name: str = models.BUNDLED, download: bool = False) -> io.NodeOutput:
        if name in models.BUNDLED_NAMES:
            return io.NodeOutput(models.load_vae(name))
        if name in CODECS:
            return io.NodeOutput(models.load_vae(_fetched(name, CODECS, CODEC_FILES, download)))
        folder = models.model_folder(name)
        if folder is not None:
            return io.NodeOutput(models.load_vae(folder))
        if name in models.model_files("codec"):
            return io.NodeOutput(models.load_vae(models.model_path(name)))
        if name not in models.codec_names():
            raise FlashLipsError(f"There is no codec '{name}' any more; refresh the node list (R) and choose another.")
        return io.NodeOutput(models.load_core_vae(name))


class LoadAudioEncoder(io.ComfyNode):
    """What listens to the voice."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        local = models.model_choices("audio-encoder", AUDIO_KINDS)
        return io.Schema(
            node_id="FlashLipsLoadAudioEncoder",
            display_name="Load Audio Encoder (FlashLips)",
            category=CATEGORY,
            description="Loads what listens to the voice. A pose model works with the encoder that it was trained with: the "
            "bundled one with the bundled one.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=list(dict.fromkeys([models.BUNDLED, LOG_MEL, *local, *AUDIO_ENCODERS])),
                    default=models.BUNDLED,
                    optional=True,
                    tooltip="Bundled, log-mel (no network), wav2vec 2.0, HuBERT, WavLM or Whisper: folders in Hugging Face's "
                    "format in models/flashlips or models/audio_encoders. Names with a slash are public networks; see download.",
                ),
                io.Int.Input(
                    "layer",
                    default=-1,
                    min=-1,
                    max=64,
                    optional=True,
                    advanced=True,
                    tooltip="Hidden layer of such a network: 0 = before the first, higher = later, -1 = the last, of Whisper "
                    "tiny the 2nd, which the bundled pose model for it listens to. The bundled encoder and log-mel have no "
                    "layers to choose from.",
                ),
                download_input(DOWNLOAD),
            ],
            outputs=[io.AudioEncoder.Output(display_name="audio_encoder", tooltip="For Encode Audio.")],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str = models.BUNDLED, layer: int = -1, download: bool = False) -> str:
        return f"{models.fingerprint(name, 'audio_encoders')}:{layer}"

    @classmethod
    def execute(cls, name: str = models.BUNDLED, layer: int = -1, download: bool = False) -> io.NodeOutput:
        source: Any = name
        if name in AUDIO_ENCODERS:
            source = _fetched(name, AUDIO_ENCODERS, AUDIO_FILES, download)
        elif name not in (models.BUNDLED, LOG_MEL):
            source = models.model_folder(name, AUDIO_KINDS) or models.model_path(name)
        return io.NodeOutput(models.load_audio_encoder(source, None if layer < 0 else layer))


def _fetched(hub_id: str, known: dict[str, str], files: tuple[str, ...], is_allowed: bool) -> Path:
    """The local folder of a public network, downloaded where that is allowed and needed."""
    folder = models.model_folder(hub_id.rpartition("/")[2], AUDIO_KINDS)
    if folder is not None and all((folder / file).is_file() for file in files):
        return folder
    if not is_allowed:
        raise FlashLipsError(
            f"'{hub_id}' is not in models/flashlips yet; switch 'download' on to fetch it, or choose another that is there."
        )
    with progress.running(f"Fetching {hub_id}") as run:
        return fetch(hub_id, models.model_folders()[0], files, known[hub_id], run.progress)


NODES = [LoadEditor, LoadLipEncoder, LoadPoseModel, LoadCodec, LoadAudioEncoder]
