"""Conditional flow matching for lip poses: the path, the loss, the noise and the ODE. How a clip is sampled: ``poses.sampling``.

B batch, T pose frames (25 per second), P pose numbers, A audio numbers per pose frame, K source poses, E emotion numbers.

The path runs from noise to data, z_t = (1 - t) eps + t z, so its velocity is u = z - eps (paper, stage 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .types import FlashLipsError

SOLVERS = ("euler", "midpoint", "heun")

Velocity = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class FlowBatch:
    """One training batch of poses and what they are conditioned on."""

    poses: Tensor  # (B, T, P)
    audio: Tensor  # (B, T, A)
    sources: Tensor  # (B, K, P)
    weight: Tensor  # (B, T) 1 where the label counts, 0 where the face was not found
    emotion: Tensor | None = None  # (B, E)


def flow_matching_loss(
    network: nn.Module, batch: FlowBatch, generator: torch.Generator, audio_dropout: float = 0.1, max_prefix: int = 16
) -> Tensor:
    """E || v(z_t, t, c) - (z - eps) ||^2 over the frames that are not committed; a mean over frames and dims.

    Half of the items get a committed prefix of 1 to ``max_prefix`` frames, as windows after the first have.
    """
    z = batch.poses
    num_items, num_frames = z.shape[:2]
    random = torch.rand(4, num_items, generator=generator).to(z.device)
    t = random[0]
    drop_audio = random[1] < audio_dropout
    lengths = torch.where(random[2] < 0.5, (random[3] * max_prefix).long() + 1, 0)
    known = torch.arange(num_frames, device=z.device) < lengths[:, None]  # B T
    noise = torch.randn(z.shape, generator=generator).to(z)
    z_t = torch.lerp(noise, z, t[:, None, None])
    z_t = torch.where(known[..., None], z, z_t)
    velocity = network(z_t, t, batch.audio, batch.sources, batch.emotion, known, drop_audio)
    weight = batch.weight * ~known
    error = (velocity - (z - noise)).float().square().mean(dim=-1)
    return (error * weight).sum() / weight.sum().clamp_min(1.0)


def frame_noise(seed: int, frames: range, dim: int) -> Tensor:
    """Standard normal noise for each absolute frame index, the same however the clip is split. Returns (len(frames), dim).

    Counter-based: SplitMix64 of (seed, frame, dim) gives two uniforms, Box-Muller makes them normal.
    """
    frame = np.arange(frames.start, frames.stop, dtype=np.int64).astype(np.uint64)[:, None]
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.array(seed & (2**64 - 1), dtype=np.uint64)) ^ frame)
        counter = key + np.arange(2 * dim, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    uniform = ((_mix(counter) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # 53 bits, never 0
    radius, angle = np.sqrt(-2 * np.log(uniform[:, :dim])), 2 * np.pi * uniform[:, dim:]
    return torch.from_numpy((radius * np.cos(angle)).astype(np.float32))


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def integrate(velocity: Velocity, z: Tensor, steps: int, solver: str) -> Tensor:
    """Follow ``velocity(z, t)`` from t = 0 to t = 1 in equal steps of the named solver."""
    h = 1.0 / steps
    for step in range(steps):
        t = step * h
        first = velocity(z, t)
        if solver == "euler":
            z = z + h * first
        elif solver == "midpoint":
            z = z + h * velocity(z + 0.5 * h * first, t + 0.5 * h)
        elif solver == "heun":
            z = z + 0.5 * h * (first + velocity(z + h * first, t + h))
        else:
            raise FlashLipsError(f"The sampler has no solver '{solver}'; choose one of {', '.join(SOLVERS)}.")
    return z
