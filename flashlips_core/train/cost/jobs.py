"""The training steps that are counted and measured: the full preset's, and those of fine-tunings.

Networks and judges have the published shapes, or the bundled ones', and random weights; pictures and poses are noise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoint import BUNDLED
from ...codec import CELL_PX, Codec, KLCodec, load_codec
from ...loading import load_part
from ...models.lip_encoder import LipEncoder
from ...models.pose_transformer import POSE_150M, PoseTransformer
from ...pretrained import sdxl_vae
from ...types import POSE_DIM
from ..batches.frames import window_of
from ..editor import paper
from ..editor.pairs import NUM_REFERENCES, WEIGHTS, EditorBatch
from ..finetune.best_so_far import EMA
from ..finetune.codec import WEIGHTS as DECODER_WEIGHTS
from ..finetune.codec import CodecTuning, DecoderBatch, decoder_step
from ..finetune.editor import FineTuning, learning
from ..loop.trainer import Step, TrainConfig
from ..poses import FULL as FULL_POSES
from . import flops

CROPS_PX = (512, 256)
NUM_FRAMES = 100  # of the pose transformer's windows
LORA_RANK = 16
LATENT_CHANNELS = 4

Frozen = Callable[[], tuple[paper.PaperJudge, LipEncoder]]


@dataclass(frozen=True)
class Job:
    """One training step: ``build`` makes network, batch and step on PyTorch's default device."""

    name: str
    samples: int  # in the batch
    config: TrainConfig
    build: Callable[[], tuple[nn.Module, Any, Step]]


def all_jobs(device: torch.device, batch: int | None = None, is_fake: bool = False) -> list[Job]:
    """The full preset's steps, then those of fine-tunings.

    Args:
        device: where they run, which decides how.
        batch: samples per step; None for each one's own.
        is_fake: for fake tensors: each job makes networks of its own, and none is laid out in memory as files are loaded.
    """
    return [*full_jobs(device, batch, is_fake), *finetune_jobs(device, batch, is_fake)]


def full_jobs(device: torch.device, batch: int | None = None, is_fake: bool = False) -> list[Job]:
    """Both editors' stages and the pose transformer, as the preset trains them; then the same without recomputation."""
    frozen = flops.frozen_networks if is_fake else functools.cache(_frozen_as_loaded)
    jobs = []
    for recompute in (True, False):
        for crop_px in CROPS_PX:
            for kind in flops.EDITORS:
                for stage in flops.STEPS:
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
    """Masked reconstruction or self-refinement (``flops.STEPS``) of the editor that ``make`` builds."""
    settings = paper.FULL_EDITOR if stage == flops.STEPS[0] else paper.FULL_REFINEMENT
    samples = batch or settings.batch_size
    config = replace(settings, weights=paper.paper_weights(), device=str(device), recompute=recompute)

    def build() -> tuple[nn.Module, Any, Step]:
        judge, reader = frozen()
        network = make()
        step = flops.editor_step(stage, replace(judge, recompute=recompute), reader, network)
        return network, flops.pictures(samples, settings.references, crop_px), step

    return Job(name, samples, config, build)


def pose_job(
    make: Callable[[], PoseTransformer], num_frames: int, device: torch.device, recompute: bool, batch: int | None = None
) -> Job:
    """Flow matching of the pose transformer that ``make`` builds."""
    samples, config = batch or FULL_POSES.batch, replace(FULL_POSES, device=str(device), recompute=recompute)

    def build() -> tuple[nn.Module, Any, Step]:
        network = make()
        return network, flops.windows(network, samples, num_frames), flops.pose_step

    return Job(f"pose transformer, {num_frames} frames", samples, config, build)


# ---- fine-tunings ----------------------------------------------------------------------------------------------------------


