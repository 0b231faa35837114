"""Ordinary speech for audio encoder and pose model: the corpus, and an encoder that gives Whisper's components themselves.

A corpus holds GRID's clips with voice (or a built set's), and recordings of other people, each once more with a voice moved by a
few semitones, all heard by Whisper tiny. Three things are learnt from it: which few components of Whisper's second layer speech
moves most; a linear teacher from them to poses, on clips with lips; and the bundled encoder, which gives these components.

B batch, N rows at 50 per second, C components, D numbers of Whisper's layer, P pose numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..audio import AudioEncoder, load_audio_encoder, to_mono_16k
from ..audio.rates import features_at_pose_rate
from ..media import load_audio
from ..models.audio_encoder import MEL_CONV_LARGE, MEL_CONV_MINI, ROW_SAMPLES, MelConvConfig, MelConvEncoder
from ..types import SAMPLE_RATE, FlashLipsError, Progress
from .audio import (
    AudioBatch,
    AudioTrainConfig,
    Batches,
    Clip,
    Corpus,
    Teacher,
    build_corpus,
    known_mse,
    read_corpus,
    train_audio_encoder,
)
from .batches.material import Material
from .batches.told import REACH, PoseTeacher, joined, told_tracks
from .batches.tracks import PoseLabels, PoseTracks
from .batches.voices import shifted_voice
from .lip import labelled
from .loop.settings import setting
from .loop.trainer import TrainConfig, fit
from .run import Run, named

SOUNDS = (".opus", ".wav", ".flac", ".mp3", ".ogg", ".m4a")
SPEECH = "speech"  # group of the corpus: voices without lips; also the folder of the data where they are looked for
LAYER = 2  # of Whisper tiny: follows open speech best
PIECE_S, SHORTEST_S = 24, 0.5  # recordings are cut into pieces, the teacher hears 30 s at most
SEMITONES = (1.5, 6.0)  # by which the second rendition's voice is moved, up or down
SHARES = {"s1": 0.1, "people": 0.2, SPEECH: 0.7}  # of the crops
FEWER = 0.4  # weight of the speaker with most clips in the pose teacher
AUDIO_ENCODERS = {"mini": MEL_CONV_MINI, "large": MEL_CONV_LARGE}
WHISPER_FILE = "whisper_tiny_encoder.fp16.safetensors"
KIND = "flashlips-mel-conv-3"  # a pose model listens to one kind of features; trained again, they are others


@dataclass(frozen=True)
class AudioCorpusSettings:
    """Let Whisper tiny hear the clips, and recordings in the data's folder 'speech'."""

    voices: bool = setting(True, "hear each clip once more in another voice")


@dataclass(frozen=True)
class AudioEncoderSettings(TrainConfig):
    """Distil Whisper tiny's encoder."""

    network: str = setting("large", "large: into Whisper's components; mini: into features beside which motion is learnt")
    steps: int = 4000
    batch: int = setting(6, "crops per step")
    lr: float = 2e-3
    ema: float = 0.995
    told: float = setting(0.5, "weight of the poses that the components tell (large)")
    start: str | None = setting(None, "an audio encoder to go on from")


# Corpus


def spoken_clips(material: Material) -> Iterator[Clip]:
    """The training clips with a voice, by their ids; the speaker with most of them is a group of their own."""
    clips = [clip for clip in material.clips() if clip.split == "train" and clip.has_voice]
    for clip in clips:
        yield Clip(material.sound(clip.id), "s1" if clip.speaker == "s1" else "people", id=clip.id)


