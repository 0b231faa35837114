"""The smallest pipeline that dubs: random networks, a face that stands still, tracks and poses out of nothing."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from flashlips_core import checkpoint
from flashlips_core.media import read_frames
from flashlips_core.models.audio_encoder import MelConvConfig, MelConvEncoder
from flashlips_core.models.codec_mini import MiniCodec, MiniCodecConfig
from flashlips_core.models.editor_unet import EditorUNet, EditorUNetConfig
from flashlips_core.models.lip_encoder import LipEncoder, LipEncoderConfig
from flashlips_core.models.pose_transformer import PoseTransformer, PoseTransformerConfig
from flashlips_core.pipeline import LipSync
from flashlips_core.types import FaceTrack, LipPoses

CROP_PX = 64
FACE = np.array([[24, 18], [40, 18], [32, 26], [26, 34], [38, 34]], np.float32)
BOX = np.array([11.3, 4.6, 53.3, 46.6], np.float32)
QUICK = {"preset": "ultrafast", "batch": 4}


def toy_networks() -> dict[str, nn.Module]:
    """Every role's real class at its smallest, with random weights that do change the picture."""
    torch.manual_seed(0)
    editor = EditorUNet(
        EditorUNetConfig(
            channels=(16, 32), encoder_blocks=(1, 1), decoder_blocks=(1, 1), reference_channels=16, reference_blocks=1,
            condition_dim=16, head_dim=16,
        )
    )  # fmt: skip
    nn.init.normal_(editor.conv_out.weight, std=0.03)
    pose_model = PoseTransformer(
        PoseTransformerConfig(audio_kind="flashlips-mel-conv", audio_dim=32, width=32, depth=1, num_heads=2)
    )
    nn.init.normal_(pose_model.out.weight, std=0.5)
    return {
        "codec": MiniCodec(
            MiniCodecConfig(encoder_widths=(16, 16), encoder_blocks=(1, 1), decoder_widths=(16, 16), decoder_blocks=(1, 1))
        ),
        "editor": editor,
        "lip-encoder": LipEncoder(LipEncoderConfig(channels=(8, 16), blocks=(1, 1), mouth_px=32)),
        "audio-encoder": MelConvEncoder(MelConvConfig(width=16, blocks=1, dim=16)),
        "pose-model": pose_model,
    }


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Checkpoints of the toy networks, by role."""
    folder = tmp_path_factory.mktemp("models")
    for role, network in toy_networks().items():
        checkpoint.save(network, folder / f"{role}.safetensors", role, {"licence": "test", "crop_px": CROP_PX})
    return folder


@pytest.fixture(scope="session")
def lipsync(model_folder):
    return LipSync.load(model_folder, device="cpu")


def make_track(
    num_frames: int = 25, absent: tuple[int, ...] = (), size: tuple[int, int] = (64, 48), fps: Fraction = Fraction(25)
) -> FaceTrack:
    """A face that drifts by a fraction of a pixel per frame."""
    drift = np.linspace(0, 2, num_frames, dtype=np.float32)[:, None]
    present = np.ones(num_frames, bool)
    present[list(absent)] = False
    return FaceTrack(BOX + drift, FACE + drift[..., None], present, *size, fps)


def make_poses(num_frames: int = 25, fps: Fraction = Fraction(25), seed: int = 1) -> LipPoses:
    return LipPoses(torch.randn(num_frames, 12, generator=torch.Generator().manual_seed(seed)), fps)


def planes_of(path) -> list[tuple[np.ndarray, ...]]:
    return [frame.planes for frame in read_frames(path)]


def assert_same_frames(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a.planes, b.planes, strict=True)) and a.pts == b.pts


def SteadyFace():  # noqa: N802
    """A detector that always sees the same face."""
    from flashlips_core.face.detect import Detection, Detector

    class Steady(Detector):
        def find(self, images, smallest_px=12.0):
            face = Detection(np.array([20, 10, 44, 40], np.float32), FACE, 0.9)
            return [[face.scaled(images.shape[2] / 64)] for _ in images]

    return Steady()