def finetune_jobs(device: torch.device, batch: int | None = None, is_fake: bool = False) -> list[Job]:
    """A fine-tuning from each bundled editor, of its codec's decoder, and from the paper's U-Net."""
    jobs = []

    def lay_out(network: nn.Module) -> nn.Module:
        return network if is_fake else _as_loaded(network)

    for source in BUNDLED:
        editor = load_part("editor", source)
        codec, reader = load_codec(editor.codec), load_part("lip-encoder").network
        makers = [functools.partial(_like, part, lay_out) for part in (editor.network, codec, reader)]
        settings = FineTuning(batch=batch or FineTuning.batch)
        jobs.append(finetune_job(f"fine-tune, {source}", makers, editor.crop_px, settings, device))
        make = functools.partial(_like, codec.network, lay_out)
        jobs.append(decoder_job(f"fine-tune, decoder of {source}", make, editor.crop_px, batch or CodecTuning.batch, device))
    for lora in (0, LORA_RANK):
        title = f"fine-tune, unet-250m, 512 px, {f'LoRA {lora}' if lora else 'all weights'}"
        makers = [
            lambda: lay_out(paper.NETWORKS["unet-250m"]()), lambda: lay_out(KLCodec(sdxl_vae())), lambda: lay_out(LipEncoder()),
        ]  # fmt: skip
        jobs.append(finetune_job(title, makers, 512, FineTuning(batch=batch or FineTuning.batch, lora=lora), device))
    return jobs


def finetune_job(
    name: str, makers: Sequence[Callable[[], nn.Module]], crop_px: int, settings: FineTuning, device: torch.device
) -> Job:
    """A step of ``finetune.editor.fine_tune`` on a device, without the networks that it copies: these can stay in main memory.

    Args:
        makers: of the editor, the codec and the lip encoder.
    """

    def learnt() -> tuple[nn.Module, Step, dict[str, Any]]:
        return learning(*(make().requires_grad_(False).eval() for make in makers), settings, device)

    def build() -> tuple[nn.Module, EditorBatch, Step]:
        network, step, _ = learnt()
        return network, _editor_batch(settings.batch, crop_px), step

    with torch.device("meta"):
        loop = learnt()[2]
    return Job(name, settings.batch, TrainConfig("", 1, ema=EMA, device=str(device), weights=WEIGHTS, **loop), build)


def decoder_job(name: str, make: Callable[[], nn.Module], crop_px: int, size: int, device: torch.device) -> Job:
    """A step of ``finetune.codec.tune_decoder``."""

    def build() -> tuple[nn.Module, DecoderBatch, Step]:
        network = make().requires_grad_(False)
        network.decoder.requires_grad_(True)
        _, _, height, width = window_of(crop_px // CELL_PX)
        pixels = torch.rand(size, 3, CELL_PX * height, CELL_PX * width)
        return network, DecoderBatch(torch.randn(size, LATENT_CHANNELS, height, width), pixels), decoder_step

    return Job(name, size, TrainConfig("", 1, ema=EMA, device=str(device), weights=DECODER_WEIGHTS), build)


def _like(network: nn.Module, lay_out: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The same architecture with other weights, on PyTorch's default device."""
    if isinstance(network, Codec):
        return Codec(_like(network.network, lay_out), network.name, network.halo)
    return lay_out(type(network)(network.config))


def _editor_batch(size: int, crop_px: int) -> EditorBatch:
    """Noise for the frames of one person."""
    cells = crop_px // CELL_PX
    _, _, height, width = window_of(cells)

    def latents(*shape: int) -> Tensor:
        return torch.randn(*shape, LATENT_CHANNELS, cells, cells)

    def poses(*shape: int) -> Tensor:
        return torch.randn(*shape, POSE_DIM)

    def pixels() -> Tensor:
        return torch.rand(size, 3, CELL_PX * height, CELL_PX * width) * 2 - 1

    return EditorBatch(
        latents(size), latents(size), poses(size), latents(size, NUM_REFERENCES), poses(size, NUM_REFERENCES), pixels(), pixels(),
        torch.rand(size, 4), poses(size),
    )  # fmt: skip


# ---- what they share -------------------------------------------------------------------------------------------------------


def _as_loaded(network: nn.Module) -> nn.Module:
    return network.to(memory_format=torch.channels_last)


def _frozen_as_loaded() -> tuple[paper.PaperJudge, LipEncoder]:
    judge, reader = flops.frozen_networks()
    for network in (judge.codec, judge.perceptual, judge.identity, reader):
        _as_loaded(network)
    return judge, reader
