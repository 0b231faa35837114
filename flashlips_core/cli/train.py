"""The settings of a training stage on the command line: ``--key=value``, or ``key=value`` as before."""

from __future__ import annotations

import argparse
import ast
from typing import Any

PREFIX = "setting_"  # of a setting among the parsed arguments, where a name might mean something else


def add_settings(parser: argparse.ArgumentParser, stage: str) -> None:
    """``--preset``, and every setting that the stage has in any preset, with its value in each."""
    from ..train.presets import PRESETS

    parser.add_argument(
        "options", nargs="*", type=option, metavar="KEY=VALUE", help="settings may also be given like this: steps=4000 lr=1e-3"
    )
    parser.add_argument(
        "--preset", choices=list(PRESETS), default="mini", help="mini: the bundled model's settings (default); full: the paper's"
    )
    group = parser.add_argument_group("settings (their values by preset)")
    own = {name: stages[stage] for name, stages in PRESETS.items() if stage in stages}
    for key in sorted({key for settings in own.values() for key in settings}):
        values = "; ".join(f"{name} {settings[key]}" for name, settings in own.items() if key in settings)
        group.add_argument(f"--{key}", dest=PREFIX + key, metavar="VALUE", type=literal, default=argparse.SUPPRESS, help=values)


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
