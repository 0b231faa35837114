"""Options that several commands share, and what they mean to the pipeline."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from fractions import Fraction
from typing import Any, NoReturn

from ..types import FlashLipsError, Progress

FAILED = 2  # exit code


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(FAILED, f"{message[:1].upper()}{message[1:]}; see '{self.prog} --help'.\n")


def common_options() -> Parser:
    """What every command has. Nothing is set where it is not given, so that it may stand on either side of a stage."""
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    common.add_argument("--quiet", action="store_true", help="no progress bar, errors only")
    common.add_argument("--verbose", action="store_true", help="say what is being done")
    return common


def add_tracking(parser: argparse.ArgumentParser) -> None:
    """Which face, and how it is followed."""
    group = parser.add_argument_group("face")
    group.add_argument(
        "--face",
        dest="which",
        type=face,
        default="largest",
        help="largest, left, right, a number from the left (0 first), or a picture of the person",
    )
    group.add_argument(
        "--every", type=positive, default=1, help="detect in every n-th frame and interpolate: higher = faster (default 1)"
    )
    group.add_argument(
        "--stabilise",
        default="smooth",
        choices=("auto", "fixed", "fixed-size", "smooth", "none"),
        help="how the crop stays still (default smooth)",
    )
    group.add_argument(
        "--threshold", type=float, default=0.5, help="lowest detection score that counts: lower finds more faces (default 0.5)"
    )


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """How poses are drawn; defaults are SamplerSettings' own."""
    from ..flow import SOLVERS
    from ..poses.sampling import SamplerSettings

    default = SamplerSettings()
    group = parser.add_argument_group("sound to lips")
    group.add_argument(
        "--steps", type=int, default=default.steps, help=f"steps of the solver: more = finer (default {default.steps})"
    )
    group.add_argument("--solver", choices=SOLVERS, default=default.solver, help=f"default {default.solver}")
    group.add_argument(
        "--guidance", type=float, default=default.guidance, help=f"higher follows the sound harder (default {default.guidance:g})"
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=default.temperature,
        help=f"0 = always the same calm take (default {default.temperature:g})",
    )
    group.add_argument("--seed", type=int, default=default.seed, help=f"another number, another take (default {default.seed})")


def add_gain(parser: argparse._ActionsContainer, default: float | None) -> None:
    """How far the lips move; None where the dub's own default shall hold."""
    from ..steps import LIP_MOTION

    text = f"lip motion around rest: above 1 is more, 0 none (default {default or LIP_MOTION:g})"
    parser.add_argument("--gain", type=float, default=default, help=text)


def add_finish(parser: argparse._ActionsContainer) -> None:
    """How a clip's own mouth is looked at and matched."""
    from ..steps import SHARPEN, STARTS, DubSettings

    parser.add_argument(
        "--start",
        choices=STARTS,
        default=DubSettings.start,
        help="what an edit starts from: retrieved = the clip's own mouth that is nearest to the wanted one, laid over the frame; "
        f"frame = the frame as it is, the paper's way (default {DubSettings.start})",
    )
    parser.add_argument(
        "--no-fit",
        dest="fit",
        action="store_false",
        help="let a voice open the mouth further than the clip shows it (default: its motion is made to fit)",
    )
    parser.add_argument(
        "--references",
        dest="num_references",
        type=positive,
        help="reference frames: more = better copied mouths, slower start (default: what suits the editor)",
    )
    parser.add_argument(
        "--sharpen",
        type=float,
        default=SHARPEN,
        help=f"share of the fine detail lost in editing that is put back: 0 none, 1 all (default {SHARPEN:g})",
    )


def add_models(parser: argparse.ArgumentParser) -> None:
    """Other networks than the bundled ones."""
    kinds = "a path or a hub id; default: the bundled ones; editor also bundled-fast or bundled-transformer, with their codec"
    group = parser.add_argument_group(f"models ({kinds})")
    group.add_argument("--models", metavar="DIR", help="folder with <role>.safetensors files")
    for name in ("codec", "editor", "pose-model", "audio-encoder", "lip-encoder", "detector", "emotion-encoder"):
        group.add_argument(f"--{name}", dest=name.replace("-", "_"), metavar="MODEL")
    group.add_argument("--device", help="cuda, mps or cpu (default: the first there is)")
    group.add_argument(
        "--crop-px", type=positive, help="side of the square that the editor sees (default: what it was trained on)"
    )


def load_lipsync(args: argparse.Namespace) -> Any:
    """The pipeline with the models that were asked for."""
    from ..pipeline import LipSync

    check_device(args.device)
    names = ("codec", "editor", "pose_model", "audio_encoder", "lip_encoder", "detector", "emotion_encoder", "device", "crop_px")
    return LipSync.load(args.models, **{name: getattr(args, name) for name in names if getattr(args, name, None) is not None})


def check_device(device: str | None) -> None:
    """Refuse a device that is not there."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise FlashLipsError(f"The device '{device}' cannot be used ({str(error).splitlines()[0]}); choose cpu.") from error


def settings_from(args: argparse.Namespace) -> Any:
    """DubSettings from those of the options that this command has."""
    from ..pipeline import DubSettings
    from ..poses.sampling import SamplerSettings

    given = vars(args)
    sampler = {f.name: given[f.name] for f in fields(SamplerSettings) if f.name in given}
    values = {f.name: given[f.name] for f in fields(DubSettings) if given.get(f.name) is not None}
    return DubSettings(**values, sampler=SamplerSettings(**sampler))


def check_outputs(args: argparse.Namespace, inputs: Sequence[str | None], suffixes: Sequence[str] = ()) -> None:
    """Before the long work, not after it."""
    from ..checks import check_output

    check_output(args.out, inputs, suffixes)


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def rate(text: str) -> Fraction:
    """Something per second, as a number or a fraction, above 0."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0 such as 25 or 30000/1001, got {text}")
    return value


def face(text: str) -> str | int:
    """A word, a picture's path, or a number from the left."""
    return int(text) if text.lstrip("-").isdigit() else text


@contextmanager
def progress_bar(name: str, args: argparse.Namespace, unit: str = " frames") -> Iterator[Progress]:
    """A bar on stderr, only where somebody can see it."""
    from tqdm import tqdm

    with tqdm(desc=name, unit=unit, disable=True if args.quiet or args.json else None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def say_as_json(result: dict[str, Any]) -> str:
    """A table where there is one, else all of it."""
    return result["table"] if "table" in result else json.dumps(result, indent=2, default=str)
