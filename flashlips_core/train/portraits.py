"""Stage "portraits": the codec's decoder learns sharp faces of many people, without a critic (ours).

B batch, H W pixels, h w latent cells, T side of a tile. The encoder stays, so latents and every network that works on them stay
too. A critic draws what looks like detail anywhere; here detail counts where the picture itself has it (``true_texture_loss``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..codec import CELL_PX, Codec, load_codec
from ..dataset.store import STORED_MARGIN, CropStore
from ..face.motion import padded_box
from ..face.points import LIPS, in_mesh
from ..measures import box_slices, detail, psnr, true_detail
from ..models.codec_mini import MiniCodec
from ..pixels import from_bytes, to_bytes
from ..pretrained import load_vgg
from ..types import Progress
from .batches import augment
from .batches.aligned import wider
from .batches.portraits import MOUTH_PLACE, Portrait, crop_portrait, cut_bytes, read_picture, read_portraits, upright_square
from .codec import TEACHER
from .editor.losses import PerceptualLoss, sharpness_loss
from .loop.settings import setting
from .loop.trainer import MakeBatch, Step, TrainConfig, Validate, fit
from .prepare import aligned_stores
from .run import Run

WEIGHTS = {"pixel": 3.0, "squared": 6.0, "sharpness": 6.0, "missing": 3.0, "excess": 20.0, "perceptual": 0.15}
TILE_PX = 160  # of which the border is not judged
EDGE_PX = 16  # the decoder misses its surroundings there
BAND_PX = 8  # side of the place over which detail is compared
MOUTH_SHARE = 0.75  # of the tiles lie around the mouth, where edits are drawn
SIZES = (192, 256, 320, 384, 384, 448)  # px of the crops that tiles are cut from
LARGEST = 1.15  # of a picture's own size: enlarging further would teach soft faces
PORTRAIT_SHARE = 0.6  # of the crops, the rest are frames of videos
STRENGTH = 0.5  # of the augmentation, see ``augment.draw_view``
TILES = 4  # of each crop
SHOWN = (16, 384)  # held-out portraits that are measured, and the side of their crops

Crop = tuple[Tensor, np.ndarray]  # (3, S, S) in [-1, 1], and about where its mouth is (2,), as shares of it


@dataclass(frozen=True)
class PortraitsSettings(TrainConfig):
    """Teach the codec's decoder sharp faces of many people, without a critic."""

    steps: int = 2400
    batch_size: int = setting(6, "tiles per step")
    lr: float = 4e-4
    ema: float = 0.995
    seed: int = 3
    start: str | None = setting(None, "another codec than the run's")
    crops: int = setting(2400, f"crops that are drawn and encoded once, {TILES} tiles of each")
    vgg_stages: int = setting(3, "of VGG, that are compared; 0: none, the fastest")
    validate_every: int = 200


@dataclass(frozen=True)
class TileBatch:
    latents: Tensor  # (B, 4, T / 8, T / 8)
    pixels: Tensor  # (B, 3, T, T)


def true_texture_loss(image: Tensor, target: Tensor, levels: int = 2) -> dict[str, Tensor]:
    """How much of the target's fine detail is missing, and how much more there is than the target has, (B, 3, H, W) each.

    Only detail that lies as the target's counts against what is missing (its projection on the target's), so none is gained by
    inventing grain; what is invented counts as excess as soon as there is more of it than the target has altogether.
    """
    missing, excess = image.new_zeros(()), image.new_zeros(())
    for _ in range(levels):
        (band, image), (wanted, target) = _band(image), _band(target)
        amount, ours = _around(wanted.square()).add(1e-6).sqrt(), _around(band.square()).add(1e-6).sqrt()
        along = _around(band * wanted) / amount
        missing = missing + (amount - along).clamp_min(0).mean()
        excess = excess + (ours - amount).clamp_min(0).mean()
    return {"missing": missing / levels, "excess": excess / levels}


def _band(image: Tensor) -> tuple[Tensor, Tensor]:
    small = F.avg_pool2d(image, 2)
    return image - F.interpolate(small, size=image.shape[2:], mode="bilinear"), small


