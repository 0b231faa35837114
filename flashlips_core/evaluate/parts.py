"""``python -m flashlips_core eval``: dub held-out clips, let MediaPipe watch the results, fill the table.

Every dub goes through the public pipeline, file to file, and motion is measured on the written video. With ``--videos`` the clips
are any folder's, and so is the table: see :mod:`eval_videos`.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from .. import measures as m
from ..face.motion import LANDMARKER_FILE
from ..measures import UNBOUNDED, Measure
from ..pipeline import DubSettings, LipSync
from ..steps import SHARPEN
from ..types import FlashLipsError, Progress
from . import editors, speech
from . import rows as eval_rows
from .material import SUITES, TARGETS, Material, gather
from .session import SEED, Dub, Session, drivers_for, sheets, write_silence
from .videos import dubs as eval_videos

# ---- parts -----------------------------------------------------------------------------------------------------------------


def voice_part(session: Session, given: Material) -> list[Measure]:
    """Clips that speak another clip's sound."""
    targets, frames = given.targets, given.suite.frames
    voiced, strangers = (
        [session.dub(clip, part, driver) for clip, driver in zip(clips, drivers_for(clips, given.pool), strict=True)]
        for part, clips in (("s1-audio", given.own), ("people-audio", given.people))
    )
    sheets(session, [*voiced[:4], *strangers[:5]])
    return [
        *eval_rows.sync_rows(session, voiced, "jaw correlation: s1 test, another clip's audio", targets.s1_voice),
        *eval_rows.sync_rows(session, strangers, "jaw correlation: unseen people, s1 audio", targets.people_voice),
        *closures(session, given, voiced, strangers),
        *eval_rows.identity_rows(session, strangers, given.weights, frames),
        *eval_rows.detail_rows(session, [*voiced, *strangers], frames, targets.detail),
    ]


def closures(session: Session, given: Material, voiced: Sequence[Dub], strangers: Sequence[Dub]) -> list[Measure]:
    """What needs the phones of the driving clips."""
    try:
        phones = speech.spoken_phones([dub.driver for dub in (*voiced, *strangers)], given.data / "grid_s1" / "words")
    except FlashLipsError as error:
        return [m.not_measured("lip closures: share of p, b, m", str(error))]
    return [
        *speech.closure_rows(session, voiced, phones, "s1 test, another clip's audio", given.targets.closures),
        *speech.closure_rows(session, strangers, phones, "unseen people, s1 audio", UNBOUNDED),
        speech.own_opening_row(session, phones),
    ]


def video_part(session: Session, given: Material) -> list[Measure]:
    """Clips that take another clip's lips."""
    driven, led = (
        [
            session.dub(clip, part, driver, poses=session.lipsync.poses_from_video(driver, session.track(driver)))
            for clip, driver in zip(clips, drivers_for(clips, given.pool, SEED + 1), strict=True)
        ]
        for part, clips in zip(("s1-video", "people-video"), given.driven, strict=True)
    )
    sheets(session, [*driven[:2], *led[:2]])
    targets = given.targets
    return [
        *eval_rows.sync_rows(session, driven, "jaw correlation: s1 test, another clip's lips (video)", targets.s1_video),
        *eval_rows.sync_rows(session, led, "jaw correlation: unseen people, an s1 clip's lips (video)", targets.people_video),
    ]


def silence_part(session: Session, given: Material) -> list[Measure]:
    """Talking clips that are dubbed with silence."""
    silence = write_silence(session.out / "silence.wav", seconds=3)
    silent = [session.dub(clip, "silent", silence) for clip in given.silent]
    sheets(session, silent[:3])
    return eval_rows.silence_rows(session, silent, given.targets.silence)


def speech_part(session: Session, given: Material) -> list[Measure]:
    """Clips that speak with synthetic voices whose phones are known, each voice once on s1 and once on the people."""
    if not given.speech:
        return [m.not_measured("jaw against the phones' expected opening: synthetic voices", "no --speech folder was given")]
    found = []
    for who, clips in (("s1 test", given.own), ("unseen people", given.people)):
        voices = list(given.speech) if clips else []
        dubs = [session.dub(clips[i % len(clips)], "speech", voice) for i, voice in enumerate(voices)]
        sheets(session, dubs[:2])
        found += speech.unheard_rows(session, dubs, given.speech, who, given.targets.unheard)
    return found


def pictures_part(session: Session, given: Material) -> list[Measure]:
    """Reconstruction, and what lies outside alpha."""
    return eval_rows.picture_rows(session, given.pictured_groups, given.suite.frames, given.targets.reconstruction)


def codec_part(session: Session, given: Material) -> list[Measure]:
    """The codec beside TAESDXL."""
    return eval_rows.codec_rows(session, given.pictured, given.weights, given.suite.frames)


class Part(NamedTuple):
    """Some rows of the table, and how many dubs they take."""

    rows: Callable[[Session, Material], list[Measure]]
    num_dubs: Callable[[Material], int]


PARTS = {
    "voice": Part(voice_part, lambda given: len(given.own) + len(given.people)),
    "video": Part(video_part, lambda given: sum(map(len, given.driven))),
    "silence": Part(silence_part, lambda given: len(given.silent)),
    "speech": Part(speech_part, lambda given: len(given.speech) * (bool(given.own) + bool(given.people))),
    "pictures": Part(pictures_part, lambda given: 0),
    "codec": Part(codec_part, lambda given: 0),
}


def evaluate(session: Session, given: Material, parts: Sequence[str]) -> list[Measure]:
    """The rows of these parts."""
    session.motion(given.own[0])  # a missing MediaPipe is said before the long work, not after
    session.total = sum(PARTS[name].num_dubs(given) for name in parts)
    return [row for name in parts for row in PARTS[name].rows(session, given)]


