"""Face embeddings for the identity loss and measure: FaceNet on VGGFace2, and dlib's ResNet as its stand-in.

B batch. Both take the editor's face crops (B, 3, H, W) in [-1, 1] at any size and give one embedding per image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DLIB_MEAN = (122.782, 117.001, 104.298)  # RGB in 0..255, then divided by 256 (dlib's input_rgb_image_sized)
# The top of the crop, centred: eyes at 0.32 of the height as in dlib's own chips. Measured on 70 GRID crops of 16 people, dlib's
# distances: same person .22 on average (highest .41), different people .79 (lowest .49); on whole crops .23 (.47), .77 (.49).
CHIP_SIDE = 0.844


class FaceNet(nn.Module):
    """Inception-ResNet v1 with the parameter names of facenet-pytorch's published weights; (B, 512), unit length."""

    name = "facenet-vggface2"
    is_stand_in = False
    size_px = 160

    def __init__(self) -> None:
        super().__init__()
        self.conv2d_1a = ConvNorm(3, 32, 3, stride=2)
        self.conv2d_2a = ConvNorm(32, 32, 3)
        self.conv2d_2b = ConvNorm(32, 64, 3, padding=1)
        self.conv2d_3b = ConvNorm(64, 80, 1)
        self.conv2d_4a = ConvNorm(80, 192, 3)
        self.conv2d_4b = ConvNorm(192, 256, 3, stride=2)
        self.repeat_1 = nn.Sequential(*(block35() for _ in range(5)))
        self.mixed_6a = Branches(
            ConvNorm(256, 384, 3, stride=2),
            nn.Sequential(ConvNorm(256, 192, 1), ConvNorm(192, 192, 3, padding=1), ConvNorm(192, 256, 3, stride=2)),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_2 = nn.Sequential(*(block17() for _ in range(10)))
        self.mixed_7a = Branches(
            nn.Sequential(ConvNorm(896, 256, 1), ConvNorm(256, 384, 3, stride=2)),
            nn.Sequential(ConvNorm(896, 256, 1), ConvNorm(256, 256, 3, stride=2)),
            nn.Sequential(ConvNorm(896, 256, 1), ConvNorm(256, 256, 3, padding=1), ConvNorm(256, 256, 3, stride=2)),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_3 = nn.Sequential(*(block8(0.2, nn.ReLU()) for _ in range(5)))
        self.block8 = block8(1.0, nn.Identity())
        self.last_linear = nn.Linear(1792, 512, bias=False)
        self.last_bn = nn.BatchNorm1d(512, eps=1e-3)

    def forward(self, images: Tensor) -> Tensor:
        x = face_chip(images, self.size_px) * (127.5 / 128)  # facenet-pytorch: (0..255 - 127.5) / 128
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        x = self.conv2d_3b(F.max_pool2d(x, 3, stride=2))
        x = self.repeat_1(self.conv2d_4b(self.conv2d_4a(x)))  # B 256 17 17
        x = self.repeat_2(self.mixed_6a(x))  # B 896 8 8
        x = self.block8(self.repeat_3(self.mixed_7a(x)))  # B 1792 3 3
        return F.normalize(self.last_bn(self.last_linear(x.mean((2, 3)))), dim=1)


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | tuple[int, int] = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """Parallel branches ``branch0``, ``branch1`` ... joined on channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.num_branches = len(branches)
        for i, branch in enumerate(branches):
            self.add_module(f"branch{i}", branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([getattr(self, f"branch{i}")(x) for i in range(self.num_branches)], dim=1)


class ResidualBranches(Branches):
    """Branches, a 1x1 convolution back to the input's channels, and a scaled residual sum."""

    def __init__(self, channels: int, joined: int, scale: float, activation: nn.Module, *branches: nn.Module) -> None:
        super().__init__(*branches)
        self.conv2d = nn.Conv2d(joined, channels, 1)
        self.scale, self.activation = scale, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.scale * self.conv2d(super().forward(x)))


def block35() -> nn.Module:
    """Inception-ResNet A at 17x17 (the names are the original's, for a larger input)."""
    two = nn.Sequential(ConvNorm(256, 32, 1), ConvNorm(32, 32, 3, padding=1))
    three = nn.Sequential(ConvNorm(256, 32, 1), ConvNorm(32, 32, 3, padding=1), ConvNorm(32, 32, 3, padding=1))
    return ResidualBranches(256, 96, 0.17, nn.ReLU(), ConvNorm(256, 32, 1), two, three)


def block17() -> nn.Module:
    """Inception-ResNet B."""
    rows, columns = ConvNorm(128, 128, (1, 7), padding=(0, 3)), ConvNorm(128, 128, (7, 1), padding=(3, 0))
    return ResidualBranches(896, 256, 0.10, nn.ReLU(), ConvNorm(896, 128, 1), nn.Sequential(ConvNorm(896, 128, 1), rows, columns))


def block8(scale: float, activation: nn.Module) -> nn.Module:
    """Inception-ResNet C."""
    rows, columns = ConvNorm(192, 192, (1, 3), padding=(0, 1)), ConvNorm(192, 192, (3, 1), padding=(1, 0))
    return ResidualBranches(
        1792, 384, scale, activation, ConvNorm(1792, 192, 1), nn.Sequential(ConvNorm(1792, 192, 1), rows, columns)
    )


class DlibFaceNet(nn.Module):
    """dlib's face-recognition ResNet-29, a stand-in for VGGFace2; (B, 128), compared by Euclidean distance."""

    name = "dlib-face-recognition (stand-in)"
    is_stand_in = True
    size_px = 150
    # name: channels in, channels out, halves the size
    plan = {
        **{f"conv32_{i}": (32, 32, False) for i in (1, 2, 3)},
        **{"conv64_down": (32, 64, True)} | {f"conv64_{i}": (64, 64, False) for i in (1, 2, 3)},
        **{"conv128_down": (64, 128, True)} | {f"conv128_{i}": (128, 128, False) for i in (1, 2)},
        **{"conv256_down": (128, 256, True)} | {f"conv256_{i}": (256, 256, False) for i in (1, 2)},
        "conv256_down_out": (256, 256, True),
    }

    def __init__(self) -> None:
        super().__init__()
        self.conv32_down = nn.Conv2d(3, 32, 7, stride=2)
        self.blocks = nn.ModuleDict({name: DlibBlock(*shape) for name, shape in self.plan.items()})
        self.fc = nn.Linear(256, 128, bias=False)
        self.register_buffer("mean", torch.tensor(DLIB_MEAN).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = (face_chip(images, self.size_px) * 127.5 + 127.5 - self.mean) / 256
        x = F.max_pool2d(F.relu(self.conv32_down(x)), 3, stride=2)  # B 32 35 35
        for block in self.blocks.values():
            x = block(x)
        return self.fc(x.mean((2, 3)))


class DlibBlock(nn.Module):
    """Two convolutions and a shortcut; a halving one pools the shortcut and fills what is missing with zeros."""

    def __init__(self, inputs: int, outputs: int, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2 if halves else 1, padding=0 if halves else 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        if self.halves:
            x = F.avg_pool2d(x, 2)
            x = F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
            y = F.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]))
        return F.relu(x + y)


def face_chip(images: Tensor, size_px: int) -> Tensor:
    """The part of an editor crop that these networks know, resized (antialiased, differentiable) to a square."""
    height, width = images.shape[-2:]
    side, left = round(CHIP_SIDE * height), round((1 - CHIP_SIDE) / 2 * width)
    chip = images[..., :side, left : left + round(CHIP_SIDE * width)]
    return F.interpolate(chip, (size_px, size_px), mode="bilinear", antialias=True, align_corners=False)
