"""``python -m flashlips_core eval --videos``: any folder of clips dubbed with any voices, and MediaPipe as the outside witness.

Making dubs and measuring them are two things: :func:`measured` needs a source, a dub of it and the openings that were asked for
(or None), whoever made the dub. T frames.
"""

from __future__ import annotations

import csv
import hashlib
import json
import time
import wave
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from ... import measures as m
from ...audio import to_mono_16k
from ...drawings.sheets import contact_sheet
from ...face.motion import FaceMotion, measure_frames, motion_from_faces
from ...media import CONTAINERS, open_sound, probe
from ...pipeline import LipSync
from ...poses.motion import resample
from ...types import SAMPLE_RATE, FaceTrack, FlashLipsError, LipPoses
from ..session import Session
from . import measures as vm
from .page import write_page
from .rows import Numbers, rows_of

MAX_LAG = 4  # frames either way, for a voice's own lips
SHEET_PX = 150  # smaller mouths are shown larger on contact sheets, by whole pixels


@dataclass(frozen=True)
class Clip:
    """A source video as the witness sees it."""

    path: Path
    motion: FaceMotion
    head: vm.HeadMotion
    fps: float


@dataclass(frozen=True)
class Voiced:
    """A dub, by whom ever."""

    path: Path
    asked: np.ndarray | None  # (T,) openings that the lips were asked for, over the eye distance
    frames_per_second: float | None  # file to file: tracking, listening, editing, writing


# ---- what is compared ------------------------------------------------------------------------------------------------------


