"""Labels for training: MediaPipe's landmarks and blendshapes for folders of videos and for rendered heads.

N frames, T frames of one clip. Files have the arrays that ``dataset.store.load_clips`` reads.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...dataset.store import HEAD, STORED_MARGIN, Clip, CropStore
from ...face.expression import BLENDSHAPES
from ...face.motion import FaceMotion, measure_frames, measure_video
from ...face.points import FIVE, LANDMARKS, in_mesh
from ...types import Progress


def label_videos(folder: str | Path, model: str | Path, out: str | Path, progress: Progress | None = None) -> None:
    """Measure every .mp4 under ``folder`` and save the label file ``out``."""
    paths = sorted(Path(folder).rglob("*.mp4"))
    Path(out).parent.mkdir(parents=True, exist_ok=True)  # before the long work
    motions = []
    for index, path in enumerate(paths):
        motions.append(measure_video(path, model))
        if progress is not None:
            progress(index + 1, len(paths))
    landmarks = np.concatenate([m.landmarks[:, LANDMARKS] for m in motions])
    np.savez(
        out, ids=[p.relative_to(folder).with_suffix("").as_posix() for p in paths], num_frames=[len(m) for m in motions],
        found=np.concatenate([m.found for m in motions]), blendshape_names=BLENDSHAPES,
        landmark_index=np.array(LANDMARKS),
        blendshapes=np.nan_to_num(np.concatenate([m.blendshapes for m in motions])).astype(np.float16),
        landmarks_px_x32=np.nan_to_num(landmarks * 32).round().astype(np.int16),
    )  # fmt: skip


def head_clips(
    images: np.ndarray, identity: np.ndarray, group: np.ndarray, model: str | Path, progress: Progress | None = None
) -> tuple[list[Clip], list[np.ndarray]]:
    """Rendered heads as clips: one per group of renders that differ in the expression alone; and each clip's rows of ``images``.

    Args:
        images: (N, S, S, 3) uint8, each the editor's crop.
    """
    motion: FaceMotion = measure_frames(images, model, progress)
    clips, rows_of_clip = [], []
    for number in np.unique(group):
        rows = np.flatnonzero((group == number) & motion.found)
        if len(rows) >= 4:
            rows_of_clip.append(rows)
            five = motion.landmarks[rows][:, in_mesh(FIVE)]
            clips.append(Clip(
                f"heads/train/{number:04d}", f"{HEAD}{identity[rows[0]]:03d}", "", np.ones(len(rows), bool),
                motion.landmarks[rows][:, LANDMARKS], motion.blendshapes[rows], five,
            ))  # fmt: skip
    return clips, rows_of_clip


def build_head_store(images: np.ndarray, clips: list[Clip], rows: list[np.ndarray], folder: str | Path) -> CropStore:
    """Save rendered crops (N, S, S, 3) uint8 as a store of wide crops; what lies beyond a render repeats its edge."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    order, inner = np.concatenate(rows), images.shape[1]
    size = round(STORED_MARGIN * inner)
    before = (size - inner) // 2
    padding = ((before, size - inner - before),) * 2 + ((0, 0),)
    wide = np.lib.format.open_memmap(folder / "crops.npy", "w+", np.uint8, (len(order), size, size, 3))
    for place, row in enumerate(order):
        wide[place] = np.pad(images[row], padding, mode="edge")
    wide.flush()
    np.savez(
        folder / "table.npz", clip_of=np.concatenate([np.full(len(c), i) for i, c in enumerate(clips)]),
        frame_of=np.concatenate([np.arange(len(c)) for c in clips]),
        landmarks=np.concatenate([c.landmarks / inner for c in clips]),
        clip_ids=[c.id for c in clips], speakers=[c.speaker for c in clips],
    )  # fmt: skip
    return CropStore(folder)
