"""What the stages learn from: GRID's two folders of videos, or a training set that ``data build`` made.

T frames of one clip at 25 per second, n of them stored with a face, S side of a stored crop in pixels.
"""

from __future__ import annotations

import functools
import logging
import random
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...audio import to_mono_16k
from ...dataset.read import FEWEST_FACES, SampleTable, ShardCrops, read_tables, to_crops
from ...dataset.store import STORED_MARGIN, Clip, CropStore, has_store, load_clips
from ...face.expression import BLENDSHAPES
from ...face.motion import LANDMARKER_FILE
from ...face.points import FIVE
from ...media import load_audio
from ...models.lip_encoder import MOUTH_REGION
from ...pixels import to_bytes
from ...types import FlashLipsError, Progress
from . import labels

log = logging.getLogger(__name__)

_MARGIN = 0.1 * (MOUTH_REGION[2] - MOUTH_REGION[0])
STORED_MOUTH = (MOUTH_REGION[0] - _MARGIN, MOUTH_REGION[1] - _MARGIN, MOUTH_REGION[2] + _MARGIN, MOUTH_REGION[3] + _MARGIN)
STORED_PX = 116  # side of a stored mouth; the mouth region itself is 96.7 px of it
MOUTHS, HEADS = "mouths", "crops_heads"  # stores in the run folder: everybody's mouths; rendered heads, where they were made
PEOPLE, FIRST, SET_FACES = "crops_people", "crops_s1", "crops_set"  # face stores: GRID's people, its speaker s1, a built set's
UNSYNCED = ("s4", "s33", "s25", "uG")  # GRID's speakers whose sound and picture disagree, or it cannot be decided
LABEL_FOLDERS = {"s1": "grid_s1", "grid_people": "grid_people"}  # first part of a GRID clip's id -> folder of the data
CUT_AT_ONCE = 32  # crops of a set that are in memory while mouths are cut
IN_A_SET = "set/"  # before identities, so that none is taken for a rendered head's, see dataset.store.HEAD


class Material(Protocol):
    """Clips of talking people, their stored faces, and their sound."""

    face_stores: tuple[str, ...]  # names of the stores of training faces
    title: str  # what it is, for checkpoints
    licence: str  # of what is trained on it
    credit: str  # whose pictures are learnt from

    def prepare(self, weights: Path, stored_px: int, progress: Progress | None = None) -> None:
        """Make what is needed of landmarks and stored crops; what is there is left alone."""

    def clips(self) -> list[Clip]:
        """Every labelled clip, all splits."""

    def is_stored(self, name: str) -> bool:
        """Whether a face store is there."""

    def faces(self, name: str, crop_px: int | None = None) -> CropStore | ShardCrops:
        """A face store. ``crop_px``: side of the editor's square that is cut out of it, None where there are several."""

    def sound(self, clip_id: str) -> np.ndarray:
        """A clip's samples, mono at 16 kHz, float32."""

    def jaw(self, clip_id: str) -> np.ndarray | None:
        """A clip's jaw opening by MediaPipe, (T,) float32 from 0 to 1, NaN where there is no face; None where not measured."""


def open_material(data: str | Path, folder: str | Path) -> Material:
    """What the folder ``data`` holds; ``folder`` is the run's, where crops and labels are kept."""
    data, folder = Path(data), Path(folder)
    is_set = any((data / name).is_file() for name in ("index.json", "build.json"))  # the second alone: a stopped build
    return BuiltSet(data, folder) if is_set else GridFolders(data, folder)


