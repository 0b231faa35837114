"""Between ComfyUI and the core: model folders, networks on devices, VAE in and out.

This file, ``bridge`` and ``progress`` are the only ones that touch comfy.* and folder_paths.
S samples, C audio channels, h w latent size.
ComfyUI's LATENT is unscaled (B, 4, h, w).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_management as management
import comfy.model_patcher
import comfy.sd
import comfy.taesd.taesd
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ..flashlips_core import LipSync
from ..flashlips_core import audio as core_audio
from ..flashlips_core.audio import encoded_audio, to_mono_16k
from ..flashlips_core.checkpoint import BUNDLED as BUNDLED_NAMES
from ..flashlips_core.checkpoint import bundled_names, info
from ..flashlips_core.codec import CELL_PX, SDXL_SCALE, Codec, UnscaledCodec, load_codec, wrap_vae
from ..flashlips_core.downloads import CODECS, DETECTOR, DETECTOR_FILES, fetch
from ..flashlips_core.face.detect import YUNET_FILES, found_weights
from ..flashlips_core.loading import (
    LoadedPart,
    bundled_pose_model,
    fine_tuned_codec,
    folder_role,
    load_part,
    load_tracker,
    role_of,
)
from ..flashlips_core.types import FlashLipsError, dtype_for
from . import bridge
from .progress import Run

FOLDER = "flashlips"  # of ComfyUI's models folder
BUNDLED = BUNDLED_NAMES[0]
EDIT_BYTES_PER_PIXEL = 4096  # activations of editor and codec in 16 bits, per crop pixel and frame of a batch, generously
TRAIN_BYTES_PER_PIXEL = 2048  # of a training step; up to 1400 are counted (``train.plan --memory``), convolutions use some more
OWN_CODEC = object()  # in place of a VAE: the bundled codec that the editor was trained with
CPU_BATCH = 2  # larger batches are no faster on a CPU, and Cancel waits for the batch under way


# ---- folders ---------------------------------------------------------------------------------------------------------------


def register_folder() -> None:
    """Make models/flashlips known, beside what extra_model_paths.yaml names; called once, when the pack is loaded."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    folder_paths.folder_names_and_paths[FOLDER][1].add(".safetensors")


def model_folders(kind: str = FOLDER) -> list[Path]:
    """The folders that ComfyUI searches for a kind of model, in its order; the first is where downloads go."""
    return [Path(folder) for folder in folder_paths.get_folder_paths(kind)]


def model_files(role: str) -> list[str]:
    """Names for a combo: the bundled ones, then the files of models/flashlips whose header has this role."""
    paths = {name: folder_paths.get_full_path(FOLDER, name) for name in folder_paths.get_filename_list(FOLDER)}
    own = (name for name, path in paths.items() if path is not None and role_of(path) == role)  # None: a dead link
    return [*bundled_names(role), *own]


def model_choices(role: str, kinds: tuple[str, ...] = (FOLDER,)) -> list[str]:
    """:func:`model_files`, then the folders of these kinds that hold a network in Hugging Face's format for this role."""
    folders = [path for kind in kinds for root in model_folders(kind) if root.is_dir() for path in sorted(root.iterdir())]
    return list(dict.fromkeys([*model_files(role), *(path.name for path in folders if folder_role(path) == role)]))


def model_folder(name: str, kinds: tuple[str, ...] = (FOLDER,)) -> Path | None:
    """The folder of this name that ComfyUI finds first, or None."""
    places = (root / name for kind in kinds for root in model_folders(kind))
    return next((path for path in places if path.is_dir()), None)


def fingerprint(name: str | None, *kinds: str) -> str:
    """Changes when the file or folder behind a combo's name does; None is a name that comes over a wire."""
    kinds = (FOLDER, *kinds)
    paths = (folder_paths.get_full_path(kind, name) for kind in kinds if name is not None)
    path = next((Path(path) for path in paths if path is not None), None)
    if path is None and name is not None:
        path = model_folder(name, kinds)
    return str(name) if path is None else _stamp(path)


