"""Lip encoders: what a mouth does, as 12 standardised numbers (paper, lip encoder: 8 expression + 4 from the mouth crop).

B batch, E expression features, P pose numbers (12), crops are the editor's face crops (B, 3, S, S) in [-1, 1].

The teacher needs an expression encoder's measurements beside the crop and is used to label training data; the student reads the
crop alone and is what runs in the product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..types import POSE_DIM, FlashLipsError

# The mouth's part of the face crop, (left, top, right, bottom) as shares of its side: lips, chin and the lower cheeks.
MOUTH_REGION = (0.22, 0.40, 0.78, 0.96)


def mouth_region(crops: Tensor, size: int) -> Tensor:
    """Cut and resize the mouth's part of face crops. (B, 3, S, S) -> (B, 3, size, size)."""
    side = crops.shape[-1]
    left, top, right, bottom = (round(share * side) for share in MOUTH_REGION)
    return F.interpolate(crops[:, :, top:bottom, left:right], size=(size, size), mode="bilinear", antialias=True)


@dataclass(frozen=True)
class LipTeacherConfig:
    """``main_dim`` + ``extra_dim`` pose numbers; the expression features are what the chosen expression encoder gives."""

    expression_dim: int
    main_dim: int = 8
    extra_dim: int = 4
    hidden_dim: int = 64
    channels: tuple[int, ...] = (16, 32, 48, 64)
    mouth_px: int = 64


class LipTeacher(nn.Module):
    """Expression features -> 8 numbers through a small MLP, mouth crop -> 4 (or none) through a light CNN; concatenated."""

    def __init__(self, config: LipTeacherConfig):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.expression_dim, config.main_dim)
        self.mlp = nn.Sequential(
            nn.Linear(config.expression_dim, config.hidden_dim), nn.SiLU(), nn.Linear(config.hidden_dim, config.main_dim)
        )
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.zeros_(self.mlp[-1].bias)
        layers: list[nn.Module] = []
        for before, after in zip((3, *config.channels), config.channels, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        cells = (config.mouth_px // 2 ** len(config.channels)) ** 2
        if config.extra_dim:
            layers += [nn.Flatten(), nn.Linear(config.channels[-1] * cells, config.extra_dim)]
        self.cnn = nn.Sequential(*layers) if config.extra_dim else None
        self.register_buffer("expression_mean", torch.zeros(config.expression_dim))
        self.register_buffer("expression_std", torch.ones(config.expression_dim))
        self.register_buffer("pose_mean", torch.zeros(config.main_dim + config.extra_dim))
        self.register_buffer("pose_std", torch.ones(config.main_dim + config.extra_dim))

    def raw(self, expression: Tensor, mouths: Tensor) -> Tensor:
        """Poses before standardisation. (B, E), (B, 3, mouth_px, mouth_px) -> (B, 12)."""
        features = (expression - self.expression_mean) / self.expression_std
        main = self.linear(features) + self.mlp(features)
        return main if self.cnn is None else torch.cat([main, self.cnn(mouths)], 1)

    def forward(self, expression: Tensor, mouths: Tensor) -> Tensor:
        """Standardised poses (B, 12)."""
        return (self.raw(expression, mouths) - self.pose_mean) / self.pose_std


@dataclass(frozen=True)
class LipEncoderConfig:
    """A ResNet of basic blocks; ``blocks`` (3, 4, 6, 3) with ``channels`` (64, 128, 256, 512) is ResNet-34."""

    channels: tuple[int, ...] = (64, 128, 256, 512)
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    mouth_px: int = 192
    pose_dim: int = POSE_DIM


LIP_ENCODER_RESNET34 = LipEncoderConfig()
LIP_ENCODER_MINI = LipEncoderConfig(channels=(24, 48, 96, 160), blocks=(1, 1, 1, 1), mouth_px=96)


class BasicBlock(nn.Module):
    """ResNet's basic block: two 3x3 convolutions with batch norm around an identity or projected shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.downsample(x))


class LipEncoder(nn.Module):
    """The student: face crop -> standardised lip pose, in torchvision's ResNet key layout so that its weights can start it."""

    def __init__(self, config: LipEncoderConfig = LIP_ENCODER_RESNET34):
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(3, config.channels[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(config.channels[0])
        width = config.channels[0]
        for level, (channels, count) in enumerate(zip(config.channels, config.blocks, strict=False), start=1):
            blocks = [BasicBlock(width if i == 0 else channels, channels, 2 if i == 0 and level > 1 else 1) for i in range(count)]
            self.add_module(f"layer{level}", nn.Sequential(*blocks))
            width = channels
        self.fc = nn.Linear(width, config.pose_dim)
        # Linear readout of the mouth's opening (share of the eye distance) from a pose, fitted on the training set.
        self.register_buffer("opening_weight", torch.zeros(config.pose_dim))
        self.register_buffer("opening_bias", torch.zeros(()))

    def forward(self, crops: Tensor) -> Tensor:
        """Face crops (B, 3, S, S) in [-1, 1] -> standardised poses (B, 12)."""
        return self.read_mouths(mouth_region(crops, self.config.mouth_px))

    def read_mouths(self, mouths: Tensor) -> Tensor:
        """Mouth regions (B, 3, mouth_px, mouth_px) -> standardised poses (B, 12)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(mouths))), 3, 2, 1)
        for level in range(1, len(self.config.channels) + 1):
            x = self.get_submodule(f"layer{level}")(x)
        return self.fc(x.mean((2, 3)))

    def opening(self, poses: Tensor) -> Tensor:
        """Mouth opening read from poses (..., 12): inner-lip gap over eye distance, (...)."""
        if poses.shape[-1] != self.config.pose_dim:
            raise FlashLipsError(
                f"Poses have {poses.shape[-1]} numbers, this lip encoder uses {self.config.pose_dim}; choose matching models."
            )
        return poses @ self.opening_weight + self.opening_bias
