"""What the full preset's training steps cost, counted without data, weights or a GPU: ``python -m flashlips_core.train.plan``.

Everything lives on PyTorch's meta device, which knows shapes and no values. FLOPs are those of products, convolutions and
attention (1 multiply-add = 2), forward and backward, with all judges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..codec import KLCodec
from ..flow import FlowBatch, flow_matching_loss
from ..losses import VGG19_CONVS, IdentityLoss, PerceptualLoss, VGGFeatures
from ..models.identity import FaceNet
from ..models.lip_encoder import LipEncoder
from ..models.pose_transformer import POSE_150M, PoseTransformer
from ..types import POSE_DIM
from . import paper
from .loop import recompute_blocks
from .paper_data import PictureBatch

META = torch.device("meta")
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
    for kind in ("unet-250m", "transformer-300m"):
        with META:
            judge, reader, network = _judge(recompute), _frozen(LipEncoder()), paper.NETWORKS[kind]()
            if recompute:
                recompute_blocks(network)
            picture = torch.zeros(1, 3, crop_px, crop_px)
            batch = PictureBatch(picture, picture[:, None].repeat(1, references, 1, 1, 1), picture[:, :1])
            masked = paper.masked_step(judge, paper.read_by(reader))
            steps = {"masked": masked, "refinement": paper.refinement_step(judge, reader, network)}
            for name, step in steps.items():
                title = f"{kind}, {name}, {crop_px} px{', recomputed' if recompute else ''}"
                costs.append(_cost(title, network, partial(step, network, batch, torch.Generator())))
    return costs


def pose_cost(num_frames: int = 100, sources: int = 4) -> Cost:
    """Flow matching of the pose transformer, per window."""
    with META:
        network = PoseTransformer(POSE_150M)

    def step() -> dict[str, Tensor]:
        audio = torch.zeros(1, num_frames, network.config.audio_dim, device=META)
        poses, weight = torch.zeros(1, num_frames, POSE_DIM, device=META), torch.ones(1, num_frames, device=META)
        batch = FlowBatch(poses, audio, torch.zeros(1, sources, POSE_DIM, device=META), weight)
        return {"flow": flow_matching_loss(network, batch, torch.Generator())}

    return _cost(f"pose transformer, {num_frames} frames (fp32)", network, step)


def table(costs: list[Cost]) -> str:
    """The costs as a table in Markdown."""
    rows = ["| step | parameters | TFLOP per sample | state, GB |", "|---|---|---|---|"]
    for cost in costs:
        millions, state = cost.parameters / 1e6, cost.state_bytes / 1e9
        rows.append(f"| {cost.name} | {millions:.1f} M | {cost.flops / 1e12:.3f} | {state:.1f} |")
    return "\n".join(rows)


def _judge(recompute: bool) -> paper.PaperJudge:
    """The paper's judges with the shapes of their published networks."""
    from diffusers import AutoencoderKL

    ends = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **ends)  # SDXL's config.json
    vgg = VGGFeatures(VGG19_CONVS, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))
    codec, perceptual = KLCodec(_frozen(vae)), PerceptualLoss(_frozen(vgg), "VGG19")
    return paper.PaperJudge(codec, perceptual, IdentityLoss(_frozen(FaceNet())), recompute)


def _frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def _cost(name: str, network: nn.Module, step: Callable[[], dict[str, Tensor]]) -> Cost:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        sum(step().values()).backward()
    network.zero_grad(set_to_none=True)
    return Cost(name, sum(p.numel() for p in network.parameters()), counter.get_total_flops())


def main() -> None:
    """Print the tables of docs/training.md."""
    costs = [cost for px in (256, 512) for recompute in (False, True) for cost in editor_costs(px, recompute=recompute)]
    print(table([*costs, pose_cost()]))


if __name__ == "__main__":
    main()
