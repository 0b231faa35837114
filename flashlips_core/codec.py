"""Between pixels and SDXL's latent space: the bundled codec, TAESDXL, SDXL's own VAE, or any pair of functions.

B batch, H W image size in pixels, h w latent size (H/8, W/8). Images are ``[-1, 1]``. Latents are *scaled*: what SDXL's VAE
gives times 0.13025, which is the space that TAESDXL works in by itself. All codecs here share it, so latents can be exchanged.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from . import checkpoint
from .types import FlashLipsError

log = logging.getLogger(__name__)

CELL_PX = 8  # one latent cell is 8 x 8 pixels
SDXL_SCALE = 0.13025  # SDXL VAE: scaling_factor in its config.json
HUB_IDS = {"taesdxl": "madebyollin/taesdxl", "sdxl": "stabilityai/sdxl-vae"}


class Codec(nn.Module):
    """A frozen network behind ``encode`` and ``decode``; results come back in the dtype of what was given.

    Args:
        network: holds the weights; its device and dtype are the ones that are computed in.
        name: for logs and reports.
        halo: latent cells around a region that its pixels depend on, None where every pixel depends on the whole picture.
        notes: what its file says of it: licence, training, "latents" where it was fine-tuned.
        path: that file; None for what is no FlashLips checkpoint.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        halo: int | None,
        notes: Mapping[str, Any] | None = None,
        path: Path | None = None,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.name = name
        self.halo = halo
        self.notes = dict(notes or {})
        self.path = path

    @property
    def latents(self) -> str:
        """Name of the codec that it was fine-tuned from and shares the encoder with, or its own."""
        return self.notes.get("latents", self.name)

    @property
    def is_fine_tuned(self) -> bool:
        """Whether its decoder has learnt one person's face."""
        return self.latents != self.name

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> scaled latents (B, 4, H/8, W/8)."""
        _check_images(images)
        return self._encode(self._prepared(images)).to(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, 4, h, w) -> images (B, 3, 8h, 8w), about [-1, 1] but not clamped, so that gradients survive."""
        return self._decode(self._prepared(latents)).to(latents)

    def _encode(self, images: Tensor) -> Tensor:
        return self.network.encode(images)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents)

    def _prepared(self, x: Tensor) -> Tensor:
        weight = next(self.network.parameters())
        return x.to(device=weight.device, dtype=weight.dtype, memory_format=torch.channels_last)


class TinyCodec(Codec):
    """TAESDXL (diffusers' AutoencoderTiny): convolutions only, works on scaled latents by itself."""

    def __init__(self, network: nn.Module, name: str = "taesdxl") -> None:
        super().__init__(network, name, halo=decoder_halo(network.decoder.layers))

    def _encode(self, images: Tensor) -> Tensor:
        return self.network.encode(images, return_dict=False)[0]

    def _decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents, return_dict=False)[0]


class KLCodec(Codec):
    """SDXL's own VAE (diffusers' AutoencoderKL). Its group norms and attention see the whole picture: no exact crops."""

    def __init__(self, network: nn.Module, name: str = "sdxl") -> None:
        super().__init__(network, name, halo=None)

    def _encode(self, images: Tensor) -> Tensor:
        return self.network.encode(images).latent_dist.mode() * SDXL_SCALE

    def _decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents / SDXL_SCALE, return_dict=False)[0]


class CallableCodec(Codec):
    """Two functions of the caller's as a codec, for example ComfyUI's VAE; they own their device and dtype.

    Args:
        encode: images (B, 3, H, W) in [-1, 1] -> scaled latents (B, 4, H/8, W/8).
        decode: scaled latents -> images.
    """

    def __init__(self, encode: Callable, decode: Callable, name: str, halo: int | None = None) -> None:
        super().__init__(nn.Module(), name, halo)
        self._encode, self._decode = encode, decode

    def _prepared(self, x: Tensor) -> Tensor:
        return x


