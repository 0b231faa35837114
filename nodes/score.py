"""Measuring: what a dub is worth, whoever made it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..flashlips_core.drawings.score import draw_score
from ..flashlips_core.evaluate.pairs.listing import Pair
from ..flashlips_core.evaluate.pairs.run import lines_of, measure_pairs
from ..flashlips_core.media import probe
from ..flashlips_core.pipeline import LipSync
from ..flashlips_core.poses.motion import resample
from ..flashlips_core.types import FlashLipsError, LipPoses
from . import bridge, progress
from . import bridge_models as models
from .sockets import Poses

CATEGORY = "FlashLips/media"


class ScoreLipSync(io.ComfyNode):
    """One generated video beside its source."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlashLipsScore",
            display_name="Score Lip Sync",
            category=CATEGORY,
            description="Measures a lip-synced video beside the video that it was made of, whoever made it: likeness inside and "
            "outside the mouth, how the lips follow, flicker, sharpness, colour, identity. Writes a report into ComfyUI's output "
            "folder.",
            is_output_node=True,
            inputs=[
                io.Video.Input("generated", tooltip="The lip-synced video, by FlashLips or by anything else."),
                io.Video.Input("source", tooltip="The video that it was made of, with the same framing."),
                io.Boolean.Input(
                    "new_sound",
                    default=True,
                    optional=True,
                    tooltip="Whether the lips speak another sound than the source's. Off = they speak its own, so that its mouth "
                    "is what the generated one should look like, and is compared.",
                ),
                io.Video.Input(
                    "speaker",
                    optional=True,
                    tooltip="The video of whoever speaks the new sound: shows what the lips should do. Not connected: with a new "
                    "sound nobody shows it.",
                ),
                Poses.Input(
                    "poses", optional=True, tooltip="The lip poses that the video was made with: what its lips were asked."
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=100_000,
                    optional=True,
                    advanced=True,
                    tooltip="Only the first so many frames. 0 = all; 5 are the fewest.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="card", tooltip="The numbers and both mouths as a picture."),
                io.String.Output(display_name="scores", tooltip="The same as JSON, with the curves of the lips."),
                io.String.Output(display_name="report", tooltip="Where the report lies: one HTML file for any browser."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        generated: Any,
        source: Any,
        new_sound: bool = True,
        speaker: Any = None,
        poses: LipPoses | None = None,
        frames: int = 0,
    ) -> io.NodeOutput:
        if 0 < frames < 5:
            raise FlashLipsError(f"'frames' is {frames}; choose 0 for all, or 5 or more.")
        folder = bridge.output_path("FlashLips/score", "", 1, 1)[0]
        with progress.running("Measuring") as run, ExitStack() as stack:
            made, original = (Path(stack.enter_context(bridge.video_source(video, run))) for video in (generated, source))
            sound = Path(stack.enter_context(bridge.video_source(speaker, run))) if speaker is not None else None
            folder.mkdir(parents=True)
            asked = None if poses is None else _asked(poses, made, folder / "asked.npy")
            pair = Pair(made, original, sound, new_sound and sound is None, asked)
            weights = next((path for path in models.model_folders() if path.is_dir()), None)
            lipsync = LipSync.load(detector=models.detector)
            result = measure_pairs([pair], lipsync, folder, weights, frames=frames or None, progress=run.progress)
            run.finish(f"Measured; the report is {folder.name}/report.html")
        card = torch.from_numpy(_card(result, folder).copy())[None].float() / 255
        report = str(folder / "report.html")
        return io.NodeOutput(card, json.dumps(result), report, ui=ui.PreviewImage(card, cls=cls))


def _asked(poses: LipPoses, made: Path, path: Path) -> Path:
    """The mouth opening of each frame as a file, (T,) over the distance of the irises."""
    network, clip = models.load_network("lip-encoder", models.BUNDLED).network, probe(made)
    with torch.inference_mode():
        values = resample(poses, clip.fps, clip.num_frames).values
        np.save(path, network.opening(values.to(network.opening_weight)).float().cpu().numpy())
    return path


def _card(result: dict, folder: Path) -> np.ndarray:
    clip = result["pairs"][0]
    sheet = None
    if clip["sheet"] is not None:
        with Image.open(folder / "sheets" / clip["sheet"]) as picture:
            sheet = np.asarray(picture.convert("RGB"))
    lines, remarks = lines_of(result)
    return draw_score(clip["name"], lines, remarks, sheet)


NODES = [ScoreLipSync]
