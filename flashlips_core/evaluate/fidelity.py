"""How faithful the pictures are: reconstruction beside its two yardsticks, pixels outside alpha, the codecs compared.

N frames, S crop side in pixels. Pictures are (3, S, S) crops in [-1, 1], taken before any video encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..codec import Codec
from ..compose import cut, paste
from ..editing import CropEditor
from ..face.motion import FACE_OVAL, OUTER_LIPS, FaceMotion, padded_box
from ..measures import box_slices, flops_of, outside_is_identical, psnr, psnr_from_error
from ..media import read_frames
from ..turned import to_shares
from ..types import FaceTrack, Frame

SEEN_LEVELS = 4.0  # of 255: less hides in the noise of a video


@dataclass(frozen=True)
class FaceFrames:
    """Some frames of one clip, as the editor sees them."""

    frames: list[Frame]
    boxes: np.ndarray  # (N, 5) crop squares, frame pixels
    crops: Tensor  # (N, 3, S, S)
    mouth_boxes: np.ndarray  # (N, 4) around the lips, crop pixels
    face_masks: Tensor  # (N, S, S) bool, inside the face's outline

    def __len__(self) -> int:
        return len(self.frames)


def face_frames(path: str | Path, track: FaceTrack, motion: FaceMotion, indices: Sequence[int], size: int) -> FaceFrames:
    """Collect those of ``indices`` in which both the tracker and MediaPipe see the face."""
    wanted = [i for i in indices if i < len(motion) and track.present[i] and motion.found[i]]
    frames = {}
    for index, frame in enumerate(read_frames(path)):
        if index in wanted:
            frames[index] = frame
    wanted = [i for i in wanted if i in frames]
    boxes = track.squares[wanted]
    points = to_shares(motion.landmarks[wanted], boxes) * size  # in crop pixels
    lips = points[:, list(OUTER_LIPS)]
    return FaceFrames(
        frames=[frames[i] for i in wanted],
        boxes=boxes,
        crops=torch.stack([cut(frames[i], track.squares[i], size) for i in wanted]),
        mouth_boxes=padded_box(np.concatenate([lips.min(1), lips.max(1)], 1)),
        face_masks=torch.stack([polygon_mask(outline, size) for outline in points[:, list(FACE_OVAL)]]),
    )


def polygon_mask(points: np.ndarray, size: int) -> Tensor:
    """(size, size) bool, True inside the polygon (L, 2)."""
    from PIL import Image, ImageDraw

    image = Image.new("1", (size, size))
    ImageDraw.Draw(image).polygon([tuple(p) for p in points.tolist()], fill=1)
    return torch.from_numpy(np.array(image))


@torch.inference_mode()
def reconstruction(crop_editor: CropEditor, clip: FaceFrames, poses: Tensor) -> dict[str, list[float]]:
    """PSNR in the mouth box of each frame, in dB, by four ways to make it.

    "codec": encoded and decoded. "same frame": edited with its own true pose. "changed mouth": first edited to another frame's
    pose and pasted, then back to the true one, so that the answer is not in the input. "pasted mouth": another frame of the clip
    shown in its place, through the codec. The other frame is half the clip away.

    Args:
        poses: (N, 12) true poses of the frames.
    """
    codec = crop_editor.codec
    other = np.roll(np.arange(len(clip)), -(len(clip) // 2))
    round_trip = codec.decode(codec.encode(clip.crops))
    changed, alpha = crop_editor(clip.crops, poses[other])
    changed = alpha * changed + (1 - alpha) * clip.crops
    ways = {
        "codec": round_trip,
        "same frame": edit_whole(crop_editor, clip.crops, poses),
        "changed mouth": edit_whole(crop_editor, changed, poses),
        "pasted mouth": round_trip[other],
    }
    frames = range(len(clip))
    return {name: [psnr(made[i], clip.crops[i], clip.mouth_boxes[i]) for i in frames] for name, made in ways.items()}


@torch.inference_mode()
def outside_mouth(crop_editor: CropEditor, clip: FaceFrames, poses: Tensor) -> dict[str, list[float]]:
    """What an edit to ``poses`` (N, 12) changes outside the mouth boxes of its crops, frame by frame.

    "levels": mean absolute difference of the crop as it is pasted to the source, of 255. "share": share of those pixels that
    differ by more than ``SEEN_LEVELS``. "drawn": as "levels", of the whole edit before the blend to the codec's round trip.
    """
    edited, alpha = crop_editor(clip.crops, poses)
    pasted = alpha * edited + (1 - alpha) * clip.crops
    round_trip = crop_editor.codec.decode(crop_editor.codec.encode(clip.crops)).float().cpu()
    drawn = edit_whole(crop_editor, clip.crops, poses)
    found: dict[str, list[float]] = {"levels": [], "share": [], "drawn": []}
    for index, box in enumerate(clip.mouth_boxes):
        outside = torch.ones(clip.crops.shape[-2:], dtype=torch.bool)
        outside[box_slices(box, *outside.shape)] = False
        written = _levels_apart(pasted[index], clip.crops[index])[outside]
        found["levels"].append(float(written.mean()))
        found["share"].append(float((written > SEEN_LEVELS).float().mean()))
        found["drawn"].append(float(_levels_apart(drawn[index], round_trip[index])[outside].mean()))
    return found


def _levels_apart(first: Tensor, second: Tensor) -> Tensor:
    """Absolute difference of two (3, H, W) pictures in [-1, 1], mean over colours, of 255. -> (H, W)"""
    return (first.clamp(-1, 1) - second.clamp(-1, 1)).abs().mean(0) * 127.5


@torch.inference_mode()
def edit_whole(crop_editor: CropEditor, crops: Tensor, poses: Tensor) -> Tensor:
    """Edited crops (N, 3, S, S) decoded whole and without the blend, so that nothing of the input shines through."""
    weight = next(crop_editor.editor.parameters())
    latents = crop_editor.codec.encode(crops.to(weight))
    return crop_editor.codec.decode(crop_editor.edit(latents, poses.to(weight))).float().cpu()


def untouched_frames(crop_editor: CropEditor, clip: FaceFrames, poses: Tensor) -> int:
    """How many edited frames are bit-identical to the source, before encoding, wherever alpha is zero."""
    count = 0
    for frame, box, crop, pose in zip(clip.frames, clip.boxes, clip.crops, poses, strict=True):
        edited, alpha = _pasted(crop_editor, frame, box, crop, pose)
        count += outside_is_identical(frame, edited, reached_pixels(alpha, box, frame.height, frame.width))
    return count


def restored(changer: CropEditor, crop_editor: CropEditor, clip: FaceFrames, poses: Tensor) -> Tensor:
    """Frames that ``changer`` gave another frame's mouth and ``crop_editor`` their own again, pasted as a dub is.

    What they should look like is known, and is not in the input: the other frame is half the clip away. Editors are compared on
    the same changed frames: one that hardly changes a mouth would find it easy to restore.

    Args:
        poses: (N, 12) true poses of the frames.
    Returns:
        (N, 3, S, S) crops.
    """
    found = []
    for row, (frame, box, crop) in enumerate(zip(clip.frames, clip.boxes, clip.crops, strict=True)):
        for editor, pose in ((changer, poses[row - len(poses) // 2]), (crop_editor, poses[row])):
            frame, _ = _pasted(editor, frame, box, crop, pose)
            crop = cut(frame, box, crop.shape[-1])
        found.append(crop)
    return torch.stack(found)


def _pasted(crop_editor: CropEditor, frame: Frame, box: np.ndarray, crop: Tensor, pose: Tensor) -> tuple[Frame, Tensor]:
    """A frame with its mouth in another pose, and alpha (S, S)."""
    rgb, alpha = crop_editor(crop[None], pose[None], float(box[2] - box[0]))
    return paste(frame, box, rgb[0], alpha[0]), alpha[0, 0]


def reached_pixels(alpha: Tensor, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Frame pixels that a crop's alpha (S, S) can reach when it is resized into ``box``. Returns (height, width) bool."""
    size = alpha.shape[-1]
    step = size / float(box[2] - box[0])  # crop pixels per frame pixel
    radius = math.ceil(max(step, 1.0)) + 1  # of the linear filter that resizes alpha, and one for rounding
    near = F.max_pool2d((alpha > 0).float()[None, None], 2 * radius + 1, stride=1, padding=radius)[0, 0] > 0
    x = np.floor((np.arange(width) + 0.5 - box[0]) * step).astype(int)
    y = np.floor((np.arange(height) + 0.5 - box[1]) * step).astype(int)
    reached = near.numpy()[np.ix_(y.clip(0, size - 1), x.clip(0, size - 1))]
    inside = ((y >= 0) & (y < size))[:, None] & ((x >= 0) & (x < size))
    return reached & inside


