"""Stage "codec": distil TAESDXL into the small face codec.

The encoder learns TAESDXL's latents; the decoder learns the picture from TAESDXL's latents and from the encoder's own, so that
latents of either decode through either. Where the picture itself leaves the fine detail open, TAESDXL's own drawing decides: it
is a function of the latents, so that regression towards it does not blur.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..codec import Codec, load_codec
from ..dataset.store import STORED_MARGIN, CropStore, is_head
from ..models.codec_mini import MiniCodec, MiniCodecConfig
from ..models.layers import ConvBlock
from ..pixels import from_bytes, to_bytes
from ..types import FlashLipsError, Progress
from .batches import augment
from .editor.losses import sharpness_loss
from .loop.settings import setting
from .loop.trainer import MakeBatch, TrainConfig, fit
from .run import Run

TEACHER = "TAESDXL (MIT, Ollin Boer Bohan)"
OWN_LATENTS = 0.65  # share of images that are decoded from the encoder's own latents rather than the teacher's
WEIGHTS = {"latent": 1.0, "pixel": 2.0, "sharpness": 4.0, "squared": 8.0}
SIZES = (192, 256, 384)  # px of the crops: small ones hold sharp pixels of any video, large ones are what editors see
WINDOW_PX = 192  # what is learnt from of each crop
HEAD_SHARE = 0.5  # of the crops are rendered heads, where there are any: people's faces in the data are small and soft


@dataclass(frozen=True)
class CodecSettings(TrainConfig):
    """Distil TAESDXL into the small face codec."""

    steps: int = 3000
    batch_size: int = setting(4, "windows per step")
    lr: float = 1.5e-3
    ema: float = 0.995
    cached: int = setting(2400, "windows that are drawn, and encoded by the teacher, once")
    start: str | None = setting(None, "a codec to go on from; it grows to the present number of blocks")
    decoder_only: bool = setting(False, "keep the encoder, whose latents an editor may have been trained on")


@dataclass(frozen=True)
class CodecBatch:
    images: Tensor  # (B, 3, H, W) in [-1, 1]
    latents: Tensor  # (B, 4, H/8, W/8) the teacher's
    redrawn: Tensor  # (B, 3, H, W) what the teacher draws from them


Rows = tuple[CropStore, int, int]  # one clip's rows in a store: first, and behind the last


class FacePool:
    """Stored faces to draw from by speaker first, so that the speaker with most clips is not seen most; sorted once."""

    def __init__(self, stores: list[CropStore]) -> None:
        self.heads: dict[str, list[Rows]] = {}
        self.people: dict[str, list[Rows]] = {}
        for store in stores:
            bounds = np.searchsorted(store.clip_of, np.arange(len(store.speakers) + 1)).tolist()
            for speaker, first, end in zip(map(str, store.speakers), bounds, bounds[1:], strict=False):
                (self.heads if is_head(speaker) else self.people).setdefault(speaker, []).append((store, first, end))

    def draw(self, generator: torch.Generator) -> tuple[CropStore, int]:
        """A row of a store."""
        is_drawn_head = self.heads and (not self.people or float(torch.rand((), generator=generator)) < HEAD_SHARE)
        clips_of = self.heads if is_drawn_head else self.people
        store, first, end = _pick(clips_of[_pick(list(clips_of), generator)], generator)
        return store, int(torch.randint(first, end, (), generator=generator))


def _pick(items: list | tuple, generator: torch.Generator):
    return items[int(torch.randint(len(items), (), generator=generator))]


def draw_window(faces: FacePool, generator: torch.Generator) -> Tensor:
    """A part of an augmented crop of one of ``SIZES``, antialiased. -> (1, 3, WINDOW_PX, WINDOW_PX) in [-1, 1]."""
    store, row = faces.draw(generator)
    wide, size = store.batch(np.array([row])), int(_pick(SIZES, generator))
    if (inner := round(size * STORED_MARGIN)) < wide.shape[-1]:
        wide = F.interpolate(wide, size=(inner, inner), mode="bicubic", antialias=True).clamp(-1, 1)
    crop = augment.apply(wide, augment.draw_view(1, generator, 0.7), generator, size)
    top, left = torch.randint(size - WINDOW_PX + 1, (2,), generator=generator).tolist()
    return crop[..., top : top + WINDOW_PX, left : left + WINDOW_PX]


def build_cache(stores: list[CropStore], teacher: Codec, path: Path, count: int, seed: int, progress: Progress | None) -> None:
    """Windows of augmented crops, the teacher's latents and what it draws from them, computed once: the teacher is slow."""
    parts: dict[str, list[np.ndarray]] = {"images": [], "latents": [], "redrawn": []}
    faces, generator = FacePool(stores), torch.Generator().manual_seed(seed)
    for start in range(0, count, 4):
        images = torch.cat([draw_window(faces, generator) for _ in range(4)])
        with torch.inference_mode():
            latents = teacher.encode(images)
            redrawn = teacher.decode(latents)
        parts["latents"].append(latents.half().numpy())
        for name, pictures in (("images", images), ("redrawn", redrawn)):
            parts[name].append(np.stack([to_bytes(picture) for picture in pictures]))
        if progress is not None:
            progress(start + 4, count)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, **{name: np.concatenate(arrays) for name, arrays in parts.items()})
    part.rename(path)


