"""Training steps small enough to be counted and measured."""

from __future__ import annotations

import torch
from tiny import TINY_EDITOR, tiny_codec
from torch import nn

from flashlips_core.models.editor_transformer import TRANSFORMER_TINY, EditorTransformer
from flashlips_core.models.editor_unet import EditorUNet
from flashlips_core.models.lip_encoder import LipEncoder, LipEncoderConfig
from flashlips_core.models.pose_transformer import PoseTransformer, PoseTransformerConfig
from flashlips_core.pretrained import VGGFeatures
from flashlips_core.train.cost.jobs import editor_job
from flashlips_core.train.editor.losses import IdentityLoss, PerceptualLoss
from flashlips_core.train.editor.paper import PaperJudge

CPU, META = torch.device("cpu"), torch.device("meta")
EDITORS = {"unet": lambda: EditorUNet(TINY_EDITOR), "transformer": lambda: EditorTransformer(TRANSFORMER_TINY)}


class Pixels(nn.Module):
    """An embedding that is the picture itself, small."""

    name, is_stand_in = "pixels", True

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)


def toy_frozen():
    perceptual = PerceptualLoss(VGGFeatures((1, 1), mean=(0.5, 0.5, 0.5), channels=(8, 8)))
    reader = LipEncoder(LipEncoderConfig(channels=(8, 8), blocks=(1, 1), mouth_px=32)).eval().requires_grad_(False)
    return PaperJudge(tiny_codec(), perceptual, IdentityLoss(Pixels())), reader


def toy_pose():
    return PoseTransformer(PoseTransformerConfig(audio_dim=16, width=32, depth=1, num_heads=2))


def toy_job(kind="unet", stage="masked", recompute=True, batch=None):
    return editor_job(f"{kind}, {stage}", stage, EDITORS[kind], toy_frozen, 64, CPU, recompute, batch)
