"""``python -m flashlips_core train``: one stage; its settings are ``--key=value``, or ``key=value`` as before."""

from __future__ import annotations

import argparse
import ast
from typing import Any

from .finetune import add_finetune, run_finetune, say_finetune
from .options import common_options, progress_bar

PREFIX = "setting_"  # of a setting among the parsed arguments, where a name might mean something else


def add_train(parser: argparse.ArgumentParser) -> None:
    """The options of ``train``: one command per stage, so that each has its own."""
    from ..train.presets import STAGES, stages_of

    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE", title="stages")
    common = common_options()
    text = "fit an editor to one person, from one clip of them"
    add_finetune(stages.add_parser("finetune", help=text, description=run_finetune.__doc__, parents=[common]))
    for name in STAGES:
        what = type(next(iter(stages_of(name).values())).settings).__doc__ or ""
        sub = stages.add_parser(name, help=f"{what[:1].lower()}{what[1:].rstrip('.')}", description=what, parents=[common])
        add_settings(sub, name)
        sub.add_argument(
            "--data", required=True, help="a set made by 'data build' with --landmarker, or a folder with grid_s1 and grid_people"
        )
        sub.add_argument("--weights", required=True, help="folder with the frozen teachers (TAESDXL, Whisper tiny)")
        sub.add_argument(
            "--folder", default="runs", help="where everything is cached and written; a run there is resumed (default runs)"
        )


def add_settings(parser: argparse.ArgumentParser, stage: str) -> None:
    """``--preset``, and every setting that the stage has in any preset: what it is, and its value in each."""
    from ..train.loop.settings import options_of, values_of
    from ..train.presets import PRESETS, stages_of

    parser.add_argument(
        "options", nargs="*", type=option, metavar="KEY=VALUE", help="settings may also be given like this: steps=4000 lr=1e-3"
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default="mini", help="mini: the bundled model's settings (default); full: the paper's"
    )
    group = parser.add_argument_group("settings (their values by preset)")
    own = {preset: found.settings for preset, found in stages_of(stage).items()}
    texts = {key: text for settings in own.values() for key, text in options_of(type(settings)).items()}
    values = {preset: values_of(settings) for preset, settings in own.items()}
    for key in sorted(texts):
        shown = "; ".join(f"{preset} {known[key]}" for preset, known in values.items() if key in known)
        text = f"{texts[key]} ({shown})".replace("%", "%%")
        group.add_argument(f"--{key}", dest=PREFIX + key, metavar="VALUE", type=literal, default=argparse.SUPPRESS, help=text)


def settings_given(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, either way."""
    named = {key.removeprefix(PREFIX): value for key, value in vars(args).items() if key.startswith(PREFIX)}
    return dict(args.options) | named


def option(text: str) -> tuple[str, Any]:
    """KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"settings are KEY=VALUE, got '{text}'")
    return key, literal(value)


def literal(text: str) -> Any:
    """A number, a tuple or another Python literal where the text reads as one, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def run_train(args: argparse.Namespace) -> dict[str, Any]:
    """Run one training stage; a stopped one resumes when it is run again."""
    if args.stage == "finetune":
        return run_finetune(args)
    from ..train.loop.processes import leave
    from ..train.presets import run_stage

    with progress_bar(args.stage, args, unit=" steps") as progress:
        path = run_stage(args.stage, args.data, args.weights, args.folder, settings_given(args), progress, args.preset)
    leave()
    return {"stage": args.stage, "path": str(path)}


def say_train(result: dict[str, Any]) -> str:
    """The result for people."""
    if "checks" in result:
        return say_finetune(result)
    return f"{result['stage']}: wrote {result['path']}."
