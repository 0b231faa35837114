"""``python -m flashlips_core eval``: the table of held-out clips, or what is measured instead of it: any clips, any outputs."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from ..types import FlashLipsError
from .options import add_finish, add_gain, add_models, load_lipsync, progress_bar, settings_from


def add_eval(parser: argparse.ArgumentParser) -> None:
    """The options of ``eval``."""
    from ..evaluate.material import SUITES, TARGETS
    from ..evaluate.parts import PARTS

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
    _add_videos(parser)
    _add_pairs(parser)
    group = parser.add_argument_group("dubs")
    add_finish(group)
    add_gain(group, None)
    add_models(parser)


def _add_videos(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("any folder of clips (--weights holds MediaPipe's landmarker, --data is not needed)")
    group.add_argument("--videos", type=Path, metavar="DIR", help="dub and measure every clip of this folder")
    group.add_argument("--voice", type=Path, nargs="+", metavar="FILE", help="sounds that each clip shall speak")
    group.add_argument("--in-turn", action="store_true", help="one voice per clip, by turns, instead of every voice")
    group.add_argument("--frames", type=int, metavar="N", help="the first N frames of each clip only")
    group.add_argument("--only", nargs="+", metavar="WORD", help="clips whose names hold one of these words")
    group.add_argument("--own-voice", action="store_true", help="also predict each clip's lips from its own sound")
    group.add_argument("--own-lips", action="store_true", help="also read each clip's lips with the lip encoder")
    group.add_argument("--dubs", type=Path, metavar="DIR", help="measure these dubs (CLIP--VOICE.mp4) instead of making some")
    group.add_argument("--against", type=Path, metavar="RESULT.json", help="show another run's numbers beside these")


def _add_pairs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "anybody's outputs (nothing is dubbed; nothing else is needed, but --weights may hold MediaPipe's landmarker, "
        "face recognition, LPIPS with AlexNet, and SyncNet)"
    )
    group.add_argument("--pairs", type=Path, metavar="FILE.csv", help="columns generated, source and, if it was another, sound")
    group.add_argument("--generated", type=Path, metavar="DIR", help="outputs, named after their sources: CLIP.mp4, CLIP_out.mp4")
    group.add_argument("--sources", type=Path, metavar="DIR", help="what --generated was made of")


def minutes(text: str) -> float:
    """A time above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def run_eval(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the model on held-out clips, or with ``--pairs`` anybody's outputs; the table and a page lie under ``--out``."""
    from ..evaluate.session import Session
    from ..face.motion import LANDMARKER_FILE

    check_eval(args)
    if args.pairs or args.generated:
        return _of_pairs(args)
    weights = args.weights or args.data.parent / "weights"
    lipsync = load_lipsync(args)
    with progress_bar("eval", args, unit=" dubs and minutes" if args.finetune else " dubs") as progress:
        session = Session(lipsync, weights / LANDMARKER_FILE, args.out, progress, settings_from(args))
        return _of_videos(args, session) if args.videos else _of_table(args, session, weights)


def check_eval(args: argparse.Namespace) -> None:
    """Which options go together."""
    from ..evaluate.parts import PARTS

    if (args.compare or args.finetune) and (args.speech or args.parts != list(PARTS) or args.targets != "basic"):
        raise FlashLipsError("--parts, --targets and --speech belong to the table; leave them out with --compare or --finetune.")
    if (args.generated is None) != (args.sources is None):
        raise FlashLipsError("--generated and --sources belong together; give both folders, or a CSV file as --pairs.")
    is_other = bool(args.pairs or args.generated)
    if is_other and (args.pairs and args.generated or args.videos or args.data or args.compare or args.finetune):
        raise FlashLipsError(
            "--pairs, or --generated with --sources, is a measurement of its own; leave out the other one's files."
        )
    if is_other:
        return
    if args.data is None and (args.videos is None or args.weights is None):
        raise FlashLipsError(
            "There is nothing to measure; give --data for the table; --videos, --voice and --weights; or --pairs."
        )
    if args.videos is not None and (args.compare or args.finetune):
        raise FlashLipsError("--videos is a measurement of its own; leave out --compare and --finetune.")
    if args.skip < 0 or args.skip and not args.finetune:
        raise FlashLipsError(f"--skip is {args.skip}; give how many of the person's first clips --finetune leaves out, with it.")


def _of_pairs(args: argparse.Namespace) -> dict[str, Any]:
    from ..evaluate.pairs.listing import from_csv, from_folders
    from ..evaluate.pairs.run import measure_pairs

    if args.weights is not None and not args.weights.is_dir():
        raise FlashLipsError(f"There is no folder {args.weights}; check --weights, or leave it out.")
    if args.frames is not None and args.frames < 5:
        raise FlashLipsError(f"--frames is {args.frames}; 5 or more are needed.")
    pairs, skipped = from_csv(args.pairs) if args.pairs else from_folders(args.generated, args.sources)
    with progress_bar("eval", args) as progress:
        command = command_of(args)
        return measure_pairs(pairs, load_lipsync(args), args.out, args.weights, skipped, command, args.frames, progress)


def _of_videos(args: argparse.Namespace, session: Any) -> dict[str, Any]:
    from ..evaluate.videos.dubs import Request, run

    names = ("in_turn", "frames", "only", "own_voice", "own_lips", "dubs", "against")
    wanted = Request(args.videos, args.voice or (), **{name: getattr(args, name) for name in names})
    return run(wanted, session, command_of(args))


def _of_table(args: argparse.Namespace, session: Any, weights: Path) -> dict[str, Any]:
    from ..evaluate import parts
    from ..evaluate.material import SUITES, TARGETS, gather

    given = gather(args.data, weights, args.speech, SUITES[args.suite], TARGETS[args.targets])
    command = command_of(args)
    if args.compare:
        found = parts.compared(session, given, args.compare, command)
    elif args.finetune:
        found = parts.finetuned(session, given, args.finetune, args.skip, command)
    else:
        found = parts.measured(session, given, args.parts, command)
    return parts.written(session, {"command": command, "suite": args.suite} | found)


VIDEO_OPTIONS = ("videos", "voice", "in_turn", "frames", "only", "own_voice", "own_lips", "dubs", "against")
PAIR_OPTIONS = ("pairs", "generated", "sources")
DUB_OPTIONS = {"references": "num_references", "sharpen": "sharpen", "gain": "gain", "start": "start"}


def command_of(args: argparse.Namespace) -> str:
    """The command that repeats this evaluation: its own options and those that choose models."""
    from ..evaluate.parts import PARTS
    from ..steps import SHARPEN, DubSettings

    own = ("data", "weights", "suite", "parts", "targets", "speech", "compare", "finetune", "skip", *VIDEO_OPTIONS, *PAIR_OPTIONS)
    models = ("models", "codec", "editor", "pose_model", "audio_encoder", "lip_encoder", "detector", "device", "crop_px")
    given = {name: getattr(args, name) for name in (*own, *models)}
    given |= {option: getattr(args, name) for option, name in DUB_OPTIONS.items()}
    defaults = {"parts": list(PARTS), "targets": "basic", "sharpen": SHARPEN, "skip": 0, "start": DubSettings.start}
    given |= {name: None for name, value in defaults.items() if given[name] == value}
    given |= {"suite": None} if any(given[name] is not None for name in ("videos", *PAIR_OPTIONS)) else {}
    words = ["python -m flashlips_core eval"]
    for name, value in given.items():
        if value is not None and value is not False:
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *(shlex.quote(str(v)) for v in values)]
    return " ".join(words)
