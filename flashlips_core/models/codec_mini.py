"""The bundled codec: a convolution-only autoencoder for faces, distilled into SDXL's latent space from TAESDXL.

B batch, C latent channels (4), h = H / 8, w = W / 8. Pixel shuffles replace the full-resolution layers that cost TAESDXL most
of its time: at 256 px it needs a sixth of TAESDXL's operations.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .layers import ConvBlock


@dataclass(frozen=True)
class MiniCodecConfig:
    """Widths at a quarter and at an eighth of the image's size, and the number of residual blocks at each."""

    latent_channels: int = 4
    encoder_widths: tuple[int, int] = (64, 128)
    encoder_blocks: tuple[int, int] = (3, 4)
    decoder_widths: tuple[int, int] = (64, 128)
    decoder_blocks: tuple[int, int] = (4, 4)


class Encoder(nn.Sequential):
    """(B 3 H W) in [-1, 1] -> (B C h w) scaled latents."""

    def __init__(self, config: MiniCodecConfig):
        quarter, eighth = config.encoder_widths
        super().__init__(
            nn.PixelUnshuffle(4),  # B 48 H/4 W/4
            nn.Conv2d(48, quarter, 3, padding=1),
            nn.ReLU(),
            *(ConvBlock(quarter) for _ in range(config.encoder_blocks[0])),
            nn.Conv2d(quarter, eighth, 3, stride=2, padding=1),
            nn.ReLU(),
            *(ConvBlock(eighth) for _ in range(config.encoder_blocks[1])),
            nn.Conv2d(eighth, config.latent_channels, 3, padding=1),
        )


class Decoder(nn.Sequential):
    """(B C h w) scaled latents -> (B 3 H W), about [-1, 1]."""

    def __init__(self, config: MiniCodecConfig):
        quarter, eighth = config.decoder_widths
        super().__init__(
            nn.Conv2d(config.latent_channels, eighth, 3, padding=1),
            nn.ReLU(),
            *(ConvBlock(eighth) for _ in range(config.decoder_blocks[1])),
            nn.Conv2d(eighth, 4 * quarter, 3, padding=1),
            nn.PixelShuffle(2),  # B quarter H/4 W/4
            nn.ReLU(),
            *(ConvBlock(quarter) for _ in range(config.decoder_blocks[0])),
            nn.Conv2d(quarter, 48, 3, padding=1),
            nn.PixelShuffle(4),
        )


class MiniCodec(nn.Module):
    """Encoder and decoder. Latents are SDXL's times 0.13025, as TAESDXL's are."""

    def __init__(self, config: MiniCodecConfig = MiniCodecConfig()):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @property
    def halo(self) -> int:
        """Latent cells around a region that its decoded pixels depend on."""
        quarter, eighth = self.config.decoder_blocks
        return 2 + 2 * eighth + -(-(2 * quarter + 1) // 2)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], H and W multiples of 8 -> (B, 4, H/8, W/8)."""
        return self.encoder(images)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, 3, 8h, 8w), about [-1, 1] and not clamped."""
        return self.decoder(latents)

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))
