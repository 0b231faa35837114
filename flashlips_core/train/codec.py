"""Stage "codec": distil TAESDXL into the small face codec.

The encoder learns TAESDXL's latents; the decoder learns the image from TAESDXL's latents and from the encoder's own, so that
latents of either decode through either.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..codec import load_codec
from ..data import CropStore
from ..models.codec_mini import MiniCodec, sharpness_loss
from ..types import Progress
from . import augment
from .loop import MakeBatch, TrainConfig, fit

OWN_LATENTS = 0.65  # share of images that are decoded from the encoder's own latents rather than the teacher's
WEIGHTS = {"latent": 1.0, "pixel": 2.0, "sharpness": 4.0, "squared": 8.0}


@dataclass(frozen=True)
class CodecBatch:
    images: Tensor  # (B, 3, 256, 256)
    latents: Tensor  # (B, 4, 32, 32) the teacher's


def balanced_rows(stores: list[CropStore], count: int, generator: torch.Generator) -> list[tuple[CropStore, int]]:
    """Rows drawn by speaker first, so that the speaker with most clips does not fill the batch."""
    pools = [(store, clip) for store in stores for clip in range(len(store.speakers))]
    speakers = sorted({str(store.speakers[clip]) for store, clip in pools})
    chosen = []
    for _ in range(count):
        speaker = speakers[int(torch.randint(len(speakers), (), generator=generator))]
        own = [(s, c) for s, c in pools if s.speakers[c] == speaker]
        store, clip = own[int(torch.randint(len(own), (), generator=generator))]
        rows = np.flatnonzero(store.clip_of == clip)
        chosen.append((store, int(rows[int(torch.randint(len(rows), (), generator=generator))])))
    return chosen


def build_cache(stores: list[CropStore], teacher_path: str, path: Path, count: int, seed: int, progress: Progress | None) -> None:
    """Augmented crops and the teacher's latents for them, computed once (the teacher costs ten times the student)."""
    teacher = load_codec(teacher_path)
    images, latents = [], []
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, 8):
        chosen = balanced_rows(stores, 8, generator)
        wide = torch.cat([store.batch(np.array([row])) for store, row in chosen])
        crops = augment.apply(wide, augment.draw_view(8, generator, 0.7), generator)
        with torch.inference_mode():
            latents.append(teacher.encode(crops).half())
        images.append(((crops + 1) * 127.5).round().byte())
        if progress is not None:
            progress(start + 8, count)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=torch.cat(images).numpy(), latents=torch.cat(latents).numpy())


def cached_batches(path: Path, batch_size: int) -> MakeBatch:
    """Random rows of the cache."""
    cache = np.load(path)
    images, latents = torch.from_numpy(cache["images"]), torch.from_numpy(cache["latents"])

    def make(generator: torch.Generator) -> CodecBatch:
        rows = torch.randint(len(images), (batch_size,), generator=generator)
        pixels = (images[rows].float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        return CodecBatch(pixels, latents[rows].float())

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
    """Latent regression for the encoder; image regression for both, from a mix of the two encoders' latents."""
    latents = network.encode(batch.images)
    mine = torch.rand(len(latents), 1, 1, 1, generator=generator) < OWN_LATENTS
    decoded = network.decode(torch.where(mine, latents, batch.latents))
    return {
        "latent": (latents - batch.latents).square().mean(),
        "pixel": (decoded - batch.images).abs().mean(),
        "sharpness": sharpness_loss(decoded, batch.images),
    }


def train_codec(
    stores: list[CropStore],
    teacher: str,
    run_dir: str,
    steps: int = 3000,
    batch_size: int = 4,
    cached: int = 2400,
    seed: int = 0,
    lr: float = 1.5e-3,
    start: str | None = None,
    decoder_only: bool = False,
    ema: float = 0.995,
    progress: Progress | None = None,
    **loop: object,
) -> MiniCodec:
    """Train the bundled codec.

    Args:
        teacher: what :func:`codec.load_codec` takes.
        start: a checkpoint to go on from.
        decoder_only: keep the encoder, whose latents an editor may have been trained on.
        loop: further settings of TrainConfig.
    """
    cache = Path(run_dir) / f"cache_{cached}_{seed}.npz"
    if not cache.is_file():
        build_cache(stores, teacher, cache, cached, seed, progress)
    config = TrainConfig(run_dir, steps, lr=lr, ema=ema, seed=seed, weights=WEIGHTS, **loop)
    network = load_codec(start).network.requires_grad_(True) if start else MiniCodec()
    network = network.to(memory_format=torch.channels_last)
    network.encoder.requires_grad_(not decoder_only)
    step = polish_step if decoder_only else codec_step
    return fit(network, cached_batches(cache, batch_size), step, config, progress=progress)