def clips_in(folder: Path) -> list[Path]:
    """The videos of a folder, by name."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in CONTAINERS) if folder.is_dir() else []
    if not found:
        raise FlashLipsError(f"No clips in {folder}; give a folder with {', '.join(sorted(CONTAINERS))} files as --videos.")
    return found


def seen(session: Session, path: Path, frames: int | None, cache: Path | None) -> FaceMotion:
    """What the witness sees in the first ``frames`` of a video; of sources it is kept in ``cache``, by path, size and time."""
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{frames}|{session.landmarker.stat().st_size}"
    kept = None if cache is None else cache / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if kept is not None and kept.is_file():
        with np.load(kept) as file:
            return motion_from_faces(list(zip(file["landmarks"], file["blendshapes"], strict=True)))
    shown = vm.upright_frames(path)
    motion = measure_frames((frame for _, frame in zip(range(frames or 1 << 62), shown, strict=False)), session.landmarker)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, landmarks=motion.landmarks, blendshapes=motion.blendshapes)
    return motion


def seen_clip(session: Session, path: Path, frames: int | None, cache: Path) -> Clip:
    """A source, or an error that says that it has no face."""
    motion = seen(session, path, frames, cache)
    if not motion.found.any():
        raise FlashLipsError(f"MediaPipe finds no face in {path.name}; leave this clip out.")
    fps = float(probe(path).fps)
    return Clip(path, motion, vm.head_motion(motion, fps), fps)


def measured(session: Session, clip: Clip, voiced: Voiced, sheet: Path | None) -> Numbers:
    """All numbers of one dub, and its contact sheet: nothing here asks who made it."""
    dub = seen(session, voiced.path, len(clip.motion), None)
    count = min(len(dub), len(clip.motion))
    if not (dub.found[:count] & clip.motion.found[:count]).any():
        raise FlashLipsError(f"MediaPipe finds no face in {voiced.path.name} where {clip.path.name} has one; look at this dub.")
    curve = voiced.asked if voiced.asked is not None else dub.lip_gap
    views = vm.mouth_views(clip.motion, curve[:count]) if sheet is not None else None
    numbers: Numbers = {"frames": count, "without_face": int((~dub.found[:count] & clip.motion.found[:count]).sum())}
    pairs = zip(vm.upright_frames(clip.path), vm.upright_frames(voiced.path), strict=False)
    numbers |= vm.lip_numbers(dub, voiced.asked) | vm.picture_numbers(pairs, (clip.motion, dub), *filter(None, [views]))
    numbers["frames_per_second"] = voiced.frames_per_second
    if views is not None and views.found:
        width = next(iter(views.found.values()))[0].shape[1]
        contact_sheet(views.rows(), sheet, max(1, round(SHEET_PX / width)))
        numbers["sheet"] = sheet.name
    return numbers


# ---- making dubs -----------------------------------------------------------------------------------------------------------


def beginning(sound: Path, seconds: float, folder: Path) -> Path:
    """The first seconds of a sound as a mono 16 kHz wave file, which a dub ends with."""
    samples = to_mono_16k(open_sound(sound))[: round(seconds * SAMPLE_RATE)]
    path = folder / f"{sound.stem}-{len(samples)}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples.clamp(-1, 1) * 32767).round().short().numpy().tobytes())
    return path


@torch.inference_mode()
def opening_asked(lipsync: LipSync, poses: LipPoses, clip: Clip) -> np.ndarray:
    """What the lip encoder reads from poses, one opening per frame of the clip. (T,)"""
    per_frame = resample(poses, probe(clip.path).fps, len(clip.motion)).values
    encoder = lipsync.lip_encoder
    return encoder.opening(per_frame.to(encoder.opening_weight)).float().cpu().numpy()


@dataclass
class Maker:
    """Dubs clips by the public pipeline, as ``sync`` does; what does not depend on the voice is done once per clip."""

    session: Session
    frames: int | None
    tracks: dict[Path, tuple[FaceTrack, float]] = field(default_factory=dict)  # and the seconds that each took
    looks: dict[Path, torch.Tensor] = field(default_factory=dict)  # (K, 12) lip poses of candidate frames

    def poses(self, clip: Clip, voice: Path) -> LipPoses:
        """What ``sync`` takes from a voice for this clip."""
        return self.session.lipsync.poses_for(voice, self._look(clip), self.session.settings)

    def dub(self, clip: Clip, voice: Path, out: Path) -> Voiced:
        """Write one dub and the openings that it was asked for."""
        lipsync, settings = self.session.lipsync, self.session.settings
        sound = beginning(voice, len(clip.motion) / clip.fps, self.session.out / "voices") if self.frames else voice
        track, tracking_s = self._track(clip)
        self._look(clip)  # first: choosing references is in the report's time below
        started = time.perf_counter()
        poses = self.poses(clip, sound)
        listening_s = time.perf_counter() - started
        out.parent.mkdir(parents=True, exist_ok=True)
        report = lipsync.dub(clip.path, sound, out, settings, track=track, poses=poses, mode=self.session.mode)
        asked = opening_asked(lipsync, poses, clip)[: report.frames]
        np.save(asked_path(out), asked)
        speed = report.frames / (tracking_s + listening_s + report.total_s)
        np.save(out.with_suffix(".speed.npy"), speed)
        return Voiced(out, asked, speed)

    def own_voice(self, clip: Clip) -> dict[str, float] | None:
        """How well the opening predicted from a clip's own sound follows its own lips; None without sound."""
        if probe(clip.path).audio_rate is None:
            return None
        sound = beginning(clip.path, len(clip.motion) / clip.fps, self.session.out / "voices")
        predicted = opening_asked(self.session.lipsync, self.poses(clip, sound), clip)
        score, lag = m.best_correlation(clip.motion.lip_gap, predicted, MAX_LAG)
        size = m.motion_share(predicted, vm.opening(clip.motion))
        return {"own_r": score, "own_lag": lag, "own_r_lag_0": m.correlation(clip.motion.lip_gap, predicted), "own_size": size}

    def own_lips(self, clip: Clip) -> dict[str, float]:
        """How well the opening that the lip encoder reads from a clip follows what the witness sees in it."""
        track, _ = self._track(clip)
        read = opening_asked(self.session.lipsync, self.session.lipsync.poses_from_video(clip.path, track), clip)
        return {
            "read_r": m.correlation(clip.motion.lip_gap, read),
            "read_size": m.motion_share(read, vm.opening(clip.motion)),
        }

    def _look(self, clip: Clip) -> torch.Tensor:
        """Lip poses of the clip's candidate frames, (K, 12)."""
        if clip.path not in self.looks:
            track, lipsync = self._track(clip)[0], self.session.lipsync
            self.looks[clip.path] = lipsync.look(clip.path, track, self.session.settings.num_references).poses
        return self.looks[clip.path]

    def _track(self, clip: Clip) -> tuple[FaceTrack, float]:
        """A clip's face track and the seconds that it took."""
        if clip.path not in self.tracks:
            started = time.perf_counter()
            track = self.session.lipsync.track(clip.path, self.session.settings, len(clip.motion))
            self.tracks[clip.path] = track, time.perf_counter() - started
        return self.tracks[clip.path]


def asked_path(dub: Path) -> Path:
    """Where the openings asked of a dub lie: one number per frame."""
    return dub.with_suffix(".opening.npy")


def found_dub(folder: Path, clip: Path, voice: Path) -> Voiced:
    """A dub that is there already, ``CLIP--VOICE.mp4``, with the openings that were asked for where their file is there too."""
    path = folder / dub_name(clip, voice)
    if not path.is_file():
        raise FlashLipsError(f"No dub {path.name} in {folder}; name dubs CLIP--VOICE.mp4.")
    asked, speed = asked_path(path), path.with_suffix(".speed.npy")
    return Voiced(path, np.load(asked) if asked.is_file() else None, float(np.load(speed)) if speed.is_file() else None)


def dub_name(clip: Path, voice: Path) -> str:
    """A dub's file."""
    return f"{clip.stem}--{voice.stem}.mp4"


