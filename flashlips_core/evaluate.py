"""``python -m flashlips_core eval``: dub held-out clips, let MediaPipe watch the results, fill the table.

Every dub goes through the public pipeline, file to file, and motion is measured on the written video.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import wave
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import measures as m
from .face_motion import LANDMARKER_FILE, FaceMotion, measure_video
from .fidelity import FaceFrames, codec_comparison, codec_flops, face_frames, identity_distances, reconstruction, untouched_frames
from .measures import Measure
from .pictures import spread, write_mouth_sheet
from .pipeline import LipSync
from .types import FaceTrack, FlashLipsError, LipPoses, Progress

SEED = 0  # which clip gets which voice


@dataclass(frozen=True)
class Suite:
    """How much is measured: clips per part, frames per clip for the picture measures."""

    own: int  # s1 test, another clip's audio
    people: int  # unseen people, s1 audio
    driven: int  # s1 test, another clip's lips
    silent: int
    frames: int


SUITES = {
    "quick": Suite(own=6, people=5, driven=4, silent=4, frames=8),
    "full": Suite(own=50, people=26, driven=30, silent=20, frames=16),
}


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
    progress: Progress | None = None  # counts dubs
    num_dubs: int = 0
    done: int = 0
    tracks: dict[Path, FaceTrack] = field(default_factory=dict)
    motions: dict[Path, FaceMotion] = field(default_factory=dict)

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
        self.lipsync.dub(clip, driver, output, track=self.track(clip), poses=poses)
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.num_dubs)
        return Dub(clip, driver, output)


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


def sync_rows(session: Session, dubs: Sequence[Dub], name: str, limit: float) -> list[Measure]:
    """Correlation per frame, clip by clip, of the output's jaw with the driving clip's own."""
    if not dubs:
        return [m.not_measured(name, "no clips found")]
    zero, best, lags, gap, undubbed, shares = [], [], [], [], [], []
    for dub in dubs:
        output, driver, source = session.motion(dub.output), session.motion(dub.driver), session.motion(dub.clip)
        zero.append(m.correlation(output.jaw_open, driver.jaw_open))
        score, lag = m.best_correlation(output.jaw_open, driver.jaw_open)
        best.append(score)
        lags.append(lag)
        gap.append(m.correlation(output.lip_gap, driver.lip_gap))
        undubbed.append(m.correlation(source.jaw_open, driver.jaw_open))
        shares.append(m.motion_share(output.lip_gap, driver.lip_gap))
    note = (
        f"mean over clips at lag 0 (lowest {min(zero):.2f}); at each clip's best lag {np.mean(best):.2f}, "
        f"median lag {np.median(lags):+.0f} frames; inner-lip gap {np.mean(gap):.2f}; "
        f"the undubbed source scores {np.mean(undubbed):.2f}"
    )
    moved = m.shown(
        f"size of the motion, {name.partition(': ')[2]}", float(np.nanmean(shares)), len(dubs),
        "deviation of the inner-lip gap over the driving clip's own; 1 is as far",
    )  # fmt: skip
    return [m.at_least(name, float(np.mean(zero)), limit, len(dubs), note), moved]


def silence_rows(session: Session, dubs: Sequence[Dub]) -> list[Measure]:
    """How far the mouth opens when nobody speaks."""
    name = "silent audio: jaw opening above rest, share of the source's"
    if not dubs:
        return [m.not_measured(name, "no clips found")]
    shares = [m.silence_share(session.motion(d.output).jaw_open, session.motion(d.clip).jaw_open) for d in dubs]
    leaks = [m.lip_leak(session.motion(d.output).mouth_aspect) for d in dubs]
    sources = [m.lip_leak(session.motion(d.clip).mouth_aspect) for d in dubs]
    return [
        m.at_most(name, float(np.mean(shares)), 0.30, len(dubs), f"mean over clips, highest {max(shares):.2f}"),
        m.shown("silent audio: LipLeak", float(np.nanmean(leaks)), len(dubs), f"the talking sources: {np.nanmean(sources):.2f}"),
    ]


def identity_rows(session: Session, dubs: Sequence[Dub], weights: Path, frames: int) -> list[Measure]:
    """Face embedding distance of output to source on unseen people."""
    from .losses import load_identity

    name = "face ID distance, output to source, unseen people"
    if not dubs:
        return [m.not_measured(name, "no clips found")]
    try:
        embed = load_identity(weights)
    except FlashLipsError as error:
        return [m.not_measured(name, str(error))]
    means = []
    for dub in dubs:
        outputs, sources = (_face_frames(session, dub.clip, frames, path).crops for path in (dub.output, dub.clip))
        shared = min(len(outputs), len(sources))  # a voice that ends sooner makes a shorter dub
        means.append(float(identity_distances(embed, outputs[:shared], sources[:shared]).mean()))
    note = f"by {embed.name} on the editor's crops; mean over clips, highest {max(means):.2f}"
    return [m.at_most(name, float(np.mean(means)), 0.35, len(dubs), note)]


def detail_rows(session: Session, dubs: Sequence[Dub], frames: int) -> list[Measure]:
    """How sharp the mouths of outputs are compared with the source's, on the written videos."""
    name = "mouth detail, output over source"
    if not dubs:
        return [m.not_measured(name, "no clips found")]
    ratios = []
    for dub in dubs:
        outputs, sources = (_face_frames(session, dub.clip, frames, path) for path in (dub.output, dub.clip))
        made, real = (
            np.mean([m.detail(crop, box) for crop, box in zip(seen.crops, seen.mouth_boxes, strict=True)])
            for seen in (outputs, sources)
        )
        ratios.append(float(made / max(real, 1e-6)))
    note = f"variance of the Laplacian in the mouth box, mean over clips, lowest {min(ratios):.2f}, highest {max(ratios):.2f}"
    return [m.shown(name, float(np.mean(ratios)), len(dubs), note)]