@torch.inference_mode()
def codec_comparison(ours: Codec, theirs: Codec, clips: Sequence[FaceFrames]) -> dict[str, float]:
    """Mean PSNR in dB inside the face for each pairing of encoder and decoder."""
    pairs = {f"{a.name} > {b.name}": (a, b) for a, b in ((ours, ours), (theirs, theirs), (ours, theirs), (theirs, ours))}
    scores: dict[str, list[float]] = {name: [] for name in pairs}
    for clip in clips:
        for name, (encoder, decoder) in pairs.items():
            decoded = decoder.decode(encoder.encode(clip.crops))
            scores[name] += [masked_psnr(d, c, m) for d, c, m in zip(decoded, clip.crops, clip.face_masks, strict=True)]
    return {name: float(np.mean(values)) for name, values in scores.items()}


def masked_psnr(first: Tensor, second: Tensor, mask: Tensor) -> float:
    """PSNR in dB of two (3, S, S) pictures where ``mask`` (S, S) is True."""
    difference = (first.float().clamp(-1, 1) - second.float().clamp(-1, 1)) / 2
    return psnr_from_error(float(difference[:, mask].square().mean()))


def codec_flops(codec: Codec, size: int = 256) -> int:
    """FLOPs of one picture's way through encoder and decoder."""
    weight = next(codec.network.parameters())
    return flops_of(lambda: codec.decode(codec.encode(torch.zeros(1, 3, size, size, device=weight.device, dtype=weight.dtype))))


@torch.inference_mode()
def identity_distances(embed: Callable[[Tensor], Tensor] | nn.Module, outputs: Tensor, sources: Tensor) -> Tensor:
    """Distance between the embeddings of the same frames (N, 3, S, S) after and before. Returns (N,)."""
    return torch.linalg.vector_norm(embed(outputs).float() - embed(sources).float(), dim=-1)
