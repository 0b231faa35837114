"""The smallest networks that training tests use, with random weights, and judges in place of the paper's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flashlips_core.codec import Codec
from flashlips_core.dataset.store import CropStore
from flashlips_core.models.codec_mini import MiniCodec, MiniCodecConfig
from flashlips_core.models.editor_unet import EditorUNet, EditorUNetConfig
from flashlips_core.models.vgg import VGG19_CONVS, VGGFeatures
from flashlips_core.train.batches.frames import EditorFrames, window_of
from flashlips_core.train.editor import paper

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

    vgg = VGGFeatures(VGG19_CONVS[:2], mean=(0.5, 0.5, 0.5))
    patch.setattr(paper, "load_codec", lambda source, device: codec)
    patch.setattr(paper, "load_vgg", lambda weights, device: vgg)
    patch.setattr(paper, "load_identity", lambda weights, device: Embedding())
    patch.setitem(paper.NETWORKS, "tiny", lambda: EditorUNet(TINY_EDITOR))


def encoded_frames(cells: int = 32) -> EditorFrames:
    """Three groups of noise, of two speakers; the references of each hold its number."""
    torch.manual_seed(0)
    count = 24
    groups = [np.arange(0, 8), np.arange(8, 16), np.arange(16, 24)]
    lips = torch.tensor([[0.4, 0.55, 0.6, 0.7]]).repeat(count, 1)
    _, _, rows, columns = window_of(cells)
    windows = torch.randint(0, 255, (count, 8 * rows, 8 * columns, 3), dtype=torch.uint8)
    latents = torch.randn(count, 4, cells, cells).half()
    neighbours = np.stack([np.delete(np.arange(8), i % 8)[:6] + i // 8 * 8 for i in range(count)])
    return EditorFrames(
        latents=latents, poses=torch.randn(count, 12), windows=windows, lips=lips, neighbours=neighbours,
        group_of=np.arange(count) // 8, references=torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, 6, 4, cells, cells),
        reference_poses=torch.arange(3.0)[:, None, None].expand(3, 6, 12),
        rows_of_group=groups, groups_of_speaker={"a": [0, 1], "b": [2]},
    )  # fmt: skip


def stored_crops(folder: Path) -> CropStore:
    """Two clips of one speaker, one dark and one bright."""
    folder.mkdir()
    images = np.repeat(np.array([60, 190], np.uint8), 12)[:, None, None, None] * np.ones((1, 64, 64, 3), np.uint8)
    np.save(folder / "crops.npy", images)
    points = np.random.default_rng(0).uniform(0.3, 0.7, (1, 99, 2)).astype(np.float32)
    np.savez(
        folder / "table.npz", clip_of=np.repeat([0, 1], 12), frame_of=np.tile(np.arange(12), 2),
        landmarks=np.repeat(points, 24, 0), clip_ids=["a/1", "a/2"], speakers=["a", "a"],
    )  # fmt: skip
    return CropStore(folder)
