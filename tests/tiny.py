"""The smallest networks that training tests use, with random weights, and judges in place of the paper's."""

from __future__ import annotations

import pytest
import torch

from flashlips_core.codec import Codec
from flashlips_core.losses import VGG19_CONVS, PerceptualLoss, VGGFeatures
from flashlips_core.models.codec_mini import MiniCodec, MiniCodecConfig
from flashlips_core.models.editor_unet import EditorUNet, EditorUNetConfig
from flashlips_core.train import paper, paper_stages

TINY_CODEC = MiniCodecConfig(encoder_widths=(8, 8), encoder_blocks=(0, 0), decoder_widths=(8, 8), decoder_blocks=(0, 0))
TINY_EDITOR = EditorUNetConfig(
    channels=(16, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1), reference_channels=16, reference_blocks=1,
    condition_dim=16, head_dim=16,
)  # fmt: skip


def tiny_codec() -> Codec:
    """The same weights each time."""
    torch.manual_seed(0)
    return Codec(MiniCodec(TINY_CODEC), "tiny", None)


def put_tiny_judges_in(patch: pytest.MonkeyPatch) -> None:
    """The stages of preset "full" then take these instead of the published networks, and know the editor "tiny"."""
    codec = tiny_codec()

    class Embedding(torch.nn.Flatten):
        name, is_stand_in = "flat", True

    perceptual = PerceptualLoss(VGGFeatures(VGG19_CONVS[:2], mean=(0.5, 0.5, 0.5)), "VGG19")
    patch.setattr(paper_stages, "load_codec", lambda source, device: codec)
    patch.setattr(paper, "load_perceptual", lambda weights, device: perceptual)
    patch.setattr(paper, "load_identity", lambda weights, device: Embedding())
    patch.setitem(paper.NETWORKS, "tiny", lambda: EditorUNet(TINY_EDITOR))
