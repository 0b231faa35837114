"""The U-Net lip editor (paper, "U-Net, 250 M"; letters and equations: ``editor``).

B batch, R references, C latent channels (4), F reference features, D condition size, P pose numbers (12), h' w' window cells.

The paper does not say how several references are joined. Ours: at each place they are weighed by attention, whose query is the
wanted pose. With ``is_copying`` (ours) the weights also know how near each reference's pose is to the wanted one, and the network
may copy what the weighed references show; without it this is the paper's editor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..types import FlashLipsError
from .copying import compare_poses, weighted_sum
from .editor import NUM_REFERENCES, WHOLE_CROP, Editor, EditorConfig, EditorContext
from .layers import ModulatedBlock

# The more, the nearer one of them is to the wanted pose; each costs a run of f_ref per clip, and per frame next to nothing
COPIED_FROM = 20


@dataclass(frozen=True)
class EditorUNetConfig(EditorConfig):
    """Channels and residual blocks per resolution, finest first; the coarsest one attends over the whole face."""

    channels: tuple[int, ...] = (192, 448, 960, 1024)
    encoder_blocks: tuple[int, ...] = (2, 2, 2, 2)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 3)
    reference_channels: int = 128
    reference_blocks: int = 3
    condition_dim: int = 512
    head_dim: int = 64
    is_copying: bool = True  # the checkpoints of version 0.1.0 do, and do not say so


UNET_250M = EditorUNetConfig(is_copying=False)  # the paper's
UNET_MINI = EditorUNetConfig(
    channels=(64, 128, 192), encoder_blocks=(1, 2, 2), decoder_blocks=(2, 2, 2), reference_channels=32, reference_blocks=2,
    condition_dim=128, head_dim=32, window=(0.1875, 0.375, 0.8125, 1.0),
)  # fmt: skip
# For 384 px crops: the same mouth on half as many cells again each way. 28x28 of 48x48 cells hold all that an edit may change.
# Three levels have a block more, which joined the trained ones as the identity (``start_from``).
UNET_MINI_384 = replace(UNET_MINI, encoder_blocks=(2, 2, 2), decoder_blocks=(3, 3, 2), window=(10 / 48, 20 / 48, 38 / 48, 1.0))


@dataclass(frozen=True)
class UNetContext(EditorContext):
    """What each place of the references offers, and when to use it."""

    cells: tuple[int, int]  # latent height and width of the whole crops
    keys: Tensor  # (1 or B, R, F, h', w')
    values: Tensor  # (1 or B, R, F, h', w')


class ReferenceMemory(nn.Module):
    """f_ref of Eq. 1: residual blocks at latent size, then what each place of a reference offers and when to use it."""

    def __init__(self, config: EditorUNetConfig):
        super().__init__()
        width = config.reference_channels
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.summary = nn.Sequential(nn.Linear(width, config.condition_dim), nn.SiLU())
        self.blocks = nn.ModuleList(ModulatedBlock(width, width, config.condition_dim) for _ in range(config.reference_blocks))
        self.to_key = nn.Conv2d(width, width, 1)
        self.to_value = nn.Conv2d(width, width, 1)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h, w) -> keys and values (N, F, h, w)."""
        x = self.conv_in(latents)
        # The summary lets each place know the reference's whole mouth: its 8-cell neighbourhood does not show it.
        summary = self.summary(F.silu(x).mean((2, 3)))
        for block in self.blocks:
            x = block(x, summary)
        return self.to_key(x), self.to_value(x)


