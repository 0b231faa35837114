"""Poses for speech that nobody was filmed speaking: a linear teacher fitted to real lips tells them from a speech network's rows.

GRID has 51 words, and whatever is trained on its lips alone learns these words by heart. A linear map from a few leading
components of Whisper's second layer cannot: fitted to GRID's lips it follows lips of open speech at .65 (opening, 21 clips)
where all its numbers reach .55. So what it says of other voices and languages is worth learning from; real lips count
more.

N rows at 50 per second, T pose frames at 25, D numbers per row, C components, P pose numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .tracks import PoseTracks

COMPONENTS = 48  # 32 to 48 follow open speech best; 16 hear too little, 128 learn GRID's words by heart
REACH = 2  # pose frames heard on either side
RIDGE = 0.1  # of components whose mean variance is 1
STRETCH = 1.15  # a ridge regression moves less than lips do: its deviation on GRID is .85 of theirs


def half_whitening(targets: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and basis (D, components) onto which features are principal components of mean variance 1.

    Deviations become their square roots: the leading components, which can be learnt, keep more weight than the last ones.
    """
    values = targets.astype(np.float32)
    mean = values.mean(axis=0)
    variance, vectors = np.linalg.eigh((values - mean).T @ (values - mean) / len(values))
    variance, vectors = variance[::-1][:components].clip(1e-8), vectors[:, ::-1][:, :components]
    return mean, (vectors / variance**0.25 / np.sqrt(np.sqrt(variance).mean())).astype(np.float32)


@dataclass(frozen=True)
class PoseTeacher:
    """Linear map from the leading components of rows, a few frames of them, to how far poses are from a person's mean."""

    mean: np.ndarray  # (D,)
    basis: np.ndarray  # (D, C)
    weights: np.ndarray  # ((2 REACH + 1) C, P)
    offset: np.ndarray  # (P,)

    @staticmethod
    def fit(speech: np.ndarray, rows: Sequence[np.ndarray], poses: Sequence[np.ndarray], weights: Sequence[float]) -> PoseTeacher:
        """Fit to clips of real lips.

        Args:
            speech: (N, D) rows of many voices, whose leading components are listened to.
            rows: (N, D) of each clip.
            poses: (T, P) of each clip; what differs between clips on average is a person's and is left out.
            weights: of each clip.
        """
        mean, basis = half_whitening(speech, COMPONENTS)
        heard, moved = [], []
        for values, pose, weight in zip(rows, poses, weights, strict=True):
            frames = about(values, mean, basis)
            n = min(len(frames), len(pose))
            heard.append(np.concatenate([frames[:n], np.ones((n, 1))], 1) * np.sqrt(weight))
            moved.append((pose[:n] - pose[:n].mean(0)) * np.sqrt(weight))
        x, y, total = np.concatenate(heard), np.concatenate(moved), sum(w * len(p) for w, p in zip(weights, poses, strict=True))
        penalty = RIDGE * total * np.eye(x.shape[1])
        penalty[-1, -1] = 0
        solved = np.linalg.solve(x.T @ x + penalty, x.T @ y)
        return PoseTeacher(mean, basis, solved[:-1], solved[-1])

    def tell(self, rows: np.ndarray) -> np.ndarray:
        """(N, D) rows -> (N // 2, P) poses about the speaker's mean."""
        return (STRETCH * (about(rows, self.mean, self.basis) @ self.weights + self.offset)).astype(np.float32)


def about(rows: np.ndarray, mean: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Components of each pose frame with those of its neighbours, edges repeated. (N, D) -> (N // 2, (2 REACH + 1) C)"""
    frames = len(rows) // 2
    values = ((rows[: 2 * frames].astype(np.float32) - mean) @ basis).reshape(frames, 2, -1).mean(1)
    padded = np.pad(values, ((REACH, REACH), (0, 0)), mode="edge")
    return np.concatenate([padded[i : i + frames] for i in range(2 * REACH + 1)], 1)


def told_tracks(told: Sequence[np.ndarray], audio: Sequence[np.ndarray], people: np.ndarray, seed: int = 0) -> PoseTracks:
    """Tracks of told poses, each moved to the mean pose of somebody real.

    Args:
        told: (T, P) of each clip, as :meth:`PoseTeacher.tell` gives them.
        audio: (T', A) features of each clip at the pose rate, of whatever encoder is to be listened to.
        people: (K, P) mean poses of real people.
    """
    random = np.random.default_rng(seed)
    lengths = [min(len(a), len(p)) for a, p in zip(audio, told, strict=True)]
    poses = [p[:n] + people[random.integers(len(people))] for p, n in zip(told, lengths, strict=True)]
    return PoseTracks(
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([a[:n] for a, n in zip(audio, lengths, strict=True)]),
        np.concatenate(poses).astype(np.float32),
        np.ones(sum(lengths), bool),
        np.arange(len(lengths)),
        np.ones(len(lengths), bool),
    )


def joined(real: PoseTracks, told: PoseTracks) -> PoseTracks:
    """Both, told voices as further people."""
    is_told = np.concatenate([np.zeros(len(real.person), bool), np.ones(len(told.person), bool)])
    both = {name: np.concatenate([getattr(real, name), getattr(told, name)]) for name in ("audio", "poses", "found")}
    starts = np.concatenate([real.starts, told.starts[1:] + real.starts[-1]])
    person = np.concatenate([real.person, told.person + real.person.max() + 1])
    return replace(real, starts=starts, person=person, is_told=is_told, **both)
