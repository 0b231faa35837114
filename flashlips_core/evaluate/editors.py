"""Editors side by side: a refined one beside its masked teacher, and one before and after fine-tuning to an unseen person."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..audio import to_mono_16k
from ..checkpoint import BUNDLED
from ..codec import Codec, load_codec
from ..loading import LoadedPart, load_part
from ..measures import UNBOUNDED, Measure
from ..media import load_audio, probe, read_frames, write_video
from ..media.part import CRF, PRESET
from ..pipeline import LipSync
from ..train.finetune.best_so_far import UNENDING, Tuned, best_of
from ..train.finetune.codec import tune_decoder
from ..train.finetune.editor import FineTuning, fine_tune
from ..train.finetune.person import prepare_person
from ..train.finetune.report import Check
from ..train.finetune.speech import tune_style
from ..types import SAMPLE_RATE, Audio, FlashLipsError, Frame
from . import rows
from .material import Material
from .session import Session, clips_under, drivers_for, sheets, write_silence

PERSON = "s4"  # of grid_people/test: seen by no training
NUM_LEARNT = 5  # clips to fine-tune on; the others are measured

Columns = dict[str, list[Measure]]


def with_editor(
    session: Session, editor: LoadedPart, name: str, pose_model: LoadedPart | None = None, codec: Codec | None = None
) -> Session:
    """The same session with another editor, and another pose model and codec if given; its dubs go into a folder of their own."""
    old = session.lipsync
    names = ("pose_model", "audio_encoder", "lip_encoder", "emotion_encoder")
    parts = {part: getattr(old, part) for part in names} | ({} if pose_model is None else {"pose_model": pose_model})
    if codec is not None or old.codec.name not in BUNDLED:  # a bundled one is the editor's own
        parts["codec"] = codec or old.codec
    lipsync = LipSync(**parts, editor=editor, detector=lambda: old.detector, device=old.device, dtype=old.dtype)
    return replace(session, lipsync=lipsync, out=session.out / name)


# ---- two editors -----------------------------------------------------------------------------------------------------------


def compare(session: Session, given: Material, editors: Sequence[str]) -> Columns:
    """What each editor changes outside the mouth, how it draws mouths, and what it does in silence."""
    session.motion(given.own[0])  # a missing MediaPipe is said before the long work, not after
    session.total = len(editors) * len(given.silent)
    silence = write_silence(session.out / "silence.wav", seconds=3)
    frames, columns = given.suite.frames, {}
    for name, source in zip(_names(editors), editors, strict=True):
        editor = load_part("editor", source, session.lipsync.device, session.lipsync.dtype)
        theirs = with_editor(session, editor, name)
        silent = [theirs.dub(clip, "silent", silence) for clip in given.silent]
        session.done = theirs.done
        sheets(theirs, silent[:4])
        columns[name] = [
            *rows.outside_rows(theirs, given.pictured, frames),
            *rows.picture_rows(theirs, given.pictured_groups, frames, given.targets.reconstruction),
            *rows.silence_rows(theirs, silent, given.targets.silence),
        ]
    return columns


def _names(editors: Sequence[str]) -> list[str]:
    """Their files' names, told apart where they are the same."""
    stems = [Path(editor).stem for editor in editors]
    return [stem if stems.count(stem) == 1 else f"{stem}-{index + 1}" for index, stem in enumerate(stems)]


# ---- before and after fine-tuning ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tuning:
    """What a fine-tuning took."""

    learnt: str  # what it was trained on
    decoder: str  # what the codec's decoder learnt of the face
    style: str  # what the pose model learnt from its sound
    ended: str  # why it ended
    steps: int  # up to the last look at the held-out frames
    best_step: int  # what is measured
    wall_s: float
    cpu_s: float  # of all cores together

    def sentence(self) -> str:
        """For people."""
        return (
            f"Trained on {self.learnt} The decoder, on held-out frames: {self.decoder} "
            f"The editor's best of {self.steps} steps: {self.best_step}; ended by: {self.ended}. "
            f"The pose model, on held-out speech: {self.style} "
            f"Together {self.cpu_s / 60:.1f} CPU minutes, {self.wall_s / 60:.1f} by the clock."
        )


def before_and_after(session: Session, given: Material, cpu_minutes: float, skipped: int = 0) -> tuple[Columns, Tuning]:
    """Fine-tune the session's codec, editor and pose model on five clips of an unseen person; measure on that person's others.

    The decoder alone has a column, and so has the pose model's way of speaking, which is for that person's own voice.

    Args:
        cpu_minutes: of all cores together, for preparing and training; it ends sooner where nothing is gained any more.
        skipped: the person's first clips, neither learnt from nor measured, for a second opinion on others.
    """
    clips = clips_under(given.data / "grid_people" / "test" / PERSON, 10_000)[skipped:]
    learnt, pool = clips[:NUM_LEARNT], clips[NUM_LEARNT:]
    others = pool[: given.suite.people]
    if len(pool) < 2:
        raise FlashLipsError(
            f"Found {len(clips)} clips under {given.data}/grid_people/test/{PERSON}{f' after {skipped}' if skipped else ''}; "
            f"{NUM_LEARNT + 2} or more are needed."
        )
    out, style, drawn = (session.out / f"{PERSON}{what}.safetensors" for what in ("", "-style", "-codec"))
    if any(path.exists() for path in (out, style, drawn)):
        raise FlashLipsError(f"{session.out} holds a fine-tuning already, which would be trained on; choose another --out.")
    old = session.lipsync
    if old.is_stage_1:
        raise FlashLipsError("This editor was trained on masked frames only (stage 1); choose a refined one to fine-tune.")
    session.motion(others[0])  # a missing MediaPipe is said before the long work, not after
    base = LoadedPart(old.editor, "editor", "base", {"crop_px": old.crop_px})
    session.total = 8 * len(others) + math.ceil(cpu_minutes)
    before = with_editor(session, base, "before")
    columns = {"before": _person_rows(before, before, given, others, pool)}
    session.done = 2 * len(others)
    tuning = _tuned(session, base, learnt, out, style, drawn, cpu_minutes)
    session.done += math.ceil(cpu_minutes)
    editor, speaker = load_part("editor", out, old.device, old.dtype), load_part("pose-model", style, old.device)
    codec = load_codec(drawn, old.device, old.dtype)
    parts = {"decoder": (base, None), "decoder, editor": (editor, None), "decoder, editor, pose model": (editor, speaker)}
    for index, (name, (drawer, pose_model)) in enumerate(parts.items()):
        after = with_editor(session, drawer, f"after-{index}", pose_model, codec)
        columns[name] = _person_rows(after, before, given, others, pool)
        session.done += 2 * len(others)
    return columns, tuning


