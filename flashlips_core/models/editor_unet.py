"""The U-Net lip editor (paper, stage 1 and LipsChange): one pass from a frame's latents and a lip pose to the edited latents.

B batch, R references, C latent channels (4), F reference features, D condition size, P pose numbers (12), h w latent size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..types import POSE_DIM, FlashLipsError
from .copying import blend, compare_poses
from .editor import WHOLE_CROP, Window, WindowedEditor
from .layers import ModulatedBlock


@dataclass(frozen=True)
class EditorUNetConfig:
    """Channels and residual blocks per resolution, finest first; the coarsest one attends over the whole face."""

    channels: tuple[int, ...] = (192, 448, 960, 1024)
    encoder_blocks: tuple[int, ...] = (2, 2, 2, 2)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 3)
    reference_channels: int = 128
    reference_blocks: int = 3
    condition_dim: int = 512
    head_dim: int = 64
    pose_dim: int = POSE_DIM
    latent_channels: int = 4
    window: Window = WHOLE_CROP


UNET_250M = EditorUNetConfig()
UNET_MINI = EditorUNetConfig(
    channels=(64, 128, 192), encoder_blocks=(1, 2, 2), decoder_blocks=(2, 2, 2), reference_channels=32, reference_blocks=2,
    condition_dim=128, head_dim=32, window=(0.1875, 0.375, 0.8125, 1.0),
)  # fmt: skip
# For 384 px crops: the same mouth on half as many cells again each way. 28x28 of 48x48 cells hold all that an edit may change.
# Three levels have a block more, which joined the trained ones as the identity (``start_from``).
UNET_MINI_384 = replace(UNET_MINI, encoder_blocks=(2, 2, 2), decoder_blocks=(3, 3, 2), window=(10 / 48, 20 / 48, 38 / 48, 1.0))


@dataclass(frozen=True)
class EditorContext:
    """What the references contribute inside the editor's window of h' x w' cells, computed once per clip."""

    cells: tuple[int, int]  # latent height and width of the whole crops
    latents: Tensor  # (1 or B, R, C, h', w') the references themselves
    keys: Tensor  # (1 or B, R, D, h', w')
    values: Tensor  # (1 or B, R, F, h', w')
    poses: Tensor | None = None  # (1 or B, R, P) lip poses of the references, None where nobody has read them


class ReferenceAdapter(nn.Module):
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


class EditorUNet(WindowedEditor):
    """The residual editor of Eqs. 1-3 with a U-Net. Starts as the identity: its last layer is zero."""

    # The more, the nearer one of them is to the wanted pose; each costs a run of f_ref per clip, and per frame next to nothing
    num_references = 20

    def __init__(self, config: EditorUNetConfig = UNET_250M):
        super().__init__(config.window)
        self.config = config
        widths, condition = config.channels, config.condition_dim
        self.reference = ReferenceAdapter(config)
        # The wanted pose, and what the best reference lacks of it.
        self.pose = nn.Sequential(
            nn.Linear(2 * config.pose_dim, condition), nn.SiLU(), nn.Linear(condition, condition), nn.SiLU()
        )
        self.pose_metric = nn.Parameter(torch.zeros(config.pose_dim))  # log weight of each pose number in their distance
        self.to_query = nn.Linear(condition, config.reference_channels)
        inputs = 2 * config.latent_channels + config.reference_channels + config.pose_dim
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
        self.conv_out = nn.Conv2d(widths[0], 2 * config.latent_channels, 3, padding=1)
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

    def prepare_references(self, references: Tensor, poses: Tensor | None = None) -> EditorContext:
        """Run f_ref on a clip's references, (1 or B, R, C, h, w); their order does not matter.

        Args:
            poses: (1 or B, R, P) what their lips do; with it the editor knows which of them to copy from.
        """
        batch, cells = references.shape[0], (references.shape[3], references.shape[4])
        seen = self.cut(references)
        keys, values = self.reference(rearrange(seen, "b r c h w -> (b r) c h w"))
        keys, values = (rearrange(x, "(b r) d h w -> b r d h w", b=batch) for x in (keys, values))
        return EditorContext(cells, seen, keys, values, poses)

    def forward(self, z_input: Tensor, context: EditorContext, poses: Tensor) -> Tensor:
        """Edit latents.

        Args:
            z_input: (B, C, h, w) scaled latents: z_masked (stage 1) or the whole frame's z_src (mask-free).
            poses: (B, 12) standardised lip poses.
        Returns: z_hat (B, C, h, w) = z_input + the estimated residual (Eq. 3), which is zero outside the window.
        """
        self._check(z_input, context, poses)
        return self.added(z_input, self._residual(self.cut(z_input), context, poses))

    def _residual(self, z_input: Tensor, context: EditorContext, poses: Tensor) -> Tensor:
        likeness, missing = compare_poses(poses, context.poses, self.pose_metric)
        condition = self.pose(torch.cat([poses, missing], 1))
        maps = poses[..., None, None].expand(-1, -1, *z_input.shape[2:])
        weights = self._suitability(context, condition, likeness)
        blended = blend(weights, context.latents)
        x = self.conv_in(torch.cat([z_input, blended, blend(weights, context.values), maps], 1))  # Eq. 1
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
        # What a reference already shows is copied rather than redrawn, see ``copying``
        drawn, copied = self.conv_out(F.silu(self.norm_out(x))).chunk(2, dim=1)
        return drawn + copied * (blended - z_input)

    def _suitability(self, context: EditorContext, condition: Tensor, likeness: Tensor | None) -> Tensor:
        """How well each reference suits the wanted pose at each place, (B, R, h', w'), 1 in sum over references."""
        query = self.to_query(condition) * context.keys.shape[2] ** -0.5
        if context.keys.shape[0] == 1:  # one clip's references serve the whole batch
            logits = torch.einsum("bd,rdhw->brhw", query, context.keys[0])
        else:
            logits = torch.einsum("bd,brdhw->brhw", query, context.keys)
        return (logits if likeness is None else logits + likeness[..., None, None]).softmax(1)

    def _check(self, z_input: Tensor, context: EditorContext, poses: Tensor) -> None:
        if tuple(z_input.shape[2:]) != context.cells:
            raise FlashLipsError(
                f"References have {context.cells} latent cells, the frame {tuple(z_input.shape[2:])}; "
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
