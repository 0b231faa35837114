"""What steps of the full preset and of fine-tunings take on this machine: ``python -m flashlips_core cost --measure``.

The steps, settings and loop are those of a run. Networks and judges have the published shapes and random weights, pictures and
poses are noise; neither changes the speed. Batches are made before: reading and augmenting pictures is outside the timer.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from ...system.machine import TOO_LATE, end_of, forget_peak, now, peak_gb
from ...system.memory import is_out_of_memory
from ...types import FlashLipsError, device_of
from ..loop.meter import peak_flops
from ..loop.trainer import Trainer
from .jobs import Job, all_jobs

log = logging.getLogger(__name__)

WARM_UP, TIMED = 1, 4  # steps; before the first, one more runs whose FLOPs are counted


@dataclass(frozen=True)
class Row:
    """What a step took. Without numbers where it could not be measured, which the note explains."""

    name: str
    batch: int
    recomputed: bool
    seconds: float | None = None  # median
    samples_per_s: float | None = None
    peak_gb: float | None = None
    tflop_per_sample: float | None = None
    mfu: float | None = None  # share of the device's peak
    note: str = ""


def measure(
    device: torch.device | str | None = None,
    jobs: Sequence[Job] | None = None,
    only: str = "",
    batch: int | None = None,
    within_s: float | None = None,
) -> dict:
    """Run every job whose name holds ``only``; a table for people is among the results.

    Args:
        device: None for the one that the product would choose.
        jobs: None for all of ``jobs``.
        batch: samples per step of those; None for their own.
        within_s: seconds after which no further job is started, for machines that are lent.
    """
    device, started, end_s = device_of(device), time.monotonic(), end_of(within_s)
    rows = []
    for job in all_jobs(device, batch) if jobs is None else jobs:
        if only in job.name:
            is_late = time.monotonic() >= end_s
            rows.append(replace(_row(job), note=TOO_LATE) if is_late else measured(job, device))
            log.info("%5.1f s %s", time.monotonic() - started, rows[-1])
    forget_peak(device)
    peak, source = peak_flops(device, is_bf16=True)
    conditions = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "precision": "weights, optimiser (AdamW) and averaged weights in fp32, bf16 autocast but for small fine-tunings",
        "weights and data": "random, batches made before",
        "timed": f"median of {TIMED} steps after {1 + WARM_UP} to warm up, in the first of which FLOPs are counted",
        "peak GB": "tensors on the card while steps run" if device.type == "cuda" else "of the process, from its start on",
        "MFU": f"of {peak / 1e12:.4g} TFLOP/s ({source})",
    }
    return {"conditions": conditions, "rows": [asdict(row) for row in rows], "table": table(conditions, rows)}


def measured(job: Job, device: torch.device) -> Row:
    """The job's numbers. What stops it, memory or anything else, becomes its note, so that the rest is measured."""
    forget_peak(device)
    try:
        return replace(_row(job), **_numbers(job, device))
    except (RuntimeError, MemoryError, FlashLipsError) as error:
        note = "out of memory" if is_out_of_memory(error) else f"failed: {' '.join(str(error).split())[:150]}"
    return replace(_row(job), note=note)


def table(conditions: dict[str, str], rows: Sequence[Row]) -> str:
    """The rows in Markdown, under what they were measured in."""
    titles = ["step", "batch", "recomputed", "s per step", "samples/s", "peak GB", "TFLOP per sample", "MFU"]
    lines = [*(f"- {name}: {value}" for name, value in conditions.items()), ""]
    lines += [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        numbers = (row.seconds, row.samples_per_s, row.peak_gb, row.tflop_per_sample)
        shown = ["" if number is None else f"{number:.3g}" for number in numbers]
        shown.append("" if row.mfu is None else f"{100 * row.mfu:.1f} %")
        cells = [row.name, str(row.batch), "yes" if row.recomputed else "no", *([row.note, *[""] * 4] if row.note else shown)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _row(job: Job) -> Row:
    return Row(job.name, job.samples, job.config.recompute)


def _numbers(job: Job, device: torch.device) -> dict[str, float | None]:
    with device:
        network, batch, step = job.build()
    trainer = Trainer(network.train().to(memory_format=torch.channels_last), job.config)
    seconds = []
    for index in range(WARM_UP + TIMED):
        if index == WARM_UP:
            forget_peak(device)
        start = now(device)
        trainer.update(lambda generator: batch, step)
        seconds.append(now(device) - start)
    median, meter = statistics.median(seconds[WARM_UP:]), trainer.meter
    return {
        "seconds": median,
        "samples_per_s": job.samples / median,
        "peak_gb": peak_gb(device),
        "tflop_per_sample": meter.flops / meter.samples / 1e12,
        "mfu": meter.flops / median / peak_flops(device, is_bf16=meter.is_bf16)[0],
    }
