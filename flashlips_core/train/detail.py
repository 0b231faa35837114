"""Stage "detail": the codec's decoder learns to draw what regression leaves soft, against a critic (ours).

B batch, h w latent cells; H W the pixel window of ``editor_data``. An L1 decoder leaves out what it cannot know to the pixel: the
grain of skin, the creases of lips, the edges of teeth. The critic (a patch discriminator) sees decoded and true windows in pairs
and tells which is which (relativistic pairing loss: Jolicoeur-Martineau 2018, arXiv:1807.00734). The encoder stays, so latents and
every network that works on them stay too; it also sees the editor's own edits, whose latents are softer than a frame's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..codec import Codec
from ..models.codec_mini import MiniCodec, sharpness_loss
from ..models.masks import mouth_mask
from ..types import Progress
from .editor import EDGE, EditorBatch, edit_neighbours, editor_batches, pair_target
from .editor_data import EditorFrames, window_cells
from .loop import Step, TrainConfig, Validate, fit

WEIGHTS = {"pixel": 2.0, "squared": 4.0, "sharpness": 4.0, "realism": 0.05, "critic": 1.0}
EDITED_SHARE = 0.6  # of a batch are the editor's edits, the rest frames as they are
CRITIC_CHANNELS = (32, 64, 128)


class Critic(nn.Sequential):
    """How real each patch of 38 px looks: images (B, 3, H, W) -> logits (B, 1, about H/8, about W/8)."""

    def __init__(self, channels: tuple[int, ...] = CRITIC_CHANNELS):
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(channels[-1], 1, 3, padding=1))


class CodecAndCritic(nn.Module):
    """Both opponents under one optimiser, so that a run is saved, averaged and resumed as any other."""

    def __init__(self, codec: MiniCodec):
        super().__init__()
        self.codec, self.critic = codec, Critic()

    def losses(self, decoded: Tensor, real: Tensor) -> dict[str, Tensor]:
        """What the critic loses (its gradient reaches only the critic), and the decoder (only the decoder)."""
        told_apart = self.critic(real) - self.critic(decoded.detach())
        frozen = {name: value.detach() for name, value in self.critic.named_parameters()}
        ahead = functional_call(self.critic, frozen, (decoded,)) - functional_call(self.critic, frozen, (real,))
        return {"critic": F.softplus(-told_apart).mean(), "realism": F.softplus(-ahead).mean()}


def edits_and_frames(editor: nn.Module, batch: EditorBatch) -> tuple[Tensor, Tensor]:
    """Latents to decode (B, 4, h, w), edits first and then frames as they are, and the pixels they stand for (B, 3, H, W)."""
    count = round(EDITED_SHARE * len(batch.pose))
    with torch.no_grad():
        edited = edit_neighbours(editor, batch)
    _, paired = pair_target(batch, mouth_mask(*batch.z_src.shape[2:]))
    latents = torch.cat([edited[:count], batch.z_src[count:]]).float()
    return latents, torch.cat([paired[:count], batch.pixels[count:]])


def detail_step(editor: nn.Module) -> Step:
    """Regression and realism of decoded windows."""

    def step(network: CodecAndCritic, batch: EditorBatch, generator: torch.Generator) -> dict[str, Tensor]:
        latents, target = edits_and_frames(editor, batch)
        decoded = network.codec.decode(window_cells(latents))
        decoded, target = (x[:, :, EDGE:-EDGE, EDGE:-EDGE].float() for x in (decoded, target))
        difference = decoded - target
        return {
            "pixel": difference.abs().mean(),
            "squared": difference.square().mean(),
            "sharpness": sharpness_loss(decoded, target),
        } | network.losses(decoded, target)

    return step


def train_detail(
    codec: Codec,
    editor: nn.Module,
    frames: EditorFrames,
    run_dir: str,
    steps: int = 2000,
    batch_size: int = 10,
    seed: int = 2,
    lr: float = 3e-4,
    realism: float = WEIGHTS["realism"],
    ema: float = 0.995,
    validate: Validate | None = None,
    progress: Progress | None = None,
    betas: tuple[float, float] = (0.5, 0.99),
    **loop: object,
) -> MiniCodec:
    """Go on training the decoder of the bundled codec; ``loop`` are further settings of TrainConfig.

    Args:
        editor: what draws the edits, frozen.
        frames: encoded by this very codec.
        realism: weight of the critic's verdict; more draws more detail, and more of it invented.
    """
    network = CodecAndCritic(codec.network.requires_grad_(True)).to(memory_format=torch.channels_last)
    network.codec.encoder.requires_grad_(False)
    editor = editor.eval().requires_grad_(False)
    weights = WEIGHTS | {"realism": realism}
    settings = TrainConfig(run_dir, steps, lr=lr, seed=seed, weights=weights, ema=ema, betas=betas, **loop)
    return fit(network, editor_batches(frames, batch_size), detail_step(editor), settings, validate, progress).codec