def picture_rows(session: Session, clips: Sequence[Path], frames: int) -> list[Measure]:
    """Reconstruction with true poses, and whether the pixels outside alpha are the source's own."""
    scores: dict[str, list[float]] = defaultdict(list)
    untouched, total = 0, 0
    for clip in clips:
        seen = _face_frames(session, clip, frames)
        poses = session.lipsync.encode_lips(seen.crops)
        editor = session.lipsync.crop_editor(clip, session.track(clip))
        for way, values in reconstruction(editor, seen, poses).items():
            scores[way] += values
        other = poses.roll(len(poses) // 2, 0)
        untouched += untouched_frames(editor, seen, other)
        total += len(seen)
    mean = {way: float(np.mean(values)) for way, values in scores.items()}
    where, name = f"of {len(clips)} clips, crops before video encoding", "mouth box PSNR, dB: "
    edited = mean["changed mouth"]
    return [
        m.shown(name + "codec round trip", mean["codec"], total, where),
        m.shown(name + "another frame's mouth pasted", mean["pasted mouth"], total, where),
        m.shown(name + "true pose on the frame itself", mean["same frame"], total, f"{where}; the answer is in the input"),
        m.shown(name + "true pose on a frame whose mouth was changed first", edited, total, where),
        m.at_most("reconstruction: dB below the codec's round trip", mean["codec"] - edited, 4.0, total, "changed first"),
        m.at_least("reconstruction: dB above the pasted mouth", edited - mean["pasted mouth"], 2.5, total, "changed first"),
        m.at_least("frames identical to the source outside alpha, share", untouched / total, 1.0, total, "before encoding"),
    ]


def codec_rows(session: Session, clips: Sequence[Path], weights: Path, frames: int) -> list[Measure]:
    """The bundled codec beside TAESDXL."""
    from .codec import load_codec

    if not list(weights.glob("taesdxl_encoder*")):
        return [m.not_measured("codec: PSNR inside the face against TAESDXL", "no taesdxl_encoder/decoder under --weights")]
    ours, theirs = session.lipsync.codec, load_codec(weights)
    seen = [_face_frames(session, clip, frames) for clip in clips]
    total = sum(len(s) for s in seen)
    scores = codec_comparison(ours, theirs, seen)
    where = f"{session.lipsync.crop_px} px crops"
    rows = [m.shown(f"codec, face PSNR, dB: {pair}", value, total, where) for pair, value in scores.items()]
    own, reference = scores[f"{ours.name} > {ours.name}"], scores[f"{theirs.name} > {theirs.name}"]
    flops = codec_flops(ours)
    note = f"{flops / 1e9:.1f} GFLOP per 256 px picture, both ways"
    return [
        *rows,
        m.at_most(f"codec: dB below {theirs.name}", reference - own, 0.5, total, "inside the face"),
        m.at_most(f"codec: FLOPs, share of {theirs.name}'s", flops / codec_flops(theirs), 0.5, 1, note),
    ]


def evaluate(session: Session, data: Path, weights: Path, suite: Suite) -> list[Measure]:
    """All rows of the table."""
    own = clips_under(data / "grid_s1" / "test", suite.own)
    people = clips_under(data / "grid_people" / "test", suite.people)
    if not own:
        raise FlashLipsError(f"No clips under {data}/grid_s1/test; give the folder that holds grid_s1 and grid_people as --data.")
    session.motion(own[0])  # a missing MediaPipe is said before the long work, not after
    pool = clips_under(data / "grid_s1" / "test", 10_000)
    driven_clips, mixed = own[: suite.driven], [clip for pair in zip(own, people, strict=False) for clip in pair]
    silent_clips = mixed[: suite.silent]
    session.num_dubs = len(own) + len(people) + len(driven_clips) + min(len(people), suite.driven) + len(silent_clips)
    silence = write_silence(session.out / "silence.wav", seconds=3)
    voiced = [session.dub(c, "s1-audio", d) for c, d in zip(own, drivers_for(own, pool), strict=True)]
    strangers = [session.dub(c, "people-audio", d) for c, d in zip(people, drivers_for(people, pool), strict=True)]
    driven, led = ([
        session.dub(c, part, d, poses=session.lipsync.poses_from_video(d, session.track(d)))
        for c, d in zip(clips, drivers_for(clips, pool, SEED + 1), strict=True)
    ] for part, clips in (("s1-video", driven_clips), ("people-video", people[: suite.driven])))  # fmt: skip
    silent = [session.dub(c, "silent", silence) for c in silent_clips]
    sheets(session, [*voiced[:4], *strangers[:5], *driven[:2], *led[:2], *silent[:3]])
    rows = [
        *sync_rows(session, voiced, "jaw correlation: s1 test, another clip's audio", 0.60),
        *sync_rows(session, strangers, "jaw correlation: unseen people, s1 audio", 0.45),
        *sync_rows(session, driven, "jaw correlation: s1 test, another clip's lips (video)", 0.85),
        *sync_rows(session, led, "jaw correlation: unseen people, an s1 clip's lips (video)", 0.80),
        *silence_rows(session, silent),
        *identity_rows(session, strangers, weights, suite.frames),
        *detail_rows(session, [*voiced, *strangers], suite.frames),
    ]
    pictured = mixed[: suite.driven]
    return [*rows, *picture_rows(session, pictured, suite.frames), *codec_rows(session, pictured, weights, suite.frames)]


def _face_frames(session: Session, clip: Path, count: int, path: Path | None = None) -> FaceFrames:
    """``count`` frames spread over a clip (or over ``path``, a dub of it), cut with the clip's own track."""
    track, motion = session.track(clip), session.motion(clip)
    return face_frames(path or clip, track, motion, spread(min(len(track), len(motion)), count), session.lipsync.crop_px)


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``eval``."""
    parser.add_argument("--data", type=Path, required=True, help="folder with grid_s1/test and grid_people/test")
    needed = "MediaPipe's landmarker, TAESDXL and a face-recognition network"
    parser.add_argument("--weights", type=Path, help=f"folder with {needed} (default: DATA/../weights)")
    parser.add_argument("--suite", choices=sorted(SUITES), default="quick", help="quick: a few clips; full: every test clip")
    parser.add_argument("--out", type=Path, default=Path("output/eval"), help="folder for the dubs, contact sheets and the table")


def run(args: argparse.Namespace, lipsync: LipSync | None = None, progress: Progress | None = None) -> dict:
    """Evaluate; writes ``table.md`` and ``table.json`` under ``--out`` and returns what the latter holds."""
    weights = args.weights or args.data.parent / "weights"
    landmarker = weights / LANDMARKER_FILE
    session = Session(lipsync or LipSync.load(), landmarker, args.out, progress)
    rows = evaluate(session, args.data, weights, SUITES[args.suite])
    command = _command(args)
    table = m.markdown_table(rows, command)
    parts = {"codec": session.lipsync.codec.name, "detector": type(session.lipsync.detector).__name__}
    result = {"command": command, "suite": args.suite, **parts, "measures": [row.as_dict() for row in rows], "table": table}
    (args.out / "table.md").write_text(table)
    (args.out / "table.json").write_text(json.dumps(result, indent=2))
    return result


def _command(args: argparse.Namespace) -> str:
    """The command that repeats this evaluation: its own options and those that choose models."""
    models = ("models", "codec", "editor", "pose_model", "audio_encoder", "lip_encoder", "detector", "device", "crop_px")
    given = {name: getattr(args, name, None) for name in ("data", "weights", "suite", *models)}
    options = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in given.items() if value is not None]
    return " ".join(["python -m flashlips_core eval", *options])
