"""From a candidate's frames to the files of one sample: crops, sound, labels, reference candidates.

n frames with a face among the T of a candidate. A stored crop is wider than the editor's square by ``STORED_MARGIN``, so that
training can shift and turn it; the square is its middle, pixel for pixel.
"""

from __future__ import annotations

import io
import json
import math
import wave
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from ..compose import cut, cut_batch
from ..face.expression import mouth_opening
from ..face.motion import Face
from ..face.points import LANDMARKS
from ..measures import detail
from ..pipeline import LipSync
from ..pixels import from_bytes, to_bytes
from ..references import head_pose
from ..turned import to_shares
from ..types import SAMPLE_RATE, Frame
from .filters import FRAME_SAMPLES, Limits, Measures, first_measures, missed, sync_of
from .scenes import RATE, Candidate
from .sources import Source
from .store import CROP_PX, FACE_REGION, IRISES, MOUTH_CORNERS, NOSE_TIP, STORED_MARGIN

BATCH = 16  # crops that wait for the networks: all the pixels that a candidate holds
JPEG_QUALITY = 95  # no chroma subsampling: lips and gums differ from skin in colour
SHARPNESS_EVERY = 5  # frames
NUM_LIKE, NUM_REFERENCES = 24, 8  # of the frames with the most similar head pose, those whose mouths differ most
THUMBNAIL_PX = 96


@dataclass(frozen=True)
class Labellers:
    """The networks that look at crops."""

    lipsync: LipSync
    crop_px: int  # side of the editor's square
    landmarker: Callable[[np.ndarray], Face | None] | None = None  # MediaPipe's, see ``face.motion``
    has_latents: bool = False

    @property
    def stored_px(self) -> int:
        return round(self.crop_px * STORED_MARGIN)


@dataclass(frozen=True)
class Made:
    """One candidate, measured."""

    key: str
    measures: Measures
    reason: str  # why it was dropped, "" if kept
    thumbnail: bytes  # JPEG
    files: dict[str, bytes]  # suffix -> content; empty where dropped


