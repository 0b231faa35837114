"""What the codec learns from, and how it grows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flashlips_core import checkpoint
from flashlips_core.codec import Codec, load_codec
from flashlips_core.dataset.store import CropStore
from flashlips_core.models.codec_mini import MiniCodec, MiniCodecConfig
from flashlips_core.train import codec as stage
from flashlips_core.types import FlashLipsError

SMALL = MiniCodecConfig(encoder_widths=(8, 8), encoder_blocks=(1, 1), decoder_widths=(8, 8), decoder_blocks=(1, 1))
DEEPER = MiniCodecConfig(encoder_widths=(8, 8), encoder_blocks=(1, 3), decoder_widths=(8, 8), decoder_blocks=(2, 2))
WIDER = MiniCodecConfig(encoder_widths=(8, 12), encoder_blocks=(2, 1), decoder_widths=(10, 12), decoder_blocks=(1, 2))


def store(folder, speakers, size):
    """One clip of two random crops for each speaker."""
    folder.mkdir()
    count = 2 * len(speakers)
    np.save(folder / "crops.npy", np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8))
    clip_of = np.repeat(np.arange(len(speakers)), 2)
    clip_ids = [f"clip/{i}" for i in range(len(speakers))]
    np.savez(
        folder / "table.npz", clip_of=clip_of, frame_of=np.zeros(count, int), landmarks=np.zeros((count, 99, 2)),
        clip_ids=clip_ids, speakers=speakers,
    )  # fmt: skip
    return CropStore(folder)


@pytest.mark.parametrize("config", [DEEPER, WIDER])
def test_a_grown_codec_is_the_same_function_and_can_learn_more(config):
    torch.manual_seed(0)
    small, images = MiniCodec(SMALL), torch.rand(2, 3, 32, 32) * 2 - 1
    grown = stage.grown(small, config)
    assert sum(p.numel() for p in grown.parameters()) > sum(p.numel() for p in small.parameters())
    torch.testing.assert_close(grown(images), small(images))
    grown(images).square().mean().backward()
    added = grown.decoder[3].conv_2.weight.grad  # the second block of the decoder's first stretch
    assert added is not None and added.abs().sum() > 0
    unheard = grown.decoder[-2].weight.grad[:, SMALL.decoder_widths[0] :]  # new channels that no output takes from yet
    assert config is DEEPER or unheard.abs().sum() > 0


@pytest.mark.parametrize("field", ["decoder_blocks", "decoder_widths", "encoder_widths"])
def test_fewer_channels_and_fewer_blocks_are_refused(field):
    config = MiniCodecConfig(**{**vars(SMALL), field: (1, 0) if "blocks" in field else (8, 4)})
    with pytest.raises(FlashLipsError, match="does not grow"):
        stage.grown(MiniCodec(SMALL), config)


def test_half_of_what_is_drawn_are_heads_however_many_there_are(tmp_path):
    stores = [store(tmp_path / "people", ["a", "b"], 64), store(tmp_path / "heads", [f"head{i:03d}" for i in range(30)], 64)]
    generator = torch.Generator().manual_seed(0)
    drawn = [stage.FacePool(stores).draw(generator) for _ in range(200)]
    assert 0.4 < np.mean([owner is stores[1] for owner, _ in drawn]) < 0.6
    for owner in stores:  # every clip, and every row of it
        assert {row for of, row in drawn if of is owner} <= set(range(len(owner)))
        alone = [stage.FacePool([owner]).draw(generator) for _ in range(40 * len(owner))]
        assert all(of is owner for of, _ in alone) and {row for _, row in alone} == set(range(len(owner)))


def test_large_crops_shrink_without_aliasing(tmp_path, monkeypatch):
    stores = [store(tmp_path / "people", ["a"], 960)]  # noise of 960 px, drawn at 192: nearly grey where it is averaged
    monkeypatch.setattr(stage, "SIZES", (192,))
    window = stage.draw_window(stage.FacePool(stores), torch.Generator().manual_seed(0))
    assert window.shape == (1, 3, 192, 192) and window.std() < 0.25


def test_the_stage_learns_from_pictures_latents_and_what_the_teacher_draws(tmp_path):
    torch.manual_seed(0)
    teacher = Codec(MiniCodec(SMALL), "teacher", halo=None)
    stage.build_cache([store(tmp_path / "people", ["a", "b"], 64)], teacher, tmp_path / "cache.npz", 8, 0, None)
    batch = stage.cached_batches(tmp_path / "cache.npz", 3)(torch.Generator().manual_seed(1))
    assert batch.images.shape == batch.redrawn.shape == (3, 3, stage.WINDOW_PX, stage.WINDOW_PX)
    torch.testing.assert_close(teacher.encode(batch.images), batch.latents, atol=0.02, rtol=0.02)
    torch.testing.assert_close(teacher.decode(batch.latents).clamp(-1, 1), batch.redrawn, atol=0.02, rtol=0)
    perfect = stage.codec_step(teacher.network, batch, torch.Generator().manual_seed(2))
    assert perfect["latent"] < 1e-3 and perfect["sharpness"] < 0.01 < perfect["pixel"]


def test_a_start_keeps_its_weights_and_a_kept_encoder_its_latents(tmp_path):
    torch.manual_seed(0)
    checkpoint.save(MiniCodec(SMALL), tmp_path / "codec.safetensors", "codec", {})
    checkpoint.save(MiniCodec(SMALL), tmp_path / "teacher.safetensors", "codec", {})
    stores = [store(tmp_path / "people", ["a"], 64)]
    before = load_codec(tmp_path / "codec.safetensors").network
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "MiniCodecConfig", lambda: DEEPER)
        trained = stage.train_codec(
            stores,
            str(tmp_path / "teacher.safetensors"),
            stage.CodecSettings(
                str(tmp_path / "run"),
                steps=2,
                batch_size=2,
                cached=4,
                start=str(tmp_path / "codec.safetensors"),
                decoder_only=True,
            ),
        )
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    assert trained.config == DEEPER
    torch.testing.assert_close(trained.encode(images), before.encode(images))
    assert not torch.allclose(trained.decode(before.encode(images)), before(images))
