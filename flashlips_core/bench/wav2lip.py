"""Wav2Lip's generator (Prajwal et al. 2020) at its public size, to be timed with random weights.

B batch. Faces are (B, 6, 96, 96): a frame whose lower half is masked, and a reference; sound is
(B, 1, 80, 16), a mel spectrogram.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Each block: channels, stride of its first convolution, residual ones behind it
FACE = ((16, 1, 0), (32, 2, 2), (64, 2, 3), (128, 2, 2), (256, 2, 2), (512, 2, 1))
SOUND = ((32, 1, 2), (64, (3, 1), 2), (128, 3, 2), (256, (3, 2), 1))
DRAWN = ((512, 2, 2), (384, 2, 2), (256, 2, 2), (128, 2, 2), (64, 2, 2))


class Conv(nn.Module):
    """Convolution, batch norm, perhaps a skip, ReLU."""

    def __init__(self, inputs: int, outputs: int, conv: nn.Module, is_residual: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.is_residual = conv, nn.BatchNorm2d(outputs), is_residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return torch.relu(x + y if self.is_residual else y)


def _conv(inputs: int, outputs: int, size: int = 3, stride: int | tuple[int, int] = 1, padding: int = 1) -> Conv:
    return Conv(inputs, outputs, nn.Conv2d(inputs, outputs, size, stride, padding))


def _same(channels: int, count: int) -> list[Conv]:
    return [Conv(channels, channels, nn.Conv2d(channels, channels, 3, padding=1), True) for _ in range(count)]


def _up(inputs: int, outputs: int, stride: int, padding: int) -> Conv:
    return Conv(inputs, outputs, nn.ConvTranspose2d(inputs, outputs, 3, stride, padding, output_padding=padding))


class Wav2Lip(nn.Module):
    """An encoder for the face, one for the sound, and a decoder with skips from the first."""

    def __init__(self) -> None:
        super().__init__()
        self.face = nn.ModuleList()
        inputs = 6
        for index, (channels, stride, count) in enumerate(FACE):
            first = _conv(inputs, channels, 7, stride, 3) if index == 0 else _conv(inputs, channels, 3, stride)
            self.face.append(nn.Sequential(first, *_same(channels, count)))
            inputs = channels
        self.face.append(nn.Sequential(_conv(512, 512, 3, 1, 0), _conv(512, 512, 1, 1, 0)))
        layers, inputs = [], 1
        for channels, stride, count in SOUND:
            layers += [_conv(inputs, channels, 3, stride), *_same(channels, count)]
            inputs = channels
        self.sound = nn.Sequential(*layers, _conv(256, 512, 3, 1, 0), _conv(512, 512, 1, 1, 0))
        self.drawn = nn.ModuleList([_conv(512, 512, 1, 1, 0), nn.Sequential(_up(1024, 512, 1, 0), *_same(512, 1))])
        skips = [channels for channels, *_ in FACE][::-1]
        inputs = 512
        for (channels, stride, count), skip in zip(DRAWN, skips, strict=False):
            self.drawn.append(nn.Sequential(_up(inputs + skip, channels, stride, 1), *_same(channels, count)))
            inputs = channels
        self.last = nn.Sequential(_conv(inputs + 16, 32), nn.Conv2d(32, 3, 1), nn.Sigmoid())

    def forward(self, sound: Tensor, faces: Tensor) -> Tensor:
        """-> (B, 3, 96, 96) in [0, 1]"""
        seen = []
        for block in self.face:
            faces = block(faces)
            seen.append(faces)
        x = self.sound(sound)
        for block in self.drawn:
            x = torch.cat([block(x), seen.pop()], 1)
        return self.last(x)