class UnscaledCodec(nn.Module):
    """A codec whose latents are what SDXL's VAE gives, before scaling: how ComfyUI hands latents around."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> unscaled latents (B, 4, H/8, W/8)."""
        return self.codec.encode(images) / SDXL_SCALE

    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents (B, 4, h, w) -> images (B, 3, 8h, 8w), about [-1, 1]."""
        return self.codec.decode(latents * SDXL_SCALE)


def wrap_vae(vae: Any) -> CallableCodec:
    """ComfyUI's VAE object as a codec: its network is called directly, so nothing is centre-cropped, tiled or rounded to 8 bits.

    Refuses latent spaces that are visibly not SDXL's. Stable Diffusion 1's VAE has the same shape and cannot be told apart.
    """
    network = vae.first_stage_model
    ratio = getattr(vae, "downscale_ratio", CELL_PX)
    scale = getattr(network, "vae_scale", None)  # a tiny autoencoder's, where ComfyUI knows its latent space
    is_other = scale is not None and abs(float(torch.as_tensor(scale).detach()) - SDXL_SCALE) > 1e-4
    if getattr(vae, "latent_channels", 4) != 4 or getattr(vae, "latent_dim", 2) != 2 or ratio != CELL_PX or is_other:
        channels = getattr(vae, "latent_channels", 4)
        raise FlashLipsError(
            f"This VAE ({type(network).__name__}, {channels} channels) is not in SDXL's latent space; "
            "use Load Codec, or load SDXL's VAE or taesdxl."
        )

    def encode(images: Tensor) -> Tensor:
        pixels = vae.process_input((images + 1) / 2).to(vae.device, vae.vae_dtype)
        return network.encode(pixels).to(images) * SDXL_SCALE

    def decode(latents: Tensor) -> Tensor:
        images = network.decode((latents / SDXL_SCALE).to(vae.device, vae.vae_dtype))
        return vae.process_output(images.to(latents)) * 2 - 1  # in place, and clamped

    decoder = getattr(network, "taesd_decoder", None)
    return CallableCodec(encode, decode, type(network).__name__, None if decoder is None else decoder_halo(decoder))


def encode_part(codec: Codec, images: Tensor, part: tuple[slice, slice]) -> Tensor:
    """Encode only some rows and columns of latent cells; the other cells of the (B, 4, H/8, W/8) result are 0.

    Differs from encoding the whole within ``codec.halo`` cells of the part's border, where the codec misses its surroundings.
    """
    rows, columns = part
    pixels = images[..., CELL_PX * rows.start : CELL_PX * rows.stop, CELL_PX * columns.start : CELL_PX * columns.stop]
    height, width = images.shape[-2] // CELL_PX, images.shape[-1] // CELL_PX
    return F.pad(codec.encode(pixels), (columns.start, width - columns.stop, rows.start, height - rows.stop))


def crop_decode(codec: Codec, latents: Tensor, region: tuple[int, int, int, int]) -> Tensor:
    """Decode only a part of the picture, equal to that part of the whole.

    A codec without a halo is decoded whole and then cropped: for SDXL's VAE nothing less is right.

    Args:
        latents: (B, 4, h, w), scaled.
        region: x0, y0, x1, y1 in latent cells; the result is (B, 3, 8(y1 - y0), 8(x1 - x0)).
    """
    height, width = latents.shape[-2:]
    x0, y0, x1, y1 = region
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise FlashLipsError(f"Region {region} does not lie in latents of {width}x{height} cells; give x0, y0, x1, y1 in cells.")
    if codec.halo is None:
        left, top, right, bottom = 0, 0, width, height
    else:
        halo = codec.halo
        left, top, right, bottom = max(x0 - halo, 0), max(y0 - halo, 0), min(x1 + halo, width), min(y1 + halo, height)
    image = codec.decode(latents[..., top:bottom, left:right])
    rows, columns = slice((y0 - top) * CELL_PX, (y1 - top) * CELL_PX), slice((x0 - left) * CELL_PX, (x1 - left) * CELL_PX)
    return image[..., rows, columns]


def decoder_halo(layers: nn.Module) -> int:
    """Latent cells around a region that a stack of convolutions and nearest-neighbour upsamplings reads, exactly.

    Walks the modules from the image back to the latents; a doubling halves the border, rounded up to whole cells.
    """
    border = 0
    for module in reversed(list(layers.modules())):
        if isinstance(module, nn.Conv2d):
            border += module.dilation[0] * (module.kernel_size[0] // 2)
        elif isinstance(module, nn.Upsample):
            border = -(-border // int(module.scale_factor))
    return border


def load_codec(source: str | Path = "bundled", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Codec:
    """Load a codec, frozen, in eval mode, channels_last.

    Args:
        source: "bundled" or "bundled-fast"; "taesdxl" or "sdxl" (from the Hugging Face hub); a FlashLips codec checkpoint
            (.safetensors); a folder with ``taesdxl_encoder*.safetensors`` and ``taesdxl_decoder*.safetensors`` or a diffusers
            model; or another hub id.
    """
    path = Path(source).expanduser()
    if str(source) in checkpoint.BUNDLED:
        codec = _load_flashlips(checkpoint.bundled("codec", str(source)), str(source))
    elif path.is_file():
        codec = _load_flashlips(path, f"flashlips-{path.stem}")
    elif path.is_dir():
        codec = _load_folder(path)
    elif str(source) in HUB_IDS:
        codec = _load_folder(_download(HUB_IDS[str(source)]), name=str(source))
    elif str(source).count("/") == 1 and not path.is_absolute() and path.suffix != ".safetensors":
        codec = _load_folder(_download(str(source)), name=str(source))
    else:
        raise FlashLipsError(f"No codec at '{source}'; name a folder, a .safetensors file, a hub id, bundled, taesdxl or sdxl.")
    return codec.to(device=device, dtype=_safe_dtype(codec, dtype)).to(memory_format=torch.channels_last)


def _load_flashlips(path: Path, name: str) -> Codec:
    from .models.codec_mini import MiniCodec, MiniCodecConfig

    def build(fields: dict) -> nn.Module:
        return MiniCodec(checkpoint.config_from_dict(MiniCodecConfig, fields))

    network = checkpoint.load(path, "codec", {"MiniCodec": build})
    return Codec(network, name, network.halo, checkpoint.info(path).notes, path)


def _load_folder(folder: Path, name: str | None = None) -> Codec:
    """A folder with TAESDXL's two files, a diffusers autoencoder, or an SDXL pipeline with its ``vae`` inside."""
    halves = [sorted(folder.glob(f"taesdxl_{half}*.safetensors")) for half in ("encoder", "decoder")]
    if all(halves):
        return TinyCodec(_tiny_from_official(halves[0][0], halves[1][0]), name or "taesdxl")
    for place in (folder, folder / "vae"):
        if (place / "config.json").is_file():
            return _from_diffusers(place, name or folder.name)
    raise FlashLipsError(f"{folder} holds neither TAESDXL's two .safetensors nor a diffusers config.json; choose another folder.")


