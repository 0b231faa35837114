"""The stages of a dub, file to file: parameters, GFLOP a frame, milliseconds and frames per second of each.

Times are of whole dubs, by the dub's own clock; work is counted on one frame. S crop side in pixels.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from ..codec import CELL_PX, crop_decode, encode_part
from ..loading import load_network
from ..measures import flops_of
from ..pipeline import LipSync
from ..steps import DubSettings, Look
from ..types import POSE_DIM

# The clock's names in the order of a frame's way, and what people call them; "" for what is done once per clip
STAGES = {
    "read": ("decode the video", ""),
    "track": ("find and follow the face, landmarks", ""),
    "choose references": ("read the clip's lips, choose references", "once"),
    "sound to poses": ("hear the sound, sample lip poses", "once"),
    "references": ("encode and prepare references", "once"),
    "cut": ("cut the crop", ""),
    "lay mouths": ("lay the retrieved mouth", ""),
    "encode crop": ("encode the crop", ""),
    "edit": ("edit", ""),
    "alpha": ("blend mask from the latents", ""),
    "decode crop": ("decode the crop", ""),
    "paste": ("compose with the frame", ""),
    "encode video": ("encode and write the video", ""),
}


@dataclass(frozen=True)
class Stage:
    """One row. Milliseconds are of work; stages overlap in threads, so their sum exceeds the run."""

    name: str
    ms: float  # a frame, median over runs
    lowest_ms: float
    highest_ms: float
    share: float  # of the sum of all stages
    parameters: int | None = None
    gflop: float | None = None  # a frame


def stage_rows(runs: Sequence[dict[str, float]], frames: int, work: dict[str, tuple[int, float | None]]) -> list[Stage]:
    """Rows from the seconds of each stage in each timed run, and what :func:`work_of` counted."""
    names = [*(name for name in STAGES if name in runs[0]), *(name for name in runs[0] if name not in STAGES)]
    per_frame = {name: [1000 * run.get(name, 0.0) / frames for run in runs] for name in names}
    medians = {name: statistics.median(values) for name, values in per_frame.items()}
    total = sum(medians.values()) or 1.0
    rows = []
    for name, values in per_frame.items():
        title, once = STAGES.get(name, (name, ""))
        title += " (once per clip)" if once else ""
        parameters, gflop = work.get(name, (None, None))
        rows.append(Stage(title, medians[name], min(values), max(values), medians[name] / total, parameters, gflop))
    return rows


@torch.inference_mode()
def work_of(lipsync: LipSync, num_references: int = 4) -> dict[str, tuple[int, float | None]]:
    """Parameters and GFLOP a frame of the stages that are networks, by the clock's names (1 multiply-add = 2 FLOP).

    The decoder is counted on the whole window around the mouth: a dub decodes what changed in it.
    """
    size, weight = lipsync.crop_px, next(lipsync.editor.parameters())
    crop = torch.zeros(1, 3, size, size).to(weight)
    look = Look(crop.float().cpu().expand(num_references, -1, -1, -1), [], torch.zeros(0, POSE_DIM))
    editor = lipsync.prepared(look, DubSettings(sharpen=0.0))
    latents, pose = torch.zeros(1, 4, size // CELL_PX, size // CELL_PX).to(weight), torch.zeros(1, POSE_DIM).to(weight)
    rows, columns = editor.view
    window = latents[..., rows, columns]
    whole = (0, 0, window.shape[-1], window.shape[-2])
    landmarks = load_network("landmarks")
    face = torch.zeros(1, 3, landmarks.config.size, landmarks.config.size)
    codec = lipsync.codec.network
    counted = {
        "track": (landmarks, lambda: landmarks(face)),
        "encode crop": (getattr(codec, "encoder", codec), lambda: encode_part(editor.codec, crop, editor.view)),
        "edit": (lipsync.editor, lambda: editor.edit(latents, pose)),
        "decode crop": (getattr(codec, "decoder", codec), lambda: crop_decode(editor.codec, window, whole)),
    }
    work: dict[str, tuple[int, float | None]] = {
        name: (_parameters(network), flops_of(run) / 1e9) for name, (network, run) in counted.items()
    }
    work["sound to poses"] = (_parameters(lipsync.pose_model), None)
    work["choose references"] = (_parameters(lipsync.lip_encoder), None)
    return work


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def table(rows: Sequence[dict]) -> str:
    """Markdown, from the rows as dicts."""
    lines = [
        "| stage | parameters | GFLOP a frame | ms a frame (lowest to highest) | FPS alone | share |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        size = "" if row["parameters"] is None else f"{row['parameters'] / 1e6:.2f} M"
        gflop = "" if row["gflop"] is None else f"{row['gflop']:.3g}"
        times = f"{row['ms']:.3g} ({row['lowest_ms']:.3g} to {row['highest_ms']:.3g})"
        fps = f"{1000 / row['ms']:.3g}" if row["ms"] > 0 else ""
        lines.append(f"| {row['name']} | {size} | {gflop} | {times} | {fps} | {100 * row['share']:.0f} % |")
    return "\n".join(lines)


def as_dicts(rows: Sequence[Stage]) -> list[dict]:
    """For JSON."""
    return [asdict(row) for row in rows]
