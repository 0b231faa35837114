"""What the editor is trained against: latents, pixels, perceptual features, identity.

B batch, C channels, H W pixels, h w latent cells. Images are (B, 3, H, W) in [-1, 1], masks (B, 1, ., .) in [0, 1]. Every loss is
a mean in float32. The paper's networks (VGG19, VGGFace2) are loaded from their published files; where those cannot be had, the
stand-ins say so in their ``name`` and ``is_stand_in``.
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
from torch.nn import functional as F

from .models.identity import DlibFaceNet, FaceNet
from .types import FlashLipsError

log = logging.getLogger(__name__)

# Paper, stage 1. The training loop multiplies the named losses by these.
PAPER_WEIGHTS = {
    "latent_l1": 0.1,
    "latent_l1_masked": 0.1,
    "pixel_l1_masked": 10.0,
    "pixel_l1_lips": 100.0,
    "perceptual": 50.0,
    "identity": 5.0,
}
GRAIN_PX = 8  # side of the place whose fine detail is measured
MIN_LIPS_AREA = (
    0.002  # of the crop; the paper has a threshold and does not state it: ours is half a closed mouth, about 20x7 of 256 px
)
VGG19_CONVS = (2, 2, 4, 4, 4)  # convolutions per stage; torchvision numbers them through ReLUs and pools
VGG16_CONVS = (2, 2, 3, 3, 3)


def l1(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference of (B, C, ., .), over the mask's area where one is given, so that its size does not matter."""
    error = (prediction.float() - target.float()).abs()
    if mask is None:
        return error.mean()
    mask = mask.float()
    return (error * mask).sum() / (mask.sum() * error.shape[1]).clamp_min(1e-6)


def lips_l1(images: Tensor, target: Tensor, lips: Tensor, min_area: float = MIN_LIPS_AREA) -> Tensor:
    """L1 in the lips of the images where lips cover at least ``min_area`` of the picture; 0 where none do."""
    is_visible = lips.float().mean((1, 2, 3), keepdim=True) >= min_area  # B 1 1 1
    return l1(images, target, lips * is_visible)


def latent_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """m: a pixel mask (B, 1, H, W) at latent size (B, 1, h, w), by area."""
    return F.adaptive_avg_pool2d(mask.float(), size)


class VGGFeatures(nn.Module):
    """VGG up to the first convolution of its last kept stage; gives the first ReLU of every stage.

    Args:
        convs: convolutions per stage.
        mean, deviation: of the network's own inputs, per channel.
        scale: from [0, 1] to the network's range (1 or 255).
        is_bgr: whether channels come blue first.
    """

    def __init__(
        self,
        convs: tuple[int, ...],
        mean: tuple[float, float, float],
        deviation: tuple[float, float, float] = (1.0, 1.0, 1.0),
        scale: float = 1.0,
        is_bgr: bool = False,
        channels: tuple[int, ...] = (64, 128, 256, 512, 512),
    ) -> None:
        super().__init__()
        self.is_bgr, self.scale = is_bgr, scale
        self.num_stages = len(convs)
        kept = (*convs[:-1], 1)
        inputs = 3
        self.convs = nn.ModuleDict()
        for stage, (count, outputs) in enumerate(zip(kept, channels, strict=False), start=1):
            for i in range(1, count + 1):
                self.convs[f"conv{stage}_{i}"] = nn.Conv2d(inputs, outputs, 3, padding=1)
                inputs = outputs
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> features of each stage, (B, channels, H / 2^i, W / 2^i)."""
        x = (images + 1) / 2 * self.scale
        x = ((x.flip(1) if self.is_bgr else x) - self.mean) / self.deviation
        features = []
        for name, conv in self.convs.items():
            is_first = name.endswith("_1")
            if is_first and features:
                x = F.max_pool2d(x, 2)
            x = F.relu(conv(x))
            if is_first:
                features.append(x)
        return features


class PerceptualLoss(nn.Module):
    """Mean L1 between VGG features, summed over the first ReLU of each stage.

    Args:
        is_relative: divide each stage by its mean activation on the target, for a network whose activations are not of VGG19's
            size, so that one loss weight serves both.
    """

    def __init__(self, features: VGGFeatures, name: str, is_stand_in: bool = False, is_relative: bool = False) -> None:
        super().__init__()
        self.features = features.requires_grad_(False).eval()
        self.name, self.is_stand_in, self.is_relative = name, is_stand_in, is_relative

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            expected = self.features(target)
        losses = []
        for ours, theirs in zip(self.features(images), expected, strict=True):
            loss = l1(ours, theirs)
            losses.append(loss / theirs.float().mean().clamp_min(1e-6) if self.is_relative else loss)
        return torch.stack(losses).sum()


class IdentityLoss(nn.Module):
    """1 - cosine of face embeddings (ours: the paper does not say which distance)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.name, self.is_stand_in = network.name, network.is_stand_in

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            expected = self.network(target)
        return (1 - F.cosine_similarity(self.network(images).float(), expected.float(), dim=1)).mean()