def editor_fingerprint(name: str) -> str:
    """Changes when an editor's file does, or the fine-tuned codec's beside it."""
    path = folder_paths.get_full_path(FOLDER, name)  # None for a bundled one
    if path is None or role_of(path) is None:
        return fingerprint(name)
    codec = fine_tuned_codec(Path(path), info(path).notes)
    return fingerprint(name) + ("" if codec is None else f":{_stamp(codec)}")


def detector_fingerprint() -> str:
    """Changes when other weights of the face detector are found: the same clip is then tracked anew."""
    path = _detector_weights() or found_weights()
    return "" if path is None else _stamp(Path(path))


def _stamp(path: Path) -> str:
    """Changes when a file, or a file of a folder, does."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return "|".join(f"{file}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)


def model_path(name: str, kind: str = FOLDER) -> Path:
    """The file behind a combo's name."""
    found = folder_paths.get_full_path(kind, name)
    if found is None:
        raise FlashLipsError(
            f"There is no '{name}' in models/{kind} any more; put it there, or refresh the node list (R) and choose another."
        )
    return Path(found)


def new_model_path(name: str) -> Path:
    """Where a new checkpoint of this name goes: the first folder of models/flashlips."""
    name = name.strip().removesuffix(".safetensors")
    if not name or name.startswith(".") or any(sign in name for sign in '/\\:*?"<>|'):
        raise FlashLipsError(f"'{name}' cannot be a file's name; use letters, digits and _ only.")
    folder = model_folders()[0]
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.safetensors"


# ---- networks ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedNetwork(LoadedPart):
    """A network of ours, and the patcher by which ComfyUI moves it to the device and away."""

    patcher: Any = None


def device() -> torch.device:
    """Where ComfyUI computes."""
    return management.get_torch_device()


def batch_size(wanted: int) -> int:
    """Frames edited at once on this device."""
    return min(wanted, CPU_BATCH) if device().type == "cpu" else wanted


def load_network(role: str, name: str) -> LoadedNetwork:
    """An editor, lip encoder or pose model by its name in a combo; it stays off the device until :func:`on_device`."""
    source = name if name in BUNDLED_NAMES else model_path(name)
    dtype = torch.float32 if role == "pose-model" else dtype_for(device())
    part = load_part(role, source, management.unet_offload_device(), dtype)
    return LoadedNetwork(part.network, part.role, name, part.notes, part.path, patcher_for(part.network))


def listening(part: LoadedNetwork, kind: str) -> LoadedNetwork:
    """A pose model for features of this kind: the bundled one is exchanged for the bundled one that listens to them."""
    if part.name != BUNDLED or part.network.config.audio_kind == kind:
        return part
    other = load_part("pose-model", bundled_pose_model(kind), management.unet_offload_device(), torch.float32)
    return LoadedNetwork(other.network, other.role, BUNDLED, other.notes, other.path, patcher_for(other.network))


def patcher_for(network: torch.nn.Module, load_device: Any = None, offload_device: Any = None) -> Any:
    """A network in ComfyUI's model management; the class is looked up now, because ComfyUI exchanges it when it starts."""
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    if hasattr(management, "archive_model_dtypes"):
        management.archive_model_dtypes(network)
    return kind(network, load_device or device(), offload_device or management.unet_offload_device())


@contextmanager
def on_device(*models: Any, memory_bytes: int = 0) -> Iterator[torch.device]:
    """Let ComfyUI bring models to its device, making room there.

    Args:
        models: anything with a ``patcher``: a LoadedNetwork, an audio encoder, core's VAE. None is skipped.
        memory_bytes: what the work needs beside the weights.
    """
    patchers = [model.patcher for model in models if getattr(model, "patcher", None) is not None]
    management.load_models_gpu(patchers, memory_required=memory_bytes)
    moved = [patcher for patcher in patchers if _is_left_behind(patcher)]
    for patcher in moved:
        patcher.model.to(patcher.load_device)
    try:
        yield device()
    finally:
        for patcher in moved:
            patcher.model.to(patcher.offload_device)


def make_room(memory_bytes: int) -> torch.device:
    """ComfyUI's device, with this much of its memory free: other models are put away for it. For what brings its own networks."""
    where = device()
    if where.type != "cpu":
        management.free_memory(memory_bytes + management.extra_reserved_memory(), where)
    return where


