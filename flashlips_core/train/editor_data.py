"""The editor's training frames: augmented looks of every clip, encoded once.

N frames, G groups. A group is one clip in one look (colours, camera, mirror): its frames can serve each other as references.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..codec import Codec
from ..data import CropStore
from ..types import Progress
from . import augment

NUM_NEIGHBOURS = 6
HEAD_SHARE = 0.35  # of the drawn frames are rendered heads: a hundred identities with exact pairs, but not real skin
ANCHORS = slice(76, 99)  # landmarks that no lip moves: eyes, irises, nose, brows (after the lips and the face oval)
# The pixels kept for the pixel losses: latent cells (top, left, size) around lips, chin and the lower cheeks.
WINDOW_TOP, WINDOW_LEFT, WINDOW_CELLS = 12, 8, 16


@dataclass(frozen=True)
class PoseTable:
    """Teacher poses of all labelled frames, as they are and as in the mirror."""

    plain: dict[str, np.ndarray]  # clip id -> (T, 12)
    mirror: dict[str, np.ndarray]


@dataclass(frozen=True)
class EditorFrames:
    """Encoded frames, ready to draw from."""

    latents: Tensor  # (N, 4, 32, 32) float16
    poses: Tensor  # (N, 12)
    windows: np.ndarray  # (N, 128, 128, 3) uint8, the pixels of the window above
    lips: Tensor  # (N, 4) mouth box in the augmented crop, xyxy shares
    neighbours: np.ndarray  # (N, 6) rows of the same group with the most similar head pose
    rows_of_group: list[np.ndarray]
    groups_of_speaker: dict[str, list[int]]


def encode_looks(
    store: CropStore,
    poses: PoseTable,
    codec: Codec,
    folder: str | Path,
    looks: int,
    frames: int,
    seed: int,
    strength: float = 1.0,
    progress: Progress | None = None,
) -> None:
    """Draw ``looks`` looks of every clip, ``frames`` frames each, encode them and save them under ``folder``.

    Frames of a group share the look to the pixel: where the head keeps still, two of them differ in the mouth alone.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[np.ndarray]] = {"latents": [], "poses": [], "windows": [], "lips": [], "neighbours": [], "group": []}
    speakers: list[str] = []
    for clip in range(len(store.clip_ids)):
        own = np.flatnonzero(store.clip_of == clip)
        for look in range(looks):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + clip * 101 + look)
            rows = own[torch.randperm(len(own), generator=generator)[:frames].numpy()]
            for name, value in _encode_group(store, rows, poses, codec, generator, strength).items():
                parts[name].append(value)
            parts["group"].append(np.full(len(rows), len(speakers)))
            speakers.append(str(store.speakers[clip]))
        if progress is not None:
            progress(clip + 1, len(store.clip_ids))
    np.save(folder / "windows.npy", np.concatenate(parts.pop("windows")))
    np.savez(folder / "frames.npz", speakers=speakers, **{k: np.concatenate(v) for k, v in parts.items()})


