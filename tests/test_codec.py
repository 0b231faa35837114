"""Codecs: ranges, scale, file layouts, exact crops. Tiny real diffusers models; TAESDXL's own weights where they are at hand."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashlips_core import checkpoint
from flashlips_core import codec as codecs
from flashlips_core.codec import CallableCodec, KLCodec, TinyCodec, crop_decode, encode_part, load_codec
from flashlips_core.models.codec_mini import MiniCodec
from flashlips_core.types import FlashLipsError

SHARED = Path(__file__).resolve().parents[2] / "shared"


def tiny_network(seed: int = 0) -> torch.nn.Module:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(seed)
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )


def kl_network(force_upcast: bool = True, scaling_factor: float = 0.13025) -> torch.nn.Module:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=scaling_factor,
        force_upcast=force_upcast,
    )


def save_official(folder: Path, seed: int = 0) -> torch.nn.Module:
    """Full-size TAESDXL with random weights, in the two files and the key layout that its author publishes."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(seed)
    network = diffusers.AutoencoderTiny()
    save_file(dict(network.encoder.layers.state_dict()), folder / "taesdxl_encoder.safetensors")
    shifted = {}
    for key, value in network.decoder.layers.state_dict().items():
        index, _, rest = key.partition(".")
        shifted[f"{int(index) + 1}.{rest}"] = value
    save_file(shifted, folder / "taesdxl_decoder.safetensors")
    return network


@pytest.mark.parametrize("make", [lambda: TinyCodec(tiny_network()), lambda: KLCodec(kl_network())])
def test_latents_are_an_eighth_of_the_image_and_keep_its_dtype(make):
    codec = make()
    images = torch.rand(2, 3, 64, 48, dtype=torch.float64) * 2 - 1
    latents = codec.encode(images)
    assert latents.shape == (2, 4, 8, 6) and latents.dtype == images.dtype
    assert codec.decode(latents).shape == images.shape


def test_kl_latents_carry_sdxls_scale_both_ways():
    network = kl_network()
    codec, images = KLCodec(network), torch.rand(1, 3, 32, 32) * 2 - 1
    raw = network.encode(images).latent_dist.mode()
    torch.testing.assert_close(codec.encode(images), raw * 0.13025)
    torch.testing.assert_close(codec.decode(raw * 0.13025), network.decode(raw).sample)


def test_batch_equals_singles():
    codec, images = TinyCodec(tiny_network()), torch.rand(3, 3, 32, 32) * 2 - 1
    singles = torch.cat([codec.decode(codec.encode(image[None])) for image in images])
    torch.testing.assert_close(codec.decode(codec.encode(images)), singles)


@pytest.mark.parametrize("region", [(26, 27, 34, 36), (0, 0, 5, 7), (60, 50, 64, 64)])
def test_crop_with_halo_equals_the_whole_picture(region):
    codec, latents = TinyCodec(tiny_network()).double(), torch.randn(2, 4, 64, 64, dtype=torch.float64)
    x0, y0, x1, y1 = region
    whole = codec.decode(latents)[..., 8 * y0 : 8 * y1, 8 * x0 : 8 * x1]
    torch.testing.assert_close(crop_decode(codec, latents, region), whole, rtol=0, atol=1e-12)


def test_one_cell_less_than_the_halo_is_not_exact():
    codec, latents = TinyCodec(tiny_network()).double(), torch.randn(1, 4, 64, 64, dtype=torch.float64)
    region = (28, 28, 36, 36)
    whole = codec.decode(latents)[..., 224:288, 224:288]
    for halo, is_exact in ((codec.halo, True), (codec.halo - 1, False)):
        codec.halo = halo
        assert ((crop_decode(codec, latents, region) - whole).abs().max().item() < 1e-12) == is_exact


def test_crop_of_a_global_codec_is_cut_from_the_whole_decode():
    codec, latents = KLCodec(kl_network()), torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(crop_decode(codec, latents, (2, 3, 5, 7)), codec.decode(latents)[..., 24:56, 16:40])


def test_a_part_is_encoded_in_its_place_and_the_rest_is_zero():
    codec = codecs.Codec(MiniCodec(), "mini", MiniCodec().halo)
    images = torch.rand(2, 3, 192, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole, part = codec.encode(images), encode_part(codec, images, (slice(0, 24), slice(0, 28)))
    assert part.shape == whole.shape and not part[..., 28:].any()
    assert torch.allclose(part[..., :16], whole[..., :16], atol=1e-5)  # 12 cells from the cut the encoder cannot see it


def test_region_outside_the_latents_is_refused():
    with pytest.raises(FlashLipsError, match="8x8 cells"):
        crop_decode(TinyCodec(tiny_network()), torch.zeros(1, 4, 8, 8), (0, 0, 9, 4))


def test_gradients_reach_latents_and_images_but_no_weight():
    codec = TinyCodec(tiny_network())
    images = torch.zeros(1, 3, 32, 32, requires_grad=True)
    latents = codec.encode(images)
    codec.decode(latents).sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None for p in codec.parameters())


