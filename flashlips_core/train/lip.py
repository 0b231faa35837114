"""Stages "lip-teacher" and "lip-encoder": what the 12 numbers mean, and a network that reads them from the picture alone.

The paper trains the teacher jointly with the editor. Ours (a choice of this project) trains it with a small mouth decoder
first, so that the poses are fixed and every other stage can use them: the decoder must redraw a mouth from the 12 numbers and
another frame's mouth of the same clip, which is what the editor asks of them too.

B batch, N frames, E expression features, P = 12.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..dataset.store import Clip, CropStore, has_store
from ..face.expression import mirrored, mouth_opening, neutral_features, raw_features
from ..loading import load_network
from ..models.layers import ModulatedBlock
from ..models.lip_encoder import LIP_ENCODER_MINI, LIP_ENCODER_RESNET34, LipEncoder, LipTeacher, LipTeacherConfig
from ..types import FlashLipsError, Progress
from .batches.material import MOUTHS
from .loop.processes import is_first_process
from .loop.settings import of_full_size, setting
from .loop.trainer import MakeBatch, TrainConfig, fit
from .run import Run, named

LIP_ENCODERS = {"mini": LIP_ENCODER_MINI, "resnet34": LIP_ENCODER_RESNET34}
POSES = "poses_grid.npz"  # the labels of all frames, whatever they were learnt from


@dataclass(frozen=True)
class LipTeacherSettings(TrainConfig):
    """Learn what the 12 pose numbers mean and label every frame."""

    steps: int = 4000
    batch_size: int = setting(32, "pairs of mouths per step")
    lr: float = 2e-3
    log_every: int = 100


@dataclass(frozen=True)
class LipEncoderSettings(TrainConfig):
    """Distil the labels into a network that reads the picture alone."""

    network: str = setting("mini", "mini, or resnet34 (the paper's)")
    steps: int = 5000
    batch_size: int = setting(64, "mouths per step")
    lr: float = 2e-3
    ema: float = 0.0
    log_every: int = 100


# ResNet-34; distilled in 200 k steps, in the paper the last ones of the reconstruction
FULL = replace(
    of_full_size(LipEncoderSettings(network="resnet34", steps=200_000, lr=1e-3, log_every=50)), recompute=False
)  # fmt: skip


@dataclass(frozen=True)
class LipSamples:
    """Mouths and expression features of the same frames, grouped by clip."""

    store: CropStore
    features: np.ndarray  # (N, E) relative to the speaker's neutral
    opening: np.ndarray  # (N,)
    rows_of_clip: list[np.ndarray]
    clips_of_speaker: dict[str, list[int]]


def speaker_features(clips: list[Clip]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Expression features relative to each speaker's face at rest, and mouth openings, per clip id: (T, E) and (T,)."""
    raw = {c.id: raw_features(c.landmarks[:, :40], c.points, c.blendshapes) for c in clips}
    opening = {c.id: mouth_opening(c.landmarks[:, :40], c.points) for c in clips}
    result = {}
    for speaker in sorted({c.speaker for c in clips}):
        own = [c for c in clips if c.speaker == speaker]
        features = np.concatenate([raw[c.id][c.found] for c in own])
        neutral = neutral_features(features, np.concatenate([opening[c.id][c.found] for c in own]))
        result |= {c.id: (raw[c.id] - neutral, opening[c.id]) for c in own}
    return result


