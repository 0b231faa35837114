"""``python -m flashlips_core sync | track | poses | data | train | eval | bench``.

Exit codes: 0 done, 2 something the user can mend (one sentence on stderr, no output file), 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import typing
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NoReturn

from ..types import FlashLipsError
from .data import add_data, run_data, say_data
from .finetune import add_finetune, run_finetune, say_finetune
from .options import (
    add_finish,
    add_gain,
    add_models,
    add_sampler,
    add_tracking,
    check_outputs,
    load_lipsync,
    positive,
    progress_bar,
    settings_from,
)
from .train import add_settings, settings_given

FAILED, STOPPED = 2, 130  # 128 + SIGINT, as shells do


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(FAILED, f"{message[:1].upper()}{message[1:]}; see '{self.prog} --help'.\n")


# ---- sync ------------------------------------------------------------------------------------------------------------------


def add_sync(parser: argparse.ArgumentParser) -> None:
    """The options of ``sync``."""
    parser.add_argument("video", help="the video to edit")
    parser.add_argument("audio", nargs="?", help="the voice: a sound or video file (default with --driving: that video's own)")
    parser.add_argument("-o", "--out", required=True, help="the video to write: .mp4, .mov, .mkv or .webm")
    group = parser.add_argument_group("lips")
    group.add_argument("--driving", metavar="VIDEO", help="take the lip motion from this video's face instead of from sound")
    group.add_argument("--poses", metavar="FILE", help="take the lip motion from this file, as 'poses' writes it")
    add_gain(group, None)
    group.add_argument("--no-gate", dest="gate", action="store_false", help="let the mouth move in silence")
    add_sampler(parser)
    add_tracking(parser)
    parser.add_argument("--track", metavar="FILE", help="use this face track, as 'track' writes it")
    group = parser.add_argument_group("editing and output")
    group.add_argument(
        "--length",
        default="cut",
        choices=("cut", "loop", "ping-pong", "hold", "silence"),
        help="where sound and picture differ in length (default cut)",
    )
    add_finish(group)
    group.add_argument("--mode", default="mask-free", choices=("mask-free", "masked"), help="masked: for a stage-1 editor")
    group.add_argument("--batch", type=positive, default=8, help="frames edited at once: lower needs less memory (default 8)")
    group.add_argument("--crf", type=int, default=16, help="quality of the video: 0 lossless, lower = better (default 16)")
    group.add_argument("--preset", default="veryfast", help="x264's preset: slower = smaller file (default veryfast)")
    group.add_argument(
        "--no-tag", dest="is_tagged", action="store_false", help="do not say in the file that the lip motion is synthetic"
    )
    add_models(parser)


def run_sync(args: argparse.Namespace) -> dict[str, Any]:
    """Dub a video, file to file."""
    from ..sidecar import load_poses, load_track

    if args.driving and args.poses:
        raise FlashLipsError("Both --driving and --poses were given; choose one source of lip motion.")
    if not (args.audio or args.driving or args.poses):
        raise FlashLipsError("There is nothing to lip-sync to; name a sound file, or give --driving or --poses.")
    if args.poses and args.gain is not None:
        raise FlashLipsError("Poses of a file are used as they are; give --gain to the command 'poses' that makes them instead.")
    check_outputs(args, [args.video, args.audio, args.driving])
    lipsync, settings = load_lipsync(args), settings_from(args)
    track = load_track(args.track) if args.track else None
    poses = load_poses(args.poses) if args.poses else None
    if args.driving:
        with progress_bar("driving video", args) as progress:
            poses = lipsync.moved(lipsync.poses_from_video(args.driving, progress=progress), settings.gain)
    with progress_bar("sync", args) as progress:
        report = lipsync.dub(
            args.video, args.audio or args.driving, args.out, settings, track=track, poses=poses, progress=progress
        )
    return report.as_dict()


def say_sync(result: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"Wrote {result['path']}: {result['frames']} frames, {result['edited']} edited, {result['without_face']} without a face, "
        f"in {result['total_s']:.1f} s ({result['frames_per_second']:.1f} frames a second)."
    ]
    lines += [f"  {name:<20}{seconds:8.2f} s" for name, seconds in result["seconds"].items()]
    return "\n".join(lines)


# ---- track -----------------------------------------------------------------------------------------------------------------


def add_track(parser: argparse.ArgumentParser) -> None:
    """The options of ``track``."""
    parser.add_argument("video", help="the video to look at")
    parser.add_argument("-o", "--out", required=True, help="the track to write: .safetensors")
    add_tracking(parser)
    add_models(parser)


def run_track(args: argparse.Namespace) -> dict[str, Any]:
    """Find and follow a face; write its track."""
    from ..sidecar import save_track

    check_outputs(args, [args.video])
    with progress_bar("track", args) as progress:
        track = load_lipsync(args).track(args.video, settings_from(args), progress=progress)
    save_track(track, args.out)
    side = track.boxes[track.present, 2] - track.boxes[track.present, 0]
    return {
        "path": args.out,
        "frames": len(track),
        "with_face": int(track.present.sum()),
        "crop_px": float(side.mean()),
        "fps": float(track.fps),
    }


def say_track(result: dict[str, Any]) -> str:
    """The result for people."""
    seen = f"a face in {result['with_face']} of {result['frames']} frames"
    return f"Wrote {result['path']}: {seen}, crop {result['crop_px']:.0f} px wide."


# ---- poses -----------------------------------------------------------------------------------------------------------------


def add_poses(parser: argparse.ArgumentParser) -> None:
    """The options of ``poses``."""
    parser.add_argument("input", help="a voice (sound or video file), or with --from-video a video of a face")
    parser.add_argument("-o", "--out", required=True, help="the poses to write: .safetensors")
    parser.add_argument("--from-video", action="store_true", help="read the lips of the face instead of listening to the sound")
    parser.add_argument(
        "--fps", type=Fraction, help="poses per second, e.g. 30000/1001 (default: 25 from sound, the video's own from a face)"
    )
    add_gain(parser, 1.0)
    parser.add_argument("--no-gate", dest="gate", action="store_false", help="let the mouth move in silence")
    add_sampler(parser)
    add_tracking(parser)
    add_models(parser)


def run_poses(args: argparse.Namespace) -> dict[str, Any]:
    """Make lip poses from sound or from a face; write them."""
    from ..poses.motion import resample
    from ..sidecar import save_poses

    check_outputs(args, [args.input])
    lipsync, settings = load_lipsync(args), settings_from(args)
    if args.from_video:
        with progress_bar("track", args) as progress:
            track = lipsync.track(args.input, settings, progress=progress)
        with progress_bar("read lips", args) as progress:
            poses = lipsync.poses_from_video(args.input, track, progress=progress)
    else:
        with progress_bar("poses", args) as progress:
            poses = lipsync.poses_from_audio(args.input, settings=settings, progress=progress)
    poses = lipsync.moved(resample(poses, args.fps) if args.fps else poses, args.gain)
    save_poses(poses, args.out)
    return {"path": args.out, "poses": len(poses), "fps": float(poses.fps), "seconds": len(poses) / float(poses.fps)}


def say_poses(result: dict[str, Any]) -> str:
    """The result for people."""
    return f"Wrote {result['path']}: {result['poses']} poses, {result['fps']:g} a second."


# ---- train, eval, bench ----------------------------------------------------------------------------------------------------


def add_train(parser: argparse.ArgumentParser) -> None:
    """The options of ``train``: one command per stage, so that each has its own."""
    from ..train import STAGES

    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE", title="stages")
    common = common_options()
    text = "fit an editor to one person, from one clip of them"
    add_finetune(stages.add_parser("finetune", help=text, description=run_finetune.__doc__, parents=[common]))
    for name, what in STAGES.items():
        sub = stages.add_parser(name, help=what, description=f"{what[:1].upper()}{what[1:]}.", parents=[common])
        add_settings(sub, name)
        sub.add_argument(
            "--data", required=True, help="a set made by 'data build' with --landmarker, or a folder with grid_s1 and grid_people"
        )
        sub.add_argument("--weights", required=True, help="folder with the frozen teachers (TAESDXL, Whisper tiny)")
        sub.add_argument(
            "--folder", default="runs", help="where everything is cached and written; a run there is resumed (default runs)"
        )


def run_train(args: argparse.Namespace) -> dict[str, Any]:
    """Run one training stage; a stopped one resumes when it is run again."""
    if args.stage == "finetune":
        return run_finetune(args)
    from ..train import run_stage
    from ..train.loop.processes import leave

    settings = settings_given(args)
    with progress_bar(args.stage, args, unit=" steps") as progress:
        path = run_stage(args.stage, args.data, args.weights, args.folder, settings, progress, args.preset)
    leave()
    return {"stage": args.stage, "path": str(path)}


def say_train(result: dict[str, Any]) -> str:
    """The result for people."""
    if "checks" in result:
        return say_finetune(result)
    return f"{result['stage']}: wrote {result['path']}."


def add_eval(parser: argparse.ArgumentParser) -> None:
    """The options of ``eval``."""
    from ..evaluate.parts import add_arguments

    add_arguments(parser)
    group = parser.add_argument_group("dubs")
    add_finish(group)
    add_gain(group, None)
    add_models(parser)


def run_eval(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the model on held-out clips."""
    from ..evaluate.parts import run

    lipsync = load_lipsync(args)
    with progress_bar("eval", args, unit=" dubs and minutes" if args.finetune else " dubs") as progress:
        return run(args, lipsync, settings_from(args), progress)