def test_official_taesdxl_files_equal_the_diffusers_model(tmp_path):
    network = save_official(tmp_path)
    codec, images = load_codec(tmp_path), torch.rand(1, 3, 32, 32) * 2 - 1
    assert codec.name == "taesdxl" and codec.halo == 19
    latents = network.encode(images).latents
    torch.testing.assert_close(codec.encode(images), latents)
    torch.testing.assert_close(codec.decode(latents), network.decode(latents).sample)


def test_official_files_with_a_missing_key_are_refused_by_name(tmp_path):
    save_official(tmp_path)
    path = tmp_path / "taesdxl_decoder.safetensors"
    tensors = load_file(path)
    tensors.pop("7.weight")
    save_file(tensors, path)
    with pytest.raises(FlashLipsError, match="taesdxl_decoder.safetensors"):
        load_codec(tmp_path)


@pytest.mark.parametrize("make, kind", [(tiny_network, TinyCodec), (kl_network, KLCodec)])
def test_diffusers_folder_round_trips(tmp_path, make, kind):
    network = make()
    network.save_pretrained(tmp_path / "vae")
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    for folder in (tmp_path / "vae", tmp_path):  # the model itself, and a pipeline that holds it
        codec = load_codec(folder)
        assert isinstance(codec, kind)
        torch.testing.assert_close(codec.encode(images), kind(network).encode(images))


def test_diffusers_folder_with_missing_weights_is_refused(tmp_path):
    tiny_network().save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors.pop("decoder.layers.0.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(FlashLipsError, match="decoder.layers.0.weight"):
        load_codec(tmp_path)


def test_vae_of_another_latent_space_is_refused(tmp_path):
    kl_network(scaling_factor=0.18215).save_pretrained(tmp_path)  # Stable Diffusion 1.5
    with pytest.raises(FlashLipsError, match="SDXL's latent space"):
        load_codec(tmp_path)


@pytest.mark.parametrize("force_upcast, expected", [(True, torch.float32), (False, torch.float16)])
def test_vae_that_overflows_in_fp16_runs_in_fp32(tmp_path, caplog, force_upcast, expected):
    kl_network(force_upcast).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger=codecs.__name__):
        codec = load_codec(tmp_path, dtype=torch.float16)
    assert next(codec.parameters()).dtype == expected
    assert bool(caplog.records) == force_upcast


def test_two_functions_make_a_codec():
    def encode(images):
        return images[:, :1, ::8, ::8].expand(-1, 4, -1, -1)

    def decode(latents):
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)

    codec = CallableCodec(encode, decode, "toy", halo=0)
    latents = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(crop_decode(codec, latents, (1, 2, 4, 5)), codec.decode(latents)[..., 16:40, 8:32])
    assert codec.encode(torch.zeros(2, 3, 16, 24)).shape == (2, 4, 2, 3)


def test_codec_checkpoint_of_our_own_round_trips_and_crops_exactly(tmp_path):
    torch.manual_seed(0)
    network = MiniCodec()
    checkpoint.save(network, tmp_path / "codec.safetensors", "codec", {"version": "test"}, dtype=torch.float32)
    codec = load_codec(tmp_path / "codec.safetensors").double()
    latents, region = torch.randn(1, 4, 40, 40, dtype=torch.float64), (14, 16, 26, 24)
    whole = codec.decode(latents)
    torch.testing.assert_close(whole, network.double().decode(latents))
    x0, y0, x1, y1 = region
    part = whole[..., 8 * y0 : 8 * y1, 8 * x0 : 8 * x1]
    torch.testing.assert_close(crop_decode(codec, latents, region), part, rtol=0, atol=1e-10)


@pytest.mark.parametrize("source", ["no-such-codec", "/no/such/folder", "missing.safetensors"])
def test_unknown_source_says_what_may_be_named(source):
    with pytest.raises(FlashLipsError, match="No codec at"):
        load_codec(source)


def test_folder_without_a_codec_is_refused(tmp_path):
    with pytest.raises(FlashLipsError, match="neither"):
        load_codec(tmp_path)


def test_image_sizes_that_do_not_divide_by_eight_are_refused():
    with pytest.raises(FlashLipsError, match="multiples of 8"):
        TinyCodec(tiny_network()).encode(torch.zeros(1, 3, 30, 32))


@pytest.mark.shared
def test_taesdxl_round_trip_of_a_real_face_is_about_30_db():
    clips = sorted((SHARED / "data/grid_s1/test").glob("*.mp4"))
    if not clips or not (SHARED / "weights").is_dir():
        pytest.skip("the shared folder with TAESDXL and GRID is absent")
    av = pytest.importorskip("av")
    with av.open(str(clips[0])) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    images = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 127.5 - 1
    codec = load_codec(SHARED / "weights")
    latents = codec.encode(images)
    error = (codec.decode(latents).clamp(-1, 1) - images) / 2
    assert -10 * torch.log10(error.square().mean()) > 29
    assert 0.3 < latents.std() < 2  # scaled latents; unscaled ones would spread seven times as wide
