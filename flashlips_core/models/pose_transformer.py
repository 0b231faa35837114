"""Audio to lip poses: the velocity network of the conditional flow (paper, stage 2).

B batch, T pose frames (25 per second), P pose numbers (12), A audio numbers per pose frame, E emotion numbers,
K source poses, D width, H heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..types import POSE_DIM
from .layers import RecomputedBlock, rotate

ROWS_PER_FRAME = 2  # encoder rows side by side in a pose frame: 50 Hz into 25
TIME_FEATURES = 128  # sinusoids of the flow time, fed to a small MLP


@dataclass(frozen=True)
class PoseTransformerConfig:
    """Shape of a :class:`PoseTransformer`."""

    audio_kind: str = "wav2vec2-base:12"  # the only AudioFeatures.kind that this network understands
    audio_dim: int = 2 * 768  # per pose frame: two 50 Hz rows side by side
    emotion_dim: int = 0  # 0: no emotion embedding
    pose_dim: int = POSE_DIM
    width: int = 960
    depth: int = 12
    num_heads: int = 15
    mlp_ratio: int = 4
    kernel: int = 5  # pose frames that the input convolutions see at once
    forecast_kernel: int = 9  # pose frames of the linear forecast
    row_components: int = 0  # of each encoder row, that are listened to (see :meth:`PoseTransformer.listened`); 0: all numbers

    @property
    def listened_dim(self) -> int:
        """Numbers per pose frame after the reduction."""
        return ROWS_PER_FRAME * self.row_components if self.row_components else self.audio_dim


POSE_150M = PoseTransformerConfig()
POSE_MINI = PoseTransformerConfig(audio_kind="flashlips-mel-conv", audio_dim=2 * 128, width=192, depth=4, num_heads=3)


class PoseTransformer(nn.Module):
    """v(z_t, t, c) with c = audio, its emotion and K source poses; audio is dropped for classifier-free guidance.

    Frames attend to each other in both directions with rotary positions, so a window means the same wherever it
    lies in the clip. Sources are a set: each passes an MLP and their mean joins every frame, so any K >= 0 will do.
    Ours: the velocity starts from the closed form for Gaussian poses around a linear forecast from the audio, fitted once
    before training (see :meth:`forecast`); the transformer learns what the linear model misses.
    """

    def __init__(self, config: PoseTransformerConfig):
        super().__init__()
        self.config = config
        width, heard = config.width, config.listened_dim
        if config.row_components:
            self.register_buffer("row_mean", torch.zeros(config.audio_dim // ROWS_PER_FRAME))
            self.register_buffer("row_basis", torch.zeros(config.audio_dim // ROWS_PER_FRAME, config.row_components))
        self.register_buffer("rest_pose", torch.zeros(config.pose_dim))  # closed, relaxed lips, standardised
        self.register_buffer("audio_mean", torch.zeros(heard))  # of the training features
        self.register_buffer("audio_std", torch.ones(heard))
        self.register_buffer("forecast_audio", torch.zeros(config.pose_dim, heard, config.forecast_kernel))
        self.register_buffer("forecast_source", torch.zeros(config.pose_dim, config.pose_dim))
        self.register_buffer("forecast_bias", torch.zeros(config.pose_dim))
        self.register_buffer("forecast_spread", torch.ones(config.pose_dim))  # deviation of the poses around the forecast
        self.pose_in = nn.Conv1d(2 * config.pose_dim, width, config.kernel, padding=config.kernel // 2)
        self.is_known = nn.Parameter(torch.zeros(width))  # marks frames whose pose is finished, not noisy
        self.audio_in = nn.Conv1d(heard, width, config.kernel, padding=config.kernel // 2)
        self.no_audio = nn.Parameter(torch.zeros(width))
        self.emotion_in = nn.Linear(config.emotion_dim, width) if config.emotion_dim else None
        self.source_in = nn.Sequential(nn.Linear(config.pose_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.time_in = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.modulation = nn.Linear(width, 6 * width)  # one for all blocks; each block adds its own offset
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.out_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.out_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, config.pose_dim)
        for layer in (self.modulation, self.out_modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        z_t: Tensor,
        t: Tensor,
        audio: Tensor,
        sources: Tensor,
        emotion: Tensor | None = None,
        known: Tensor | None = None,
        drop_audio: Tensor | None = None,
    ) -> Tensor:
        """The velocity of each frame, (B, T, P).

        Args:
            z_t: (B, T, P) noisy poses; frames in ``known`` hold the finished pose instead.
            t: (B,) flow time in [0, 1].
            audio: (B, T, A) features at the pose rate.
            sources: (B, K, P) poses of the person.
            emotion: (B, E), only where the config has ``emotion_dim``.
            known: (B, T) bool, the committed frames.
            drop_audio: (B,) bool, items that must do without their audio.
        """
        audio = self.listened(audio)
        mean, spread = self.forecast(audio, sources, drop_audio)
        x = self.pose_in(torch.cat([z_t, mean], dim=2).transpose(1, 2)).transpose(1, 2)  # B T D
        x = x + self.condition(audio, sources, emotion, drop_audio)
        if known is not None:
            x = x + known[..., None].to(x.dtype) * self.is_known
        c = self.time_in(time_features(t).to(x.dtype))[:, None]  # B 1 D
        shared = self.modulation(c)  # B 1 6D
        rotation = rotary(x.shape[1], self.config.width // self.config.num_heads, x.device)
        for block in self.blocks:
            x = block(x, shared, rotation)
        scale, shift = self.out_modulation(c).chunk(2, dim=-1)
        residual = self.out(self.out_norm(x) * (1 + scale) + shift)
        t = t[:, None, None].to(x.dtype)
        variance = (1 - t) ** 2 + (t * spread) ** 2  # of z_t, were poses normal around the forecast
        gaussian = mean + (t * spread**2 - (1 - t)) / variance * (z_t - t * mean)  # E[z - eps | z_t] for such poses
        return gaussian + spread * variance.rsqrt() * residual

    def listened(self, audio: Tensor) -> Tensor:
        """Features standardised, after the reduction of each row to its leading components, if there is one.

        What a speech network says beyond them is mostly who speaks and which words GRID has: a few GRID speakers cannot teach
        a network to leave it aside, speech of many people can. (B, T, A) -> (B, T, ``config.listened_dim``)
        """
        if self.config.row_components:
            rows = audio.unflatten(2, (ROWS_PER_FRAME, -1))  # B T 2 D
            audio = ((rows - self.row_mean) @ self.row_basis).flatten(2)
        return (audio - self.audio_mean) / self.audio_std

    def forecast(self, audio: Tensor, sources: Tensor, drop_audio: Tensor | None) -> tuple[Tensor, Tensor]:
        """Linear guess of the poses from a few frames of audio and the mean source: (B, T, P) and its spread (B, 1, P).

        Without audio it is the prior of standardised poses: zero mean, unit spread.
        """
        mean = F.conv1d(audio.transpose(1, 2), self.forecast_audio, padding="same").transpose(1, 2)
        mean = mean + F.linear(source_mean(sources), self.forecast_source, self.forecast_bias)[:, None]
        spread = self.forecast_spread.expand(len(audio), 1, -1)
        if drop_audio is not None:
            mean = mean.masked_fill(drop_audio[:, None, None], 0.0)
            spread = spread.masked_fill(drop_audio[:, None, None], 1.0)
        return mean, spread

    def condition(self, audio: Tensor, sources: Tensor, emotion: Tensor | None, drop_audio: Tensor | None) -> Tensor:
        """Concat[a, e(a), z_lips^K] and its projection, written as a sum of projections. Returns (B, T, D)."""
        heard = self.audio_in(audio.transpose(1, 2)).transpose(1, 2)  # B T D
        if self.emotion_in is not None and emotion is not None:
            heard = heard + self.emotion_in(emotion)[:, None]
        if drop_audio is not None:
            heard = torch.where(drop_audio[:, None, None], self.no_audio, heard)
        person = source_mean(self.source_in(sources))[:, None]  # B 1 D
        return heard + person


class Block(RecomputedBlock):
    """Attention and MLP, each modulated by the flow time (adaLN-single: shared modulation plus a learned offset)."""

    def __init__(self, config: PoseTransformerConfig):
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        gates = torch.zeros(6, width)
        gates[2], gates[5] = 1.0, 1.0  # open from the start: these networks are shallow, and train for minutes
        self.offset = nn.Parameter(gates.flatten())
        self.norm_1 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width, elementwise_affine=False)
        self.expand = nn.Linear(width, config.mlp_ratio * width)
        self.contract = nn.Linear(config.mlp_ratio * width, width)

    def forward(self, x: Tensor, modulation: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, T, D), modulation (B, 1, 6D) -> (B, T, D)."""
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = (modulation + self.offset).chunk(6, dim=-1)
        h = self.qkv(self.norm_1(x) * (1 + scale_1) + shift_1)
        q, k, v = rearrange(h, "b t (three h d) -> three b h t d", three=3, h=self.num_heads)
        h = F.scaled_dot_product_attention(rotate(q, rotation), rotate(k, rotation), v)
        h = self.project(rearrange(h, "b h t d -> b t (h d)"))
        x = x + gate_1 * h
        h = self.contract(F.gelu(self.expand(self.norm_2(x) * (1 + scale_2) + shift_2), approximate="tanh"))
        return x + gate_2 * h


def source_mean(sources: Tensor) -> Tensor:
    """(B, K, P) -> (B, P); zero without any source."""
    return sources.sum(dim=1) / max(sources.shape[1], 1)


def time_features(t: Tensor) -> Tensor:
    """Sinusoids of the flow time, periods from 2 pi / 1000 (t in [0, 1] times 1000) up. (B,) -> (B, TIME_FEATURES)."""
    half = TIME_FEATURES // 2
    rates = torch.exp(-math.log(10_000.0) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angle = 1000.0 * t.float()[:, None] * rates
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def rotary(num_frames: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles, each (T, head_dim / 2) float32.

    The slowest pair turns once in about 1000 frames: base 200 spreads the rates over the few seconds of a window.
    """
    rates = 200.0 ** -(torch.arange(head_dim // 2, device=device, dtype=torch.float32) * 2 / head_dim)
    angle = torch.arange(num_frames, device=device, dtype=torch.float32)[:, None] * rates
    return angle.cos(), angle.sin()