# ---- the command -----------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``eval``."""
    parser.add_argument("--data", type=Path, help="folder with grid_s1/test and grid_people/test")
    needed = "MediaPipe's landmarker, TAESDXL and a face-recognition network"
    parser.add_argument("--weights", type=Path, help=f"folder with {needed} (default: DATA/../weights)")
    parser.add_argument("--suite", choices=sorted(SUITES), default="quick", help="quick: a few clips; full: every test clip")
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="which rows are measured (default: all)"
    )
    parser.add_argument("--targets", choices=sorted(TARGETS), default="basic", help="what passes (default basic)")
    parser.add_argument(
        "--speech", type=Path, metavar="DIR", help="synthetic voices: NAME.wav with NAME.json: [[ARPAbet, start s, end s], ...]"
    )
    parser.add_argument("--out", type=Path, default=Path("output/eval"), help="folder for the dubs, contact sheets and the table")
    instead = parser.add_argument_group("instead of the table").add_mutually_exclusive_group()
    instead.add_argument(
        "--compare", nargs=2, metavar="EDITOR", help="two editors side by side, masked ones (stage 1) in their own mode"
    )
    instead.add_argument(
        "--finetune",
        type=minutes,
        metavar="MINUTES",
        help="before and after so many CPU minutes of fine-tuning to an unseen person",
    )
    skipped = "of --finetune: leave out the person's first clips"
    parser.add_argument("--skip", type=int, default=0, metavar="CLIPS", help=skipped)
    eval_videos.add_arguments(parser)


def minutes(text: str) -> float:
    """A time above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def run(
    args: argparse.Namespace,
    lipsync: LipSync | None = None,
    settings: DubSettings | None = None,
    progress: Progress | None = None,
) -> dict:
    """Evaluate; writes ``table.md`` and ``table.json`` under ``--out`` and returns what the latter holds."""
    if (args.compare or args.finetune) and (args.speech or args.parts != list(PARTS) or args.targets != "basic"):
        raise FlashLipsError("--parts, --targets and --speech belong to the table; leave them out with --compare or --finetune.")
    videos = getattr(args, "videos", None)
    if args.data is None and (videos is None or args.weights is None):
        raise FlashLipsError("There is nothing to measure; give --data for the table, or --videos, --voice and --weights.")
    if videos is not None and (args.compare or args.finetune):
        raise FlashLipsError("--videos is a measurement of its own; leave out --compare and --finetune.")
    if args.skip < 0 or args.skip and not args.finetune:
        raise FlashLipsError(f"--skip is {args.skip}; give how many of the person's first clips --finetune leaves out, with it.")
    weights = args.weights or args.data.parent / "weights"
    session = Session(lipsync or LipSync.load(), weights / LANDMARKER_FILE, args.out, progress, settings or DubSettings())
    if videos is not None:
        return eval_videos.run(args, session, command_of(args))
    given = gather(args.data, weights, args.speech, SUITES[args.suite], TARGETS[args.targets])
    command = command_of(args)
    result = {"command": command, "suite": args.suite} | _measured(args, session, given, command)
    result |= {"codec": session.lipsync.codec.name, "detector": type(session.lipsync.detector).__name__}
    result["table"] += f"\nFaces were found by {result['detector']}.\n"  # another one crops otherwise, which moves every row
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text(result["table"], encoding="utf-8")
    (args.out / "table.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    return result


def _measured(args: argparse.Namespace, session: Session, given: Material, command: str) -> dict:
    """The table and what is in it."""
    if args.compare:
        columns = editors.compare(session, given, args.compare)
        return {"measures": _as_dicts(columns), "table": m.side_by_side_table(columns, command)}
    if args.finetune:
        columns, tuning = editors.before_and_after(session, given, args.finetune, args.skip)
        table = f"{m.side_by_side_table(columns, command)}\n{tuning.sentence()}\n"
        return {"measures": _as_dicts(columns), "tuning": asdict(tuning), "table": table}
    found = evaluate(session, given, args.parts)
    return {"measures": [row.as_dict() for row in found], "table": m.markdown_table(found, command)}


def _as_dicts(columns: editors.Columns) -> dict[str, list[dict]]:
    return {who: [row.as_dict() for row in rows] for who, rows in columns.items()}


VIDEO_OPTIONS = ("videos", "voice", "in_turn", "frames", "only", "own_voice", "own_lips", "dubs", "against")
DUB_OPTIONS = {"references": "num_references", "sharpen": "sharpen", "gain": "gain", "start": "start"}


def command_of(args: argparse.Namespace) -> str:
    """The command that repeats this evaluation: its own options and those that choose models."""
    own = ("data", "weights", "suite", "parts", "targets", "speech", "compare", "finetune", "skip", *VIDEO_OPTIONS)
    models = ("models", "codec", "editor", "pose_model", "audio_encoder", "lip_encoder", "detector", "device", "crop_px")
    given = {name: getattr(args, name, None) for name in (*own, *models)}
    given |= {option: getattr(args, name, None) for option, name in DUB_OPTIONS.items()}
    defaults = {"parts": list(PARTS), "targets": "basic", "sharpen": SHARPEN, "skip": 0, "start": DubSettings.start}
    given |= {name: None for name, value in defaults.items() if given[name] == value}
    given |= {"suite": None} if given["videos"] is not None else {}
    words = ["python -m flashlips_core eval"]
    for name, value in given.items():
        if value is not None and value is not False:
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *(shlex.quote(str(v)) for v in values)]
    return " ".join(words)