def recordings(folder: Path) -> Iterator[Clip]:
    """Every sound under a folder, in pieces, in name order."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUNDS):
        samples = to_mono_16k(load_audio(path)).numpy()
        for start in range(0, len(samples), PIECE_S * SAMPLE_RATE):
            piece = samples[start : start + PIECE_S * SAMPLE_RATE]
            if len(piece) > SHORTEST_S * SAMPLE_RATE:
                yield Clip(piece, SPEECH)


def with_other_voices(clips: list[Clip], seed: int = 0) -> list[Clip]:
    """The clips, and each once more in a higher or lower voice; the timing stays."""
    random = np.random.default_rng(seed)
    moves = [random.choice([-1, 1]) * random.uniform(*SEMITONES) for _ in clips]
    return clips + [replace(c, samples=shifted_voice(c.samples, float(m))) for c, m in zip(clips, moves, strict=True)]


# The teacher of poses


def fit_pose_teacher(corpus: Corpus, labels: PoseLabels) -> PoseTeacher:
    """From the corpus's rows to the labelled poses, fitted on the clips that have both."""
    place, rows, poses, weights = {clip: i for i, clip in enumerate(labels.ids)}, [], [], []
    for clip in np.flatnonzero([name in place for name in corpus.ids.tolist()]):
        values, found = labels.clip(place[str(corpus.ids[clip])])
        if found.all():
            rows.append(rows_of(corpus, clip))
            poses.append(values)
            weights.append(FEWER if corpus.groups[clip] == "s1" else 1.0)
    if not rows:
        raise FlashLipsError("No clip of the corpus has lips; run 'prepare' first, then 'audio-corpus' on the same --data.")
    return PoseTeacher.fit(corpus.targets, rows, poses, weights)


def rows_of(corpus: Corpus, clip: int) -> np.ndarray:
    """What Whisper says of one clip, (N, D) float32."""
    start = corpus.starts[clip]
    return corpus.targets[start : start + corpus.rows[clip]].astype(np.float32)


def with_told(tracks: PoseTracks, corpus: Corpus, teacher: PoseTeacher, encoder: AudioEncoder, seed: int = 0) -> PoseTracks:
    """The tracks, and what the teacher tells of the corpus's speech beside what the encoder hears in it.

    Told poses lie about people that are further from each other than the few of the tracks, so that faces never seen, whose poses
    are sources later, do not change how the lips move.
    """
    random, told, audio = np.random.default_rng(seed), [], []
    for clip in np.flatnonzero(corpus.groups == SPEECH):
        start = corpus.starts[clip] * ROW_SAMPLES
        samples = corpus.samples[start : start + corpus.rows[clip] * ROW_SAMPLES].astype(np.float32) / 32768.0
        features = encoder.encode(torch.from_numpy(samples))
        told.append(teacher.tell(rows_of(corpus, clip)))
        audio.append(features_at_pose_rate(features.values, features.rate_hz).half().numpy())
    if not told:
        raise FlashLipsError(f"The corpus holds no recordings; put some into the folder '{SPEECH}' of --data, or set told=False.")
    spoken = [i for i, person in enumerate(tracks.person) if person >= 0]
    means = np.stack([tracks.poses[tracks.starts[i] : tracks.starts[i + 1]].mean(0) for i in spoken])
    one, other, third = (means[random.integers(len(means), size=4 * len(told))] for _ in range(3))
    return joined(tracks, told_tracks(told, audio, one + random.uniform(0, 2, (len(one), 1)) * (other - third), seed))


# The encoder


class ComponentDistillation(nn.Module):
    """The encoder, whose features are the teacher's components themselves, and the map from them to poses."""

    def __init__(self, encoder: MelConvEncoder, teacher: PoseTeacher, spread: np.ndarray):
        super().__init__()
        self.encoder = encoder
        self.register_buffer("to_poses", torch.from_numpy(teacher.weights / spread).float(), persistent=False)

    def told(self, components: Tensor) -> Tensor:
        """Poses that the teacher tells, in deviations, about their mean: (B, N, C) -> (B, N / 2 - 2 REACH, P)."""
        frames = components.unflatten(1, (-1, 2)).mean(2).unfold(1, 2 * REACH + 1, 1)  # B T C K
        return frames.transpose(2, 3).flatten(2) @ self.to_poses


