import pytest
import torch

from flashlips_core.models.lip_encoder import (
    LIP_ENCODER_RESNET34,
    LipEncoder,
    LipEncoderConfig,
    LipTeacher,
    LipTeacherConfig,
    mouth_region,
)
from flashlips_core.types import FlashLipsError

TINY = LipEncoderConfig(channels=(8, 16), blocks=(1, 1), mouth_px=32)


def test_the_full_preset_has_resnet_34s_layout():
    with torch.device("meta"):
        state = LipEncoder(LIP_ENCODER_RESNET34).state_dict()
    # ResNet-34 without its classifier has 21.28 M weights in 180 convolution and norm tensors plus 36 batch counters.
    body = {k: v for k, v in state.items() if not k.startswith(("fc", "opening"))}
    assert (
        sum(v.numel() for k, v in body.items() if not k.endswith(("running_mean", "running_var", "num_batches_tracked")))
        == 21_284_672
    )
    assert body["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert body["layer4.2.conv2.weight"].shape == (512, 512, 3, 3)


def test_the_student_reads_the_mouth_and_not_the_eyes():
    torch.manual_seed(0)
    encoder = LipEncoder(TINY).eval()
    crop = torch.rand(1, 3, 128, 128) * 2 - 1
    other_eyes, other_mouth = crop.clone(), crop.clone()
    other_eyes[:, :, :48] = 0
    other_mouth[:, :, 70:90, 50:80] = 0
    assert torch.equal(encoder(crop), encoder(other_eyes))
    assert not torch.allclose(encoder(crop), encoder(other_mouth))


def test_mouth_regions_of_small_and_large_crops_agree():
    large = torch.nn.functional.interpolate(torch.rand(1, 3, 16, 16), size=(512, 512), mode="bicubic")
    small = torch.nn.functional.interpolate(large, size=(256, 256), mode="area")
    assert (mouth_region(large, 64) - mouth_region(small, 64)).abs().mean() < 0.02


def test_opening_is_linear_in_the_pose():
    encoder = LipEncoder(TINY)
    encoder.opening_weight[2] = 0.5
    encoder.opening_bias.fill_(0.1)
    assert encoder.opening(torch.eye(12)).tolist() == pytest.approx([0.1, 0.1, 0.6] + [0.1] * 9)
    with pytest.raises(FlashLipsError, match="matching models"):
        encoder.opening(torch.zeros(1, 8))


def test_the_teacher_concatenates_eight_and_four_standardised_numbers():
    torch.manual_seed(0)
    teacher = LipTeacher(LipTeacherConfig(expression_dim=20, channels=(8, 8), mouth_px=16))
    expression, mouths = torch.randn(3, 20), torch.randn(3, 3, 16, 16)
    raw = teacher.raw(expression, mouths)
    teacher.pose_mean.copy_(raw.mean(0))
    teacher.pose_std.copy_(raw.std(0))
    poses = teacher(expression, mouths)
    assert poses.shape == (3, 12)
    torch.testing.assert_close(poses.std(0), torch.ones(12))
    moved = teacher(expression + 1, mouths)
    assert not torch.allclose(moved[:, :8], poses[:, :8]) and torch.allclose(moved[:, 8:], poses[:, 8:])
