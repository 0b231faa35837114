"""How many numbers a lip pose needs: ``python -m flashlips_core ablation``, the paper's ablation at a small scale.

The paper trains its whole method with poses of 8, 8+4 and 8+16 numbers and finds that more of them follow the lips better and
keep the person's face worse, because appearance leaks into them. Here the lip teacher is trained with each, together with the
small decoder that redraws a mouth from another frame's mouth and a pose (``lip.MouthDecoder``), on the same batches.

N pairs of frames, P numbers of a pose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..loading import load_network
from ..measures import correlation, psnr
from ..models.lip_encoder import LipEncoder, LipTeacherConfig
from ..types import FlashLipsError, Progress
from . import lip
from .lip import LipSamples, LipTeacherSettings, MouthDecoder
from .run import Run

EXTRA_DIMS = (0, 4, 16)  # beside the 8 main numbers
RIDGE = 1e-2  # of the linear map that names the speaker, on standardised poses


@dataclass(frozen=True)
class Row:
    """What poses of one size are good for; means over frames of people, or clips, that were not learnt from."""

    size: str
    redrawn_db: float  # PSNR of a mouth redrawn from another frame of its clip and its own pose
    following: float  # correlation of the opening that a mouth with somebody else's pose shows with that other's
    named: float  # share of frames whose speaker a linear map tells from the pose; appearance that leaked
    chance: float  # of naming right by guessing


def ablate(
    run: Run[LipTeacherSettings],
    extra_dims: Sequence[int],
    steps: int,
    pairs: int = 512,
    progress: Progress | None = None,
) -> list[Row]:
    """Train and judge one teacher after the other, with the settings of the stage "lip-teacher" but for their length."""
    if min(extra_dims) < 0:
        raise FlashLipsError(f"A pose cannot have {min(extra_dims)} further numbers; give 0 or more.")
    learnt, clips = lip.mouth_samples(run)
    held_out = lip.lip_samples(learnt.store, clips, {c.id for c in clips if c.split != "train"})
    if len(held_out.clips_of_speaker) < 2 or len(learnt.clips_of_speaker) < 2:
        raise FlashLipsError("The ablation needs two people to learn from and two that are held out; build a larger set.")
    reader = load_network("lip-encoder")
    rows = []
    for extra_dim in extra_dims:
        settings = replace(run.config(f"run_ablation_{extra_dim}_{steps}"), steps=steps)
        network = lip.train_decoder(learnt, settings, extra_dim, progress).cpu().eval()
        rows.append(judged(network, learnt, held_out, reader, pairs))
    return rows


@torch.inference_mode()
def judged(network: MouthDecoder, learnt: LipSamples, held_out: LipSamples, reader: LipEncoder, pairs: int) -> Row:
    """The row of one decoder and its teacher."""
    config, generator = network.teacher.config, torch.Generator().manual_seed(0)
    own, others = (lip.draw_rows(held_out, pairs, generator) for _ in range(2))
    speaker = held_out.store.speakers[held_out.store.clip_of]
    apart = speaker[own[:, 0]] != speaker[others[:, 1]]
    if not apart.any():
        raise FlashLipsError("No two people were drawn from those held out; ask for more pairs.")
    redrawn = redraw(network, held_out, own[:, 0], own[:, 1])
    truth = mouths(held_out, own[:, 1])
    driven = redraw(network, held_out, own[apart, 0], others[apart, 1])
    size = (reader.config.mouth_px,) * 2
    shown = reader.opening(reader.read_mouths(F.interpolate(driven, size=size, mode="bilinear")))
    named, chance = speakers_named(network, learnt)
    return Row(
        f"{config.main_dim}+{config.extra_dim}" if config.extra_dim else str(config.main_dim),
        float(np.mean([psnr(*pair) for pair in zip(redrawn, truth, strict=True)])),
        correlation(shown.numpy(), held_out.opening[others[apart, 1]]),
        named, chance,
    )  # fmt: skip


def redraw(network: MouthDecoder, samples: LipSamples, references: np.ndarray, targets: np.ndarray) -> Tensor:
    """The mouths of ``references`` in the poses of ``targets``, rows each. -> (N, 3, 64, 64)"""
    poses = lip.label_rows(network.teacher, samples, targets, standardised=False)
    return network(mouths(samples, references), poses)


def mouths(samples: LipSamples, rows: np.ndarray) -> Tensor:
    """(N, 3, 64, 64) in [-1, 1]"""
    return torch.cat([found for _, found in lip.plain_mouths(samples.store, rows, LipTeacherConfig.mouth_px)])


def speakers_named(network: MouthDecoder, samples: LipSamples) -> tuple[float, float]:
    """How often a linear map from poses that is fitted on half of each speaker's clips names the speaker of the other half.

    Returns: the share that is right, speakers weighing the same, and the share by guessing.
    """
    halves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    labels: tuple[list[int], list[int]] = ([], [])
    for number, clips in enumerate(samples.clips_of_speaker.values()):
        for place, clip in enumerate(clips):
            rows = samples.rows_of_clip[clip][::5]  # neighbours in time are alike
            halves[place % 2].append(rows)
            labels[place % 2].extend([number] * len(rows))
    fitted, judged_on = (lip.label_rows(network.teacher, samples, np.concatenate(rows), standardised=False) for rows in halves)
    mean, deviation = fitted.mean(0), fitted.std(0)
    first, second = (torch.cat([(x - mean) / deviation, torch.ones(len(x), 1)], 1) for x in (fitted, judged_on))
    truth, wanted = (torch.tensor(numbers) for numbers in labels)
    one_hot = F.one_hot(truth).float()
    weight = (1 / one_hot.sum(0))[truth][:, None]  # a speaker with many clips counts as one with few
    square = first.T @ (weight * first) + RIDGE * torch.eye(first.shape[1])
    guessed = (second @ torch.linalg.solve(square, first.T @ (weight * one_hot))).argmax(1)
    right = [(guessed[wanted == number] == number).float().mean().item() for number in wanted.unique()]
    return float(np.mean(right)), 1 / len(samples.clips_of_speaker)


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    titles = ("pose numbers", "mouth redrawn, PSNR dB", "opening follows somebody else's pose", "speaker told by the pose")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        named = f"{row.named:.2f} (chance {row.chance:.2f})"
        lines.append(f"| {row.size} | {row.redrawn_db:.2f} | {row.following:.2f} | {named} |")
    return "\n".join(lines)
