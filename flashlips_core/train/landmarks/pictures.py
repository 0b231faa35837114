"""Pictures for the landmark network: real faces labelled by MediaPipe, and parts of the same pictures that show no face.

N pictures, P side of a stored one in pixels, L = 99 landmarks. A stored picture is upright and REGION times as wide as the
square around its face, so that crops can be moved, turned and scaled in training.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...face.landmarks import cut_square, square_around
from ...face.motion import LANDMARKER_FILE, open_landmarker, rgb_frames
from ...face.points import LANDMARKS, mirror_order
from ...turned import to_shares
from ...types import FlashLipsError, Progress

log = logging.getLogger(__name__)

REGION = 2.2  # of the square around the face
STORED_PX = 224  # 102 px for the square itself; the network reads 112
HELD_OUT_PEOPLE = {"london": 10, "canada": 5, "congress": 35}  # 60 pictures: London has two of each person
TRAIN, TEST = "train", "test"
STILLS = "stills-test"  # whole frames of GRID's test people, 256 px
WITH_BACKGROUND = ("portraits", "people", "open")


@dataclass(frozen=True)
class Face:
    """One labelled face in a picture."""

    picture: np.ndarray  # (H, W, 3) uint8 RGB
    points: np.ndarray  # (L, 2) float32 pixels
    person: str
    split: str = TRAIN


class FaceStore:
    """Stored pictures with landmarks, memory-mapped."""

    def __init__(self, folder: str | Path):
        table = np.load(Path(folder) / "table.npz")
        self.points: np.ndarray = table["points"]  # (N, L, 2) float32, shares of the stored picture; zeros without a face
        self.people: np.ndarray = table["people"]  # (N,) str
        self.splits: np.ndarray = table["splits"]  # (N,) str
        self.pictures = np.load(Path(folder) / "pictures.npy", mmap_mode="r")  # (N, P, P, 3) uint8

    def __len__(self) -> int:
        return len(self.people)

    @functools.cached_property
    def squares(self) -> np.ndarray:
        """(N, 5) squares around the faces, pixels of the stored pictures."""
        return square_around(self.points * self.pictures.shape[1])

    def rows(self, split: str) -> np.ndarray:
        """Indices of a split."""
        return np.flatnonzero(self.splits == split)


def has_faces(folder: str | Path) -> bool:
    """Whether a whole :class:`FaceStore` lies there."""
    return (Path(folder) / "table.npz").is_file()


def write_store(folder: str | Path, parts: Iterable[tuple[np.ndarray, np.ndarray, str, str]]) -> FaceStore:
    """Store pictures (P, P, 3), their points (L, 2) as shares, person and split; the table appears last."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures, points, people, splits = zip(*parts, strict=True)
    np.save(folder / "pictures.npy", np.stack(pictures))
    part = folder / "table.part.npz"
    np.savez(part, points=np.stack(points).astype(np.float32), people=people, splits=splits)
    part.rename(folder / "table.npz")
    return FaceStore(folder)


def stored_square(points: np.ndarray) -> np.ndarray:
    """The upright square that a stored picture shows. (L, 2) -> (5,)."""
    square = square_around(points)
    half = REGION / 2 * (square[2:4] - square[:2])
    centre = (square[:2] + square[2:4]) / 2
    return np.concatenate([centre - half, centre + half, [0.0]]).astype(np.float32)


def store_faces(folder: str | Path, faces: Iterable[Face]) -> FaceStore:
    """Cut and store labelled faces."""

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray, str, str]]:
        for face in faces:
            square = stored_square(face.points)
            points = to_shares(face.points, square).astype(np.float32)
            yield cut_square(face.picture, square, STORED_PX), points, face.person, face.split

    return write_store(folder, parts())


def store_stills(folder: str | Path, faces: Iterable[Face]) -> FaceStore:
    """Store whole pictures, all of one size: what trembling is measured on."""
    whole = ((f.picture, f.points / f.picture.shape[1::-1], f.person, f.split) for f in faces)
    return write_store(folder, whole)


def store_background(folder: str | Path, faces: Iterable[Face], seed: int = 0, each: int = 2) -> FaceStore:
    """Store squares that show clothes, hair and rooms, but at most the edge of a face."""
    rng = np.random.default_rng(seed)

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray, str, str]]:
        for face in faces:
            height, width = face.picture.shape[:2]
            low, high = face.points.min(0), face.points.max(0)
            kept = 0
            for _ in range(40):
                if kept == each:
                    break
                side = min(height, width) * rng.uniform(0.2, 0.6)
                centre = rng.uniform((0, 0), (width, height))
                shared = np.minimum(high, centre + side / 2) - np.maximum(low, centre - side / 2)
                if (shared > 0).all() and shared.prod() > 0.12 * min(side**2, (high - low).prod()):
                    continue
                square = np.array([*(centre - side / 2), *(centre + side / 2), 0.0])
                kept += 1
                yield cut_square(face.picture, square, STORED_PX), np.zeros((len(LANDMARKS), 2)), face.person, face.split

    return write_store(folder, parts())