@torch.inference_mode()
def _encode_group(
    store: CropStore, rows: np.ndarray, poses: PoseTable, codec: Codec, generator: torch.Generator, strength: float
) -> dict[str, np.ndarray]:
    view = augment.select(augment.draw_view(1, generator, strength), torch.zeros(len(rows), dtype=torch.long))
    crops = augment.apply(store.batch(rows), view, generator).contiguous(memory_format=torch.channels_last)
    latents = torch.cat([codec.encode(part) for part in crops.split(8)])
    is_mirrored = bool(torch.det(view.geometry[0, :, :2]) < 0)
    table = poses.mirror if is_mirrored else poses.plain
    labels = np.stack([table[str(store.clip_ids[store.clip_of[r]])][store.frame_of[r]] for r in rows])
    lips = augment.move_points(torch.from_numpy(store.landmarks[rows][:, :40]), view)
    top, left, size = (8 * v for v in (WINDOW_TOP, WINDOW_LEFT, WINDOW_CELLS))
    window = ((crops[:, :, top : top + size, left : left + size] + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return {
        "latents": latents.half().numpy(), "poses": labels.astype(np.float32), "windows": window.numpy(),
        "lips": torch.cat([lips.amin(1), lips.amax(1)], 1).numpy(), "neighbours": _nearest(store.landmarks[rows][:, ANCHORS]),
    }  # fmt: skip


def _nearest(anchors: np.ndarray) -> np.ndarray:
    """For each frame the places of those whose anchors moved least, (n, L, 2) -> (n, 6)."""
    distance = np.linalg.norm(anchors[:, None] - anchors[None], axis=-1).mean(-1)
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1, kind="stable")[:, :NUM_NEIGHBOURS]


def load_frames(folders: list[str | Path]) -> EditorFrames:
    """Join what :func:`encode_looks` saved."""
    tables = [np.load(Path(f) / "frames.npz") for f in folders]
    windows = [np.load(Path(f) / "windows.npy") for f in folders]
    rows_of_group, groups_of_speaker, neighbours, start = [], {}, [], 0
    for table in tables:
        bounds = np.searchsorted(table["group"], np.arange(len(table["speakers"]) + 1)) + start
        for speaker, a, b in zip(table["speakers"], bounds, bounds[1:], strict=False):
            groups_of_speaker.setdefault(str(speaker), []).append(len(rows_of_group))
            rows_of_group.append(np.arange(a, b))
            neighbours.append(table["neighbours"][a - start : b - start] + a)
        start += len(table["group"])
    joined = {name: torch.from_numpy(np.concatenate([t[name] for t in tables])) for name in ("latents", "poses", "lips")}
    return EditorFrames(
        joined["latents"],
        joined["poses"],
        np.concatenate(windows),
        joined["lips"],
        np.concatenate(neighbours),
        rows_of_group,
        groups_of_speaker,
    )


def draw_rows(
    frames: EditorFrames, count: int, references: int, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of targets (count,), of a neighbour with another mouth each (count,), and of references (count, references)."""
    heads = [s for s in sorted(frames.groups_of_speaker) if s.startswith("head")]
    people = [s for s in sorted(frames.groups_of_speaker) if not s.startswith("head")]

    def pick(items: list | np.ndarray):
        return items[int(torch.randint(len(items), (), generator=generator))]

    targets, others = [], []
    for _ in range(count):
        is_head = heads and (not people or float(torch.rand((), generator=generator)) < HEAD_SHARE)
        rows = frames.rows_of_group[pick(frames.groups_of_speaker[pick(heads if is_head else people)])]
        targets.append(pick(rows))
        others.append([pick(rows) for _ in range(references)])
    near = [_other_mouth(frames, row) for row in targets]
    return np.array(targets), np.array(near), np.array(others)


def _other_mouth(frames: EditorFrames, row: int) -> int:
    """The neighbour whose mouth differs most: pairs of like mouths teach the editor to ignore the pose."""
    neighbours = frames.neighbours[row]
    distance = (frames.poses[neighbours] - frames.poses[row]).square().sum(1)
    return int(neighbours[int(distance.argmax())])


def window_pixels(frames: EditorFrames, rows: np.ndarray) -> Tensor:
    """Stored windows as (B, 3, 128, 128) in [-1, 1]."""
    return torch.from_numpy(frames.windows[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1


def window_cells(latents: Tensor) -> Tensor:
    """The window's part of latents, (B, C, 32, 32) -> (B, C, 16, 16)."""
    return latents[:, :, WINDOW_TOP : WINDOW_TOP + WINDOW_CELLS, WINDOW_LEFT : WINDOW_LEFT + WINDOW_CELLS]


def lip_weights(lips: Tensor, size: int, margin: float = 0.03) -> Tensor:
    """Soft boxes around the lips inside the window, (B, 4) -> (B, 1, size, size) in [0, 1]."""
    left, top = WINDOW_LEFT / 32, WINDOW_TOP / 32
    ticks = (torch.arange(size) + 0.5) / size * WINDOW_CELLS / 32
    x = ((ticks + left)[None] - lips[:, 0:1]), (lips[:, 2:3] - (ticks + left)[None])
    y = ((ticks + top)[None] - lips[:, 1:2]), (lips[:, 3:4] - (ticks + top)[None])
    soft_x = torch.minimum(*x).add(margin).div(margin).clamp(0, 1)
    soft_y = torch.minimum(*y).add(margin).div(margin).clamp(0, 1)
    return (soft_y[:, :, None] * soft_x[:, None, :])[:, None]