def load_perceptual(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, stages: int = 5
) -> PerceptualLoss:
    """The VGG19 loss of the paper, or its VGG16 stand-in.

    Args:
        stages: how many of the network's are compared, first to last; fewer are faster (the stand-in's file holds four).
        path: torchvision's vgg19 state dict (``vgg19-*.pth`` or the same as .safetensors); Keras's VGG16 as .safetensors with
            keys ``conv1_1.weight`` ...; or a folder that holds one of them (VGG19 first).
    """
    file = _find(Path(path), ("vgg19*.safetensors", "vgg19*.pth", "vgg16*.safetensors"), "VGG19 or VGG16 weights")
    tensors = read_state_dict(file)
    if "features.0.weight" in tensors:
        loss = PerceptualLoss(_torchvision_vgg19(tensors, file.name, stages), "VGG19")
    elif "conv1_1.weight" in tensors:
        features = VGGFeatures(VGG16_CONVS[: min(stages, 4)], mean=(103.939, 116.779, 123.68), scale=255.0, is_bgr=True)
        _fill(
            features.convs, {key: value for key, value in tensors.items() if key.rpartition(".")[0] in features.convs}, file.name
        )
        log.warning("%s stands in for the paper's VGG19: its perceptual loss is not comparable with the paper's.", file.name)
        loss = PerceptualLoss(features, "VGG16 (stand-in)", is_stand_in=True, is_relative=True)
    else:
        raise FlashLipsError(
            f"{file.name} is neither torchvision's vgg19 nor Keras's VGG16 (first key '{next(iter(tensors), '')}')."
        )
    return loss.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)


def load_identity(path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
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
    return network.requires_grad_(False).eval().to(device=device, dtype=dtype).to(memory_format=torch.channels_last)


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


def sharpness_loss(image: Tensor, target: Tensor, levels: int = 3) -> Tensor:
    """L1 between Laplacian pyramids: weighs lip and tooth edges that a plain L1 blurs. (B, 3, H, W) each."""
    total, rest = image.new_zeros(()), image - target  # the pyramid is linear
    for _ in range(levels):
        band, rest = _band(rest)
        total = total + band.abs().mean()
    return total / levels


def texture_loss(image: Tensor, target: Tensor, levels: int = 2) -> Tensor:
    """How much fine detail there is around each place, not where it lies: L1 between the local deviations of two band passes.

    An L1 of pixels is least for a blur where a tooth may stand here or there; this one is least for as many edges as there are.
    (B, 3, H, W) each.
    """
    total = image.new_zeros(())
    for _ in range(levels):
        (band, image), (wanted, target) = _band(image), _band(target)
        total = total + (_deviation(band) - _deviation(wanted)).abs().mean()
    return total / levels


def _band(image: Tensor) -> tuple[Tensor, Tensor]:
    """The finest band of a Laplacian pyramid and what is left, of half the size."""
    small = F.avg_pool2d(image, 2)
    return image - F.interpolate(small, size=image.shape[2:], mode="bilinear"), small


def _deviation(band: Tensor) -> Tensor:
    return (F.avg_pool2d(band.square(), GRAIN_PX, GRAIN_PX // 2) + 1e-6).sqrt()