def _tiny_from_official(encoder: Path, decoder: Path) -> nn.Module:
    """TAESDXL's published files in diffusers' module. Their decoder counts its clamp as layer 0, diffusers' does not."""
    from diffusers import AutoencoderTiny

    network = AutoencoderTiny()  # the defaults are TAESD's and TAESDXL's
    for half, path, shift in ((network.encoder.layers, encoder, 0), (network.decoder.layers, decoder, 1)):
        try:
            tensors = {}
            for key, value in load_file(path).items():
                index, _, rest = key.partition(".")
                tensors[f"{int(index) - shift}.{rest}"] = value
            half.load_state_dict(tensors, strict=True)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise FlashLipsError(f"{path.name} does not hold TAESDXL's weights ({reason}); download it again.") from error
    return network


def _from_diffusers(folder: Path, name: str) -> Codec:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = config.get("_class_name")
    if kind not in {"AutoencoderTiny", "AutoencoderKL"}:
        raise FlashLipsError(f"{folder} holds a '{kind}'; choose an AutoencoderKL (SDXL's VAE) or an AutoencoderTiny (TAESDXL).")
    is_scaled_otherwise = kind == "AutoencoderKL" and abs(config.get("scaling_factor", 0) - SDXL_SCALE) > 1e-4
    if config.get("latent_channels", 4) != 4 or is_scaled_otherwise:
        raise FlashLipsError(
            f"{folder} is not in SDXL's latent space (its scaling_factor is {SDXL_SCALE}); choose SDXL's VAE or TAESDXL."
        )
    import diffusers

    try:
        network, report = getattr(diffusers, kind).from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, low_cpu_mem_usage=False, local_files_only=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise FlashLipsError(f"{folder} cannot be read as {kind} ({str(error).splitlines()[0]}); download it again.") from error
    wrong = [*report["missing_keys"], *report["unexpected_keys"]]
    if wrong:  # diffusers only warns, and leaves what is missing at random values
        raise FlashLipsError(
            f"{folder} does not fit {kind}: {len(wrong)} keys missing or unknown, like '{wrong[0]}'; download it again."
        )
    return TinyCodec(network, name) if kind == "AutoencoderTiny" else KLCodec(network, name)


def _download(hub_id: str) -> Path:
    """Config and safetensors weights of a hub repository, into Hugging Face's own cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [place + name for place in ("", "vae/") for name in ("config.json", "diffusion_pytorch_model.safetensors")]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FlashLipsError(f"'{hub_id}' is no folder and could not be downloaded ({reason}); name a folder.") from error


def _safe_dtype(codec: Codec, dtype: torch.dtype) -> torch.dtype:
    """SDXL's published VAE overflows in fp16 (its config says force_upcast); the fp16-fix and TAESDXL do not."""
    if dtype == torch.float16 and isinstance(codec, KLCodec) and codec.network.config.force_upcast:
        log.warning("%s overflows in fp16 and runs in fp32: slower; an fp16-safe SDXL VAE or TAESDXL avoids this.", codec.name)
        return torch.float32
    return dtype


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[-1] % CELL_PX or images.shape[-2] % CELL_PX:
        raise FlashLipsError(
            f"Images must be (B, 3, H, W), H and W multiples of {CELL_PX}, got {tuple(images.shape)}; resize the crop."
        )
