"""``python -m flashlips_core eval``: dub held-out clips, let MediaPipe watch the results, fill the table.

Every dub goes through the public pipeline, file to file, and motion is measured on the written video. With ``--videos`` the clips
are any folder's, and so is the table: see :mod:`.videos.dubs`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import NamedTuple

from .. import measures as m
from ..measures import UNBOUNDED, Measure
from ..types import FlashLipsError
from . import editors, speech
from . import rows as eval_rows
from .material import Material
from .session import SEED, Dub, Session, drivers_for, sheets, write_silence

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


# ---- the table -------------------------------------------------------------------------------------------------------------


def measured(session: Session, given: Material, parts: Sequence[str], command: str) -> dict:
    """The rows of these parts, and the table of them."""
    found = evaluate(session, given, parts)
    return {"measures": [row.as_dict() for row in found], "table": m.markdown_table(found, command)}


def compared(session: Session, given: Material, names: Sequence[str], command: str) -> dict:
    """Editors side by side."""
    columns = editors.compare(session, given, names)
    return {"measures": _as_dicts(columns), "table": m.side_by_side_table(columns, command)}


def finetuned(session: Session, given: Material, cpu_minutes: float, skip: int, command: str) -> dict:
    """Before and after a fine-tuning to an unseen person, whose first ``skip`` clips are left out."""
    columns, tuning = editors.before_and_after(session, given, cpu_minutes, skip)
    table = f"{m.side_by_side_table(columns, command)}\n{tuning.sentence()}\n"
    return {"measures": _as_dicts(columns), "tuning": asdict(tuning), "table": table}


def written(session: Session, result: dict) -> dict:
    """The result with what else moves every row, in ``table.md`` and ``table.json``."""
    result |= {"codec": session.lipsync.codec.name, "detector": type(session.lipsync.detector).__name__}
    result["table"] += f"\nFaces were found by {result['detector']}.\n"  # another one crops otherwise, which moves every row
    session.out.mkdir(parents=True, exist_ok=True)
    (session.out / "table.md").write_text(result["table"], encoding="utf-8")
    (session.out / "table.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    return result


def _as_dicts(columns: editors.Columns) -> dict[str, list[dict]]:
    return {who: [row.as_dict() for row in rows] for who, rows in columns.items()}
