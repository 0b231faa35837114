"""One clip of one person as training frames for the editor; its last seconds are held out.

N frames, K references. Unlike the looks of ``batches.frames`` the frames are not augmented: it is this face, this light and this
camera that the editor shall learn. The heads lie upon each other as well as the smoothed crops lay them.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...checks import check_whole_track, no_face_in
from ...codec import CallableCodec, Codec
from ...compose import cut_batch
from ...media import probe, read_frames
from ...pipeline import DubSettings, LipSync
from ...references import candidate_frames
from ...steps import Show
from ...stream import batched, counted, prefetch
from ...turned import to_shares
from ...types import ClipInfo, FaceTrack, FlashLipsError, Progress
from ..batches.frames import NUM_NEIGHBOURS, EditorFrames, cut_windows, nearest_heads

CONSENT = "Made from one person's face; use it only as that person agreed to."
SHORTEST_S = 10.0  # of visible face; less than this holds too few mouths
FEWEST_FRAMES = 40  # so that the held-out ones still have neighbours with other mouths
LONGEST_S = 300.0  # what comes later is not looked at
HELD_OUT_SHARE = 0.15  # of the clip, at its end
GAP_S = 0.5  # between what is learnt and what is held out: neighbouring frames are nearly the same picture
MAX_FRAMES = 1000  # spread over the clip; a stored 256 px frame takes about 75 KB
MAX_HELD_OUT = 120
BATCH = 4  # crops that are encoded at once: Cancel waits for them
CROP_STEP_PX = 64  # as the other stages need it
DEFAULTS = DubSettings()
STEADY = (0, 1, 2)  # of the track's points: eyes and nose tip, which the mouth does not move
# The lips around the mouth's corners, in widths of the mouth: left, above, right, below its middle
LIPS = np.array([-0.62, -0.35, 0.62, 0.6])


@dataclass(frozen=True)
class PersonFrames:
    """What :func:`prepare_person` makes of a clip."""

    learnt: EditorFrames
    held_out: EditorFrames  # later frames, with references out of the learnt ones, as a dub would have them
    name: str  # the clip's file name
    seconds: float  # of it that show the face
    crop_px: int
    codec: str  # name of the codec whose latents they are
    track: FaceTrack  # of what was looked at

    def notes(self) -> dict[str, Any]:
        """What a checkpoint that learnt from it says of it."""
        trained_on = {"file": self.name, "seconds": round(self.seconds, 2), "frames": len(self.learnt.poses)}
        return {"trained_on": trained_on, "consent": CONSENT}

    def sample(self) -> Tensor:
        """Some of the latents, by which a run knows its clip again."""
        return self.learnt.latents[:: max(len(self.learnt.latents) // 16, 1)]

    def describe(self) -> str:
        """For people."""
        return (
            f"{self.name}: {self.seconds:.1f} s with a face; {len(self.learnt.poses)} frames to learn from, "
            f"{len(self.held_out.poses)} held out, {self.learnt.references.shape[1]} references, crops of {self.crop_px} px."
        )


def prepare_person(
    lipsync: LipSync,
    video: str | Path,
    settings: DubSettings = DEFAULTS,
    track: FaceTrack | None = None,
    shortest_s: float = SHORTEST_S,
    progress: Progress | None = None,
    show: Show | None = None,
) -> PersonFrames:
    """Track, crop and encode a clip.

    Args:
        lipsync: its codec, lip encoder, detector and crop side are used; its editor only says the crop side.
        settings: which face is followed, and how.
        track: of the whole clip, where there is one already.
    Raises:
        FlashLipsError: There is no face, or too little of it, or no editor can be trained through the codec.
    """
    check_trainable(lipsync.codec)
    if lipsync.crop_px % CROP_STEP_PX:
        raise FlashLipsError(
            f"Crops of {lipsync.crop_px} px cannot be trained on; choose an editor for a multiple of {CROP_STEP_PX}."
        )
    clip = probe(video)
    stop = min(clip.num_frames, round(LONGEST_S * clip.fps))
    if track is None:
        track = lipsync.track(video, settings, stop, progress, show=show)
    else:
        check_whole_track(track, clip)
    track = track.first(stop)
    learnt, held_out = _split(track, clip, shortest_s)
    references = candidate_frames(track.first(int(learnt[-1]) + 1), lipsync.editor.num_references)
    with torch.inference_mode(False), torch.no_grad():
        encoded = _encode(lipsync, video, track, sorted({*learnt, *held_out, *references}), progress, show)
        parts = [encoded.frames(track, rows, references) for rows in (learnt, held_out)]
    seconds = float(track.present.sum() / clip.fps)
    return PersonFrames(*parts, Path(video).name, seconds, lipsync.crop_px, lipsync.codec.latents, track)


def check_trainable(codec: Codec) -> None:
    """Refuse a codec that passes no gradients."""
    if isinstance(codec, CallableCodec):
        raise FlashLipsError(
            f"No editor can be trained through the VAE '{codec.name}', which passes no gradients; choose a bundled codec, or one "
            "whose name has a slash, in Load Codec."
        )


def check_latents(codec: Codec, person: PersonFrames) -> None:
    """Refuse a codec that these frames are not encoded by; one that was fine-tuned has its base's encoder."""
    if codec.latents != person.codec:
        raise FlashLipsError(
            f"These frames are latents of the codec '{person.codec}', this one is '{codec.name}'; use one codec for both."
        )


