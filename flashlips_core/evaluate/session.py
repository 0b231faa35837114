"""Which clip is dubbed with what, the dubs themselves, and what MediaPipe sees in them."""

from __future__ import annotations

import random
import wave
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..drawings.sheets import spread, write_mouth_sheet
from ..editing import CropEditor
from ..face.motion import FaceMotion, measure_video
from ..pipeline import DubSettings, LipSync
from ..types import FaceTrack, FlashLipsError, LipPoses, Progress
from .fidelity import FaceFrames, face_frames

SEED = 0  # which clip gets which voice


@dataclass(frozen=True)
class Dub:
    """One clip, what drove it, and what came of it."""

    clip: Path
    driver: Path
    output: Path


@dataclass
class Session:
    """The models, the witness, and what has been measured so far."""

    lipsync: LipSync
    landmarker: Path
    out: Path
    progress: Progress | None = None  # counts dubs, and the CPU minutes of a fine-tuning
    settings: DubSettings = DubSettings()
    total: int = 0
    done: int = 0
    tracks: dict[Path, FaceTrack] = field(default_factory=dict)
    motions: dict[Path, FaceMotion] = field(default_factory=dict)

    @property
    def mode(self) -> str:
        """How the editor wants its frames: a stage-1 editor sees them masked."""
        return "masked" if self.lipsync.is_stage_1 else "mask-free"

    def motion(self, path: Path) -> FaceMotion:
        """What MediaPipe sees in a video, measured once."""
        if path not in self.motions:
            self.motions[path] = measure_video(path, self.landmarker)
        return self.motions[path]

    def track(self, clip: Path) -> FaceTrack:
        """The face track of a clip, computed once."""
        if clip not in self.tracks:
            self.tracks[clip] = self.lipsync.track(clip)
        return self.tracks[clip]

    def dub(self, clip: Path, part: str, driver: Path, poses: LipPoses | None = None) -> Dub:
        """Write ``clip`` with the sound of ``driver``, and the lips of ``poses`` or of that sound."""
        output = self.out / part / f"{clip.parent.name}-{clip.stem}-by-{driver.stem}.mp4"
        output.parent.mkdir(parents=True, exist_ok=True)
        poses = None if poses is None else self.lipsync.moved(poses, self.settings.gain)  # as 'sync --driving' does
        self.lipsync.dub(clip, driver, output, self.settings, track=self.track(clip), poses=poses, mode=self.mode)
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)
        return Dub(clip, driver, output)

    def crop_editor(self, clip: Path, sharpen: float = 0.0) -> CropEditor:
        """The editor with this clip's references; without sharpening it is what the networks alone draw."""
        track = self.track(clip)
        look = self.lipsync.look(clip, track, self.settings.num_references)
        settings = replace(self.settings, mode=self.mode, sharpen=sharpen, start="frame")
        return self.lipsync.prepared(look, settings, track.usual_side)

    def faces(self, clip: Path, count: int, path: Path | None = None) -> FaceFrames:
        """``count`` frames spread over a clip (or over ``path``, a dub of it), cut with the clip's own track."""
        track, motion = self.track(clip), self.motion(clip)
        indices = spread(min(len(track), len(motion)), count)
        return face_frames(path or clip, track, motion, indices, self.lipsync.crop_px)


def clips_under(folder: Path, count: int) -> list[Path]:
    """Up to ``count`` clips below ``folder``, taken in turn from each of its subfolders (people), in name order."""
    groups = defaultdict(list)
    for path in sorted(folder.rglob("*.mp4")):
        groups[path.parent].append(path)
    turns = sorted((index, path) for paths in groups.values() for index, path in enumerate(paths))
    return [path for _, path in turns[:count]]


def drivers_for(clips: Sequence[Path], pool: Sequence[Path], seed: int = SEED) -> list[Path]:
    """Another clip of ``pool`` for each clip, never itself, the same for the same seed."""
    if len(pool) < 2:
        raise FlashLipsError(f"Found {len(pool)} clips to take voices from; two are needed: check --data.")
    shuffled = random.Random(seed).sample(list(pool), len(pool))
    chosen = []
    for index, clip in enumerate(clips):
        driver = shuffled[index % len(shuffled)]
        chosen.append(shuffled[(index + 1) % len(shuffled)] if driver == clip else driver)
    return chosen


def sheets(session: Session, dubs: Sequence[Dub]) -> list[Path]:
    """A contact sheet per dub: the source's and the output's mouths, at the output's own pixels."""
    paths = []
    for dub in dubs:
        rows = {f"source {dub.clip.stem}": dub.clip, f"output, lips of {dub.driver.stem}": dub.output}
        path = session.out / "sheets" / f"{dub.output.parent.name}-{dub.output.stem}.png"
        paths.append(write_mouth_sheet(path, rows, session.track(dub.clip).boxes))
    return paths


def write_silence(path: Path, seconds: int) -> Path:
    """A mono 16 kHz wave file of zeros."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * 16_000 * seconds))
    return path
