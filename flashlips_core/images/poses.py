"""Lip poses of a batch of images, for those who have no file. B images, H W their size."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from ..checks import no_face_in
from ..face import track_faces
from ..pipeline import LipSync
from ..poses.motion import fill_absent
from ..types import POSE_DIM, FaceTrack, LipPoses, Progress
from .frames import as_frames, check_rate, check_track_of_images, cut_images, images_info


@torch.inference_mode()
def poses_from_images(
    lipsync: LipSync,
    images: Tensor,
    fps: Fraction,
    track: FaceTrack | None = None,
    batch: int = 16,
    progress: Progress | None = None,
    show: Callable[[Tensor], None] | None = None,
) -> LipPoses:
    """Lip poses of the largest, or the tracked, face, one per image; interpolated where there is no face.

    Args:
        images: (B, 3, H, W) in [0, 1].
        fps: Images per second.
        show: Gets a crop (3, S, S) in [-1, 1] of each batch, for a preview.
    """
    if track is None:
        track = track_faces(as_frames(images), images_info(images, fps), lipsync.detector, progress=progress)
    check_track_of_images(track, images)
    check_rate(track, fps)
    if not track.present.any():
        raise no_face_in("these images")
    values = torch.zeros(len(images), POSE_DIM)
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        rows = torch.from_numpy(track.present[part])
        if rows.any():
            crops = cut_images(images[part][rows], track.squares[part][track.present[part]], lipsync.crop_px)
            values[part][rows] = lipsync.encode_lips(crops * 2 - 1)
            if show is not None:
                show(crops[-1] * 2 - 1)
        if progress is not None:
            progress(min(start + batch, len(images)), len(images))
    return LipPoses(fill_absent(values, track.present), fps)