def component_step(network: ComponentDistillation, batch: AudioBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """Squared errors of the components, and of the poses that they tell: of what Whisper hears, lips show a part."""
    features, known = network.encoder(batch.samples), batch.targets.isfinite()
    told = network.told(torch.where(known, features, 0.0)) - network.told(batch.targets.nan_to_num(0.0))
    is_whole = network.told(torch.where(known, 0.0, torch.nan)).isfinite()
    return {"teacher": known_mse(features, batch.targets), "told": known_mse(told, torch.where(is_whole, 0.0, torch.nan))}


def train_components(
    corpus: Corpus,
    teacher: PoseTeacher,
    config: TrainConfig,
    network: MelConvConfig,
    audio: AudioTrainConfig,
    told_weight: float,
    start: MelConvEncoder | None = None,
    progress: Progress | None = None,
) -> MelConvEncoder:
    """Train an encoder that gives the teacher's components; resumes from ``config.run_dir``."""
    if network.dim != teacher.basis.shape[1] or audio.crop_rows % 2:
        heard = teacher.basis.shape[1]
        raise FlashLipsError(f"The encoder gives {network.dim} numbers, the teacher hears {heard}; take as many, and even crops.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = start.requires_grad_(True) if start else MelConvEncoder(network)
    some = range(0, len(corpus.rows), max(len(corpus.rows) // 100, 1))
    told = np.concatenate([teacher.tell(rows_of(corpus, clip)) for clip in some])
    distillation = ComponentDistillation(encoder, teacher, told.std(0).clip(1e-3))
    batches = Batches(corpus, audio, encoder.context, (teacher.mean, teacher.basis))
    weights = {"teacher": 1.0, "told": told_weight, **config.weights}
    return fit(distillation, batches, component_step, replace(config, weights=weights), progress=progress).encoder.cpu().eval()


# The stages


def corpus_file(run: Run) -> Path:
    """Where the stage "audio-corpus" writes."""
    return run.folder / "audio" / "corpus.npz"


def audio_corpus(run: Run[AudioCorpusSettings]) -> Path:
    """Let Whisper tiny hear the training clips and, beside them in ``data``, the recordings in the folder ``speech``."""
    path, folder = corpus_file(run), run.data / SPEECH
    if not path.is_file():
        clips = list(spoken_clips(run.material)) + (list(recordings(folder)) if folder.is_dir() else [])
        if not clips:
            raise FlashLipsError(f"Nobody speaks in {run.data}; give videos with sound, or recordings in a folder '{SPEECH}'.")
        teacher = Teacher(run.weights / WHISPER_FILE, layer=LAYER)
        clips = with_other_voices(clips) if run.settings.voices else clips
        path.parent.mkdir(parents=True, exist_ok=True)
        build_corpus(clips, teacher, renditions=1, progress=run.progress).save(path)
    return path


def audio_encoder(run: Run[AudioEncoderSettings]) -> Path:
    """Distil Whisper tiny's encoder: into features beside which motion is learnt (mini), or into its components (large)."""
    settings, corpus = run.settings, read_corpus(corpus_file(run))
    network, config = named("audio encoder", AUDIO_ENCODERS, settings.network), run.config("run_audio")
    start = load_audio_encoder(settings.start).network if settings.start else None
    if settings.network == "mini":
        shares = {"s1": 0.30, "people": 0.22, SPEECH: 0.48}
        audio = AudioTrainConfig(batch=settings.batch, crop_rows=140, shares=shares)
        return run.save(train_audio_encoder(corpus, config, audio, network, start, run.progress), "audio-encoder")
    audio = AudioTrainConfig(batch=settings.batch, crop_rows=160, shares=SHARES, components=network.dim)
    teacher = fit_pose_teacher(corpus, PoseLabels.load(labelled(run)))
    encoder = train_components(corpus, teacher, config, network, audio, settings.told, start, run.progress)
    return run.save(encoder, "audio-encoder", kind=KIND, teacher="Whisper tiny's encoder, layer 2 (MIT, OpenAI)")
