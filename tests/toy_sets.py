"""Clips that a training set is built from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flashlips_core.dataset.build import BuildSettings
from flashlips_core.dataset.filters import Limits
from flashlips_core.face import Detection, Detector
from flashlips_core.media import load_audio, probe, read_frames, write_video
from flashlips_core.pipeline import LipSync
from flashlips_core.types import Audio, Frame

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "flashlips_core" / "demo" / "face.mp4"
POINTS = np.array([[0.374, 0.441], [0.595, 0.422], [0.489, 0.554], [0.411, 0.674], [0.618, 0.655]], np.float32)
FRAMES = 75  # of the demo clip, at half its size
QUICK = BuildSettings(crop_px=64, val=0.0, test=0.0, limits=Limits(min_seconds=1.0))


class DemoFace(Detector):
    """Knows where the demo clip's face is; sees nobody in a dark picture, nor in one whose corner is white."""

    def find(self, images, smallest_px=12.0):
        height, width = images.shape[1:3]
        points = POINTS * np.array([width, height], np.float32)
        box = np.array([0.3, 0.25, 0.7, 0.75], np.float32) * np.array([width, height] * 2, np.float32)
        return [[Detection(box, points, 0.9)] if image.mean() > 30 > image[:4, :4].mean() - 210 else [] for image in images]


@pytest.fixture(scope="module")
def lipsync() -> LipSync:
    """The bundled lip encoder and codec."""
    return LipSync.load(device="cpu", detector=DemoFace())


@pytest.fixture(scope="module")
def demo() -> tuple[list[Frame], Audio]:
    """Three seconds of the bundled talking face, 256 px wide."""
    frames = [replace(f, planes=tuple(p[::2, ::2] for p in f.planes)) for f in read_frames(DEMO, stop=FRAMES)]
    return frames, load_audio(DEMO)


def write_clip(path: Path, frames: list[Frame], sound: Audio | None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].planes[0].shape
    write_video(path, iter(frames), replace(probe(DEMO), width=width, height=height), sound, preset="ultrafast")
    return path


def at(sound: Audio, seconds: float, length: float = FRAMES / 25) -> Audio:
    """A stretch of sound; before its beginning there is silence."""
    samples = torch.nn.functional.pad(sound.samples, (sound.sample_rate * 2, 0))
    start = round((2 + seconds) * sound.sample_rate)
    return Audio(samples[:, start : start + round(length * sound.sample_rate)], sound.sample_rate)