# ---- a folder of clips -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What is dubbed with what, and what is measured beside the dubs."""

    videos: Path  # folder
    voice: Sequence[Path]
    in_turn: bool = False  # one voice per clip, by turns, instead of every voice
    frames: int | None = None  # the first ones of each clip only
    only: Sequence[str] | None = None  # clips whose names hold one of these
    own_voice: bool = False  # also predict each clip's lips from its own sound
    own_lips: bool = False  # also read each clip's lips with the lip encoder
    dubs: Path | None = None  # measure these instead of making some
    against: Path | None = None  # another run's result.json


def check(wanted: Request, landmarker: Path) -> list[Path]:
    """The clips; says what is missing before the long work."""
    clips = clips_in(wanted.videos)
    if wanted.only:
        clips = [clip for clip in clips if any(word in clip.name for word in wanted.only)]
        if not clips:
            raise FlashLipsError(f"No clip of {wanted.videos} is named after {' or '.join(wanted.only)}; check --only.")
    if not wanted.voice:
        raise FlashLipsError("There is nothing to say; give a sound file or several as --voice.")
    for file, option in [*((voice, "--voice") for voice in wanted.voice), (wanted.against, "--against")]:
        if file is not None and not file.is_file():
            raise FlashLipsError(f"There is no file {file}; check {option}.")
    if wanted.frames is not None and wanted.frames < 3:
        raise FlashLipsError(f"--frames is {wanted.frames}; 3 or more are needed.")
    if not landmarker.is_file():
        raise FlashLipsError(f"No MediaPipe face landmarker at {landmarker}; name its folder with --weights.")
    return clips


def run(wanted: Request, session: Session, command: str) -> dict:
    """Dub, measure, and write ``result.json``, ``clips.csv``, ``page.html`` and sheets under ``--out``."""
    paths = check(wanted, session.landmarker)
    session.total = len(paths) * (1 if wanted.in_turn else len(wanted.voice))
    session.out.mkdir(parents=True, exist_ok=True)
    maker = Maker(session, wanted.frames)
    dubs, clips, skipped = [], [], []
    for index, path in enumerate(paths):
        voices = [wanted.voice[index % len(wanted.voice)]] if wanted.in_turn else wanted.voice
        try:
            numbers, of_clip = _one_clip(wanted, maker, path, voices)
        except FlashLipsError as error:
            skipped.append({"clip": path.name, "why": str(error)})
            continue
        dubs += numbers
        clips.append(of_clip)
        _write(session.out, _result(command, dubs, clips, skipped), wanted.against)  # a stopped run leaves what it has
    if not dubs:
        raise FlashLipsError(f"No clip could be measured; the first: {skipped[0]['why']}")
    return _write(session.out, _result(command, dubs, clips, skipped), wanted.against)


def _one_clip(wanted: Request, maker: Maker, path: Path, voices: Sequence[Path]) -> tuple[list[Numbers], Numbers]:
    session, cache = maker.session, maker.session.out.parent / "seen"
    clip = seen_clip(session, path, wanted.frames, cache)
    of_clip: Numbers = {"clip": path.stem, "moving": clip.head.is_moving} | asdict(clip.head)
    of_clip["eyes_px"] = float(np.nanmedian(vm.eye_distance(clip.motion)))
    if wanted.own_voice:
        of_clip |= maker.own_voice(clip) or {}
    if wanted.own_lips:
        of_clip |= maker.own_lips(clip)
    found = []
    for voice in voices:
        out = session.out / "dubs" / dub_name(path, voice)
        voiced = found_dub(wanted.dubs, path, voice) if wanted.dubs else maker.dub(clip, voice, out)
        numbers = measured(session, clip, voiced, session.out / "sheets" / f"{out.stem}.png")
        found.append({"clip": path.stem, "voice": voice.stem, "moving": clip.head.is_moving} | numbers)
        session.done += 1
        if session.progress is not None:
            session.progress(session.done, session.total)
    return found, of_clip


def _result(command: str, dubs: list[Numbers], clips: list[Numbers], skipped: list[dict]) -> dict:
    rows = rows_of(dubs, clips)
    table = m.markdown_table(rows, command) + "".join(f"\nSkipped {s['clip']}: {s['why']}\n" for s in skipped)
    measures = [row.as_dict() for row in rows]
    return {"command": command, "measures": measures, "dubs": dubs, "clips": clips, "skipped": skipped, "table": table}


def _write(out: Path, result: dict, against: Path | None) -> dict:
    (out / "result.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    (out / "table.md").write_text(result["table"], encoding="utf-8")
    about = {clip["clip"]: clip for clip in result["clips"]}
    lines = [about[dub["clip"]] | dub for dub in result["dubs"]]
    names = list(dict.fromkeys(name for line in lines for name in line))
    with open(out / "clips.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(lines)
    write_page(out / "page.html", result, out / "sheets", against)
    return result
