"""The audio encoders: 16 kHz samples in, 50 feature rows a second out. :func:`load_audio_encoder` finds one by its name.

A new one is a subclass of :class:`WindowedEncoder` that says how it hears one window, and a line in ``load_audio_encoder`` (of
transformers' networks: in ``speech_models.ENCODERS``). A pose model is then trained on its features, and remembers their
``kind``. S samples, N rows, D dims.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .. import checkpoint
from ..models.audio_encoder import MEL_LEAD, MelConvConfig, MelConvEncoder, log_mel
from ..types import device_of
from .speech_models import load_speech_model
from .windows import AudioEncoder, WindowedEncoder, WindowPlan

BUNDLED_KIND = "flashlips-mel-conv"
LOG_MEL_KIND = "log-mel"


class LogMelEncoder(WindowedEncoder):
    """The two 80-bin log-mel frames of each row, side by side; no weights."""

    kind = LOG_MEL_KIND
    dim = 160
    plan = WindowPlan(hop=3000, before=1, after=1, is_fixed=False)

    def hear(self, window: Tensor, inside: tuple[int, int]) -> Tensor:
        mels = log_mel(window[None, MEL_LEAD:])[0].T  # frames -1 .. 2N, of which row n takes 2n and 2n + 1
        return mels[1:-1].reshape(-1, self.dim)


class MelConvAudioEncoder(WindowedEncoder):
    """The bundled encoder, or another checkpoint of its kind."""

    def __init__(self, network: MelConvEncoder, device: torch.device | str = "cpu", kind: str = BUNDLED_KIND):
        self.network = network.to(device).eval()
        self.device = torch.device(device)
        self.kind, self.dim = kind, network.config.dim
        self.plan = WindowPlan(hop=1000, before=network.context, after=network.context, is_fixed=False)

    def hear(self, window: Tensor, inside: tuple[int, int]) -> Tensor:
        return self.network(window[None].to(self.device))[0]


def load_audio_encoder(
    source: str | Path = "bundled",
    layer: int | None = None,
    device: torch.device | str | None = None,
    windows: WindowPlan | None = None,
) -> AudioEncoder:
    """Load an audio encoder.

    Args:
        source: "bundled", "log-mel", a ``.safetensors`` file of this software, or wav2vec 2.0, HuBERT, WavLM or Whisper as a
            folder in Hugging Face's format or a hub id such as "facebook/wav2vec2-base-960h".
        layer: Which hidden layer of such a network to give, 0 (before the first) up to its number of layers. None: the last, or
            of Whisper tiny the second, which the bundled pose model for it listens to.
        windows: Its window; training and inference must use the same.
    """
    device = device_of(device)
    if str(source) == "log-mel":
        return LogMelEncoder()
    if str(source) == "bundled":
        return _load_mel_conv(checkpoint.bundled("audio-encoder"), device)
    if Path(source).suffix in {".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pkl"}:
        return _load_mel_conv(Path(source), device)
    return load_speech_model(str(source), layer, device, windows)


def _load_mel_conv(path: Path, device: torch.device) -> MelConvAudioEncoder:
    builders = {"MelConvEncoder": lambda fields: MelConvEncoder(checkpoint.config_from_dict(MelConvConfig, fields))}
    network = checkpoint.load(path, "audio-encoder", builders, device)
    return MelConvAudioEncoder(network, device, checkpoint.info(path).notes.get("kind", BUNDLED_KIND))
