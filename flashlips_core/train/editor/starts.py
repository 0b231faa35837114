"""Pairs as a retrieved start leaves them: a frame over which another mouth of its clip was laid, and the frame itself.

N frames, K starts of each, G groups (one clip in one look), S crop side, h w latent cells, B batch. At inference the editor
starts from the clip's own mouth that is nearest to the wanted one; what is left to do depends on how near it was. So mouths are
drawn from the nearest ten of a clip, and sometimes from anywhere; they are laid a little beside their place, as landmarks would
lay them, with their colours matched as a dub does. The editor is judged by the picture that a dub shows: what the codec cannot
draw stays where an edit changes little (``composed``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...codec import CELL_PX, Codec, encode_part
from ...dataset.store import STORED_MARGIN, CropStore
from ...models.lip_encoder import LipEncoder
from ...pixels import to_bytes
from ...retrieval import ellipse, laid_over, mouth_window
from ...types import FlashLipsError, Progress
from ..batches import augment
from ..batches.frames import (
    STEADY,
    EditorFrames,
    cut_windows,
    draw_references,
    draw_rows,
    load_frames,
    nearest_heads,
    window_of,
    window_pixels,
)
from ..loop.trainer import MakeBatch
from .pairs import UNREAD_SHARE, EditorBatch

NUM_STARTS = 2  # of each frame
NUM_STORED = 8  # references of each group
READ_PX = 192  # side of the crops whose lips are only read: the lip encoder sees half of it at 96 px
NEAREST = 10  # mouths of a clip among which a near one is drawn
FAR_SHARE = 0.15  # of the starts come from anywhere in the clip
APART = 2  # frames: a neighbour in time is nearer than any retrieval finds
HEAD_WEIGHT = 1.0  # of the head's turn against the mouth's pose, both over their usual distance in the clip
MISPLACED = {"shift": 0.015, "turn": 0.035, "scale": 0.02}  # at most: of the side, radians (2 degrees), share


@dataclass(frozen=True)
class RetrievedFrames:
    """Encoded frames, and for each some starts."""

    frames: EditorFrames
    start_latents: Tensor  # (N, K, 4, h, w) float16
    start_windows: Tensor  # (N, K, H, W, 3) uint8


def lay_over(crops: Tensor, mouths: Tensor) -> Tensor:
    """Crops with the mouths of others, (B, 3, S, S) each in [-1, 1], laid and coloured as a dub lays them."""
    rows, columns = mouth_window(crops.shape[-1])
    area = ellipse(crops.shape[-1])[None, None, rows, columns].expand(len(crops), -1, -1, -1)
    result = crops.clone()
    result[..., rows, columns] = laid_over(crops[..., rows, columns], mouths[..., rows, columns], area)
    return result


def misplacement(count: int, generator: torch.Generator) -> Tensor:
    """Small similarities in the wide crop's [-1, 1]: how far beside its place each mouth is laid. -> (count, 2, 3)"""
    chances = torch.rand(count, 4, generator=generator) * 2 - 1
    turn, scale = chances[:, 0] * MISPLACED["turn"], 1 + chances[:, 1] * MISPLACED["scale"]
    shift = chances[:, 2:] * 2 * MISPLACED["shift"] / STORED_MARGIN
    cos, sin = torch.cos(turn) * scale, torch.sin(turn) * scale
    return torch.stack([torch.stack([cos, -sin, shift[:, 0]], -1), torch.stack([sin, cos, shift[:, 1]], -1)], 1)


