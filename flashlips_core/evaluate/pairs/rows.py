"""The table of ``eval --pairs``: means over clips with their intervals, and what could not be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ... import measures as m
from ...measures import Measure
from .scores import Judges, Numbers


class Row(NamedTuple):
    """One number of the table."""

    key: str  # among a clip's numbers
    name: str
    better: str  # "higher", "lower", or the value that is best
    note: str = ""
    judge: str = ""  # the network that it needs


WHERE = "face crop of 256 px"
SYNCNET = "cut around our landmarks, not S3FD's boxes: published numbers differ a little"
ROWS = (
    Row("psnr_mouth", "PSNR in the mouth, dB", "higher", f"{WHERE}; reconstructions only"),
    Row("psnr_mouth_floor", "PSNR in the mouth, dB: floor", "", "another frame's mouth of the source pasted"),
    Row("psnr_mouth_ceiling", "PSNR in the mouth, dB: ceiling", "", "the source through the codec and back"),
    Row("psnr_outside", "PSNR outside the mouth, dB", "higher", WHERE),
    Row("ssim_mouth", "SSIM in the mouth", "higher", f"{WHERE}; reconstructions only"),
    Row("ssim_mouth_floor", "SSIM in the mouth: floor", "", "another frame's mouth of the source pasted"),
    Row("ssim_mouth_ceiling", "SSIM in the mouth: ceiling", "", "the source through the codec and back"),
    Row("ssim_outside", "SSIM outside the mouth", "higher", WHERE),
    Row("lpips_mouth", "LPIPS (AlexNet) in the mouth", "lower", f"{WHERE}; reconstructions only", "lpips"),
    Row("lpips_mouth_floor", "LPIPS (AlexNet) in the mouth: floor", "", "another frame's mouth of the source pasted", "lpips"),
    Row("lpips_mouth_ceiling", "LPIPS (AlexNet) in the mouth: ceiling", "", "the source through the codec and back", "lpips"),
    Row("lpips_outside", "LPIPS (AlexNet) outside the mouth", "lower", WHERE, "lpips"),
    Row("lips_r", "lip gap against the one wanted, r", "higher", "frame by frame; wanted: the lips of whoever spoke the sound"),
    Row(
        "lips_best_r",
        "lip gap against the one wanted, r at the best lag",
        "higher",
        "within 10 frames, a quarter of the clip at most",
    ),
    Row("lips_lag", "lag of the lips, frames", "0", "above 0: late"),
    Row("lips_size", "size of the lip motion over the one wanted", "1", "ratio of deviations"),
    Row("asked_r", "lip gap against the opening asked, r", "higher", "where NAME.opening.npy lies beside the video"),
    Row("asked_size", "size of the lip motion over the one asked", "1", "where NAME.opening.npy lies beside the video"),
    Row("lse_d", "LSE-D (SyncNet)", "lower", SYNCNET, "syncnet"),
    Row("lse_c", "LSE-C (SyncNet)", "higher", SYNCNET, "syncnet"),
    Row("sync_offset", "offset by SyncNet, frames", "0", "within 15 frames", "syncnet"),
    Row("flicker", "flicker of mouth and chin, over the source's", "1", "second difference in time, aligned to the face"),
    Row(
        "jitter", "jitter outside the mouth, levels of 255", "lower", "second difference in time of what differs from the source"
    ),
    Row("sharpness", "sharpness of the mouth, over the source's", "1", "variance of the Laplacian, median over frames"),
    Row(
        "sharpness_true", "sharpness of the source's kind", "higher", "by frequency and direction; invented grain does not count"
    ),
    Row("finest", "share of the finest detail, over the source's", "1", "above 1: stripes or grain"),
    Row("chin", "sharpness between lip and chin, over the source's", "1", "median over frames"),
    Row("colour", "colour of the lower face, worst channel, of 255", "0", "with its sign"),
    Row("identity", "identity: cosine of face embeddings", "higher", "generated and source, frame by frame", "identity"),
)


def rows_of(clips: Sequence[Numbers], judges: Judges) -> list[Measure]:
    """A row for each number that some clip has, or whose network is missing."""
    found = []
    for row in ROWS:
        values = [value for clip in clips if (value := clip.get(row.key)) is not None and np.isfinite(value)]
        if values:
            found.append(_row(row, values, judges))
        elif row.judge in judges.missing and not row.key.endswith(("_floor", "_ceiling")):
            found.append(m.not_measured(row.name, judges.missing[row.judge]))
    total, lost = (int(sum(clip[name] or 0 for clip in clips)) for name in ("frames", "lost"))
    return [*found, m.shown("frames whose face is lost", float(lost), total, "a face in the source, none in the generated video")]


def _row(row: Row, values: Sequence[float], judges: Judges) -> Measure:
    network = getattr(judges, row.judge, None) if row.judge else None
    parts = [{"": "", "higher": "higher = better", "lower": "lower = better"}.get(row.better, f"{row.better} = best"), row.note]
    parts += [f"by {network.name}"] if network is not None and row.judge == "identity" else []
    interval = m.bootstrap_interval(values)
    spread = f"lowest {min(values):.3g}, highest {max(values):.3g}" if len(values) > 1 else ""
    note = "; ".join(filter(None, (*parts, spread)))
    return replace(m.shown(row.name, float(np.mean(values)), len(values), note), interval=interval)


# Shortfalls that a clip is ranked by, each 0 to 1: see :func:`badness`
FAULTS = {
    "lips_r": lambda v: 1 - v,
    "asked_r": lambda v: 1 - v,
    "identity": lambda v: 1 - v,
    "ssim_outside": lambda v: 1 - v,
    "ssim_mouth": lambda v: 1 - v,
    "sharpness": lambda v: abs(1 - v),
    "finest": lambda v: abs(1 - v),
    "chin": lambda v: abs(1 - v),
    "flicker": lambda v: abs(1 - v),
    "jitter": lambda v: v / 4,
    "colour": lambda v: abs(v) / 8,
}


def badness(numbers: Mapping[str, object]) -> float:
    """What clips are sorted by: the mean of the shortfalls that were measured, 0 for one that no number finds fault with."""
    found = [min(max(fault(numbers[name]), 0.0), 1.0) for name, fault in FAULTS.items() if numbers.get(name) is not None]
    return float(np.mean(found)) if found else 0.0
