"""The Transformer editor: a ViT on latent patches (paper, "ViT-style Transformer, 300 M"; letters and equations: ``editor``).

B batch, R references, C latent channels (4), P pose dims (12), h w latent height and width, N = hw / patch^2 target tokens,
M = R N reference tokens, H heads, D head size. Latents are scaled, poses standardised.

Ours, not the paper's: references are tokens instead of channels. They attend only to each other and never see the pose, so
their keys and values are fixed for a clip; each frame's tokens attend to themselves and to those. References carry no index:
any number in any order works.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..types import FlashLipsError
from .copying import compare_poses, weighted_sum
from .editor import NUM_REFERENCES, Editor, EditorConfig, EditorContext
from .editor_unet import UNET_MINI
from .layers import RecomputedBlock, rotate

COPIED_FROM = 8  # references, where there is a copying path; frames attend to all of them, and more distract the bundled network
ROPE_THETA = 100.0  # vision transformers with axial RoPE use 100: positions run to tens, not thousands
ROPE_EXTENT = 16.0  # the crop is this many units wide at any latent size: 256 px crops at patch 2 have one token per unit


@dataclass(frozen=True)
class EditorTransformerConfig(EditorConfig):
    width: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: int = 4
    patch: int = 2  # latent cells per token side
    pose_width: int = 64
    adapter_channels: int = 64
    adapter_blocks: int = 3
    max_references: int = NUM_REFERENCES  # what a caller should choose where nothing is copied from them


TRANSFORMER_300M = EditorTransformerConfig()
# For 256 px crops, like ``UNET_MINI``: 10x10 tokens hold all that an edit may change.
TRANSFORMER_MINI = EditorTransformerConfig(
    width=192, depth=6, num_heads=6, pose_width=96, adapter_channels=48, adapter_blocks=2, window=UNET_MINI.window,
    is_copying=True,
)  # fmt: skip
TRANSFORMER_TINY = EditorTransformerConfig(width=64, depth=3, num_heads=2, pose_width=16, adapter_channels=16, adapter_blocks=1)


@dataclass(frozen=True)
class TransformerContext(EditorContext):
    """Keys (rotated and normalised) and values of the references' tokens for each block."""

    keys: tuple[Tensor, ...]  # depth x (B, H, M, D)
    values: tuple[Tensor, ...]  # depth x (B, H, M, D)


