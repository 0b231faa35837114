"""The bundled audio encoder: log-mel frames into a small convolutional network with a bounded view of time.

B batch, N rows (50 a second), S samples (16 kHz), M mel frames (100 a second), C width, D feature size. Convolutions are
unpadded ("valid"): a row depends on ``context`` rows of sound on either side and on nothing else, so any cut gives equal rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..types import SAMPLE_RATE

ROW_HZ = Fraction(50)
ROW_SAMPLES = 320  # samples per row at 16 kHz; row n is centred on sample 320 n + 160
MEL_HOP = 160  # 10 ms
MEL_WINDOW = 400  # 25 ms
MEL_FLOOR = 1e-4  # power; a full-scale sine is about 1e4, so 80 dB of range
MEL_LEAD = 40  # samples into the input at which the first whole mel window of the grid begins


@dataclass(frozen=True)
class MelConvConfig:
    """Size of the encoder; the view of time is ``1 + blocks * (kernel // 2)`` rows each way."""

    num_mels: int = 80
    width: int = 192
    blocks: int = 8
    kernel: int = 5
    expansion: int = 2
    dim: int = 128


MEL_CONV_MINI = MelConvConfig()
MEL_CONV_LARGE = MelConvConfig(width=256, blocks=10, kernel=7, dim=48)  # the bundled one


@cache
def mel_filters(num_mels: int) -> Tensor:
    """Triangular filters, equally spaced in mel (HTK formula) over 0..8 kHz, unit peak. -> (MEL_WINDOW / 2 + 1, num_mels)"""
    top = 2595.0 * math.log10(1.0 + SAMPLE_RATE / 2 / 700.0)
    edges_hz = 700.0 * (10.0 ** (torch.linspace(0, top, num_mels + 2, dtype=torch.float64) / 2595.0) - 1.0)
    bins_hz = torch.linspace(0, SAMPLE_RATE / 2, MEL_WINDOW // 2 + 1, dtype=torch.float64)[:, None]
    low, mid, high = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]
    rising, falling = (bins_hz - low) / (mid - low), (high - bins_hz) / (high - mid)
    return torch.minimum(rising, falling).clamp_min(0).float()


def log_mel(samples: Tensor, num_mels: int = 80) -> Tensor:
    """Log-mel frames without padding: (B, S) -> (B, num_mels, (S - 400) // 160 + 1), about -1..2."""
    window = torch.hann_window(MEL_WINDOW, device=samples.device, dtype=torch.float32)
    spectrum = torch.stft(samples.float(), MEL_WINDOW, MEL_HOP, window=window, center=False, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()  # B 201 M
    mel = torch.einsum("bfm,fk->bkm", power, mel_filters(num_mels).to(samples.device))
    return (mel + MEL_FLOOR).log() / 4.0 + 1.0


class MelConvBlock(nn.Module):
    """ConvNeXt block over time, unpadded: the output is ``kernel - 1`` rows shorter."""

    def __init__(self, width: int, kernel: int, expansion: int):
        super().__init__()
        self.margin = kernel // 2
        self.mix_time = nn.Conv1d(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, expansion * width)
        self.project = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N) -> (B, C, N - kernel + 1)."""
        y = self.norm(self.mix_time(x).transpose(1, 2))  # B N C
        y = self.project(F.gelu(self.expand(y))) * self.scale
        return x[..., self.margin : x.shape[-1] - self.margin] + y.transpose(1, 2)


class MelConvEncoder(nn.Module):
    """Waveform -> one feature row every 20 ms."""

    def __init__(self, config: MelConvConfig = MEL_CONV_MINI):
        super().__init__()
        self.config = config
        self.stem = nn.Conv1d(config.num_mels, config.width, 4, stride=2)  # row n sees mel frames 2n-1 .. 2n+2
        self.blocks = nn.ModuleList(MelConvBlock(config.width, config.kernel, config.expansion) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, config.dim)

    @property
    def context(self) -> int:
        """Rows of sound needed on either side of a row."""
        return 1 + self.config.blocks * (self.config.kernel // 2)

    def mels(self, samples: Tensor) -> Tensor:
        """(B, (N + 2 context) * 320) samples -> the (B, num_mels, M) frames that :meth:`from_mels` turns into N rows."""
        return log_mel(samples[:, MEL_LEAD:], self.config.num_mels)

    def from_mels(self, mels: Tensor) -> Tensor:
        """(B, num_mels, M) -> (B, N, D)."""
        x = self.stem(mels.to(self.stem.weight.dtype))  # B C N'
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x.transpose(1, 2)))

    def forward(self, samples: Tensor) -> Tensor:
        """(B, (N + 2 context) * 320) samples at 16 kHz, with ``context`` rows of sound around the N rows -> (B, N, D)."""
        return self.from_mels(self.mels(samples))
