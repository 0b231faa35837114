"""What a fine-tuning is judged by: edits of held-out frames, their numbers and their pictures.

B held-out pairs. Each pair is two frames whose heads lie alike and whose mouths differ: one is edited to the other's lip pose,
and the lips are compared with the other's own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ...codec import CELL_PX, Codec
from ...drawings.sheets import contact_sheet, spread
from ...editing import edit_once
from ...measures import detail, psnr_from_error, squared_error
from ...pixels import from_bytes, to_bytes
from ..batches.frames import draw_rows, window_cells, window_of, window_pixels
from ..loop.trainer import step_generator
from .best_so_far import best_of
from .person import PersonFrames

NUM_PAIRS = 16
GROUND, CURVE, BEST, TEXT = (24, 24, 24), (90, 170, 255), (120, 230, 120), (230, 230, 230)
MARGIN = 24  # px around the curve; twice that above it, for the text
NUM_SHOWN = 6  # columns of the sheet
PAIRS_SEED = 4242  # the same pairs for every run of a clip


@dataclasses.dataclass(frozen=True)
class Check:
    """One look at the held-out frames."""

    smallest_span: ClassVar[float] = 0.1  # dB: less is drawn flat

    step: int
    psnr_db: float  # of the edited lips towards the real frame's; the codec's own loss is part of it
    sharpness: float  # variance of the Laplacian of the edited lips over the real frame's; 1 is as sharp

    @property
    def score(self) -> float:
        """The best has the highest."""
        return self.psnr_db

    def as_dict(self) -> dict[str, float]:
        return dataclasses.asdict(self)

    def sentence(self) -> str:
        """For people."""
        return f"lips {self.psnr_db:.2f} dB, sharpness {self.sharpness:.2f}"


class Examiner:
    """Edits the same held-out pairs whenever it is asked, and compares."""

    def __init__(self, person: PersonFrames, codec: Codec, device: torch.device) -> None:
        frames = person.held_out
        self.rows, self.near = draw_rows(frames, NUM_PAIRS, step_generator(PAIRS_SEED, 0))
        self.codec, self.device, self.frames = codec, device, frames
        self.wanted, self.given = window_pixels(frames, self.rows), window_pixels(frames, self.near)
        self.boxes = lips_in_window(frames.lips[self.rows], person.crop_px)

    @torch.no_grad()
    def edits(self, network: nn.Module) -> Tensor:
        """The mouth windows of the edited neighbours, (B, 3, H, W) in [-1, 1] on the CPU."""
        frames, device = self.frames, self.device
        context = network.prepare_references(frames.references.float().to(device), frames.reference_poses.to(device))
        edited = []
        for row, near in zip(self.rows, self.near, strict=True):
            source, pose = (v.float().to(device) for v in (frames.latents[near][None], frames.poses[row][None]))
            edited.append(window_cells(edit_once(network, context, source, pose, None)))
        return torch.cat([self.codec.decode(window) for window in edited]).clamp(-1, 1).float().cpu()

    def check(self, edits: Tensor, step: int) -> Check:
        """Numbers of one state of the training, from its :meth:`edits`."""
        return check_windows(edits, self.wanted, self.boxes, step)


def check_windows(drawn: Tensor, wanted: Tensor, boxes: np.ndarray, step: int) -> Check:
    """Drawn mouth windows (B, 3, H, W) beside the real ones, inside ``boxes`` (B, 4) in their pixels."""
    errors, sharp = [], []
    for ours, real, box in zip(drawn, wanted, boxes, strict=True):
        errors.append(squared_error(ours, real, box))
        sharp.append(detail(ours, box) / max(detail(real, box), 1e-6))
    return Check(step, psnr_from_error(float(np.mean(errors))), float(np.median(sharp)))


def lips_in_window(lips: Tensor, crop_px: int) -> np.ndarray:
    """Boxes in shares of the crop -> in pixels of the window, (B, 4)."""
    top, left, _, _ = window_of(crop_px // CELL_PX)
    return (lips * crop_px - CELL_PX * torch.tensor([left, top, left, top])).numpy()


def sheet_rows(examiner: Examiner, before: nn.Module, after: nn.Module) -> dict[str, list[np.ndarray]]:
    """Pictures by row: the frame that is edited, the base's edit, the fine-tuned one's, and the real frame."""
    shown = spread(NUM_PAIRS, NUM_SHOWN)
    rows = {
        "the frame": examiner.given,
        "edited, before": examiner.edits(before),
        "edited, after": examiner.edits(after),
        "the real frame with these lips": examiner.wanted,
    }
    return {label: list(to_bytes(images[shown])) for label, images in rows.items()}


def write_sheet(examiner: Examiner, before: nn.Module, after: nn.Module, path: str | Path) -> Path:
    """The held-out mouths before and after, as one PNG."""
    return contact_sheet(sheet_rows(examiner, before, after), path)


def curve_picture(checks: list[Any], width: int = 768, height: int = 256) -> np.ndarray:
    """The checks' scores over the steps, the best marked. -> (height, width, 3) uint8."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, height), GROUND)
    draw = ImageDraw.Draw(picture)
    steps, values = [c.step for c in checks], [c.score for c in checks]
    low, span = min(values), max(max(values) - min(values), checks[0].smallest_span)
    last = max(steps[-1], 1)
    points = [
        (MARGIN + (width - 2 * MARGIN) * step / last, height - MARGIN - (height - 3 * MARGIN) * (value - low) / span)
        for step, value in zip(steps, values, strict=True)
    ]
    if len(points) > 1:
        draw.line(points, fill=CURVE, width=2)
    best = best_of(checks)
    x, y = points[checks.index(best)]
    draw.ellipse((x - 4, y - 4, x + 4, y + 4), outline=BEST, width=2)
    for line, (name, check) in enumerate((("before", checks[0]), ("best", best), ("now", checks[-1]))):
        draw.text((MARGIN, MARGIN // 4 + 12 * line), f"{name}: {check.sentence()} (step {check.step})", fill=TEXT)
    return np.array(picture)


def progress_picture(checks: list[Check], edits: Tensor) -> Tensor:
    """The curve above the same few held-out mouths as they are now. -> (3, H, W) in [-1, 1]."""
    mouths = torch.cat([edits[i] for i in spread(len(edits), NUM_SHOWN)], 2)
    return torch.cat([from_bytes(curve_picture(checks, width=mouths.shape[2])), mouths], 1)
