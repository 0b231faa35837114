"""Stage "detail": the codec's decoder learns to draw what regression leaves soft, against a critic (ours).

B batch, h w latent cells; H W the pixel window of ``batches.frames``. An L1 decoder leaves out what it cannot know to the
pixel: the grain of skin, the creases of lips, the edges of teeth. The encoder stays, so latents and every network that works on
them stay too. The decoder also learns from the editor's own edits, whose latents are softer than a frame's; above the window,
where no edit comes, it is held to what it was.

The critic (a patch discriminator) sees decoded and true pictures in pairs and tells which is which (relativistic pairing loss,
Jolicoeur-Martineau 2018, arXiv:1807.00734).
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..codec import Codec, load_codec
from ..loading import load_network
from ..models.codec_mini import MiniCodec
from ..models.masks import mouth_mask
from ..types import Progress
from .batches.frames import EditorFrames, window_cells, window_of
from .codec import TEACHER
from .editor.losses import sharpness_loss
from .editor.pairs import EDGE, EditorBatch, edit_neighbours, editor_batches, pair_target
from .looks import encoded_looks
from .loop.processes import is_first_process
from .loop.settings import setting
from .loop.trainer import Step, TrainConfig, fit
from .run import Run

WEIGHTS = {"pixel": 2.0, "squared": 4.0, "sharpness": 4.0, "realism": 0.15, "critic": 1.0, "anchor": 6.0}
EDITED_SHARE = 0.6  # of a batch are the editor's edits, the rest frames as they are


@dataclass(frozen=True)
class DetailSettings(TrainConfig):
    """Teach the codec's decoder, against a critic, to draw what edits leave soft."""

    steps: int = 2000
    batch_size: int = setting(10, "edits and frames per step")
    lr: float = 3e-4
    ema: float = 0.995
    betas: tuple[float, float] = (0.5, 0.99)
    seed: int = 2
    realism: float = setting(WEIGHTS["realism"], "weight of the critic's verdict; more draws more detail, and invents more of it")
    # network interpolation, Wang et al. 2018, arXiv:1809.00219
    blend: float = setting(0.75, "how far the decoder goes from what it was to what was learnt: less invents less")


CHANNELS = (32, 64, 128)


class Critic(nn.Module):
    """How real each patch of 38 px looks: images (B, 3, H, W) in [-1, 1] -> logits (B, 1, about H/8, about W/8)."""

    def __init__(self, channels: tuple[int, ...] = CHANNELS):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        # bf16 has no room for grain beside brightness
        with torch.autocast(images.device.type, enabled=False):
            return self.layers(images.float())

    def losses(self, decoded: Tensor, real: Tensor) -> dict[str, Tensor]:
        """ "critic", whose gradient reaches only the critic, and "realism", whose gradient reaches only what was decoded."""
        truth, frozen = self(real), {name: value.detach() for name, value in self.named_parameters()}
        told_apart = truth - self(decoded.detach())
        ahead = functional_call(self, frozen, (decoded,)) - truth.detach()
        return {"critic": F.softplus(-told_apart).mean(), "realism": F.softplus(-ahead).mean()}


class WithCritic(nn.Module):
    """A network and its critic under one optimiser, so that a run is saved, averaged and resumed as any other."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.critic = network, Critic()


def edits_and_frames(editor: nn.Module, batch: EditorBatch) -> tuple[Tensor, Tensor]:
    """Latents to decode (B, 4, h, w), edits first and then frames as they are, and the pixels they stand for (B, 3, H, W)."""
    count = round(EDITED_SHARE * len(batch.pose))
    first = EditorBatch(*(value if value is None else value[:count] for value in vars(batch).values()))
    with torch.no_grad():
        edited = edit_neighbours(editor, first)
    _, paired = pair_target(first, mouth_mask(*batch.z_src.shape[2:]))
    return torch.cat([edited, batch.z_src[count:]]).float(), torch.cat([paired, batch.pixels[count:]])


def upper_face(latents: Tensor) -> Tensor:
    """What lies above the window, whole rows of cells: eyes, brows, hair. (B, 4, h, w) -> (B, 4, h', w)"""
    top, *_ = window_of(latents.shape[-1])
    return latents[:, :, :top]


def detail_step(editor: nn.Module, before: MiniCodec) -> Step:
    """Regression and realism of decoded windows; ``before`` is the codec as it was."""

    def step(pair: WithCritic, batch: EditorBatch, generator: torch.Generator) -> dict[str, Tensor]:
        latents, target = edits_and_frames(editor, batch)
        decoded = pair.network.decode(window_cells(latents))
        upper = upper_face(latents[::2])
        with torch.no_grad():
            kept = before.decode(upper)
        decoded, target = (x[:, :, EDGE:-EDGE, EDGE:-EDGE].float() for x in (decoded, target))
        difference = decoded - target
        return {
            "pixel": difference.abs().mean(),
            "squared": difference.square().mean(),
            "sharpness": sharpness_loss(decoded, target),
            "anchor": (pair.network.decode(upper) - kept).abs().mean(),
        } | pair.critic.losses(decoded, target)

    return step


def train_detail(
    codec: Codec,
    editor: nn.Module,
    frames: EditorFrames,
    settings: DetailSettings,
    progress: Progress | None = None,
) -> MiniCodec:
    """Go on training the decoder of the bundled codec.

    Args:
        editor: what draws the edits, frozen.
        frames: encoded by this very codec.
    """
    pair = WithCritic(codec.network.requires_grad_(True)).to(memory_format=torch.channels_last)
    pair.network.encoder.requires_grad_(False)
    config = replace(settings, weights=WEIGHTS | {"realism": settings.realism})
    before = copy.deepcopy(pair.network).requires_grad_(False)
    step = detail_step(editor.eval().requires_grad_(False), before)
    trained = fit(pair, editor_batches(frames, settings.batch_size), step, config, progress=progress).network
    with torch.no_grad():
        for own, earlier in zip(trained.parameters(), before.parameters(), strict=True):
            own.lerp_(earlier, 1 - settings.blend)
    return trained


def detail(run: Run[DetailSettings]) -> Path:
    """Sharpen the decoder on the refined editor's edits; its latents stay what they were."""
    latest, plain = run.folder / "codec.safetensors", run.folder / "codec-plain.safetensors"
    codec = load_codec(str(plain if plain.is_file() else latest), run.device)
    editor = load_network("editor", run.folder, run.device)
    network = train_detail(codec, editor, encoded_looks(run), run.config("run_detail"), run.progress)
    if not plain.is_file() and is_first_process():
        shutil.copy(latest, plain)  # what this stage starts from, also when it is run again
    return run.save(network, "codec", teacher=TEACHER)