def _is_left_behind(patcher: Any) -> bool:
    """Whether ComfyUI, short of memory, has kept part of a network back that has no layers of its own kind to stream it."""
    if any(hasattr(module, "comfy_cast_weights") for module in patcher.model.modules()):
        return False
    tensors = [*patcher.model.parameters(), *patcher.model.buffers()]
    return any(tensor.device.type != patcher.load_device.type for tensor in tensors)


def edit_bytes(batch: int, crop_px: int) -> int:
    """Memory for editing a batch of crops."""
    return batch * crop_px**2 * EDIT_BYTES_PER_PIXEL


def lipsync(
    editor: LoadedNetwork | None = None,
    vae: Any = OWN_CODEC,
    pose_model: LoadedNetwork | None = None,
    lip_encoder: LoadedNetwork | None = None,
    audio_encoder: Any = None,
) -> LipSync:
    """The pipeline made of loaded parts, on ComfyUI's device; parts that are not given are bundled, loaded when first used.

    ``vae`` may be anything that arrives over a wire: what is no VAE is refused.
    """
    given = {"editor": editor, "pose_model": pose_model, "lip_encoder": lip_encoder, "detector": detector}
    if vae is not OWN_CODEC:
        given["codec"] = codec_of(vae)
        check_pair(editor, given["codec"].latents)
    if audio_encoder is not None:
        given["audio_encoder"] = getattr(audio_encoder, "encoder", audio_encoder)
    parts = {name: part for name, part in given.items() if part is not None}
    return LipSync(**parts, device=device(), dtype=dtype_for(device()))


def check_pair(editor: LoadedNetwork | None, codec: str) -> None:
    """Refuse a bundled codec that this editor was not trained with; any other VAE is the user's own choice."""
    if editor is not None and codec in BUNDLED_NAMES and codec != editor.codec:
        raise FlashLipsError(
            f"The editor '{editor.name}' was trained with the codec '{editor.codec}', this one is '{codec}'; choose "
            f"'{editor.codec}' in Load Codec."
        )


def detector() -> Any:
    """The face detector with weights of models/flashlips, of FLASHLIPS_MODELS or of torch's cache; nothing is downloaded."""
    return load_tracker(_detector_weights(), device(), download=False)


def fetch_detector(run: Run) -> None:
    """Download YuNet's weights into models/flashlips, unless they are found somewhere; offline the bundled detector does."""
    if _detector_weights() is not None or found_weights() is not None:
        return
    run.stage("Fetching the other face detector")
    try:
        fetch(DETECTOR, model_folders()[0], DETECTOR_FILES, progress=run.progress)
    except FlashLipsError as error:
        run.notice(f"The other face detector could not be fetched, so the bundled one was used. {error}")


def _detector_weights() -> Path | None:
    folder = DETECTOR.rpartition("/")[2]  # what is downloaded has one of its own
    places = (root / name for root in model_folders() for name in ("", folder))
    return next((path for place in places for path in (place / name for name in YUNET_FILES) if path.is_file()), None)


def train_bytes(batch: int, crop_px: int) -> int:
    """Memory for training on a batch of crops, without what :func:`tune_bytes` says of the network."""
    return batch * crop_px**2 * TRAIN_BYTES_PER_PIXEL


def tune_bytes(network: torch.nn.Module, is_lora: bool = False) -> int:
    """Memory for training a network beside itself, in 32 bits.

    With LoRA: a frozen copy, and another with the additions in it, to be looked at. Else: a frozen copy, weights, gradients, two
    moments and the average, and half as much again for activations.
    """
    copies = 2 if is_lora else 1.5 * 6
    return round(copies * 4 * sum(parameter.numel() for parameter in network.parameters()))


class LoadedAudioEncoder:
    """Core's AUDIO_ENCODER type around an encoder of ours: core's Audio Encoder Encode runs with it too."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        network = getattr(encoder, "network", None)  # log-mel has none
        self.patcher = None if network is None else patcher_for(network)
        if network is not None:
            encoder.device = device()  # where it sends the sound; the network follows in :func:`on_device`

    def encode_audio(self, waveform: Tensor, sample_rate: int) -> dict[str, Any]:
        """(1, C, S) at its own rate -> core's dict of encoded audio."""
        samples = to_mono_16k(bridge.audio_of({"waveform": waveform, "sample_rate": sample_rate}))
        with on_device(self):
            return encoded_audio(self.encoder.encode(samples), len(samples))


