"""Other people's networks from the files that they are published in: VGG for losses, face embeddings for losses and measures.

The paper's networks (VGG19, VGGFace2) are read from their published files; where those cannot be had, the stand-ins say so in
their ``name`` and ``is_stand_in``.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .models.identity import DlibFaceNet, FaceNet
from .models.vgg import VGG16_CONVS, VGG19_CONVS, VGGFeatures
from .types import FlashLipsError

log = logging.getLogger(__name__)


def load_vgg(path: str | Path, device: torch.device | str = "cpu", stages: int = 5) -> VGGFeatures:
    """The VGG19 of the paper's perceptual loss, frozen, or its VGG16 stand-in.

    Args:
        stages: how many of the network's are compared, first to last; fewer are faster (the stand-in's file holds four).
        path: torchvision's vgg19 state dict (``vgg19-*.pth`` or the same as .safetensors); Keras's VGG16 as .safetensors with
            keys ``conv1_1.weight`` ...; or a folder that holds one of them (VGG19 first).
    """
    file = _find(Path(path), ("vgg19*.safetensors", "vgg19*.pth", "vgg16*.safetensors"), "VGG19 or VGG16 weights")
    tensors = read_state_dict(file)
    if "features.0.weight" in tensors:
        features = _torchvision_vgg19(tensors, file.name, stages)
    elif "conv1_1.weight" in tensors:
        how = {"mean": (103.939, 116.779, 123.68), "scale": 255.0, "is_bgr": True}
        features = VGGFeatures(VGG16_CONVS[: min(stages, 4)], is_stand_in=True, **how)
        kept = {key: value for key, value in tensors.items() if key.rpartition(".")[0] in features.convs}
        _fill(features.convs, kept, file.name)
        log.warning("%s stands in for the paper's VGG19: its perceptual loss is not comparable with the paper's.", file.name)
    else:
        raise FlashLipsError(
            f"{file.name} is neither torchvision's vgg19 nor Keras's VGG16 (first key '{next(iter(tensors), '')}')."
        )
    return features.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)


def load_identity(path: str | Path, device: torch.device | str = "cpu") -> FaceNet | DlibFaceNet:
    """A frozen face embedding: editor crops (B, 3, H, W) in [-1, 1] -> (B, D), compared by Euclidean distance or cosine.

    Args:
        path: facenet-pytorch's VGGFace2 state dict (``*vggface2.pt`` or the same as .safetensors, D = 512); face-api's dlib
            ResNet (the ``-weights_manifest.json`` or a binary beside it, D = 128, a stand-in); or a folder with one of them.
    """
    patterns = ("*vggface2*.safetensors", "*vggface2*.pt", "*vggface2*.pth", "face_recognition_model-weights_manifest.json")
    file = _find(Path(path), patterns, "VGGFace2 or dlib face-recognition weights")
    if file.suffix in {".json", ".bin", ""} or "-shard" in file.name:
        network = _face_api_dlib(file)
    else:
        network = FaceNet()
        tensors = {key: value for key, value in read_state_dict(file).items() if not key.startswith("logits.")}
        _fill(network, tensors, file.name)
    return network.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from .safetensors, or from a published .pt/.pth of plain tensors.

    These networks are published as pickles only; ``weights_only`` reads tensors and refuses anything that could run code.
    """
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise FlashLipsError(
            f"{path.name} is not a readable file of tensors; download it again, or convert it to .safetensors."
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise FlashLipsError(f"{path.name} holds no plain state dict; save the network's state_dict() as .safetensors.")
    return tensors


def _torchvision_vgg19(tensors: dict[str, Tensor], name: str, stages: int) -> VGGFeatures:
    """``features.N``: N counts convolutions, a ReLU after each, and a pool after each stage."""
    features = VGGFeatures(VGG19_CONVS[:stages], mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))
    renamed, index = {}, 0
    for stage, count in enumerate(VGG19_CONVS, start=1):
        for i in range(1, count + 1):
            for part in ("weight", "bias"):
                if f"features.{index}.{part}" not in tensors:
                    raise FlashLipsError(
                        f"{name} is not torchvision's vgg19: features.{index}.{part} is missing; download vgg19-*.pth."
                    )
                if f"conv{stage}_{i}" in features.convs:
                    renamed[f"conv{stage}_{i}.{part}"] = tensors[f"features.{index}.{part}"]
            index += 2
        index += 1
    _fill(features.convs, renamed, name)
    return features


def _face_api_dlib(path: Path) -> DlibFaceNet:
    """face-api.js's files: a manifest, and the bytes of all tensors in its order, most of them as uint8 * scale + min."""
    manifests = [path] if path.suffix == ".json" else sorted(path.parent.glob(path.stem.split("-shard")[0] + "*manifest.json"))
    if not manifests or not manifests[0].is_file():
        raise FlashLipsError(f"{path.name} needs its -weights_manifest.json beside it; put both in one folder.")
    try:
        group = json.loads(manifests[0].read_text())[0]
        raw = b"".join((manifests[0].parent / part).read_bytes() for part in group["paths"])
        tensors = _dequantised(group["weights"], raw)
        network = DlibFaceNet()
        state = {"fc.weight": tensors["fc"].T}
        for name in [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]:
            source = name.removeprefix("blocks.").replace(".", "/")
            scale = tensors[f"{source}/scale/weights"]  # dlib's affine layer after each convolution, folded into it
            state[f"{name}.weight"] = tensors[f"{source}/conv/filters"].permute(3, 2, 0, 1) * scale.view(-1, 1, 1, 1)
            state[f"{name}.bias"] = tensors[f"{source}/conv/bias"] * scale + tensors[f"{source}/scale/biases"]
    except (OSError, KeyError, IndexError, ValueError, RuntimeError) as error:
        raise FlashLipsError(
            f"{manifests[0].name} and its weights do not fit each other ({error}); download both again."
        ) from error
    _fill(network, state, path.name)
    return network


def _dequantised(entries: list[dict], raw: bytes) -> dict[str, Tensor]:
    """Each entry's tensor from the bytes in order; what is left over or missing is an error."""
    tensors, offset = {}, 0
    for entry in entries:
        count, quantization = math.prod(entry["shape"]), entry.get("quantization")
        kind = np.dtype(np.uint8 if quantization else "<f4")
        values = np.frombuffer(raw, kind, count, offset).astype(np.float32)
        offset += count * kind.itemsize
        if quantization:
            values = values * np.float32(quantization["scale"]) + np.float32(quantization["min"])
        tensors[entry["name"]] = torch.from_numpy(values).view(entry["shape"])
    if offset != len(raw):
        raise ValueError(f"the manifest counts {offset} bytes, the files hold {len(raw)}")
    return tensors


def _find(path: Path, patterns: tuple[str, ...], what: str) -> Path:
    """The file itself, or the first in a folder by order of the patterns."""
    if path.is_file():
        return path
    found = [file for pattern in patterns for file in sorted(path.glob(pattern))]
    if not found:
        raise FlashLipsError(f"No {what} at {path}; give the file, or a folder with one of {', '.join(patterns)}.")
    return found[0]


def _fill(network: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise FlashLipsError(f"{name} does not fit {type(network).__name__}: {reason[:200]} Download it again.") from error


def sdxl_vae() -> nn.Module:
    """SDXL's VAE by its config.json, with random weights, on PyTorch's default device."""
    from diffusers import AutoencoderKL

    ends = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **ends)
