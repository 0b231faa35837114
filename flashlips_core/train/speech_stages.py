"""The stages that listen: a corpus of voices, and the audio encoder that learns from it."""

from __future__ import annotations

from pathlib import Path

from ..models.audio_encoder import MEL_CONV_LARGE, MEL_CONV_MINI
from ..types import FlashLipsError
from .audio import AudioTrainConfig, Teacher, build_corpus, read_corpus, train_audio_encoder
from .batches.tracks import PoseLabels
from .loop.trainer import TrainConfig
from .speech import LAYER, SHARES, SPEECH, fit_pose_teacher, recordings, spoken_clips, train_components, with_other_voices
from .stages import Run, labelled

AUDIO_ENCODERS = {"mini": MEL_CONV_MINI, "large": MEL_CONV_LARGE}
WHISPER_FILE = "whisper_tiny_encoder.fp16.safetensors"
KIND = "flashlips-mel-conv-3"  # a pose model listens to one kind of features; trained again, they are others


def corpus_file(run: Run) -> Path:
    return run.folder / "audio" / "corpus.npz"


def audio_corpus(run: Run) -> Path:
    """Let Whisper tiny hear the training clips and, beside them in ``data``, the recordings in the folder ``speech``."""
    path, folder = corpus_file(run), run.data / SPEECH
    if not path.is_file():
        clips = list(spoken_clips(run.material)) + (list(recordings(folder)) if folder.is_dir() else [])
        if not clips:
            raise FlashLipsError(f"Nobody speaks in {run.data}; give videos with sound, or recordings in a folder '{SPEECH}'.")
        teacher = Teacher(run.weights / WHISPER_FILE, layer=LAYER)
        clips = with_other_voices(clips) if run.options["voices"] else clips
        path.parent.mkdir(parents=True, exist_ok=True)
        build_corpus(clips, teacher, renditions=1, progress=run.progress).save(path)
    return path


def audio_encoder(run: Run) -> Path:
    """Distil Whisper tiny's encoder: into features beside which motion is learnt (mini), or into its components (large)."""
    from ..audio import load_audio_encoder

    options, corpus = dict(run.options), read_corpus(corpus_file(run))
    name, start, told, batch = (options.pop(key) for key in ("network", "start", "told", "batch"))
    if name not in AUDIO_ENCODERS:
        raise FlashLipsError(f"No audio encoder is called '{name}'; choose network={' or '.join(AUDIO_ENCODERS)}.")
    network, config = AUDIO_ENCODERS[name], TrainConfig(str(run.folder / "run_audio"), **options)
    start = load_audio_encoder(start).network if start else None
    if name == "mini":
        shares = {"s1": 0.30, "people": 0.22, SPEECH: 0.48}
        audio = AudioTrainConfig(batch=batch, crop_rows=140, shares=shares)
        return run.save(train_audio_encoder(corpus, config, audio, network, run.progress, start), "audio-encoder")
    audio = AudioTrainConfig(batch=batch, crop_rows=160, shares=SHARES, components=network.dim)
    teacher = fit_pose_teacher(corpus, PoseLabels.load(labelled(run)))
    encoder = train_components(corpus, teacher, config, network, audio, told, start, run.progress)
    return run.save(encoder, "audio-encoder", kind=KIND, teacher="Whisper tiny's encoder, layer 2 (MIT, OpenAI)")