class _Spent(Exception):
    """The CPU time is over."""


def _tuned(
    session: Session, base: LoadedPart, learnt: Sequence[Path], out: Path, style: Path, drawn: Path, cpu_minutes: float
) -> Tuning:
    """Write the fine-tuned editor to ``out``, the pose model to ``style``, the codec to ``drawn``."""
    lipsync, wall, cpu = session.lipsync, time.monotonic(), time.process_time()
    checks: list[Check] = []  # of the training under way

    def watch(found: list[Check], _: Tensor) -> None:
        checks[:] = found

    def spend(done: int, total: int) -> None:
        minutes = (time.process_time() - cpu) / 60
        if session.progress is not None:
            session.progress(session.done + int(min(minutes, cpu_minutes)), session.total)
        if checks and minutes > cpu_minutes:
            raise _Spent

    def limited(train: Callable[[], Tuned]) -> str:
        """Why a training ended; the CPU time ends it after its first look."""
        checks.clear()
        try:
            return train().ended
        except _Spent:
            return f"{cpu_minutes:g} CPU minutes"

    clip = join_clips(learnt, out.with_suffix(".mp4"))
    person = prepare_person(lipsync, clip)
    speaker, poses = LoadedPart(lipsync.pose_model, "pose-model", "base"), lipsync.poses_from_video(clip, person.track)
    spoken = tune_style(speaker, lipsync.audio_encoder.encode(to_mono_16k(join_sound(learnt))), poses, style)
    face_ended = limited(lambda: tune_decoder(lipsync.codec, person, drawn, progress=spend, watch=watch))
    face, codec = list(checks), load_codec(drawn, lipsync.device)
    settings = FineTuning(steps=UNENDING)
    ended = limited(lambda: fine_tune(base, person, codec, lipsync.lip_encoder, out, settings, spend, watch))
    spent = time.monotonic() - wall, time.process_time() - cpu
    said = [
        f"{found[0].sentence()} -> {best_of(found).sentence()}; best of {found[-1].step} steps: {best_of(found).step}."
        for found in (face, spoken.checks)
    ]
    said[0] += f" Ended by: {face_ended}."
    return Tuning(person.describe(), *said, ended, checks[-1].step, best_of(checks).step, *spent)


def _person_rows(
    session: Session, before: Session, given: Material, clips: Sequence[Path], own_voices: Sequence[Path]
) -> list[Measure]:
    frames, nothing = given.suite.frames, UNBOUNDED
    dubs, own = (
        [session.dub(clip, part, driver) for clip, driver in zip(clips, drivers_for(clips, voices), strict=True)]
        for part, voices in (("audio", given.pool), ("own", own_voices))
    )
    sheets(session, dubs[:5])
    return [
        *rows.picture_rows(session, {PERSON: (clips, nothing)}, frames, nothing),
        *rows.restored_rows(session, before, clips, given.weights, frames),
        *rows.identity_rows(session, dubs, given.weights, frames),
        *rows.detail_rows(session, dubs, frames, nothing),
        *rows.sync_rows(session, dubs, f"jaw correlation: {PERSON}, s1 audio", nothing),
        *rows.sync_rows(session, own, f"jaw correlation: {PERSON}, audio of another of their clips", nothing),
    ]


def join_clips(clips: Sequence[Path], out: Path) -> Path:
    """Write clips of one size and rate one after another, nearly lossless, without sound."""
    infos = [probe(clip) for clip in clips]
    first = infos[0]
    for clip, info in zip(clips, infos, strict=True):
        if (info.width, info.height, info.fps, info.pix_fmt) != (first.width, first.height, first.fps, first.pix_fmt):
            raise FlashLipsError(f"{clip.name} has another size, rate or format than {clips[0].name}; join clips of one kind.")
    like = replace(first, time_base=1 / first.fps)
    out.parent.mkdir(parents=True, exist_ok=True)
    with closing(_one_after_another(clips)) as frames:
        write_video(out, frames, like, crf=CRF, preset=PRESET)
    return out


def join_sound(clips: Sequence[Path]) -> Audio:
    """The same of their sound, each as long as its frames. -> 16 kHz, mono"""
    parts = []
    for clip in clips:
        info, samples = probe(clip), to_mono_16k(load_audio(clip))
        count = round(info.num_frames / info.fps * SAMPLE_RATE)
        parts.append(F.pad(samples[:count], (0, max(count - len(samples), 0))))
    return Audio(torch.cat(parts)[None], SAMPLE_RATE)


def _one_after_another(clips: Sequence[Path]) -> Iterator[Frame]:
    count = 0
    for clip in clips:
        with closing(read_frames(clip)) as frames:
            for frame in frames:
                yield replace(frame, pts=count)
                count += 1