def add_bench(parser: argparse.ArgumentParser) -> None:
    """The options of ``bench``."""
    from ..bench.dubs import add_arguments

    add_arguments(parser)


def run_bench(args: argparse.Namespace) -> dict[str, Any]:
    """Measure speed, size and memory."""
    from ..bench.dubs import run

    with progress_bar("bench", args, unit=" runs") as progress:
        return run(args, progress)


def say_as_json(result: dict[str, Any]) -> str:
    """A table where there is one, else all of it."""
    return result["table"] if "table" in result else json.dumps(result, indent=2, default=str)


# ---- the command -----------------------------------------------------------------------------------------------------------


class Command(typing.NamedTuple):
    """One subcommand."""

    help: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], dict[str, Any]]
    say: Callable[[dict[str, Any]], str]


COMMANDS = {
    "sync": Command("dub a video, file to file", add_sync, run_sync, say_sync),
    "track": Command("find and follow a face", add_track, run_track, say_track),
    "poses": Command("lip poses from sound or from a face", add_poses, run_poses, say_poses),
    "data": Command("build a training set from videos", add_data, run_data, say_data),
    "train": Command("run a training stage", add_train, run_train, say_train),
    "eval": Command("measure the model on held-out clips", add_eval, run_eval, say_as_json),
    "bench": Command("measure speed, size and memory", add_bench, run_bench, say_as_json),
}


def common_options() -> Parser:
    """What every command has. Nothing is set where it is not given, so that it may stand on either side of a stage."""
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    common.add_argument("--quiet", action="store_true", help="no progress bar, errors only")
    common.add_argument("--verbose", action="store_true", help="say what is being done")
    return common


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser; only the chosen command's options are built, so that help does not load what it does not need."""
    common = common_options()
    parser = Parser(prog="python -m flashlips_core", description="Change the lips of a talking person in a video.")
    parser.set_defaults(json=False, quiet=False, verbose=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.run.__doc__, parents=[common])
        if name == chosen:
            command.add(sub)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        args = build_parser(next((a for a in arguments if a in COMMANDS), None)).parse_args(arguments)
        level = logging.ERROR if args.quiet else logging.INFO if args.verbose else logging.WARNING
        logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
        command = COMMANDS[args.command]
        result = command.run(args)
    except FlashLipsError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped; no half-written file is left.\n")
        return STOPPED
    except (RuntimeError, MemoryError) as error:
        from ..system.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _fail("Out of memory; choose a smaller --batch, shorter or smaller media, or --device cpu.")
    print(json.dumps(result, default=str) if args.json else command.say(result))
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(" ".join(message.split()) + "\n")
    return FAILED