def nearest_mouths(poses: np.ndarray, steady: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """For each of n frames all others from the best start to the worst, those too near in time last. -> (n, n)

    Args:
        poses: (n, 12).
        steady: (n, L, 2) rigid points as shares of the crop.
        frames: (n,) their numbers in the clip.
    """
    pose = np.linalg.norm(poses[:, None] - poses[None], axis=-1)
    head = np.linalg.norm(steady[:, None] - steady[None], axis=-1).mean(-1)
    distance = pose / max(np.median(pose), 1e-6) + HEAD_WEIGHT * head / max(np.median(head), 1e-6)
    distance[np.abs(frames[:, None] - frames[None]) <= APART] = np.inf
    return np.argsort(distance, axis=1, kind="stable")


def draw_starts(order: np.ndarray, rows: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """For each row ``NUM_STARTS`` frames whose mouths are laid over it: near ones, sometimes any. -> (len(rows), K)"""
    chances = torch.rand(2, len(rows), NUM_STARTS, generator=generator).numpy()
    usable = max(order.shape[1] - 2 * APART - 1, 1)
    reach = np.where(chances[0] < FAR_SHARE, usable, min(NEAREST, usable))
    return order[rows[:, None], (chances[1] * reach).astype(int)]


@torch.inference_mode()
def encode_retrieved(
    store: CropStore, codec: Codec, lip_encoder: LipEncoder, folder: str | Path, looks: int, frames: int, seed: int,
    strength: float, crop_px: int, progress: Progress | None = None,
) -> None:  # fmt: skip
    """Draw ``looks`` looks of every clip of an aligned store, ``frames`` frames with their starts each, and save them encoded.

    Args:
        strength: of the augmentation, see ``augment.draw_view``.
        crop_px: side of the editor's crop, a multiple of 64.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[np.ndarray]] = {}
    speakers: list[str] = []
    for clip in range(len(store.clip_ids)):
        own = np.flatnonzero(store.clip_of == clip)
        if len(own) < NEAREST + 2 * APART + 2:
            continue
        order = nearest_mouths(_read(store, own, lip_encoder), store.landmarks[own][:, STEADY], store.frame_of[own])
        for look in range(looks):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + clip * 101 + look)
            rows = torch.randperm(len(own), generator=generator).numpy()
            encoded = _encode_look(store, own, rows, frames, order, codec, lip_encoder, generator, strength, crop_px)
            for name, value in (encoded | {"group": np.full(len(encoded["poses"]), len(speakers))}).items():
                parts.setdefault(name, []).append(value)
            speakers.append(str(store.speakers[clip]))
        if progress is not None:
            progress(clip + 1, len(store.clip_ids))
    if not speakers:
        raise FlashLipsError("No clip is long enough for retrieved starts; give clips of a second or more.")
    for name in ("windows", "start_latents", "start_windows"):
        np.save(folder / f"{name}.npy", np.concatenate(parts.pop(name)))
    np.savez(folder / "frames.npz", speakers=speakers, **{k: np.concatenate(v) for k, v in parts.items()})


def _read(store: CropStore, rows: np.ndarray, lip_encoder: LipEncoder) -> np.ndarray:
    """What the lips of stored crops do, (n, 12)."""
    still = augment.draw_view(1, torch.Generator().manual_seed(0), 0.0)
    poses = []
    for part in np.array_split(rows, -(-len(rows) // 16)):
        view = augment.select(still, torch.zeros(len(part), dtype=torch.long))
        poses.append(lip_encoder(augment.apply(store.batch(part), view, torch.Generator().manual_seed(0), READ_PX)).numpy())
    return np.concatenate(poses)


def _encode_look(
    store: CropStore, own: np.ndarray, shuffled: np.ndarray, frames: int, order: np.ndarray, codec: Codec,
    lip_encoder: LipEncoder, generator: torch.Generator, strength: float, crop_px: int,
) -> dict[str, np.ndarray]:  # fmt: skip
    """One clip in one look: ``shuffled`` are places in ``own``, the first ``frames`` of them targets, the rest references."""
    look = augment.draw_view(1, generator, strength)
    rows = shuffled[: min(frames, len(shuffled) - 1)]
    spare = shuffled[len(rows) :][np.arange(NUM_STORED) % (len(shuffled) - len(rows))]

    def seen(places: np.ndarray, motion: Tensor | None = None) -> Tensor:
        view = augment.select(look, torch.zeros(len(places), dtype=torch.long))
        view = view if motion is None else augment.after_motion(view, motion)
        crops = augment.apply(store.batch(own[places]), view, generator, crop_px)
        return crops.contiguous(memory_format=torch.channels_last)

    starts = draw_starts(order, rows, generator)
    targets, references = seen(rows), seen(spare)
    laid = [lay_over(targets, seen(starts[:, k], misplacement(len(rows), generator))) for k in range(NUM_STARTS)]
    view = augment.select(look, torch.zeros(len(rows), dtype=torch.long))
    points = store.landmarks[own[rows]]
    lips = augment.move_points(torch.from_numpy(points[:, :40]), view)
    return {
        "latents": encoded_view(codec, targets), "poses": lip_encoder(targets).numpy(), "windows": cut_windows(targets),
        "lips": torch.cat([lips.amin(1), lips.amax(1)], 1).numpy(), "neighbours": nearest_heads(points[:, STEADY]),
        "references": encoded_view(codec, references)[None], "reference_poses": lip_encoder(references).numpy()[None],
        "start_latents": np.stack([encoded_view(codec, crops) for crops in laid], 1),
        "start_windows": np.stack([cut_windows(crops) for crops in laid], 1),
    }  # fmt: skip


def encoded_view(codec: Codec, crops: Tensor, margin: int = 4) -> np.ndarray:
    """Latents of the part of crops that training reads, the pixel window and what surrounds it; 0 elsewhere. float16"""
    cells = crops.shape[-1] // CELL_PX
    top, left, height, width = window_of(cells)
    rows = slice(max(top - margin, 0), min(top + height + margin, cells))
    columns = slice(max(left - margin, 0), min(left + width + margin, cells))
    return torch.cat([encode_part(codec, part, (rows, columns)) for part in crops.split(4)]).half().numpy()


def load_retrieved(folders: list[str | Path]) -> RetrievedFrames:
    """Join what :func:`encode_retrieved` saved."""
    parts = {
        name: torch.from_numpy(np.concatenate([np.load(Path(f) / f"{name}.npy") for f in folders]))
        for name in ("start_latents", "start_windows")
    }
    return RetrievedFrames(load_frames(folders), **parts)


def retrieved_batches(retrieved: RetrievedFrames, batch_size: int, num_references: int, alike: float) -> MakeBatch:
    """Frames, each with one of its starts or with itself (a share ``alike``), and references of its own clip."""
    frames = retrieved.frames

    def make(generator: torch.Generator) -> EditorBatch:
        count = num_references if torch.rand((), generator=generator) < 0.8 else 1
        rows, _ = draw_rows(frames, batch_size, generator)
        chances = torch.rand(2, batch_size, generator=generator).numpy()
        which = (chances[0] * retrieved.start_latents.shape[1]).astype(int)
        is_alike = torch.from_numpy(chances[1] < alike)[:, None, None, None]
        latents, pixels = frames.latents[rows].float(), window_pixels(frames, rows)
        starts = retrieved.start_latents[rows, which].float()
        shown = window_pixels(replace(frames, windows=retrieved.start_windows[rows, which]), np.arange(batch_size))
        references, read = draw_references(frames, rows, count, generator)
        is_read = float(torch.rand((), generator=generator)) >= UNREAD_SHARE
        return EditorBatch(
            latents.contiguous(memory_format=torch.channels_last),
            torch.where(is_alike, latents, starts).contiguous(memory_format=torch.channels_last), frames.poses[rows],
            references, read if is_read else None, pixels, torch.where(is_alike, pixels, shown), frames.lips[rows],
            frames.poses[rows],
        )  # fmt: skip

    return make


def start_sheet(batch: EditorBatch) -> np.ndarray:
    """Starts over the frames that they should become, (2 H, B W, 3) uint8."""
    return np.concatenate([np.concatenate(list(to_bytes(x)), 1) for x in (batch.near_pixels, batch.pixels)], 0)
