"""Two videos beside each other on a node, frame by frame: what an edit has changed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from comfy_api.latest import io

from ..flashlips_core.media import probe
from ..flashlips_core.media.read import open_media
from ..flashlips_core.media.save import save_clip
from ..flashlips_core.types import ClipInfo, FaceTrack
from . import bridge, progress, words
from .sockets import Track

CATEGORY = "FlashLips/media"
UI_KEY = "flashlips_compare"  # what js/compare.js listens for
BROWSERS_PLAY = {"h264", "vp8", "vp9", "av1"}
BROWSERS_OPEN = {".mp4", ".m4v", ".mov", ".webm"}
MOST_MOUTHS = 2000  # sent to the browser; of longer clips every second, third ... frame's
MOUTH_SIDE = 2.4  # of the zoomed square, in widths of the mouth


class CompareVideo(io.ComfyNode):
    """A before and an after."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsCompareVideo",
            display_name="Compare Video",
            category=CATEGORY,
            description="Plays two videos in step, with sound: a wipe between them or side by side, one frame at a time, a range "
            "in a loop, and the mouth large. For a clip and its dub, two takes, or what two methods make of the same clip.",
            search_aliases=["before after", "compare videos", "wipe", "side by side", "difference", "ab test", "player"],
            is_output_node=True,
            inputs=[
                io.Video.Input("before", tooltip="The video on the left: the clip as it was."),
                io.Video.Input("after", tooltip="The video on the right: what was made of it; it is scaled to the other."),
                Track.Input(
                    "track",
                    optional=True,
                    tooltip="From Track Face: the zoom then follows the mouth. Without it: where you drag it.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, before: Any, after: Any, track: FaceTrack | None = None) -> io.NodeOutput:
        with progress.running("Reading the videos", is_shown=False) as run:
            (left, first), (right, second) = (_viewable(video, run) for video in (before, after))
            frames = min(first.num_frames, second.num_frames)
            if first.num_frames != second.num_frames:
                counts = f"'before' has {words.count(first.num_frames, 'frame')}, 'after' {second.num_frames}"
                run.notice(f"{counts}; the first {frames} are compared.")
            mouths, every = ([], 1) if track is None else _mouths(track.first(frames))
            run.finish(f"{words.count(frames, 'frame')}, {words.seconds(Fraction(frames) / first.fps)}")
        shown = {
            "before": left, "after": right, "fps": float(first.fps), "frames": frames, "mouths": mouths, "every": every,
        }  # fmt: skip
        return io.NodeOutput(ui={UI_KEY: [shown]})


def _viewable(video: Any, run: progress.Run) -> tuple[dict[str, str], ClipInfo]:
    """A video as a file that ComfyUI serves and browsers play, encoded where it must be; and what it holds."""
    with bridge.video_source(video, run) as path:
        clip = probe(path)
        if _is_playable(path, clip):
            return bridge.served(path, bridge.is_whole_file(video)), clip
        made = bridge.temp_path(".mp4")
        run.stage("Encoding for the browser", clip.num_frames)
        save_clip(path, made, "h264", progress=run.progress)
        return bridge.served(made, True), clip


def _is_playable(path: str, clip: ClipInfo) -> bool:
    """Whether browsers show this file as it is."""
    with open_media(path) as media:
        codec = media.streams.video[0].codec_context.name
    is_opened = Path(path).suffix.lower() in BROWSERS_OPEN
    return is_opened and codec in BROWSERS_PLAY and clip.pix_fmt in ("yuv420p", "yuvj420p")


def _mouths(track: FaceTrack) -> tuple[list[list[float]], int]:
    """Centre and side of a square around the mouth, as shares of the frame's width and height (side: of its width), and of
    which frames: every n-th."""
    every = -(-len(track) // MOST_MOUTHS)
    corners = track.points[::every, 3:5]
    centre = corners.mean(1) / (track.width, track.height)
    side = MOUTH_SIDE * np.linalg.norm(corners[:, 1] - corners[:, 0], axis=1, keepdims=True) / track.width
    return np.concatenate([centre, side], 1).round(4).tolist(), every


NODES = [CompareVideo]