# ---- real pictures ---------------------------------------------------------------------------------------------------------


def portraits(folder: Path) -> Iterator[Face]:
    """The labelled portraits; the last people of each collection are held out (split "test"), all their pictures."""
    import cv2

    labels = np.load(folder / "mediapipe.npz")
    points = labels["landmarks_px"][:, list(LANDMARKS)]
    held: set[str] = set()
    for collection, count in HELD_OUT_PEOPLE.items():
        people = sorted({str(p) for p, f in zip(labels["people"], labels["files"], strict=True) if str(f).startswith(collection)})
        held |= set(people[-count:])
    for file, person, face in zip(labels["files"], labels["people"], points, strict=True):
        picture = cv2.imread(str(folder / str(file)))
        if picture is None:
            log.warning("left out %s: it cannot be read", file)
            continue
        yield Face(picture[..., ::-1], face, str(person), TEST if str(person) in held else TRAIN)


def labelled_videos(paths: Iterable[Path], model: Path, every: int, split: str = TRAIN) -> Iterator[Face]:
    """Every n-th frame in which MediaPipe finds a face; a file's folder is the person."""
    with open_landmarker(model) as detect:
        for path in paths:
            for index, frame in enumerate(rgb_frames(path)):
                found = detect(frame) if index % every == 0 else None
                if found is not None:
                    yield Face(frame, found[0][list(LANDMARKS)], path.parent.name, split)


def speaker_s1(folder: Path, num_clips: int, every: int) -> Iterator[Face]:
    """Frames of GRID's first speaker, by the labels that come with them."""
    labels = np.load(folder / "mediapipe.npz")
    ends = np.cumsum(labels["num_frames"])
    found, points = labels["found"], labels["landmarks_px_x32"]  # each look into the file would read it whole
    starts = dict(zip((str(i).rpartition("/")[2] for i in labels["ids"]), ends - labels["num_frames"], strict=True))
    paths = sorted((folder / "train").glob("*.mp4"))
    for path in paths[:: max(len(paths) // num_clips, 1)]:
        start = starts.get(path.stem)
        for index, frame in enumerate(rgb_frames(path)):
            if start is not None and index % every == 0 and found[start + index]:
                yield Face(frame, points[start + index].astype(np.float32) / 32, "s1")


def real_sources(data: Path, weights: Path) -> dict[str, Callable[[], Iterator[Face]]]:
    """Name of a store -> its faces. ``data`` holds grid_s1, grid_people, portraits and people_open."""
    model = weights / LANDMARKER_FILE

    def videos(folder: str, every: int, split: str = TRAIN) -> Callable[[], Iterator[Face]]:
        return lambda: labelled_videos(sorted((data / folder).rglob("*.mp4")), model, every, split)

    return {
        "portraits": lambda: portraits(data / "portraits"),
        "s1": lambda: speaker_s1(data / "grid_s1", 120, 12),
        "people": videos("grid_people/train", 6),
        "people-test": videos("grid_people/test", 8, TEST),
        "open": videos("people_open", 3),
    }


def prepare_faces(data: Path, weights: Path, folder: Path, progress: Progress | None = None) -> list[Path]:
    """Make the stores that are missing; returns all their folders, backgrounds included."""
    sources = real_sources(data, weights)
    if not (data / "portraits").is_dir():
        raise FlashLipsError(f"No portraits in {data}; name a folder with grid_s1, grid_people, portraits and people_open.")
    made = []
    for index, (name, faces) in enumerate(sources.items()):
        made.append(folder / name)
        if not has_faces(made[-1]):
            log.info("%s: %d faces", name, len(store_faces(made[-1], faces())))
        if name == "people-test" and not has_faces(folder / STILLS):
            store_stills(folder / STILLS, itertools.islice(faces(), 0, None, 16))
        behind = folder / f"{name}-background"
        if name in WITH_BACKGROUND:
            made.append(behind)
            if not has_faces(behind):
                log.info("%s: %d pieces of background", name, len(store_background(behind, faces())))
        if progress is not None:
            progress(index + 1, len(sources))
    return made


def mirror(points: np.ndarray) -> np.ndarray:
    """Landmarks of the mirrored picture, in shares of its width. (..., L, 2) -> (..., L, 2)."""
    return (points * (-1, 1) + (1, 0))[..., list(mirror_order()), :]