def _around(values: Tensor) -> Tensor:
    return F.avg_pool2d(values, BAND_PX, BAND_PX // 2)


def tile_step(perceptual: PerceptualLoss | None) -> Step:
    """Regression of tiles from the frozen encoder's latents."""

    def step(network: nn.Module, batch: TileBatch, generator: torch.Generator) -> dict[str, Tensor]:
        edge = slice(EDGE_PX, -EDGE_PX)
        decoded, wanted = (x[..., edge, edge] for x in (network.decode(batch.latents), batch.pixels))
        difference = decoded - wanted
        losses = {
            "pixel": difference.abs().mean(),
            "squared": difference.square().mean(),
            "sharpness": sharpness_loss(decoded, wanted),
        } | true_texture_loss(decoded, wanted)
        if perceptual is not None:
            losses["perceptual"] = perceptual(decoded[::3], wanted[::3])
        return losses

    return step


def draw_crops(portraits: list[Portrait], stores: list[CropStore]) -> Callable[[torch.Generator], Crop]:
    """A function that draws a crop of a portrait or of a video's frame: every set of portraits, and every store, as often."""
    sets: dict[str, list[Portrait]] = {}
    for portrait in portraits:
        sets.setdefault(portrait.path.parent.name, []).append(portrait)

    def draw(generator: torch.Generator) -> Crop:
        chances = torch.rand(4, generator=generator).tolist()
        if chances[0] < PORTRAIT_SHARE or not stores:
            portrait = _pick(_pick(list(sets.values()), chances[1]), chances[2])
            square = upright_square(portrait.landmarks)
            size = _pick([s for s in SIZES if s <= LARGEST * square.side] or SIZES[:1], chances[3])
            wide = cut_bytes(read_picture(portrait.path), wider(square), round(size * STORED_MARGIN))
        else:
            store = _pick(stores, chances[1])
            clip = int(chances[2] * len(store.clip_ids))
            rows = np.flatnonzero(store.clip_of == clip)
            size, wide = _pick(SIZES, chances[3]), store.images[rows[int(torch.randint(len(rows), (), generator=generator))]]
        return _augmented(from_bytes(wide.copy()), size, generator), np.array(MOUTH_PLACE)

    return draw


def _pick(items: list | tuple, chance: float):
    return items[int(chance * len(items))]


def _augmented(wide: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Turned, scaled, mirrored and coloured, but without noise, which cannot be learnt. (3, S, S) -> (3, size, size)"""
    if (inner := round(size * STORED_MARGIN)) < wide.shape[-1]:
        wide = F.interpolate(wide[None], size=(inner, inner), mode="bicubic", antialias=True)[0].clamp(-1, 1)
    view = augment.draw_view(1, generator, STRENGTH)
    view = replace(view, noise=torch.zeros(1), softness=view.softness * 0.3)
    return augment.apply(wide[None], view, generator, size)[0]


@torch.inference_mode()
def build_tiles(
    crops: Callable[[torch.Generator], Crop],
    codec: Codec,
    path: Path,
    count: int,
    seed: int,
    progress: Progress | None = None,
) -> None:
    """Encode ``count`` crops, drawn by ``crops``, and keep ``TILES`` tiles of each with their latents."""
    generator = torch.Generator().manual_seed(seed)
    pixels, latents = [], []
    for index in range(count):
        image, mouth = crops(generator)
        encoded = codec.encode(image[None].contiguous(memory_format=torch.channels_last))[0]
        for _ in range(TILES):
            top, left = _place(image.shape[-1], mouth, generator)
            cells = slice(top, top + TILE_PX // CELL_PX), slice(left, left + TILE_PX // CELL_PX)
            latents.append(encoded[:, cells[0], cells[1]].half().cpu().numpy())
            rows, columns = (slice(CELL_PX * s.start, CELL_PX * s.stop) for s in cells)
            pixels.append(to_bytes(image[:, rows, columns]))
        if progress is not None:
            progress(index + 1, count)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, pixels=np.stack(pixels), latents=np.stack(latents))
    part.rename(path)


def _place(size: int, mouth: np.ndarray, generator: torch.Generator) -> tuple[int, int]:
    """Top and left of a tile, in latent cells: around the mouth, or anywhere."""
    last = (size - TILE_PX) // CELL_PX
    chances = torch.rand(3, generator=generator).numpy()
    if chances[0] > MOUTH_SHARE:
        x, y = (chances[1:] * (last + 1)).astype(int)
    else:
        x, y = ((mouth * size - TILE_PX / 2 + (chances[1:] - 0.5) * TILE_PX * 0.8) / CELL_PX).round().astype(int)
    return int(np.clip(y, 0, last)), int(np.clip(x, 0, last))


def tile_batches(paths: list[Path], batch_size: int) -> MakeBatch:
    """Random tiles of the caches."""
    caches = [np.load(path) for path in paths]
    latents, pixels = (np.concatenate([cache[name] for cache in caches]) for name in ("latents", "pixels"))

    def make(generator: torch.Generator) -> TileBatch:
        rows = torch.randint(len(latents), (batch_size,), generator=generator).numpy()
        cells = torch.from_numpy(latents[rows]).float().contiguous(memory_format=torch.channels_last)
        return TileBatch(cells, from_bytes(pixels[rows]))

    return make


def finest_power(image: Tensor, box: np.ndarray) -> float:
    """Power in the top octave of frequencies of a (3, H, W) picture inside ``box`` (xyxy, pixels): half of Nyquist and above."""
    rows, columns = box_slices(box, image.shape[-2], image.shape[-1])
    grey = image[:, rows, columns].float().mean(0)
    height, width = grey.shape
    window = torch.hann_window(height, False)[:, None] * torch.hann_window(width, False)
    power = torch.fft.rfft2((grey - grey.mean()) * window).abs().square()
    y, x = torch.fft.fftfreq(height)[:, None].abs(), torch.fft.rfftfreq(width)[None]
    return float(power[torch.maximum(y, x).expand_as(power) >= 0.25].sum())


def mouth_boxes(points: list[np.ndarray], size: int, margin: float = 0.25) -> list[np.ndarray]:
    """Boxes (4,) xyxy in pixels around the lips of MediaPipe's points (478, 2), shares of crops of ``size`` px."""
    lips = [shares[list(in_mesh(LIPS))] * size for shares in points]
    return [padded_box(np.concatenate([p.min(0), p.max(0)]), margin) for p in lips]


def decode_check(crops: list[Tensor], boxes: list[np.ndarray], codec: Codec) -> Validate:
    """Numbers of the same held-out mouths every time, means over crops (3, S, S); ``boxes`` are xyxy pixels around the mouths."""
    with torch.inference_mode():
        encoded = [codec.encode(crop[None]) for crop in crops]

    @torch.inference_mode()
    def check(network: nn.Module, step: int) -> dict[str, float]:
        rows = []
        for latents, crop, box in zip(encoded, crops, boxes, strict=True):
            drawn = network.decode(latents.clone())[0].clamp(-1, 1).cpu()
            rows.append((
                psnr(drawn, crop, box), detail(drawn, box) / detail(crop, box), true_detail(drawn, crop, box),
                finest_power(drawn, box) / finest_power(crop, box),
            ))  # fmt: skip
        means = np.mean(rows, 0).tolist()
        return dict(zip(("psnr", "detail", "true_detail", "finest"), means, strict=True))

    return check


def train_portraits(
    codec: Codec,
    tiles: list[Path],
    perceptual: PerceptualLoss | None,
    validate: Validate | None,
    settings: PortraitsSettings,
    progress: Progress | None = None,
) -> MiniCodec:
    """Go on training the decoder of ``codec`` on tiles that it encoded."""
    network = codec.network.requires_grad_(True).to(memory_format=torch.channels_last)
    network.encoder.requires_grad_(False)
    batches, config = tile_batches(tiles, settings.batch_size), replace(settings, weights=WEIGHTS)
    return fit(network, batches, tile_step(perceptual), config, validate, progress)


# ---- the stage -------------------------------------------------------------------------------------------------------------


def portraits(run: Run[PortraitsSettings]) -> Path:
    """Go on training a decoder on the data's folder ``portraits`` and the aligned clips."""
    settings = run.settings
    codec = load_codec(run.own("codec", settings.start), run.device)
    learnt, held_out = read_portraits(run.data / "portraits")
    tiles = run.folder / f"tiles_{settings.crops}_{settings.seed}.npz"
    if not tiles.is_file():
        stores = list(aligned_stores(run).values())
        build_tiles(draw_crops(learnt, stores), codec, tiles, settings.crops, settings.seed, run.progress)
    stages = settings.vgg_stages
    perceptual = PerceptualLoss(load_vgg(run.weights, run.device, stages)) if stages else None
    check = _check(held_out, codec)
    network = train_portraits(codec, [tiles], perceptual, check, run.config("run_portraits"), run.progress)
    return run.save(network, "codec", "codec-portraits", teacher=TEACHER)


def _check(held_out: list[Portrait], codec: Codec) -> Validate | None:
    """Numbers on the sharpest held-out portraits, whose names are in a set of large pictures."""
    sharpest = sorted(held_out, key=lambda p: -abs(p.landmarks[454] - p.landmarks[234]).max())[: SHOWN[0]]
    cut = [crop_portrait(portrait, SHOWN[1]) for portrait in sharpest]
    crops = [crop for crop, _ in cut]
    return decode_check(crops, mouth_boxes([points for _, points in cut], SHOWN[1]), codec) if crops else None
