"""``python -m flashlips_core average``: the mean of editors along one run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import check_outputs


def add_average(parser: argparse.ArgumentParser) -> None:
    """The options of ``average``."""
    parser.add_argument("editors", nargs="+", metavar="EDITOR", help="checkpoints; the last one's size and notes are kept")
    parser.add_argument("-o", "--out", required=True, help="the new checkpoint: .safetensors")


def run_average(args: argparse.Namespace) -> dict[str, Any]:
    """Write the mean of editors, the newest named last."""
    from ..train.average import average

    check_outputs(args, args.editors)
    average(args.editors, args.out)
    return {"path": args.out, "averaged": [Path(editor).stem for editor in args.editors]}


def say_average(result: dict[str, Any]) -> str:
    """The result for people."""
    return f"Wrote {result['path']}: the mean of {', '.join(result['averaged'])}."