class SelfAttention(nn.Module):
    """Every latent place of the coarsest level attends to every other. (B C h w)"""

    def __init__(self, channels: int, head_dim: int):
        super().__init__()
        self.heads = channels // head_dim
        self.norm = nn.GroupNorm(16, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (three n d) h w -> three b n (h w) d", three=3, n=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(attended, "b n (h w) d -> b (n d) h w", h=height))


class EditorUNet(Editor[UNetContext]):
    """The editor of Eqs. 1-3 with a U-Net. Starts as the identity: its last layer is zero."""

    config: EditorUNetConfig

    def __init__(self, config: EditorUNetConfig = UNET_250M):
        super().__init__(config)
        self.num_references = COPIED_FROM if config.is_copying else NUM_REFERENCES
        widths, condition = config.channels, config.condition_dim
        self.reference = ReferenceMemory(config)
        # The wanted pose; with copying also what the best reference lacks of it
        asked = (1 + config.is_copying) * config.pose_dim
        self.pose = nn.Sequential(nn.Linear(asked, condition), nn.SiLU(), nn.Linear(condition, condition), nn.SiLU())
        if config.is_copying:
            self.pose_metric = nn.Parameter(torch.zeros(config.pose_dim))  # log weight of each pose number in their distance
        self.to_query = nn.Linear(condition, config.reference_channels)
        inputs = (1 + config.is_copying) * config.latent_channels + config.reference_channels + config.pose_dim
        self.conv_in = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.ModuleList(ModulatedBlock(w, w, condition) for _ in range(n))
            for w, n in zip(widths, config.encoder_blocks, strict=True)
        )
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(widths, widths[1:], strict=False))
        self.attention = SelfAttention(widths[-1], config.head_dim)
        self.up = nn.ModuleList(
            nn.ModuleList(ModulatedBlock(w, w, condition) for _ in range(n))
            for w, n in zip(widths, config.decoder_blocks, strict=True)
        )
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False))
        self.norm_out = nn.GroupNorm(16, widths[0])
        self.conv_out = nn.Conv2d(widths[0], (1 + config.is_copying) * config.latent_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def start_from(self, other: EditorUNet) -> None:
        """Take the weights of an editor of any window; blocks that it lacks at the end of a level stay as they are: the identity.

        Raises:
            FlashLipsError: The other one has more blocks, or other sizes.
        """
        own, its = _depths(self.config), _depths(other.config)
        is_deeper = len(own) == len(its) and all(a >= b for a, b in zip(own, its, strict=True))
        if not is_deeper or _block_sizes(self.config) != _block_sizes(other.config):
            raise FlashLipsError(
                f"The editor to start from has {its} blocks a level, this one {own}, or other sizes; it must be the same "
                "network, or the same with fewer blocks. Choose another start, or train anew."
            )
        self.load_state_dict(self.state_dict() | other.state_dict())

    def prepare_references(self, z_ref: Tensor, poses: Tensor | None = None) -> UNetContext:
        """As for every :class:`Editor`."""
        batch, cells = z_ref.shape[0], (z_ref.shape[3], z_ref.shape[4])
        seen = self.cut(z_ref)
        keys, values = self.reference(rearrange(seen, "b r c h w -> (b r) c h w"))
        keys, values = (rearrange(x, "(b r) d h w -> b r d h w", b=batch) for x in (keys, values))
        return UNetContext(seen, poses, cells, keys, values)

    def residual(self, z_masked: Tensor, context: UNetContext, poses: Tensor) -> Tensor:
        """As for every :class:`Editor`: the estimate of z_target (Eq. 2)."""
        self._check(z_masked, context, poses)
        shown, asked, likeness = [self.cut(z_masked)], poses, None
        if self.config.is_copying:
            likeness, missing = compare_poses(poses, context.poses, self.pose_metric)
            asked = torch.cat([poses, missing], 1)
        condition = self.pose(asked)
        weights = self._suitability(context, condition, likeness)
        if self.config.is_copying:
            shown.append(weighted_sum(weights, context.latents))
        z_lips = poses[..., None, None].expand(-1, -1, *shown[0].shape[2:])
        z_input = torch.cat([*shown, weighted_sum(weights, context.values), z_lips], 1)  # Eq. 1
        z_target = self.conv_out(F.silu(self.norm_out(self._backbone(self.conv_in(z_input), condition))))
        if not self.config.is_copying:
            return z_target
        drawn, copied = z_target.chunk(2, dim=1)
        return drawn + copied * (shown[1] - shown[0])

    def _backbone(self, x: Tensor, condition: Tensor) -> Tensor:
        """Down, over the whole face, and up again. (B, widths[0], h', w'), (B, D)"""
        skips = []
        for level, blocks in enumerate(self.down):
            for block in blocks:
                x = block(x, condition)
            if level < len(self.shrink):
                skips.append(x)
                x = self.shrink[level](x)
        x = self.attention(x)
        for level in reversed(range(len(self.up))):
            if level < len(self.grow):
                x = skips[level] + self.grow[level](F.interpolate(x, scale_factor=2))
            for block in self.up[level]:
                x = block(x, condition)
        return x

    def _suitability(self, context: UNetContext, condition: Tensor, likeness: Tensor | None) -> Tensor:
        """How well each reference suits the wanted pose at each place, (B, R, h', w'), 1 in sum over references."""
        query = self.to_query(condition) * context.keys.shape[2] ** -0.5
        if context.keys.shape[0] == 1:  # one clip's references serve the whole batch
            logits = torch.einsum("bd,rdhw->brhw", query, context.keys[0])
        else:
            logits = torch.einsum("bd,brdhw->brhw", query, context.keys)
        return (logits if likeness is None else logits + likeness[..., None, None]).softmax(1)

    def _check(self, z_masked: Tensor, context: UNetContext, poses: Tensor) -> None:
        if tuple(z_masked.shape[2:]) != context.cells:
            raise FlashLipsError(
                f"References have {context.cells} latent cells, the frame {tuple(z_masked.shape[2:])}; "
                "use crops of one size for both."
            )
        multiple = 2 ** (len(self.config.channels) - 1)
        if context.values.shape[3] % multiple or context.values.shape[4] % multiple:
            height, width = context.cells
            raise FlashLipsError(
                f"Latents of {width}x{height} cells do not suit this editor's window; use crops of the size it was trained on."
            )
        if poses.shape[-1] != self.config.pose_dim:
            raise FlashLipsError(
                f"Poses have {poses.shape[-1]} numbers, this editor uses {self.config.pose_dim}; "
                "choose a pose model that matches."
            )


def _depths(config: EditorUNetConfig) -> tuple[int, ...]:
    return config.encoder_blocks + config.decoder_blocks


def _block_sizes(config: EditorUNetConfig) -> EditorUNetConfig:
    return replace(config, encoder_blocks=(), decoder_blocks=(), window=WHOLE_CROP)
