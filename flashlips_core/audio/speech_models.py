"""wav2vec 2.0, HuBERT, WavLM and Whisper through transformers, one chosen hidden layer of each.

These networks attend to (or normalise over) all the sound they are given, so what they say of an instant depends on how the
sound was cut. They hear fixed windows with context on both sides, in training as in use.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.audio_encoder import ROW_SAMPLES
from ..types import SAMPLE_RATE, FlashLipsError
from .windows import AudioEncoder, WindowedEncoder, WindowPlan

SECONDS_4 = WindowPlan(hop=200, before=50, after=50, is_fixed=True)  # 4 s from 6 s
DEFAULT_LAYERS = {"whisper-tiny": 2}  # by the network's name: what a bundled pose model listens to; of others the last
SECONDS_10 = WindowPlan(hop=500, before=100, after=50, is_fixed=True)  # Whisper computes 30 s however little it is given


def load_speech_model(source: str, layer: int | None, device: torch.device, windows: WindowPlan | None) -> AudioEncoder:
    """A pretrained speech network from a local folder or a hub id, as an audio encoder."""
    config = read_config(source)
    if config.model_type not in ENCODERS:
        raise FlashLipsError(
            f"{source} is a '{config.model_type}' network; an audio encoder must be one of {', '.join(ENCODERS)}."
        )
    encoder = ENCODERS[config.model_type]
    return encoder(source, config, _checked_layer(source, config, layer), device, _checked_plan(windows or encoder.plan))


def read_config(source: str) -> Any:
    """The transformers config of a folder or hub id, or one sentence about why there is none."""
    from transformers import AutoConfig

    path = Path(source)
    if path.exists() and not (path / "config.json").is_file():
        raise FlashLipsError(f"{source} holds no config.json; choose the folder of a model in Hugging Face's format.")
    if not path.exists() and (path.is_absolute() or source.startswith(".") or source.count("/") > 1):
        raise FlashLipsError(
            f"There is no folder {source}; check the path, or give a hub id such as 'facebook/wav2vec2-base-960h'."
        )
    return from_pretrained(AutoConfig, source)


def from_pretrained(factory: Any, source: str, **options: Any) -> Any:
    try:
        return factory.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FlashLipsError(
            f"Could not load {source} ({reason}); download it into a local folder and give that, or check the name."
        ) from error


def load_weights(factory: Any, source: str) -> Any:
    """A transformers model from safetensors weights alone; weights that the file lacks are an error, not random numbers."""
    options = {"use_safetensors": True, "output_loading_info": True}
    model, report = from_pretrained(factory, source, **options)
    missing = sorted(key for key in report["missing_keys"] if "masked_spec_embed" not in key)
    wrong = missing or sorted(report["mismatched_keys"])
    if wrong:
        raise FlashLipsError(f"The weights in {source} lack what its config.json names ({wrong[:2]}); download it again.")
    return model.eval().requires_grad_(False)


def _checked_layer(source: str, config: Any, layer: int | None) -> int:
    layers = config.encoder_layers if config.model_type == "whisper" else config.num_hidden_layers
    if layer is None:
        return min(DEFAULT_LAYERS.get(name_of(source), layers), layers)
    if not 0 <= layer <= layers:
        raise FlashLipsError(f"{source} has {layers} layers, so layer {layer} does not exist; choose 0 to {layers}.")
    return layer


def _checked_plan(plan: WindowPlan) -> WindowPlan:
    if not plan.is_fixed or plan.hop < 1 or plan.before < 0 or plan.after < 0:
        raise FlashLipsError(
            f"These networks need fixed windows of at least one row, got {plan}; set is_fixed=True and hop >= 1."
        )
    return plan


def name_of(source: str) -> str:
    """The last part of a folder or hub id."""
    return Path(source).resolve().name if Path(source).exists() else source.rstrip("/").rpartition("/")[2]


class WaveformEncoder(WindowedEncoder):
    """wav2vec 2.0, HuBERT or WavLM."""

    plan = SECONDS_4

    def __init__(self, source: str, config: Any, layer: int, device: torch.device, plan: WindowPlan):
        from transformers import AutoModel, Wav2Vec2FeatureExtractor

        stride = math.prod(config.conv_stride)
        field = 1 + sum((kernel - 1) * math.prod(config.conv_stride[:i]) for i, kernel in enumerate(config.conv_kernel))
        extractor = from_pretrained(Wav2Vec2FeatureExtractor, source)
        if stride != ROW_SAMPLES or extractor.sampling_rate != SAMPLE_RATE:
            raise FlashLipsError(
                f"{source} gives a row every {stride} samples at {extractor.sampling_rate} Hz; {ROW_SAMPLES} at 16000 are needed."
            )
        self.network = load_weights(AutoModel, source).to(device)
        self.is_normalised = extractor.do_normalize
        self.kind, self.dim, self.layer, self.device, self.plan = (
            f"{name_of(source)}:{layer}",
            config.hidden_size,
            layer,
            device,
            plan,
        )
        side = (field - ROW_SAMPLES) // 2  # a row hears 400 samples: 40 beyond its own on either side
        self.margin = (side, field - ROW_SAMPLES - side)

    def hear(self, window: Tensor, inside: tuple[int, int]) -> Tensor:
        if self.is_normalised and inside[1] > inside[0]:
            sound = window[inside[0] : inside[1]]
            window = window.clone()
            window[inside[0] : inside[1]] = (sound - sound.mean()) / (sound.var(unbiased=False) + 1e-7).sqrt()
        states = self.network(window[None].to(self.device), output_hidden_states=True).hidden_states[self.layer][0]
        return states[self.plan.before : self.plan.before + self.plan.hop]


class WhisperAudioEncoder(WindowedEncoder):
    """Whisper's encoder; what lies behind the window is the silence that it was trained to expect."""

    plan = SECONDS_10

    def __init__(self, source: str, config: Any, layer: int, device: torch.device, plan: WindowPlan):
        from transformers import WhisperFeatureExtractor, WhisperModel

        if plan.length > config.max_source_positions:
            raise FlashLipsError(
                f"A window of {plan.length} rows is longer than the {config.max_source_positions} that {source} hears."
            )
        self.extract = from_pretrained(WhisperFeatureExtractor, source)
        self.network = load_weights(WhisperModel, source).get_encoder().to(device)
        self.kind, self.dim, self.layer, self.device, self.plan = (
            f"{name_of(source)}:{layer}",
            config.d_model,
            layer,
            device,
            plan,
        )
        self.margin = (-ROW_SAMPLES // 2, ROW_SAMPLES // 2)  # its row n is centred on sample 320 n, ours on 320 n + 160

    def hear(self, window: Tensor, inside: tuple[int, int]) -> Tensor:
        mels = self.extract(window.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        states = self.network(mels.to(self.device), output_hidden_states=True).hidden_states[self.layer][0]
        return states[self.plan.before : self.plan.before + self.plan.hop]


# By transformers' ``model_type``
ENCODERS: dict[str, type[WaveformEncoder] | type[WhisperAudioEncoder]] = {
    "wav2vec2": WaveformEncoder,
    "hubert": WaveformEncoder,
    "wavlm": WaveformEncoder,
    "whisper": WhisperAudioEncoder,
}