def lip_samples(store: CropStore, clips: list[Clip], keep: set[str]) -> LipSamples:
    """Join stored mouths with features, for the clips whose ids are in ``keep``."""
    table = speaker_features(clips)
    places = [(str(store.clip_ids[c]), f) for c, f in zip(store.clip_of, store.frame_of, strict=True)]
    features = np.stack([table[clip_id][0][frame] for clip_id, frame in places])
    opening = np.array([table[clip_id][1][frame] for clip_id, frame in places], np.float32)
    bounds = np.searchsorted(store.clip_of, np.arange(len(store.clip_ids) + 1))
    rows = [np.arange(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
    speakers: dict[str, list[int]] = {}
    for index, (clip_id, speaker) in enumerate(zip(store.clip_ids, store.speakers, strict=False)):
        if str(clip_id) in keep:
            speakers.setdefault(str(speaker), []).append(index)
    return LipSamples(store, features.astype(np.float32), opening, rows, speakers)


def draw_rows(samples: LipSamples, count: int, generator: torch.Generator) -> np.ndarray:
    """Pairs of rows of one clip, speakers equally likely: (count, 2)."""
    speakers = sorted(samples.clips_of_speaker)

    def pick(items: list | np.ndarray):
        return items[int(torch.randint(len(items), (), generator=generator))]

    pairs = []
    for _ in range(count):
        rows = samples.rows_of_clip[pick(samples.clips_of_speaker[pick(speakers)])]
        pairs.append((pick(rows), pick(rows)))
    return np.array(pairs)


def view_mouths(stored: Tensor, size: int, generator: torch.Generator, shift: float, colour: float, flip: Tensor) -> Tensor:
    """Stored mouths (B, 3, 116, 116) -> jittered mouth regions (B, 3, size, size)."""
    count = len(stored)

    def spread(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    zoom = torch.exp(spread(count) * shift * 1.5) / 1.2
    turn = spread(count) * shift * 3
    cos, sin, offset = torch.cos(turn) * zoom, torch.sin(turn) * zoom, spread(count, 2) * shift
    geometry = torch.stack(
        [torch.stack([cos * flip, -sin, offset[:, 0]], -1), torch.stack([sin * flip, cos, offset[:, 1]], -1)], 1
    )
    grid = F.affine_grid(geometry, [count, 3, size, size], align_corners=False)
    mouths = F.grid_sample(stored, grid, mode="bilinear", padding_mode="border", align_corners=False)
    grey = torch.full((3, 3), 1 / 3)
    saturation = torch.exp(spread(count, 1, 1) * 0.6 * colour)
    mixing = (
        torch.exp(spread(count, 3, 1) * 0.3 * colour) * (grey + saturation * (torch.eye(3) - grey))
        + spread(count, 3, 3) * 0.1 * colour
    )
    mouths = torch.einsum("bij,bjhw->bihw", mixing, mouths) + spread(count, 3, 1, 1) * 0.2 * colour
    grain = torch.randn(mouths.shape, generator=generator) * spread(count, 1, 1, 1).square() * 0.06 * colour
    return mouths + grain


class MouthDecoder(nn.Module):
    """Redraws a mouth from another frame's mouth and a pose; exists only to train the teacher. (B 3 64 64), (B 12)."""

    def __init__(self, teacher: LipTeacher):
        super().__init__()
        self.teacher = teacher
        widths = (24, 48, 96)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip((3, *widths), widths, strict=False))
        pose_dim = len(teacher.pose_mean)
        self.middle = nn.ModuleList(ModulatedBlock(96, 96, pose_dim, groups=8) for _ in range(3))
        self.grow = nn.ModuleList(nn.Conv2d(a, 4 * b, 3, padding=1) for a, b in zip(reversed(widths), (48, 24, 3), strict=False))

    def forward(self, reference: Tensor, pose: Tensor) -> Tensor:
        skips, x = [], reference
        for layer in self.shrink:
            x = F.silu(layer(x))
            skips.append(x)
        for block in self.middle:
            x = block(x, pose)
        for level, layer in enumerate(self.grow):
            x = F.pixel_shuffle(layer(x), 2)
            x = F.silu(x + skips[1 - level]) if level < 2 else x
        return reference + x


@dataclass(frozen=True)
class TeacherBatch:
    reference: Tensor  # (B, 3, 64, 64)
    target: Tensor  # (B, 3, 64, 64)
    seen: Tensor  # (B, 3, 64, 64) the target with other colours and place: what the teacher's CNN sees
    expression: Tensor  # (B, E)


def teacher_batches(samples: LipSamples, batch_size: int) -> MakeBatch:
    """Reference and target mouths of one clip; the CNN's view differs in colour and place, so that it cannot pass them on."""

    def make(generator: torch.Generator) -> TeacherBatch:
        pairs = draw_rows(samples, batch_size, generator)
        flip = torch.where(torch.rand(batch_size, generator=generator) < 0.5, -1.0, 1.0)
        stored = samples.store.batch(pairs.T.reshape(-1))
        both = view_mouths(stored, 64, generator, 0.0, 0.0, flip.repeat(2))
        seen = view_mouths(stored[batch_size:], 64, generator, 0.04, 1.0, flip)
        expression = samples.features[pairs[:, 1]]
        expression = np.where(flip.numpy()[:, None] < 0, mirrored(expression), expression)
        return TeacherBatch(both[:batch_size], both[batch_size:], seen, torch.from_numpy(expression.astype(np.float32)))

    return make


def teacher_step(network: MouthDecoder, batch: TeacherBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """Redraw the target; a weak pull keeps the CNN's numbers small, noise on the poses keeps them from hiding detail."""
    pose = network.teacher.raw(batch.expression, batch.seen)
    noisy = pose + torch.randn(pose.shape, generator=generator) * 0.15
    redrawn = network(batch.reference, noisy)
    extra = pose[:, network.teacher.config.main_dim :]
    losses = {"pixel": (redrawn - batch.target).abs().mean()}
    return losses | ({"extra": (extra.square().mean() - 1).relu()} if extra.numel() else {})


def start_teacher(features: np.ndarray, extra_dim: int = LipTeacherConfig.extra_dim) -> LipTeacher:
    """A teacher whose 8 main numbers are the first principal components of the features, before training moves them."""
    teacher = LipTeacher(LipTeacherConfig(features.shape[1], extra_dim=extra_dim))
    mean, std = features.mean(0), features.std(0)
    lips = 80
    scale = np.concatenate([np.full(lips, std[:lips].mean()), np.maximum(std[lips:], 0.02) * 2])  # the outline leads
    _, singular, directions = np.linalg.svd((features - mean)[::7] / scale, full_matrices=False)
    basis = directions[:8] / (singular[:8, None] / np.sqrt(len(features[::7])))
    with torch.no_grad():
        teacher.expression_mean.copy_(torch.from_numpy(mean))
        teacher.expression_std.copy_(torch.from_numpy(scale))
        teacher.linear.weight.copy_(torch.from_numpy(basis))
        teacher.linear.bias.zero_()
    return teacher


def train_decoder(
    samples: LipSamples,
    settings: LipTeacherSettings,
    extra_dim: int = LipTeacherConfig.extra_dim,
    progress: Progress | None = None,
) -> MouthDecoder:
    """Train a teacher and the decoder that redraws mouths from its poses."""
    rows = np.concatenate([samples.rows_of_clip[c] for clips in samples.clips_of_speaker.values() for c in clips])
    network = MouthDecoder(start_teacher(samples.features[rows], extra_dim))
    config = replace(settings, weights={"pixel": 1.0, "extra": 0.1})
    return fit(network, teacher_batches(samples, settings.batch_size), teacher_step, config, progress=progress)


def train_teacher(samples: LipSamples, settings: LipTeacherSettings, progress: Progress | None = None) -> LipTeacher:
    """The teacher alone (see :func:`train_decoder`), with its standardisation set from the training frames."""
    teacher = train_decoder(samples, settings, progress=progress).teacher.cpu()
    picked = np.concatenate([draw_rows(samples, 64, torch.Generator().manual_seed(i))[:, 1] for i in range(60)])
    raw = label_rows(teacher, samples, picked, standardised=False)
    teacher.pose_mean.copy_(raw.mean(0))
    teacher.pose_std.copy_(raw.std(0))
    return teacher


@torch.inference_mode()
def label_rows(
    teacher: LipTeacher,
    samples: LipSamples,
    rows: np.ndarray,
    standardised: bool = True,
) -> Tensor:
    """Teacher poses of stored frames, (len(rows), 12)."""
    teacher.eval()
    poses = []
    for part, mouths in plain_mouths(samples.store, rows, teacher.config.mouth_px):
        expression = torch.from_numpy(samples.features[part].astype(np.float32))
        poses.append(teacher(expression, mouths) if standardised else teacher.raw(expression, mouths))
    return torch.cat(poses)


@torch.inference_mode()
def read_rows(encoder: LipEncoder, store: CropStore) -> Tensor:
    """What a lip encoder reads from all stored mouths, (N, 12)."""
    parts = plain_mouths(store, np.arange(len(store)), encoder.config.mouth_px)
    return torch.cat([encoder.read_mouths(mouths) for _, mouths in parts])


def plain_mouths(store: CropStore, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Some of the rows at once, and their mouth regions as they are, (n, 3, size, size)."""
    for start in range(0, len(rows), 256):
        part = rows[start : start + 256]
        yield part, view_mouths(store.batch(part), size, torch.Generator(), 0.0, 0.0, torch.ones(len(part)))


@dataclass(frozen=True)
class StudentBatch:
    mouths: Tensor  # (B, 3, mouth_px, mouth_px)
    poses: Tensor  # (B, 12)


def student_batches(samples: LipSamples, poses: Tensor, batch_size: int, size: int) -> MakeBatch:
    """Mouths seen through other cameras, with the teacher's poses of the undamaged frame."""

    def make(generator: torch.Generator) -> StudentBatch:
        rows = draw_rows(samples, batch_size, generator)[:, 1]
        mouths = view_mouths(samples.store.batch(rows), size, generator, 0.05, 1.0, torch.ones(batch_size))
        return StudentBatch(mouths, poses[rows])

    return make


def student_step(network: LipEncoder, batch: StudentBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """Distillation: smooth L1 on standardised poses."""
    return {"pose": F.smooth_l1_loss(network.read_mouths(batch.mouths), batch.poses)}


def train_student(
    samples: LipSamples,
    poses: Tensor,
    settings: LipEncoderSettings,
    progress: Progress | None = None,
) -> LipEncoder:
    """Distil the teacher's poses of all stored frames (N, 12) into a ResNet, and fit its opening readout."""
    network = LipEncoder(named("lip encoder", LIP_ENCODERS, settings.network))
    batches = student_batches(samples, poses, settings.batch_size, network.config.mouth_px)
    network = fit(network, batches, student_step, settings, progress=progress)
    rows = np.concatenate([samples.rows_of_clip[c] for clips in samples.clips_of_speaker.values() for c in clips])
    design = torch.cat([poses[rows], torch.ones(len(rows), 1)], 1)
    solution = torch.linalg.lstsq(design, torch.from_numpy(samples.opening[rows])[:, None]).solution[:, 0]
    network.opening_weight.copy_(solution[:-1])
    network.opening_bias.copy_(solution[-1])
    return network.eval()


# ---- the stages ------------------------------------------------------------------------------------------------------------


def lip_teacher(run: Run[LipTeacherSettings]) -> Path:
    """Learn what the 12 numbers mean, and label every clip with them."""
    samples, clips = mouth_samples(run)
    teacher = train_teacher(samples, run.config("run_lip_teacher"), run.progress)
    path = run.save(teacher, "lip-teacher")
    save_labels(run, label_rows(teacher, samples, np.arange(len(samples.features))), samples, clips)
    return path


def lip_encoder(run: Run[LipEncoderSettings]) -> Path:
    """Distil the teacher's labels into the network that reads the picture alone."""
    table = read_poses(run.folder / POSES)
    samples, _ = mouth_samples(run)
    store = samples.store
    if any(str(i) not in table for i in store.clip_ids):
        raise FlashLipsError(f"{POSES} in {run.folder} was made of other clips; run the stage 'lip-teacher' again.")
    poses = np.stack([table[str(store.clip_ids[c])][f] for c, f in zip(store.clip_of, store.frame_of, strict=False)])
    student = train_student(samples, torch.from_numpy(poses), run.config("run_lip_encoder"), run.progress)
    return run.save(student, "lip-encoder")


def mouth_samples(run: Run) -> tuple[LipSamples, list[Clip]]:
    """Stored mouths of all clips, of which the training clips alone are drawn; and the clips."""
    folder, clips = run.folder / MOUTHS, run.material.clips()
    if not has_store(folder):
        raise FlashLipsError(f"No mouths in {folder}; run the stage 'prepare' first.")
    store, known = CropStore(folder), {c.id for c in clips}
    if any(str(i) not in known for i in store.clip_ids):
        raise FlashLipsError(f"{folder} holds mouths of other clips than {run.data}; choose another --folder, or delete it.")
    samples = lip_samples(store, clips, {c.id for c in clips if c.split == "train"})
    if not samples.clips_of_speaker:
        raise FlashLipsError(f"No clip of {run.data} is to be learnt from; build the set with smaller shares for val and test.")
    return samples, clips


def save_labels(run: Run, poses: Tensor, samples: LipSamples, clips: list[Clip]) -> None:
    """Write the poses (N, 12) of all stored frames, whose and for what they are, and everybody's rest pose."""
    poses = poses.numpy()
    by_id = {c.id: c for c in clips}
    own = [by_id[str(i)] for i in samples.store.clip_ids]
    starts = np.cumsum([0] + [len(c) for c in own])
    place = starts[samples.store.clip_of] + samples.store.frame_of
    found = np.zeros(starts[-1], bool)
    found[place] = True
    full = np.zeros((starts[-1], poses.shape[1]), np.float32)
    full[place] = poses
    rest_rows = np.concatenate([samples.rows_of_clip[c] for s in samples.clips_of_speaker.values() for c in s])
    closed = rest_rows[samples.opening[rest_rows] <= np.quantile(samples.opening[rest_rows], 0.15)]
    if not is_first_process():
        return
    np.savez(
        run.folder / POSES, ids=[c.id for c in own], num_frames=[len(c) for c in own], poses=full, found=found,
        rest=np.median(poses[closed], axis=0).astype(np.float32),
        speakers=[c.speaker for c in own], splits=[c.split for c in own], has_voice=[c.has_voice for c in own],
    )  # fmt: skip


def labelled(run: Run) -> Path:
    """The teacher's labels; where no lip teacher was trained, what the run's or the bundled lip encoder reads."""
    path = run.folder / POSES
    if not path.is_file():
        samples, clips = mouth_samples(run)
        encoder = load_network("lip-encoder", run.own_or_bundled("lip-encoder"))
        save_labels(run, read_rows(encoder, samples.store), samples, clips)
    return path


def read_poses(path: Path) -> dict[str, np.ndarray]:
    """Clip id -> poses (T, 12)."""
    if not path.is_file():
        raise FlashLipsError(f"No {path.name} in {path.parent}; run the stage 'lip-teacher' first.")
    table = np.load(path)
    parts = np.split(table["poses"], np.cumsum(table["num_frames"])[:-1])
    return {str(i): p for i, p in zip(table["ids"], parts, strict=False)}
