"""What the full preset's training steps take on this machine: ``python -m flashlips_core.train.plan --measure``.

The steps, settings and loop are those of a run. Networks and judges have the published shapes and random weights, pictures and
poses are noise; neither changes the speed. Batches are made before: reading and augmenting pictures is outside the timer.
"""

from __future__ import annotations

import functools
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from ..bench_full import TOO_LATE, end_of, forget_peak, now, peak_gb
from ..models.lip_encoder import LipEncoder
from ..models.pose_transformer import POSE_150M, PoseTransformer
from ..types import FlashLipsError, device_of
from ..within_memory import is_out_of_memory
from . import paper, plan
from .loop import Step, TrainConfig, Trainer
from .presets import settings_of
from .speed import peak_flops

log = logging.getLogger(__name__)

WARM_UP, TIMED = 1, 4  # steps; before the first, one more runs whose FLOPs are counted
CROPS_PX = (512, 256)
NUM_FRAMES = 100  # of the pose transformer's windows


@dataclass(frozen=True)
class Job:
    """One training step: ``build`` makes network, batch and step on PyTorch's default device."""

    name: str
    samples: int  # in the batch
    config: TrainConfig
    build: Callable[[], tuple[nn.Module, Any, Step]]


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


Frozen = Callable[[], tuple[paper.PaperJudge, LipEncoder]]


def full_jobs(device: torch.device, batch: int | None = None, frozen: Frozen | None = None) -> list[Job]:
    """Both editors' stages and the pose transformer, as the preset trains them; then the same without recomputation.

    Args:
        frozen: makes the judges and the lip encoder for each job; None makes them once, laid out as files are loaded.
    """
    frozen = frozen or functools.cache(_as_loaded)
    jobs = []
    for recompute in (True, False):
        for crop_px in CROPS_PX:
            for kind in plan.EDITORS:
                for stage in plan.STEPS:
                    name = f"{kind}, {stage}, {crop_px} px"
                    jobs.append(editor_job(name, stage, paper.NETWORKS[kind], frozen, crop_px, device, recompute, batch))
        jobs.append(pose_job(lambda: PoseTransformer(POSE_150M), NUM_FRAMES, device, recompute, batch))
    return jobs


def editor_job(
    name: str,
    stage: str,
    make: Callable[[], nn.Module],
    frozen: Frozen,
    crop_px: int,
    device: torch.device,
    recompute: bool,
    batch: int | None = None,
) -> Job:
    """Masked reconstruction or self-refinement (``plan.STEPS``) of the editor that ``make`` builds."""
    options = settings_of("editor" if stage == plan.STEPS[0] else stage, "full")
    samples = batch or options["batch_size"]
    config = _config(options, device, recompute, paper.paper_weights())

    def build() -> tuple[nn.Module, Any, Step]:
        judge, reader = frozen()
        network = make()
        step = plan.editor_step(stage, replace(judge, recompute=recompute), reader, network)
        return network, plan.pictures(samples, options["references"], crop_px), step

    return Job(name, samples, config, build)


def pose_job(
    make: Callable[[], PoseTransformer], num_frames: int, device: torch.device, recompute: bool, batch: int | None = None
) -> Job:
    """Flow matching of the pose transformer that ``make`` builds."""
    options = settings_of("poses", "full")
    samples = batch or options["batch"]

    def build() -> tuple[nn.Module, Any, Step]:
        network = make()
        return network, plan.windows(network, samples, num_frames), plan.pose_step

    return Job(f"pose transformer, {num_frames} frames", samples, _config(options, device, recompute), build)


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
        jobs: None for :func:`full_jobs`.
        batch: samples per step of those; None for the preset's.
        within_s: seconds after which no further job is started, for machines that are lent.
    """
    device, started, end_s = device_of(device), time.monotonic(), end_of(within_s)
    rows = []
    for job in full_jobs(device, batch) if jobs is None else jobs:
        if only in job.name:
            is_late = time.monotonic() >= end_s
            rows.append(replace(_row(job), note=TOO_LATE) if is_late else measured(job, device))
            log.info("%5.1f s %s", time.monotonic() - started, rows[-1])
    forget_peak(device)
    peak, source = peak_flops(device, is_bf16=True)
    conditions = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "precision": "bf16 autocast, weights, optimiser (AdamW) and averaged weights in fp32",
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


def _as_loaded() -> tuple[paper.PaperJudge, LipEncoder]:
    judge, reader = plan.frozen_networks()
    for network in (judge.codec, judge.perceptual, judge.identity, reader):
        network.to(memory_format=torch.channels_last)
    return judge, reader


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


def _config(
    options: dict[str, Any], device: torch.device, recompute: bool, weights: dict[str, float] | None = None
) -> TrainConfig:
    """The preset's settings of the loop; nothing is written, so there is no folder."""
    fields = {name: value for name, value in options.items() if name in TrainConfig.__dataclass_fields__}
    return TrainConfig(run_dir="", weights=weights or {}, **fields | {"device": str(device), "recompute": recompute})
