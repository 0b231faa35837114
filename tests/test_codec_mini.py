import torch

from flashlips_core.models.codec_mini import MiniCodec, MiniCodecConfig

TINY = MiniCodecConfig(encoder_widths=(8, 8), encoder_blocks=(1, 1), decoder_widths=(8, 8), decoder_blocks=(1, 1))


def test_latents_are_an_eighth_of_the_image_and_come_back_at_its_size():
    codec = MiniCodec(TINY)
    images = torch.rand(2, 3, 64, 48) * 2 - 1
    latents = codec.encode(images)
    assert latents.shape == (2, 4, 8, 6)
    assert codec.decode(latents).shape == images.shape


def test_a_region_with_its_halo_decodes_to_the_same_pixels():
    torch.manual_seed(0)
    codec = MiniCodec(TINY).eval()
    latents = torch.randn(1, 4, 32, 32)
    halo = codec.halo
    top, left, size = 12, 14, 6
    part = latents[:, :, top - halo : top + size + halo, left - halo : left + size + halo]
    whole = codec.decode(latents)[:, :, 8 * top : 8 * (top + size), 8 * left : 8 * (left + size)]
    cut = codec.decode(part)[:, :, 8 * halo : -8 * halo, 8 * halo : -8 * halo]
    torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-6)


def test_the_halo_is_no_larger_than_needed():
    torch.manual_seed(0)
    codec = MiniCodec(TINY).double().eval()
    latents = torch.randn(1, 4, 32, 32, dtype=torch.float64)
    moved = latents.clone()
    moved[:, :, :, 16] += 1
    columns = (codec.decode(moved) - codec.decode(latents)).abs().amax((0, 1, 2)).nonzero()[:, 0]
    assert columns.min() // 8 >= 16 - codec.halo and columns.max() // 8 <= 16 + codec.halo
    assert columns.max() // 8 >= 16 + codec.halo - 1