class GridFolders:
    """The folders ``grid_s1`` and ``grid_people``: videos, and s1's landmark file as MediaPipe gives it."""

    face_stores = (PEOPLE, FIRST)
    title = "GRID corpus (CC BY 4.0)"
    licence = "Apache-2.0"
    credit = "trained on GRID (CC BY 4.0) and ICT-FaceKit renders (MIT)"

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder

    def prepare(self, weights: Path, stored_px: int, progress: Progress | None = None) -> None:
        """Measure the people's faces with MediaPipe, and cut face and mouth crops of all clips."""
        if not (self.data / "grid_people").is_dir():
            raise FlashLipsError(
                f"{self.data} holds neither a training set nor the folder grid_people; make a set with 'data build', and name it."
            )
        measured = self.folder / "people_mediapipe.npz"
        if not measured.is_file():
            labels.label_videos(self.data / "grid_people", weights / LANDMARKER_FILE, measured, progress)
        clips = self.clips()
        learnt = [c for c in clips if c.split == "train"]
        people = [c for c in learnt if c.speaker != "s1"]
        first = sorted((c for c in learnt if c.id.startswith("s1/")), key=lambda c: c.id)
        random.Random(0).shuffle(first)
        for name, chosen, every in ((PEOPLE, people, 1), (FIRST, first[:140], 2)):
            if not self.is_stored(name):
                CropStore.build(chosen, self.folder / name, every, stored_px, progress=progress)
        if not self.is_stored(MOUTHS):
            CropStore.build(clips, self.folder / MOUTHS, 1, STORED_PX, STORED_MOUTH, progress)

    def clips(self) -> list[Clip]:
        measured = self.folder / "people_mediapipe.npz"
        if not measured.is_file():
            raise FlashLipsError(f"No {measured.name} in {self.folder}; run the stage 'prepare' first.")
        clips = load_clips(measured, self.data / "grid_people")
        clips += load_clips(self.data / "grid_s1" / "mediapipe.npz", self.data / "grid_s1", "s1")
        return [replace(c, has_voice=c.speaker not in UNSYNCED) for c in clips]

    def is_stored(self, name: str) -> bool:
        return has_store(self.folder / name)

    def faces(self, name: str, crop_px: int | None = None) -> CropStore:
        folder = self.folder / name
        if not self.is_stored(name):
            raise FlashLipsError(f"No crops in {folder}; run the stage 'prepare' first, or give --data a built training set.")
        return CropStore(folder)

    def sound(self, clip_id: str) -> np.ndarray:
        first, _, rest = clip_id.partition("/")
        path = self.data / LABEL_FOLDERS.get(first, first) / f"{rest}.mp4"
        if not path.is_file():
            raise _unknown(clip_id, self.data)
        return to_mono_16k(load_audio(path)).numpy()

    def jaw(self, clip_id: str) -> np.ndarray | None:
        return self._jaws.get(clip_id.split("/")[-1]) if clip_id.startswith("s1/") else None

    @functools.cached_property
    def _jaws(self) -> dict[str, np.ndarray]:
        """Of s1 alone, whose file lies beside its videos."""
        path = self.data / "grid_s1" / "mediapipe.npz"
        if not path.is_file():
            return {}
        file = np.load(path)
        jaw = file["blendshapes"][:, [str(n) for n in file["blendshape_names"]].index("jawOpen")].astype(np.float32)
        jaw[~file["found"]] = np.nan
        ends = np.cumsum(file["num_frames"])
        return {str(i): jaw[end - n : end] for i, end, n in zip(file["ids"], ends, file["num_frames"], strict=True)}