def _split(track: FaceTrack, clip: ClipInfo, shortest_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Frame numbers to learn from, and those that are held out."""
    present, fps = np.flatnonzero(track.present), float(clip.fps)
    if not len(present):
        raise no_face_in(clip.path)
    if len(present) < max(shortest_s * fps, FEWEST_FRAMES):
        raise FlashLipsError(
            f"{Path(clip.path).name} shows the face for {len(present) / fps:.1f} s, too short to learn from; "
            f"use {shortest_s:g} s or more, best 20 s to 5 min."
        )
    first_held_out = round(len(present) * (1 - HELD_OUT_SHARE))
    learnt = present[: max(first_held_out - round(GAP_S * fps), NUM_NEIGHBOURS + 1)]
    return _spread(learnt, MAX_FRAMES), _spread(present[first_held_out:], MAX_HELD_OUT)


def _spread(items: np.ndarray, count: int) -> np.ndarray:
    return items if len(items) <= count else items[np.linspace(0, len(items) - 1, count).round().astype(int)]


@dataclass(frozen=True)
class _Encoded:
    place: dict[int, int]  # frame number to row
    latents: Tensor  # (N, 4, h, w) float16
    poses: Tensor  # (N, 12)
    windows: Tensor  # (N, H, W, 3) uint8

    def frames(self, track: FaceTrack, numbers: np.ndarray, references: np.ndarray) -> EditorFrames:
        """One group of frames."""
        rows, others = ([self.place[int(n)] for n in chosen] for chosen in (numbers, references))
        points = to_shares(track.points[numbers], track.squares[numbers])
        return EditorFrames(
            latents=self.latents[rows], poses=self.poses[rows], windows=self.windows[rows],
            lips=torch.from_numpy(lip_boxes(points)).float(), neighbours=nearest_heads(points[:, STEADY]),
            group_of=np.zeros(len(rows), int), references=self.latents[others][None], reference_poses=self.poses[others][None],
            rows_of_group=[np.arange(len(rows))], groups_of_speaker={"person": [0]},
        )  # fmt: skip


def lip_boxes(points: np.ndarray) -> np.ndarray:
    """Boxes around the lips from the corners of the mouth, (N, 5, 2) -> (N, 4) xyxy."""
    left, right = points[:, 3], points[:, 4]
    width = np.linalg.norm(right - left, axis=1, keepdims=True)
    return np.tile((left + right) / 2, 2) + width * LIPS


def _encode(
    lipsync: LipSync, video: str | Path, track: FaceTrack, wanted: list[int], progress: Progress | None, show: Show | None
) -> _Encoded:
    """Latents, poses and windows of some frames (sorted), in one pass."""
    parts: dict[str, list] = {"latents": [], "poses": [], "windows": []}
    chosen = set(wanted)
    with closing(prefetch(read_frames(video, stop=wanted[-1] + 1), BATCH)) as stream:
        numbered = counted(((i, frame) for i, frame in enumerate(stream) if i in chosen), len(wanted), progress)
        for group in batched(numbered, BATCH):
            crops = cut_batch([frame for _, frame in group], track.squares[[i for i, _ in group]], lipsync.crop_px)
            parts["latents"].append(lipsync.codec.encode(crops.to(lipsync.device)).half().cpu())
            parts["poses"].append(lipsync.encode_lips(crops))
            parts["windows"].append(cut_windows(crops))
            if show is not None:
                show(group[0][1])
    if sum(map(len, parts["latents"])) < len(wanted):
        raise FlashLipsError(f"{Path(video).name} ends before frame {wanted[-1]} of its track; track this file again.")
    place = {number: row for row, number in enumerate(wanted)}
    windows = torch.from_numpy(np.concatenate(parts["windows"]))
    return _Encoded(place, torch.cat(parts["latents"]), torch.cat(parts["poses"]), windows)
