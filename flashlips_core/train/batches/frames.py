"""The editor's training frames: augmented looks of every clip, encoded once.

N frames, G groups, K stored references. A group is one clip in one look (colours, camera, mirror). Its frames lie upon each other
to the pixel, as far as a head can be laid upon itself, so that two of them differ in the mouth alone; its references are further
frames as a tracker would crop them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...codec import CELL_PX, Codec
from ...dataset.store import STORED_MARGIN, CropStore, is_head
from ...models.lip_encoder import LipEncoder
from ...pixels import from_bytes, to_bytes
from ...types import FlashLipsError, Progress
from . import augment

NUM_NEIGHBOURS = 10
NUM_STORED_REFERENCES = 12
HEAD_SHARE = 0.3  # of the drawn frames are rendered heads: a hundred identities with exact pairs, but not real skin
# Landmarks that neither lips, lids nor brows move: eye corners, bridge and wings of the nose (places in the label files' order)
STEADY = (76, 77, 80, 81, 86, 87, 88, 89, 90, 91, 92)
# The pixels kept for the pixel losses, as shares of the crop (left, top, right, bottom): lips, chin and the lower cheeks; the lip
# encoder's mouth region lies inside.
PIXEL_WINDOW = (7 / 32, 12 / 32, 25 / 32, 31 / 32)


@dataclass(frozen=True)
class Ragged:
    """Numbers in parts of different length, one after another, of which whole batches are drawn at once."""

    numbers: np.ndarray
    starts: np.ndarray  # (P,)
    lengths: np.ndarray  # (P,)

    @classmethod
    def of(cls, parts: Sequence[Sequence[int] | np.ndarray]) -> Ragged:
        lengths = np.array([len(part) for part in parts])
        return cls(np.concatenate([np.asarray(part) for part in parts]), np.cumsum(lengths) - lengths, lengths)

    def pick(self, parts: np.ndarray, chances: np.ndarray) -> np.ndarray:
        """A number of each of ``parts`` (B,), by chances (B,) in [0, 1)."""
        return self.numbers[self.starts[parts] + (chances * self.lengths[parts]).astype(int)]


@dataclass(frozen=True)
class EditorFrames:
    """Encoded frames, ready to draw from."""

    latents: Tensor  # (N, 4, h, w) float16, 32x32 cells of a 256 px crop
    poses: Tensor  # (N, 12) as the lip encoder reads them
    windows: Tensor  # (N, H, W, 3) uint8, the pixels of the window above, 152x144 of a 256 px crop
    lips: Tensor  # (N, 4) mouth box in the augmented crop, xyxy shares
    neighbours: np.ndarray  # (N, 10) rows of the same group with the most similar head pose
    group_of: np.ndarray  # (N,)
    references: Tensor  # (G, K, 4, h, w) float16
    reference_poses: Tensor  # (G, K, 12)
    rows_of_group: list[np.ndarray]
    groups_of_speaker: dict[str, list[int]]

    @functools.cached_property
    def rows(self) -> Ragged:
        """Of each group."""
        return Ragged.of(self.rows_of_group)

    @functools.cached_property
    def groups(self) -> Ragged:
        """Of each speaker, in the order of their names."""
        return Ragged.of([self.groups_of_speaker[name] for name in sorted(self.groups_of_speaker)])

    @functools.cached_property
    def speakers(self) -> tuple[np.ndarray, np.ndarray]:
        """The places of real people, and those of rendered heads, in the order of their names."""
        rendered = np.array([is_head(name) for name in sorted(self.groups_of_speaker)])
        return np.flatnonzero(~rendered), np.flatnonzero(rendered)

    def near(self, device: torch.device | str) -> EditorFrames:
        """The same frames with what is large on ``device``: a card that fetches it from the host waits for every batch.

        They stay where they are if they would take more than half of the card's free memory.
        """
        large = {"latents": self.latents, "windows": self.windows, "references": self.references}
        if torch.device(device).type != "cuda" or 2 * sum(x.nbytes for x in large.values()) > torch.cuda.mem_get_info(device)[0]:
            return self
        return replace(self, **{name: value.to(device) for name, value in large.items()})


def encode_looks(
    store: CropStore,
    codec: Codec,
    lip_encoder: LipEncoder,
    folder: str | Path,
    looks: int,
    frames: int,
    seed: int,
    *,
    strength: float,
    crop_px: int,
    is_still: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> None:
    """Draw ``looks`` looks of every clip, ``frames`` frames and some references each, encode them and save them under ``folder``.

    The references are frames that are no targets, some of them twice where a clip has few.

    Args:
        is_still: The heads of a clip lie upon each other already (renders), better than landmarks could lay them.
        crop_px: Side of the editor's crop, a multiple of 64. The same mouth gets more latent cells in a larger one.
        device: Where the pictures are drawn, and where the codec and the lip encoder are.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[np.ndarray]] = {}
    speakers: list[str] = []
    for clip in range(len(store.clip_ids)):
        own = np.flatnonzero(store.clip_of == clip)
        for look in range(looks):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + clip * 101 + look)
            chosen = own[torch.randperm(len(own), generator=generator).numpy()]
            rows = chosen[: min(frames, len(chosen) - 1)]
            spare = chosen[len(rows) :]  # a target among its own references would teach to copy it
            if look % 2 and not is_still:
                spare = _of_another_clip(store, clip, spare, generator)
            others = spare[np.arange(NUM_STORED_REFERENCES) % len(spare)]
            encoded = _encode_group(store, rows, others, codec, lip_encoder, generator, strength, is_still, crop_px, device)
            for name, value in (encoded | {"group": np.full(len(rows), len(speakers))}).items():
                parts.setdefault(name, []).append(value)
            speakers.append(str(store.speakers[clip]))
        if progress is not None:
            progress(clip + 1, len(store.clip_ids))
    np.save(folder / "windows.npy", np.concatenate(parts.pop("windows")))
    np.savez(folder / "frames.npz", speakers=speakers, **{k: np.concatenate(v) for k, v in parts.items()})


