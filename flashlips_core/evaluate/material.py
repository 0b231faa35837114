"""What the table is measured on and by what it is judged: suites, targets, clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..measures import UNBOUNDED, Bounds
from ..types import FlashLipsError
from .phonemes import Phone
from .session import clips_under
from .speech import read_speech


@dataclass(frozen=True)
class Suite:
    """How much is measured: clips per part, frames per clip for the picture measures."""

    own: int  # s1 test, another clip's audio
    people: int  # unseen people, s1 audio
    driven: int  # s1 test, another clip's lips
    silent: int
    spoken: int  # synthetic voices that the model never heard
    frames: int


SUITES = {
    "quick": Suite(own=6, people=5, driven=4, silent=4, spoken=6, frames=8),
    "full": Suite(own=50, people=26, driven=30, silent=20, spoken=24, frames=16),
}


@dataclass(frozen=True)
class Targets:
    """Which values pass: lowest and highest, None where there is no such limit."""

    s1_voice: Bounds = (0.60, None)
    people_voice: Bounds = (0.45, None)
    s1_video: Bounds = (0.85, None)
    people_video: Bounds = (0.80, None)
    silence: Bounds = (None, 0.30)
    reconstruction: Bounds = (None, 4.0)  # dB below the codec, all clips together
    s1_reconstruction: Bounds = UNBOUNDED
    people_reconstruction: Bounds = UNBOUNDED
    detail: Bounds = UNBOUNDED
    closures: Bounds = UNBOUNDED  # on s1
    unheard: Bounds = UNBOUNDED


TARGETS = {
    "basic": Targets(),
    "strict": Targets(
        s1_voice=(0.80, None), people_voice=(0.65, None), s1_video=(0.90, None), people_video=(0.80, None), silence=(None, 0.12),
        s1_reconstruction=(None, 1.5), people_reconstruction=(None, 3.0), detail=(0.8, 1.2), closures=(0.80, None),
        unheard=(0.50, None),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Material:
    """The clips that the table is measured on, and by what it is judged."""

    own: list[Path]  # s1 test
    people: list[Path]  # never trained on
    pool: list[Path]  # s1 test, for voices and driving lips
    data: Path
    weights: Path
    speech: dict[Path, list[Phone]]  # synthetic voices
    suite: Suite
    targets: Targets

    @property
    def mixed(self) -> list[Path]:
        """One of s1, one of the people, and so on."""
        return [clip for pair in zip(self.own, self.people, strict=False) for clip in pair]

    @property
    def driven(self) -> tuple[list[Path], list[Path]]:
        """Clips of s1 and of the people that take another clip's lips."""
        return self.own[: self.suite.driven], self.people[: self.suite.driven]

    @property
    def pictured(self) -> list[Path]:
        """Clips for what is measured on crops."""
        return self.mixed[: self.suite.driven]

    @property
    def pictured_groups(self) -> dict[str, tuple[list[Path], Bounds]]:
        """The same by whose they are, with what each group may lose to the codec."""
        own, people = ([clip for clip in self.pictured if clip in clips] for clips in (self.own, self.people))
        return {
            "s1 test": (own, self.targets.s1_reconstruction),
            "unseen people": (people, self.targets.people_reconstruction),
        }

    @property
    def silent(self) -> list[Path]:
        """Clips that are dubbed with silence."""
        return self.mixed[: self.suite.silent]


def gather(data: Path, weights: Path, voices: Path | None, suite: Suite, targets: Targets) -> Material:
    """Find the clips."""
    own = clips_under(data / "grid_s1" / "test", suite.own)
    if not own:
        raise FlashLipsError(f"No clips under {data}/grid_s1/test; give the folder that holds grid_s1 and grid_people as --data.")
    people = clips_under(data / "grid_people" / "test", suite.people)
    pool = clips_under(data / "grid_s1" / "test", 10_000)
    spoken = dict(list(read_speech(voices).items())[: suite.spoken]) if voices is not None else {}
    return Material(own, people, pool, data, weights, spoken, suite, targets)