def cached_batches(path: Path, batch_size: int) -> MakeBatch:
    """Random rows of the cache."""
    cache = np.load(path)
    images, latents, redrawn = (cache[name] for name in ("images", "latents", "redrawn"))

    def make(generator: torch.Generator) -> CodecBatch:
        rows = torch.randint(len(images), (batch_size,), generator=generator).numpy()
        pictures, drawn = (from_bytes(of[rows]).contiguous(memory_format=torch.channels_last) for of in (images, redrawn))
        return CodecBatch(pictures, torch.from_numpy(latents[rows]).float(), drawn)

    return make


def polish_step(network: nn.Module, batch: CodecBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """Image regression of the decoder alone, for an encoder whose latents other networks already rely on."""
    with torch.no_grad():
        latents = network.encode(batch.images)
    decoded = network.decode(latents)
    return {
        "pixel": (decoded - batch.images).abs().mean(),
        "squared": (decoded - batch.images).square().mean(),
        "sharpness": sharpness_loss(decoded, batch.images),
    }


def codec_step(network: nn.Module, batch: CodecBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """Latent regression for the encoder; image regression for both, from a mix of the two encoders' latents.

    Colours and shapes are the picture's, fine detail is the teacher's drawing of it.
    """
    latents = network.encode(batch.images)
    mine = torch.rand(len(latents), 1, 1, 1, generator=generator) < OWN_LATENTS
    decoded = network.decode(torch.where(mine, latents, batch.latents))
    return {
        "latent": (latents - batch.latents).square().mean(),
        "pixel": (decoded - batch.images).abs().mean(),
        "sharpness": sharpness_loss(decoded, batch.redrawn),
    }


@torch.no_grad()
def grown(network: MiniCodec, config: MiniCodecConfig) -> MiniCodec:
    """The same function with the widths and residual blocks of ``config``: what is added changes nothing yet, and can learn.

    Raises:
        FlashLipsError: ``config`` is narrower, or has fewer blocks.
    """
    larger = MiniCodec(config)
    try:
        for half, half_before in ((larger.encoder, network.encoder), (larger.decoder, network.decoder)):
            for new, old in zip(_stretches(half), _stretches(half_before), strict=True):
                for module, before in zip(new[: len(old)], old, strict=True):
                    for weight, weight_before in zip(module.parameters(), before.parameters(), strict=True):
                        _fill(weight, weight_before)
                for added in new[len(old) :]:
                    nn.init.zeros_(added.conv_2.weight)
                    nn.init.zeros_(added.conv_2.bias)
    except (RuntimeError, ValueError) as error:
        raise FlashLipsError(f"A codec of {network.config} does not grow into one of {config}; train anew.") from error
    return larger


def _stretches(half: nn.Sequential) -> list[list[nn.Module]]:
    """Residual blocks that follow each other together, every other layer by itself."""
    groups = itertools.groupby(enumerate(half), lambda item: -1 if isinstance(item[1], ConvBlock) else item[0])
    return [[module for _, module in group] for _, group in groups]


def _fill(weight: Tensor, before: Tensor) -> None:
    """The smaller weight in the corner of the larger: old channels take nothing from new ones, which start at random."""
    corner = tuple(slice(size) for size in before.shape)
    weight[: len(before)] = 0
    weight[corner] = before


def train_codec(
    stores: list[CropStore],
    teacher: str,
    settings: CodecSettings,
    progress: Progress | None = None,
) -> MiniCodec:
    """Train the bundled codec. ``teacher`` is what :func:`codec.load_codec` takes."""
    cache = Path(settings.run_dir) / f"cache_{settings.cached}_{settings.seed}.npz"
    if not cache.is_file():
        build_cache(stores, load_codec(teacher), cache, settings.cached, settings.seed, progress)
    start = settings.start
    network = grown(load_codec(start).network, MiniCodecConfig()).requires_grad_(True) if start else MiniCodec()
    network = network.to(memory_format=torch.channels_last)
    network.encoder.requires_grad_(not settings.decoder_only)
    step, config = polish_step if settings.decoder_only else codec_step, replace(settings, weights=WEIGHTS)
    return fit(network, cached_batches(cache, settings.batch_size), step, config, progress=progress)


def codec(run: Run[CodecSettings]) -> Path:
    """Distil TAESDXL."""
    network = train_codec(run.face_stores(), str(run.weights), run.config("run_codec"), run.progress)
    return run.save(network, "codec", teacher=TEACHER)
