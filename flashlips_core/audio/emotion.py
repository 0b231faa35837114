"""The audio-emotion embedding e(a) of the paper, from any audio classifier that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..stream import counted
from ..types import SAMPLE_RATE, FlashLipsError, Progress, device_of
from .samples import check_finite
from .speech_models import from_pretrained, load_weights, name_of, read_config

WINDOW_S = 8  # seconds heard at a time; the embedding of a clip is the mean over its windows
CLASSIFIERS = ("ForSequenceClassification", "ForAudioClassification")  # ends of transformers' class names
SHORTEST = SAMPLE_RATE // 2  # shorter sound is padded with silence to half a second


class EmotionEncoder:
    """Sound -> (E,): what the classifier's last layer sees, which keeps more than its few class scores."""

    def __init__(self, source: str, device: torch.device):
        from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

        self.network = load_weights(AutoModelForAudioClassification, source).to(device)
        self.extract = from_pretrained(AutoFeatureExtractor, source)
        self.device, self.kind = device, name_of(source)
        self.labels = [self.network.config.id2label[i] for i in range(self.network.config.num_labels)]
        self._seen: list[Tensor] = []
        self.network.classifier.register_forward_pre_hook(self._remember)
        self.dim = len(self.encode(torch.zeros(SHORTEST)))

    def _remember(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        self._seen.append(inputs[0])

    def encode(self, samples: Tensor, progress: Progress | None = None) -> Tensor:
        """The embedding of a whole clip, (S,) at 16 kHz -> (E,) float32 on the CPU; ``progress`` counts windows of 8 s."""
        if len(samples) == 0:
            raise FlashLipsError("The audio has zero length; choose a file with sound in it.")
        check_finite(samples)
        windows = samples.split(WINDOW_S * SAMPLE_RATE)
        weights = torch.tensor([float(len(w)) for w in windows])[:, None]
        heard = [self._embed(window) for window in counted(windows, len(windows), progress)]
        return (torch.stack(heard) * weights).sum(0) / weights.sum()

    @torch.inference_mode()
    def _embed(self, window: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(window.float(), (0, max(0, SHORTEST - len(window))))
        inputs = self.extract(padded.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        self._seen.clear()
        self.network(**{name: value.to(self.device) for name, value in inputs.items()})
        return self._seen.pop().float().cpu().reshape(-1).clone()


def load_emotion_encoder(source: str | Path, device: torch.device | str | None = None) -> EmotionEncoder:
    """Load an audio classifier (wav2vec 2.0, HuBERT, WavLM, Whisper, AST...) from a folder or a hub id."""
    config = read_config(str(source))
    names = config.architectures or []
    if not any(name.endswith(CLASSIFIERS) for name in names):
        raise FlashLipsError(
            f"{source} is {', '.join(names) or 'no classifier'}; the emotion encoder must be an audio classifier."
        )
    return EmotionEncoder(str(source), device_of(device))


def is_classifier(folder: str | Path) -> bool:
    """Whether a folder in Hugging Face's format says that it holds an audio classifier; cheap, for lists of choices."""
    folder = Path(folder)
    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return False
    return (folder / "preprocessor_config.json").is_file() and any(str(name).endswith(CLASSIFIERS) for name in names)