class BuiltSet:
    """A set with ``index.json``: its samples are the clips, with landmarks and sound; faces are read out of its shards."""

    face_stores = (SET_FACES,)
    licence = "as the videos it was trained on allow"

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.title = f"the training set '{data.resolve().name}'"
        heads = " and ICT-FaceKit renders (MIT)" if has_store(folder / HEADS) else ""
        self.credit = f"trained on {self.title}{heads}"

    def prepare(self, weights: Path, stored_px: int, progress: Progress | None = None) -> None:
        """Cut the mouths out of the stored crops."""
        clips = self.clips()
        if not has_store(self.folder / MOUTHS):
            total = sum(int(c.found.sum()) for c in clips)
            CropStore.write(clips, map(self._mouths_of, clips), self.folder / MOUTHS, total, STORED_PX, progress)

    def clips(self) -> list[Clip]:
        clips = [to_clip(table) for table in self._tables.values() if len(table.rows_with_landmarks()) >= FEWEST_FACES]
        if (left := len(self._tables) - len(clips)) > 0:
            log.warning("left out %d of %d samples, in which MediaPipe found no face", left, len(self._tables))
        return clips

    def is_stored(self, name: str) -> bool:
        return name in self.face_stores

    def faces(self, name: str, crop_px: int | None = None) -> ShardCrops:
        store = ShardCrops(self.data, "train", None if crop_px is None else round(crop_px * STORED_MARGIN))
        store.speakers = np.array([IN_A_SET + name for name in store.speakers])
        return store

    def sound(self, clip_id: str) -> np.ndarray:
        samples = self._table(clip_id).samples()
        if samples is None:
            raise FlashLipsError(f"The sample {clip_id} has no sound; run the stage 'lip-teacher' again, which notes that.")
        return samples.numpy()

    def jaw(self, clip_id: str) -> np.ndarray | None:
        table = self._table(clip_id)
        if "blendshapes" not in table.labels:
            return None
        jaw = table.labels["blendshapes"][:, BLENDSHAPES.index("jawOpen")].numpy()
        return spread(table, jaw, fill=np.nan)

    @functools.cached_property
    def _tables(self) -> dict[str, SampleTable]:
        return {table.about["key"]: table for table in read_tables(self.data)}

    def _table(self, clip_id: str) -> SampleTable:
        if clip_id not in self._tables:
            raise _unknown(clip_id, self.data)
        return self._tables[clip_id]

    def _mouths_of(self, clip: Clip) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What ``CropStore.write`` takes of one clip."""
        table, frames = self._tables[clip.id], np.flatnonzero(clip.found)
        jpegs = [table.pictures[row].read() for row in table.rows_with_landmarks()]
        parts = [cut_mouths(to_crops(jpegs[i : i + CUT_AT_ONCE])) for i in range(0, len(jpegs), CUT_AT_ONCE)]
        return np.concatenate(parts), frames, clip.landmarks[frames]


def to_clip(table: SampleTable) -> Clip:
    """A sample as a clip; landmarks and points are in the coordinates of the editor's square."""
    landmarks = spread(table, table.labels["landmarks"].numpy())
    return Clip(
        id=table.about["key"], speaker=IN_A_SET + table.about["identity"], path="", found=spread(table, True),
        landmarks=landmarks, blendshapes=spread(table, table.labels["blendshapes"].numpy()),
        points=landmarks[:, list(FIVE)],
        split=table.about["split"], has_voice=table.sound is not None,
    )  # fmt: skip


def spread(table: SampleTable, values: np.ndarray | bool, fill: float = 0) -> np.ndarray:
    """Values of the stored frames laid out over the sample's T; ``fill`` where landmarks are missing. (n, ...) -> (T, ...)."""
    rows, values = table.rows_with_landmarks(), np.asarray(values)
    values = np.broadcast_to(values, (len(table.pictures), *values.shape[1:]))
    full = np.full((table.about["num_frames"], *values.shape[1:]), fill, values.dtype)
    full[np.array(table.about["frames"], int)[rows]] = values[rows]
    return full


def cut_mouths(crops: Tensor) -> np.ndarray:
    """Mouths out of a set's stored crops, as the mouth store has them. (n, 3, S, S) in [-1, 1] -> (n, 116, 116, 3) uint8."""
    left, top, right, bottom = STORED_MOUTH
    share = (right - left) / STORED_MARGIN  # of the stored crop
    if crops.shape[-1] * share > STORED_PX:
        side = round(STORED_PX / share)
        crops = F.interpolate(crops, size=(side, side), mode="bicubic", antialias=True)
    x, y = (left + right - 1) / STORED_MARGIN, (top + bottom - 1) / STORED_MARGIN  # its middle, from -1 to 1
    geometry = torch.tensor([[share, 0, x], [0, (bottom - top) / STORED_MARGIN, y]]).expand(len(crops), 2, 3)
    grid = F.affine_grid(geometry, [len(crops), 3, STORED_PX, STORED_PX], align_corners=False)
    return to_bytes(F.grid_sample(crops, grid, mode="bicubic", padding_mode="border", align_corners=False))


def _unknown(clip_id: str, data: Path) -> FlashLipsError:
    return FlashLipsError(f"{data} has no clip {clip_id}, which the labels name; run 'prepare' and 'lip-teacher' on it first.")