def _of_another_clip(store: CropStore, clip: int, own: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """References from another clip of the speaker, who may have only one: a dub asks for mouths that its clip never shows."""
    clips = [c for c in np.flatnonzero(store.speakers == store.speakers[clip]) if c != clip]
    if not clips:
        return own
    rows = np.flatnonzero(store.clip_of == clips[int(torch.randint(len(clips), (), generator=generator))])
    return rows[torch.randperm(len(rows), generator=generator).numpy()]


@torch.inference_mode()
def _encode_group(
    store: CropStore,
    rows: np.ndarray,
    others: np.ndarray,
    codec: Codec,
    lip_encoder: LipEncoder,
    generator: torch.Generator,
    strength: float,
    is_still: bool,
    crop_px: int,
    device: torch.device | str,
) -> dict[str, np.ndarray]:
    look = augment.draw_view(1, generator, strength)
    view = augment.select(look, torch.zeros(len(rows), dtype=torch.long))
    steady = store.landmarks[rows][:, STEADY]
    if not is_still:
        motion, steady = laid_upon(steady)
        view = augment.after_motion(view, torch.from_numpy(motion).float())
    grain = generator if torch.device(device).type == "cpu" else torch.Generator(device).manual_seed(generator.initial_seed())

    def seen(places: np.ndarray, through: augment.View) -> Tensor:
        crops = augment.apply(store.batch(places, device), augment.on_device(through, device), grain, crop_px)
        return crops.contiguous(memory_format=torch.channels_last)

    def read(pictures: Tensor) -> tuple[np.ndarray, np.ndarray]:
        return codec.encode(pictures).half().cpu().numpy(), lip_encoder(pictures).float().cpu().numpy()

    crops = seen(rows, view)
    references = seen(others, augment.select(look, torch.zeros(len(others), dtype=torch.long)))
    (latents, poses), (reference_latents, reference_poses) = read(crops), read(references)
    lips = augment.move_points(torch.from_numpy(store.landmarks[rows][:, :40]), view)
    return {
        "latents": latents, "poses": poses, "windows": cut_windows(crops),
        "lips": torch.cat([lips.amin(1), lips.amax(1)], 1).numpy(), "neighbours": nearest_heads(steady),
        "references": reference_latents[None], "reference_poses": reference_poses[None],
    }  # fmt: skip


def laid_upon(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The similarities that carry the group's mean face onto each frame, in the wide crop's [-1, 1]; and what they leave over.

    Args:
        points: (n, L, 2) in the editor's crop coordinates, [0, 1].
    Returns: (n, 2, 3) matrices, and the points (n, L, 2) as they lie after each frame is moved onto the mean.
    """
    wide = (points - 0.5) * 2 / STORED_MARGIN
    z = wide[..., 0] + 1j * wide[..., 1]  # a similarity is one complex factor and one offset
    mean = z.mean(0)
    centred, target = mean - mean.mean(), z - z.mean(1, keepdims=True)
    factor = (target * centred.conj()).sum(1) / (np.abs(centred) ** 2).sum()  # least squares
    offset = z.mean(1) - factor * mean.mean()
    matrices = np.stack([
        np.stack([factor.real, -factor.imag, offset.real], -1), np.stack([factor.imag, factor.real, offset.imag], -1)
    ], 1)  # fmt: skip
    left = (z - offset[:, None]) / factor[:, None]
    return matrices, np.stack([left.real, left.imag], -1)


def nearest_heads(points: np.ndarray) -> np.ndarray:
    """For each frame the places of those whose steady points lie nearest to its own, (n, L, 2) -> (n, 10)."""
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1).mean(-1)
    np.fill_diagonal(distance, np.inf)
    order = np.argsort(distance, axis=1, kind="stable")[:, : max(len(points) - 1, 1)]
    return order[:, np.arange(NUM_NEIGHBOURS) % order.shape[1]]


def load_frames(folders: list[str | Path]) -> EditorFrames:
    """Join what :func:`encode_looks` saved.

    Raises:
        FlashLipsError: The folders hold crops of different sizes.
    """
    tables = [np.load(Path(f) / "frames.npz") for f in folders]
    sizes = sorted({CELL_PX * t["latents"].shape[-1] for t in tables})
    if len(sizes) > 1:
        raise FlashLipsError(f"The encoded looks are crops of {' and '.join(map(str, sizes))} px; encode all at one size.")
    windows = [np.load(Path(f) / "windows.npy") for f in folders]
    rows_of_group, groups_of_speaker, neighbours, start = [], {}, [], 0
    for table in tables:
        group, around = table["group"], table["neighbours"]
        bounds = np.searchsorted(group, np.arange(len(table["speakers"]) + 1)) + start
        for speaker, a, b in zip(table["speakers"], bounds[:-1], bounds[1:], strict=True):
            groups_of_speaker.setdefault(str(speaker), []).append(len(rows_of_group))
            rows_of_group.append(np.arange(a, b))
            neighbours.append(around[a - start : b - start] + a)
        start += len(group)
    names = ("latents", "poses", "lips", "references", "reference_poses")
    joined = {name: torch.from_numpy(np.concatenate([t[name] for t in tables])) for name in names}
    group_of = np.repeat(np.arange(len(rows_of_group)), [len(rows) for rows in rows_of_group])
    return EditorFrames(
        windows=torch.from_numpy(np.concatenate(windows)), neighbours=np.concatenate(neighbours), group_of=group_of,
        rows_of_group=rows_of_group, groups_of_speaker=groups_of_speaker, **joined,
    )  # fmt: skip


def draw_rows(frames: EditorFrames, count: int, generator: torch.Generator, alike: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of targets (count,), by speaker first, and for each a neighbour (count,) with another mouth.

    Args:
        alike: share of the neighbours that have the target's mouth already.
    """
    chances = torch.rand(6, count, generator=generator, dtype=torch.float64).numpy()
    people, heads = frames.speakers
    targets = frames.rows.pick(frames.groups.pick(_speakers(people, heads, chances[:2]), chances[2]), chances[3])
    near = np.where(chances[4] < alike, _like_mouths(frames, targets, chances[5]), _other_mouths(frames, targets, chances[5]))
    return targets, near


def _speakers(people: np.ndarray, heads: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """Speakers by two chances (2, count) each: whether it is a rendered head, and which."""
    if not (len(people) and len(heads)):
        people = heads = people if len(people) else heads
    who = chances[1]
    return np.where(chances[0] < HEAD_SHARE, heads[(who * len(heads)).astype(int)], people[(who * len(people)).astype(int)])


def _other_mouths(frames: EditorFrames, rows: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """One of the four neighbours whose mouths differ most: pairs of like mouths teach the editor to ignore the pose."""
    order = _mouth_distance(frames, rows).argsort(1, descending=True)[:, :4].numpy()
    chosen = order[np.arange(len(rows)), (chances * order.shape[1]).astype(int)]
    return frames.neighbours[rows, chosen]


def _like_mouths(frames: EditorFrames, rows: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """The neighbour whose mouth differs least, or the frame itself: what fits already is to be kept as it is."""
    return np.where(chances < 0.5, rows, frames.neighbours[rows, _mouth_distance(frames, rows).argmin(1).numpy()])


def _mouth_distance(frames: EditorFrames, rows: np.ndarray) -> Tensor:
    """Of each row's neighbours from it, (B, 10)."""
    return (frames.poses[frames.neighbours[rows]] - frames.poses[rows][:, None]).square().sum(-1)


def draw_references(frames: EditorFrames, rows: np.ndarray, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` different references of each row's group. -> (B, count, 4, h, w) and their poses (B, count, 12)."""
    order = torch.rand(len(rows), frames.references.shape[1], generator=generator).argsort(1)[:, :count]
    group = torch.from_numpy(frames.group_of[rows])[:, None]
    return frames.references[group, order].float(), frames.reference_poses[group, order]


def cut_windows(crops: Tensor) -> np.ndarray:
    """The pixel windows of crops (N, 3, S, S) in [-1, 1], as they are stored. -> (N, H, W, 3) uint8."""
    top, left, height, width = (CELL_PX * v for v in window_of(crops.shape[-1] // CELL_PX))
    return to_bytes(crops[:, :, top : top + height, left : left + width])


def window_pixels(frames: EditorFrames, rows: np.ndarray) -> Tensor:
    """Stored windows as (B, 3, H, W) in [-1, 1]."""
    return from_bytes(frames.windows[rows])


def window_of(cells: int) -> tuple[int, int, int, int]:
    """The pixel window in a crop of ``cells`` latent cells a side: top, left, height, width, all in cells."""
    left, top, right, bottom = PIXEL_WINDOW
    first_row, first_column = math.floor(top * cells), math.floor(left * cells)
    return first_row, first_column, math.ceil(bottom * cells) - first_row, math.ceil(right * cells) - first_column


def window_cells(latents: Tensor) -> Tensor:
    """The window's part of latents or of maps of their size, (B, C, 32, 32) -> (B, C, 19, 18)."""
    top, left, height, width = window_of(latents.shape[-1])
    return latents[:, :, top : top + height, left : left + width]


def lip_weights(lips: Tensor, cells: int, margin: float = 0.03, is_whole: bool = False) -> Tensor:
    """Soft boxes around the lips, (B, 4) -> (B, 1, H, W) in [0, 1], in pixels.

    Args:
        lips: xyxy shares of the crop.
        cells: latent cells of the crop's side.
        is_whole: the map of the whole crop instead of the pixel window's.
    """
    top, left, height, width = (0, 0, cells, cells) if is_whole else window_of(cells)
    x = (torch.arange(CELL_PX * width) + 0.5) / (CELL_PX * cells) + left / cells
    y = (torch.arange(CELL_PX * height) + 0.5) / (CELL_PX * cells) + top / cells
    columns = torch.minimum(x - lips[:, 0:1], lips[:, 2:3] - x).add(margin).div(margin).clamp(0, 1)
    rows = torch.minimum(y - lips[:, 1:2], lips[:, 3:4] - y).add(margin).div(margin).clamp(0, 1)
    return (rows[:, :, None] * columns[:, None, :])[:, None]


def near_lips(lips: Tensor, cells: int, margin: float = 0.03) -> Tensor:
    """The same boxes over the whole crop at latent size, (B, 4) -> (B, 1, cells, cells)."""
    return F.avg_pool2d(lip_weights(lips, cells, margin, is_whole=True), CELL_PX)