class EditorTransformer(Editor[TransformerContext]):
    """The editor of Eqs. 1-3 with a Transformer. Starts as the identity: its head is zero."""

    config: EditorTransformerConfig

    def __init__(self, config: EditorTransformerConfig = TRANSFORMER_300M) -> None:
        super().__init__(config)
        if config.width % config.num_heads or (config.width // config.num_heads) % 4:
            raise FlashLipsError(
                f"Head size {config.width}/{config.num_heads} must be a multiple of 4 (pairs for rows and columns)."
            )
        self.num_references = COPIED_FROM if config.is_copying else config.max_references
        width, patch, channels = config.width, config.patch, config.latent_channels
        self.adapter = ReferenceAdapter(channels, config.adapter_channels, config.adapter_blocks)
        self.embed_reference = nn.Conv2d(config.adapter_channels, width, patch, stride=patch)
        self.embed_reference_pose = nn.Linear(config.pose_dim, width)
        copied, wanted = (channels, 2 * config.pose_dim) if config.is_copying else (0, config.pose_dim)
        if config.is_copying:
            self.pose_metric = nn.Parameter(torch.zeros(config.pose_dim))  # log weight of each pose number in their distance
        self.embed_target = nn.Conv2d(channels + copied + config.pose_dim, width, patch, stride=patch)
        self.embed_pose = nn.Sequential(
            nn.Linear(wanted, config.pose_width), nn.SiLU(), nn.Linear(config.pose_width, config.pose_width), nn.SiLU()
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.modulation = nn.Linear(config.pose_width, 2 * width)
        self.head = nn.Linear(width, (channels + copied) * patch * patch)
        self._initialise()

    def prepare_references(self, z_ref: Tensor, poses: Tensor | None = None) -> TransformerContext:
        """As for every :class:`Editor`; with their poses the frames' tokens know which references to look at."""
        # Co-located tokens of all references share a position
        rope = tuple(part.repeat(z_ref.shape[1], 1) for part in self._rope(z_ref))
        seen = self.cut(z_ref)
        x = self.embed_reference(self.adapter(seen.flatten(0, 1)))  # (B R) width h/p w/p
        if poses is not None:
            x = x + self.embed_reference_pose(poses.flatten(0, 1))[..., None, None]
        x = rearrange(x, "(b r) d y x -> b (r y x) d", r=z_ref.shape[1])
        keys, values = [], []
        for block in self.blocks:
            x, key, value = block(x, rope)
            keys.append(key)
            values.append(value)
        return TransformerContext(seen, poses, tuple(keys), tuple(values))

    def residual(self, z_masked: Tensor, context: TransformerContext, poses: Tensor) -> Tensor:
        """As for every :class:`Editor`: the estimate of z_target (Eq. 2)."""
        rope, shown, asked = self._rope(z_masked), [self.cut(z_masked)], poses
        if self.config.is_copying:
            copied, missing = self._copied(context, poses)
            shown.append(copied)
            asked = torch.cat([poses, missing], 1)
        z_lips = poses[..., None, None].expand(-1, -1, *shown[0].shape[-2:])
        z_input = torch.cat([*shown, z_lips], dim=1)  # Eq. 1, but for f_ref(z_ref): references come as tokens
        x = self.embed_target(z_input)
        rows = x.shape[2]
        x = rearrange(x, "b d y x -> b (y x) d")
        pose = self.embed_pose(asked)  # B pose_width
        for block, key, value in zip(self.blocks, context.keys, context.values, strict=True):
            x, _, _ = block(x, rope, pose, (key, value))
        shift, scale = self.modulation(pose)[:, None].chunk(2, dim=-1)
        x = self.head(modulate(self.norm(x), shift, scale))
        patch = self.config.patch
        z_target = rearrange(x, "b (y x) (c p q) -> b c (y p) (x q)", y=rows, p=patch, q=patch)
        if not self.config.is_copying:
            return z_target
        drawn, share = z_target.chunk(2, dim=1)
        return drawn + share * (shown[1] - shown[0])

    def _copied(self, context: EditorContext, poses: Tensor) -> tuple[Tensor, Tensor]:
        """The references' latents, (B, C, h', w'), most of those whose lips do what is wanted; and what they lack, (B, P)."""
        likeness, missing = compare_poses(poses, context.poses, self.pose_metric)
        if likeness is None:
            likeness = poses.new_zeros(len(poses), context.latents.shape[1])
        weights = likeness.softmax(1)[..., None, None].expand(-1, -1, *context.latents.shape[-2:])
        return weighted_sum(weights, context.latents), missing

    def _rope(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the window's tokens in latents (..., h, w)."""
        (height, width), patch = latents.shape[-2:], self.config.patch
        window = self.window_slices((height, width))
        if any(n % patch for n in (height, width, *(edge for part in window for edge in (part.start, part.stop)))):
            raise FlashLipsError(f"Latents of {width}x{height} cells do not divide into patches of {patch}; resize the crop.")
        rows, columns = (slice(part.start // patch, part.stop // patch) for part in window)
        whole = rope_2d(height // patch, width // patch, self.config, latents.device)
        return tuple(part.unflatten(0, (height // patch, -1))[rows, columns].flatten(0, 1) for part in whole)

    def _initialise(self) -> None:
        """Residual branches start small, modulation and head at zero: the network starts as ``z_hat = z_masked``."""
        branch_std = 0.02 / (2 * self.config.depth) ** 0.5  # GPT-2
        for block in self.blocks:
            branches = (block.qkv, 0.02), (block.attention_out, branch_std), (block.mlp[0], 0.02), (block.mlp[2], branch_std)
            for linear, std in branches:
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)
        for linear in (self.head, self.modulation, *(block.modulation for block in self.blocks)):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)


class Block(RecomputedBlock):
    """Attention and MLP, pre-norm. With a pose, both branches are modulated (adaLN); without one they run as they are."""

    def __init__(self, config: EditorTransformerConfig) -> None:
        super().__init__()
        width, hidden, head_size = config.width, config.width * config.mlp_ratio, config.width // config.num_heads
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = HeadNorm(head_size, eps=1e-6)  # keeps logits bounded in half precision
        self.key_norm = HeadNorm(head_size, eps=1e-6)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulation = nn.Linear(config.pose_width, 6 * width)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], pose: Tensor | None = None, extra: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, N, width) -> tokens, and their own keys and values (B, H, N, D).

        Args:
            pose: (B, pose_width); None leaves the tokens unmodulated.
            extra: keys and values (B or 1, H, M, D) to attend to besides the tokens' own.
        """
        parts = (0.0,) * 6 if pose is None else self.modulation(pose)[:, None].chunk(6, dim=-1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        y = modulate(self.attention_norm(x), shift_a, scale_a)
        query, key, value = rearrange(self.qkv(y), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        query, key = rotate(self.query_norm(query), rope), rotate(self.key_norm(key), rope)
        seen = (key, value)
        if extra is not None:
            seen = tuple(torch.cat([own, more.expand(len(x), -1, -1, -1)], dim=2) for own, more in zip(seen, extra, strict=True))
        y = rearrange(F.scaled_dot_product_attention(query, *seen), "b h n d -> b n (h d)")
        x = x + (1 + gate_a) * self.attention_out(y)
        x = x + (1 + gate_m) * self.mlp(modulate(self.mlp_norm(x), shift_m, scale_m))
        return x, key, value


class HeadNorm(nn.RMSNorm):
    """RMS norm of queries and keys in their own dtype: autocast leaves the weight in float32, which has no fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class ReferenceAdapter(nn.Module):
    """f_ref of Eq. 1: residual convolutions at latent size, (B, C, h, w) -> (B, channels, h, w)."""

    def __init__(self, latent_channels: int, channels: int, num_blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(latent_channels, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(min(8, channels), channels),
                nn.SiLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
            )
            for _ in range(num_blocks)
        )

    def forward(self, z_ref: Tensor) -> Tensor:
        x = self.stem(z_ref)
        for block in self.blocks:
            x = x + block(x)
        return x


def modulate(x: Tensor, shift: Tensor | float, scale: Tensor | float) -> Tensor:
    """adaLN: scale and shift normalised tokens."""
    return x * (1 + scale) + shift


def rope_2d(rows: int, columns: int, config: EditorTransformerConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (N, D/2), float32: the first half of the pairs turns with the row, the second with the column.

    Positions are places in the crop, not token counts, so the same mouth has the same code at 256 and at 512 px.
    """
    num_frequencies = config.width // config.num_heads // 4
    frequencies = ROPE_THETA ** (-torch.arange(num_frequencies, device=device, dtype=torch.float32) / num_frequencies)
    step = ROPE_EXTENT / max(rows, columns)
    y, x = ((torch.arange(n, device=device, dtype=torch.float32) + 0.5) * step for n in (rows, columns))
    angles = torch.cat(
        [
            (y[:, None, None] * frequencies).expand(rows, columns, -1),
            (x[None, :, None] * frequencies).expand(rows, columns, -1),
        ],
        dim=-1,
    ).flatten(0, 1)  # N D/2
    return angles.cos(), angles.sin()
