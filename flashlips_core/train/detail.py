"""Stage "detail": the codec's decoder learns to draw what regression leaves soft, against a critic (ours).

B batch, h w latent cells; H W the pixel window of ``editor_data``. An L1 decoder leaves out what it cannot know to the pixel: the
grain of skin, the creases of lips, the edges of teeth. The encoder stays, so latents and every network that works on them stay
too. The decoder also learns from the editor's own edits, whose latents are softer than a frame's; above the window, where no edit
comes, it is held to what it was.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..codec import Codec
from ..models.codec_mini import MiniCodec
from ..models.masks import mouth_mask
from ..types import Progress
from .batches.frames import EditorFrames, window_cells, window_of
from .critic import WithCritic
from .editor.losses import sharpness_loss
from .editor.pairs import EDGE, EditorBatch, edit_neighbours, editor_batches, pair_target
from .loop.trainer import Step, TrainConfig, fit

WEIGHTS = {"pixel": 2.0, "squared": 4.0, "sharpness": 4.0, "realism": 0.15, "critic": 1.0, "anchor": 6.0}
EDITED_SHARE = 0.6  # of a batch are the editor's edits, the rest frames as they are


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
    run_dir: str,
    steps: int = 2000,
    batch_size: int = 10,
    seed: int = 2,
    lr: float = 3e-4,
    realism: float = WEIGHTS["realism"],
    blend: float = 0.75,
    ema: float = 0.995,
    progress: Progress | None = None,
    betas: tuple[float, float] = (0.5, 0.99),
    **loop: object,
) -> MiniCodec:
    """Go on training the decoder of the bundled codec; ``loop`` are further settings of TrainConfig.

    Args:
        editor: what draws the edits, frozen.
        frames: encoded by this very codec.
        realism: weight of the critic's verdict; more draws more detail, and more of it invented.
        blend: how far the decoder's weights go from what they were to what was learnt (network interpolation, Wang et al. 2018,
            arXiv:1809.00219): less invents less and is nearer to the pixel.
    """
    pair = WithCritic(codec.network.requires_grad_(True)).to(memory_format=torch.channels_last)
    pair.network.encoder.requires_grad_(False)
    weights = WEIGHTS | {"realism": realism}
    settings = TrainConfig(run_dir, steps, lr=lr, seed=seed, weights=weights, ema=ema, betas=betas, **loop)
    before = copy.deepcopy(pair.network).requires_grad_(False)
    step = detail_step(editor.eval().requires_grad_(False), before)
    trained = fit(pair, editor_batches(frames, batch_size), step, settings, progress=progress).network
    with torch.no_grad():
        for own, earlier in zip(trained.parameters(), before.parameters(), strict=True):
            own.lerp_(earlier, 1 - blend)
    return trained