class SampleMaker:
    """Takes a candidate's frames in order and keeps JPEGs and labels; never more than a batch of pixels.

    A candidate whose track alone misses a limit is looked at once, for its thumbnail.
    """

    def __init__(self, source: Source, candidate: Candidate, labellers: Labellers, limits: Limits, has_sound: bool) -> None:
        self.source, self.candidate, self.labellers, self.limits = source, candidate, labellers, limits
        self.measures = first_measures(candidate, has_sound)
        self.is_hopeless = bool(missed(self.measures, limits))
        self.key = f"{source.key}-{candidate.start:07d}-{candidate.person}"
        self.jpegs: list[bytes] = []
        self.thumbnail = b""
        self._middle = int(np.flatnonzero(candidate.track.present)[candidate.track.present.sum() // 2])
        self._waiting: list[Frame] = []
        self._rows: list[int] = []  # frames within the candidate that are stored or wait
        self._labels: dict[str, list[Tensor]] = {}
        self._sharpness: list[float] = []

    def push(self, frame: Frame, index: int) -> None:
        """The video's frame ``index``, which lies within the candidate."""
        row = index - self.candidate.start
        if row == self._middle:
            box = widened(self.candidate.track.squares[row : row + 1])
            self.thumbnail = to_jpeg(to_bytes(cut_batch([frame], box, THUMBNAIL_PX))[0], quality=75)
        if self.is_hopeless or not self.candidate.track.present[row]:
            return
        self._waiting.append(frame)
        self._rows.append(row)
        if len(self._waiting) == BATCH:
            self._look()

    def finish(self, samples: Tensor | None) -> Made:
        """After the last frame. ``samples``: the whole video's sound at 16 kHz, None without any."""
        if self._waiting:
            self._look()
        if self.is_hopeless:
            return Made(self.key, self.measures, missed(self.measures, self.limits), self.thumbnail, {})
        labels = {name: torch.cat(parts) for name, parts in self._labels.items()}
        sound = None if samples is None else self._own_sound(samples)
        measures = replace(self.measures, sharpness=float(np.median(self._sharpness)))
        if sound is not None:
            is_seen = "landmarks_found" in labels and labels["landmarks_found"].float().mean() > 0.5
            measures = replace(measures, **self._sync(labels["landmark_opening" if is_seen else "opening"].numpy(), sound))
        reason = missed(measures, self.limits)
        return Made(self.key, measures, reason, self.thumbnail, {} if reason else self._files(labels, sound, measures))

    def _look(self) -> None:
        """Label and compress the waiting frames."""
        count, side, square = len(self._waiting), self.labellers.stored_px, self.labellers.crop_px
        boxes = self.candidate.track.squares[self._rows[-count:]]
        pixels = to_bytes(cut_batch(self._waiting, widened(boxes), side))
        for place in range(-(len(self._rows) - count) % SHARPNESS_EVERY, count, SHARPNESS_EVERY):
            whole = cut(self._waiting[place], boxes[place].tolist(), CROP_PX)  # of the video, whatever is stored
            self._sharpness.append(detail(whole, (0, 0, CROP_PX, CROP_PX)))
        self._waiting = []
        edge = (side - square) // 2
        crops = from_bytes(pixels[:, edge : edge + square, edge : edge + square])
        crops = crops.contiguous(memory_format=torch.channels_last)
        poses = self.labellers.lipsync.encode_lips(crops)
        reader = self.labellers.lipsync.lip_encoder
        labels = {"poses": poses, "opening": reader.opening(poses.to(reader.opening_weight)).float().cpu()}
        if self.labellers.landmarker is not None:
            labels |= landmark_labels([self.labellers.landmarker(image) for image in pixels], side)
        if self.labellers.has_latents:
            with torch.inference_mode():
                labels["latents"] = self.labellers.lipsync.codec.encode(crops).half()
        for name, value in labels.items():
            self._labels.setdefault(name, []).append(value)
        self.jpegs += [to_jpeg(image) for image in pixels]

    def _own_sound(self, samples: Tensor) -> Tensor:
        start, stop = (frame * FRAME_SAMPLES for frame in (self.candidate.start, self.candidate.stop))
        own = samples[start:stop]
        return torch.nn.functional.pad(own, (0, stop - start - len(own)))

    def _sync(self, opening: np.ndarray, sound: Tensor) -> dict[str, float | int]:
        curve = np.full(len(self.candidate.track), math.nan)
        curve[self._rows] = opening
        score, best, lag = sync_of(curve, np.isfinite(curve), sound, self.limits.max_lag)
        return {"sync": score, "best_sync": best, "lag": lag}

    def _files(self, labels: dict[str, Tensor], sound: Tensor | None, measures: Measures) -> dict[str, bytes]:
        track = self.candidate.track
        boxes, points = track.squares[self._rows], track.points[self._rows]
        labels = labels | {"boxes": torch.from_numpy(boxes), "points": torch.from_numpy(to_shares(points, boxes)).float()}
        labels["references"] = reference_rows(points, labels["poses"])
        about = {
            "key": self.key, "source": self.source.id, "identity": self.source.identity, "split": self.source.split,
            "person": self.candidate.person, "start": self.candidate.start, "num_frames": len(track), "fps": int(RATE),
            "frames": self._rows, "crop_px": self.labellers.crop_px, "stored_px": self.labellers.stored_px,
            "measures": measures.as_dict(),
        }  # fmt: skip
        files = {"json": json.dumps(about, sort_keys=True).encode()}
        files["safetensors"] = save({name: value.contiguous() for name, value in labels.items()})
        if sound is not None:
            files["wav"] = to_wave(sound)
        return files | {f"{row:04d}.jpg": jpeg for row, jpeg in zip(self._rows, self.jpegs, strict=True)}


def widened(boxes: np.ndarray) -> np.ndarray:
    """The stored region around the editor's squares, about the same centres. (n, 5) both."""
    side = boxes[:, 2:3] - boxes[:, 0:1]
    wide = np.concatenate([boxes[:, :2], boxes[:, :2]], 1) + side * np.array(FACE_REGION, np.float32)
    return np.concatenate([wide, boxes[:, 4:]], 1)


def to_jpeg(image: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """(S, S, 3) uint8 as a JPEG file without chroma subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def to_wave(samples: Tensor) -> bytes:
    """(S,) at 16 kHz as a 16-bit WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples.clamp(-1, 1) * 32767).round().short().numpy().astype("<i2").tobytes())
    return buffer.getvalue()


def landmark_labels(faces: list[Face | None], side: int) -> dict[str, Tensor]:
    """MediaPipe's measurements of stored crops: landmarks in the square's coordinates; without a face 0, the opening NaN."""
    landmarks, shapes = np.zeros((len(faces), len(LANDMARKS), 2), np.float32), np.zeros((len(faces), 52), np.float32)
    found, opening = np.array([face is not None for face in faces]), np.full(len(faces), math.nan, np.float32)
    left, top, right, _ = FACE_REGION
    for row, face in enumerate(faces):
        if face is not None:
            landmarks[row] = face[0][list(LANDMARKS)] / side * (right - left) + np.array([left, top], np.float32)
            shapes[row] = face[1]
            five = face[0][[*IRISES, NOSE_TIP, *MOUTH_CORNERS]]
            opening[row] = mouth_opening(face[0][list(LANDMARKS[:40])][None], five[None])[0]
    arrays = {"landmarks": landmarks, "blendshapes": shapes, "landmarks_found": found, "landmark_opening": opening}
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def reference_rows(points: np.ndarray, poses: Tensor) -> Tensor:
    """For each stored frame others of the sample to copy from: similar head pose, different mouth. -> (n, R) int16 rows.

    R is NUM_REFERENCES, or one less than the frames where these are fewer; the most different mouth comes first.
    """
    count = len(points)
    heads = torch.from_numpy(head_pose(points))
    distance = torch.cdist(heads, heads).fill_diagonal_(math.inf)
    like = distance.argsort(dim=1, stable=True)[:, : max(min(NUM_LIKE, count - 1), 0)]
    mouths = (poses[like] - poses[:, None]).square().sum(2)
    order = mouths.argsort(dim=1, descending=True, stable=True)[:, :NUM_REFERENCES]
    return like.gather(1, order).short()
