"""``python -m flashlips_core cost``: what training steps of the paper's size, and fine-tunings, need."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from ..types import FlashLipsError
from .options import positive


def add_cost(parser: argparse.ArgumentParser) -> None:
    """The options of ``cost``."""
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--measure", action="store_true", help="run the steps on a device instead of counting their FLOPs")
    ways.add_argument("--memory", action="store_true", help="count what the steps hold in a card's memory")
    parser.add_argument("--device", help="with --measure: cuda, mps or cpu (default: the first there is)")
    parser.add_argument("--only", default="", metavar="WORD", help="with --measure or --memory: steps whose name holds this")
    parser.add_argument("--batch", type=positive, help="of the same: samples per step (default: their own)")
    parser.add_argument("--within", type=float, metavar="SECONDS", help="with --measure: start no further step after these")


def run_cost(args: argparse.Namespace) -> dict[str, Any]:
    """Count the FLOPs of training steps without data, weights or a GPU: the tables of docs/training.md."""
    if not args.measure and (args.device or args.within is not None):
        raise FlashLipsError("--device and --within belong to --measure; add that, or leave them out.")
    if not (args.measure or args.memory) and (args.only or args.batch):
        raise FlashLipsError("--only and --batch belong to --measure and --memory; add one of those, or leave them out.")
    if not args.quiet:
        logging.getLogger("flashlips_core.train.cost").setLevel(logging.INFO)  # a row when it is known: all take minutes
    if args.memory:
        from ..train.cost.memory import needs

        return needs(args.only, args.batch)
    if args.measure:
        from ..train.cost.speed import measure

        return measure(args.device, only=args.only, batch=args.batch, within_s=args.within)
    from ..train.cost.flops import counted

    return counted()