def load_audio_encoder(source: str | Path, layer: int | None = None) -> LoadedAudioEncoder:
    """An audio encoder by what core's loader takes; its network stays off the device until :func:`on_device`."""
    return LoadedAudioEncoder(core_audio.load_audio_encoder(source, layer, management.unet_offload_device()))


def load_emotion_encoder(folder: Path) -> LoadedAudioEncoder:
    """An audio classifier, likewise; its ``encoder`` gives one embedding of a whole sound."""
    return LoadedAudioEncoder(core_audio.load_emotion_encoder(folder, management.unet_offload_device()))


# ---- codecs ----------------------------------------------------------------------------------------------------------------


def load_vae(source: str | Path) -> Any:
    """A codec of the core's as core's VAE type: VAE Encode and VAE Decode work with it, tiled or not.

    A VAE object is made for TAESD's layout, which has this latent space's shape; then its network is exchanged.
    """
    codec = load_codec(source, management.vae_offload_device())
    vae = comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD(latent_channels=4).state_dict())
    vae.first_stage_model = UnscaledCodec(codec).to(vae.vae_dtype)
    vae.patcher = patcher_for(vae.first_stage_model, vae.device, management.vae_offload_device())
    vae.size = None
    return vae


def codec_names() -> list[str]:
    """Choices for Load Codec: bundled, ours, folders, core's files that say that they are SDXL's, and public ones."""
    small = folder_paths.get_filename_list("vae_approx")
    halves = all(any(name.startswith(f"taesdxl_{half}.") for name in small) for half in ("encoder", "decoder"))
    core = [name for name in folder_paths.get_filename_list("vae") if "xl" in name.lower()]
    return list(dict.fromkeys([*model_choices("codec"), *["taesdxl"] * halves, *core, *CODECS]))


def load_core_vae(name: str) -> Any:
    """A file of models/vae, or "taesdxl" from its two files in models/vae_approx."""
    if name != "taesdxl":
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(model_path(name, "vae"))))
        if vae.first_stage_model is None:
            raise FlashLipsError(f"models/vae/{name} holds no VAE; choose another file.")
        return vae
    weights = {"vae_scale": torch.tensor(SDXL_SCALE), "vae_shift": torch.tensor(0.0)}
    for half in ("encoder", "decoder"):
        file = next((f for f in folder_paths.get_filename_list("vae_approx") if f.startswith(f"taesdxl_{half}.")), None)
        if file is None:
            raise FlashLipsError(f"There is no taesdxl_{half} in models/vae_approx; put it there, or choose another codec.")
        tensors = comfy.utils.load_torch_file(str(model_path(file, "vae_approx")))
        weights |= {f"taesd_{half}.{key}": value for key, value in tensors.items()}
    return comfy.sd.VAE(sd=weights)


def latent_picture(latent: Tensor) -> Tensor:
    """A rough picture of a scaled latent, as ComfyUI's samplers preview theirs: (4, h, w) -> (3, 8h, 8w) in [-1, 1]."""
    space = comfy.latent_formats.SDXL()
    mixed = torch.einsum("chw,cr->rhw", latent, torch.tensor(space.latent_rgb_factors))
    if space.latent_rgb_factors_bias is not None:
        mixed = mixed + torch.tensor(space.latent_rgb_factors_bias)[:, None, None]
    return mixed.clamp(-1, 1).repeat_interleave(CELL_PX, 1).repeat_interleave(CELL_PX, 2)


def codec_of(vae: Any) -> Codec:
    """Any VAE in SDXL's latent space as a codec of the core. Its weights must be on the device: see :func:`on_device`."""
    if vae is None or getattr(vae, "first_stage_model", None) is None:
        raise FlashLipsError("There is no codec; connect Load Codec, or a VAE in SDXL's latent space.")
    if isinstance(vae.first_stage_model, UnscaledCodec):
        return vae.first_stage_model.codec
    return wrap_vae(vae)
