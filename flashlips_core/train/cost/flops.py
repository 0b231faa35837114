"""What the full preset's training steps cost, counted without data, weights or a GPU: ``python -m flashlips_core cost``.

Everything lives on PyTorch's meta device, which knows shapes and no values. FLOPs are those of products, convolutions and
attention (1 multiply-add = 2), forward and backward, with all judges. With ``--measure`` the same steps run on this machine's
device (``speed``); with ``--memory`` what they hold is counted (``memory``). Both know fine-tunings too.

Builders make random weights and data on PyTorch's default device, whatever that is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...codec import KLCodec
from ...flow import FlowBatch, flow_matching_loss
from ...models.identity import FaceNet
from ...models.lip_encoder import LipEncoder
from ...models.pose_transformer import POSE_150M, PoseTransformer
from ...models.vgg import VGG19_CONVS, VGGFeatures
from ...pretrained import sdxl_vae
from ...types import POSE_DIM
from ..batches.pictures import PictureBatch
from ..editor import paper
from ..editor.losses import IdentityLoss, PerceptualLoss
from ..loop.trainer import Step, frozen_copy, recompute_blocks

META = torch.device("meta")
EDITORS = ("unet-250m", "transformer-300m")
STEPS = ("masked", "refinement")
STATE_BYTES = 20  # per parameter in float32: weight, gradient, AdamW's two moments, and the averaged weight


@dataclass(frozen=True)
class Cost:
    """One step on one sample."""

    name: str
    parameters: int
    flops: int

    @property
    def state_bytes(self) -> int:
        """In every process, whatever the batch."""
        return STATE_BYTES * self.parameters


def editor_costs(crop_px: int, references: int = 4, recompute: bool = False) -> list[Cost]:
    """Masked reconstruction, then self-refinement, of both editors."""
    costs = []
    for kind in EDITORS:
        with META:
            (judge, reader), network = frozen_networks(recompute), paper.NETWORKS[kind]()
            if recompute:
                recompute_blocks(network)
            batch = pictures(1, references, crop_px)
            for stage in STEPS:
                title = f"{kind}, {stage}, {crop_px} px{', recomputed' if recompute else ''}"
                step = editor_step(stage, judge, reader, network)
                costs.append(_cost(title, network, partial(step, network, batch, torch.Generator())))
    return costs


def pose_cost(num_frames: int = 100) -> Cost:
    """Flow matching of the pose transformer, per window."""
    with META:
        network = PoseTransformer(POSE_150M)
        batch = windows(network, 1, num_frames)
    return _cost(f"pose transformer, {num_frames} frames (fp32)", network, partial(pose_step, network, batch, torch.Generator()))


def frozen_networks(recompute: bool = False) -> tuple[paper.PaperJudge, LipEncoder]:
    """The paper's judges with the shapes of their published networks, and the ResNet-34 that reads poses."""
    vgg = VGGFeatures(VGG19_CONVS, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))
    perceptual, identity = PerceptualLoss(vgg), IdentityLoss(_frozen(FaceNet()))
    return paper.PaperJudge(KLCodec(sdxl_vae()), perceptual, identity, recompute), _frozen(LipEncoder())


def editor_step(stage: str, judge: paper.PaperJudge, reader: LipEncoder, network: nn.Module) -> Step:
    """One of ``STEPS``; in self-refinement the network's own weights also draw the variants."""
    if stage == STEPS[0]:
        return paper.masked_step(judge, paper.read_by(reader))
    return paper.refinement_step(judge, reader, frozen_copy(network))


def pose_step(network: nn.Module, batch: FlowBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """As the stage "poses" trains."""
    return {"flow": flow_matching_loss(network, batch, generator)}


def pictures(count: int, references: int, crop_px: int) -> PictureBatch:
    """Noise for faces, all of which shows lips."""
    images = (torch.rand(count, 3, crop_px, crop_px) * 2 - 1).contiguous(memory_format=torch.channels_last)
    lips = torch.ones(count, 1, crop_px, crop_px)
    return PictureBatch(images, torch.rand(count, references, 3, crop_px, crop_px) * 2 - 1, lips)


def windows(network: PoseTransformer, count: int, num_frames: int, sources: int = 4) -> FlowBatch:
    """Noise for poses and sound."""
    audio = torch.randn(count, num_frames, network.config.audio_dim)
    poses, weight = torch.randn(count, num_frames, POSE_DIM), torch.ones(count, num_frames)
    return FlowBatch(poses, audio, torch.randn(count, sources, POSE_DIM), weight)


def table(costs: list[Cost]) -> str:
    """The costs as a table in Markdown."""
    rows = ["| step | parameters | TFLOP per sample | state, GB |", "|---|---|---|---|"]
    for cost in costs:
        millions, state = cost.parameters / 1e6, cost.state_bytes / 1e9
        rows.append(f"| {cost.name} | {millions:.1f} M | {cost.flops / 1e12:.3f} | {state:.1f} |")
    return "\n".join(rows)


def _frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def _cost(name: str, network: nn.Module, step: Callable[[], dict[str, Tensor]]) -> Cost:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        sum(step().values()).backward()
    network.zero_grad(set_to_none=True)
    return Cost(name, sum(p.numel() for p in network.parameters()), counter.get_total_flops())


def counted() -> dict[str, Any]:
    """The costs of both editors at 256 and 512 px and of the pose model, one by one and as the table of docs/training.md."""
    costs = [cost for px in (256, 512) for recompute in (False, True) for cost in editor_costs(px, recompute=recompute)]
    costs.append(pose_cost())
    return {"costs": [asdict(cost) for cost in costs], "table": table(costs)}
