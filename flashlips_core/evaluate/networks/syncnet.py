"""SyncNet (Chung and Zisserman 2016), and LSE-D, LSE-C and the offset as they are read from it.

N video frames at 25 a second, W = N - 4 windows of 5 of them, D = 1024 features, M sound rows of 13 MFCCs at 100 a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...pretrained import read_state_dict
from ...types import SAMPLE_RATE, FlashLipsError
from . import find

FILES = ("syncnet_v2.model", "syncnet*.safetensors")
FPS, SIZE_PX = 25, 224
FRAMES, ROWS = 5, 20  # of a window: 0.2 s of pictures and of sound
ROWS_PER_FRAME = 4
MOST_SHIFT = 15  # frames either way, as the published scores are
AT_ONCE = 8
# MFCCs as python_speech_features makes them unasked
STEP, LENGTH, FFT, FILTERS, COEFFICIENTS, LIFTER, EMPHASIS = 160, 400, 512, 26, 13, 22, 0.97


class Sync(NamedTuple):
    """What SyncNet says of a clip."""

    distance: float  # LSE-D: the mean distance at the best offset
    confidence: float  # LSE-C: by how much the median over offsets is larger
    offset: int  # frames by which the sound should be moved, as published


class SyncNet(nn.Module):
    """Two towers, with the parameter names of ``syncnet_v2.model``."""

    name = "SyncNet"

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_block(nn.Conv2d(1, 64, 3, padding=1)), nn.Identity(),
            *_block(nn.Conv2d(64, 192, 3, padding=1)), nn.MaxPool2d(3, (1, 2)),
            *_block(nn.Conv2d(192, 384, 3, padding=1)), *_block(nn.Conv2d(384, 256, 3, padding=1)),
            *_block(nn.Conv2d(256, 256, 3, padding=1)), nn.MaxPool2d(3, 2),
            *_block(nn.Conv2d(256, 512, (5, 4))),
        )  # fmt: skip
        self.netcnnlip = nn.Sequential(
            *_block(nn.Conv3d(3, 96, (5, 7, 7), (1, 2, 2))), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_block(nn.Conv3d(96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1))), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *(layer for _ in range(3) for layer in _block(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_block(nn.Conv3d(256, 512, (1, 6, 6))),
        )  # fmt: skip
        self.netfcaud, self.netfclip = _head(), _head()

    def hear(self, rows: Tensor) -> Tensor:
        """(B, 1, 13, 20) MFCCs -> (B, D)"""
        return self.netfcaud(self.netcnnaud(rows).flatten(1))

    def see(self, frames: Tensor) -> Tensor:
        """(B, 3, 5, 224, 224), blue first, 0 to 255 -> (B, D)"""
        return self.netfclip(self.netcnnlip(frames).flatten(1))


def _block(conv: nn.Module) -> list[nn.Module]:
    norm = nn.BatchNorm3d if isinstance(conv, nn.Conv3d) else nn.BatchNorm2d
    return [conv, norm(conv.out_channels), nn.ReLU()]


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))


def load_syncnet(folder: Path | None) -> SyncNet:
    """From ``syncnet_v2.model``."""
    path = find(folder, FILES, "SyncNet")
    network = SyncNet()
    try:
        network.load_state_dict(read_state_dict(path))
    except RuntimeError as error:
        raise FlashLipsError(f"{path.name} is not SyncNet's file ({str(error).splitlines()[1].strip()[:150]}).") from error
    return network.requires_grad_(False).eval()


@torch.inference_mode()
def sync_of(network: SyncNet, crops: Iterable[np.ndarray], samples: np.ndarray) -> Sync:
    """LSE-D, LSE-C and offset of a clip.

    Args:
        crops: (224, 224, 3) uint8 RGB at 25 a second; they are read once and not kept.
        samples: (n,) sound in [-1, 1] at 16 kHz, from the first frame on.
    """
    sound, count = mfcc(samples), len(samples) // (SAMPLE_RATE // FPS) - FRAMES
    seen = _seen(network, crops, count)
    count = min(len(seen), count)
    if count < 1:
        raise FlashLipsError(f"SyncNet needs more than {FRAMES} frames of a face with sound at {FPS} a second.")
    rows = torch.from_numpy(sound.T.copy()).float()  # 13 M
    windows = [rows[None, :, ROWS_PER_FRAME * i : ROWS_PER_FRAME * i + ROWS] for i in range(count)]
    heard = torch.cat([network.hear(torch.stack(windows[i : i + 64])) for i in range(0, count, 64)])
    return scores(seen[:count], heard)


def scores(seen: Tensor, heard: Tensor, shift: int = MOST_SHIFT) -> Sync:
    """From features (W, D) of the same windows; beyond the ends sounds are zeros, as in the published code."""
    padded = nn.functional.pad(heard, (0, 0, shift, shift))
    apart = [nn.functional.pairwise_distance(seen, padded[k : k + len(seen)]) for k in range(2 * shift + 1)]
    means = torch.stack(apart).mean(1)
    lowest, index = means.min(0)
    return Sync(float(lowest), float(means.median() - lowest), shift - int(index))


def _seen(network: SyncNet, crops: Iterable[np.ndarray], count: int) -> Tensor:
    """(W, D)"""
    features, window, batch = [], [], []
    for crop in islice(crops, max(count, 0) + FRAMES - 1):
        window = [*window, torch.from_numpy(np.ascontiguousarray(crop[..., ::-1])).permute(2, 0, 1).float()][-FRAMES:]
        batch += [torch.stack(window, 1)] if len(window) == FRAMES else []
        if len(batch) == AT_ONCE:
            features.append(network.see(torch.stack(batch)))
            batch = []
    features += [network.see(torch.stack(batch))] if batch else []
    return torch.cat(features) if features else torch.zeros(0, 1024)


def mfcc(samples: np.ndarray) -> np.ndarray:
    """Mel-frequency cepstra with the logarithm of the energy in front. (n,) in [-1, 1] -> (M, 13)"""
    from scipy.fft import dct

    sound = np.asarray(samples, float) * 32768
    sound = np.append(sound[:1], sound[1:] - EMPHASIS * sound[:-1])
    count = 1 + max(0, -(-(len(sound) - LENGTH) // STEP))
    sound = np.pad(sound, (0, max(0, (count - 1) * STEP + LENGTH - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(sound, LENGTH)[::STEP][:count]
    power = np.abs(np.fft.rfft(frames, FFT)) ** 2 / FFT
    tiny = np.finfo(float).eps
    mel = np.log(np.maximum(power @ _filters().T, tiny))
    cepstra = dct(mel, type=2, axis=1, norm="ortho")[:, :COEFFICIENTS]
    cepstra *= 1 + LIFTER / 2 * np.sin(np.pi * np.arange(COEFFICIENTS) / LIFTER)
    cepstra[:, 0] = np.log(np.maximum(power.sum(1), tiny))
    return cepstra


def _filters() -> np.ndarray:
    """Triangles, evenly spaced in mel up to half the rate. (26, 257)"""
    mel = np.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700), FILTERS + 2)
    edges = np.floor((FFT + 1) * 700 * (10 ** (mel / 2595) - 1) / SAMPLE_RATE)
    bins = np.arange(FFT // 2 + 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.where((bins >= low) & (bins < middle), rising, np.where((bins >= middle) & (bins < high), falling, 0.0))
