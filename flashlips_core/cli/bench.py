"""``python -m flashlips_core bench``: speed, size and memory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..types import FlashLipsError
from .options import progress_bar


def add_bench(parser: argparse.ArgumentParser) -> None:
    """The options of ``bench``."""
    parser.add_argument("--video", type=Path, help="clip to dub (default: the bundled face)")
    parser.add_argument("--audio", type=Path, help="voice (default: the bundled voice)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs after one warm-up; 0 skips the timing (default 5)")
    parser.add_argument("--batch", type=int, default=8, help="frames edited at once (default 8)")
    parser.add_argument("--models", type=Path, metavar="DIR", help="folder with <role>.safetensors (default: the bundled)")
    parser.add_argument("--long", type=float, metavar="MINUTES", help="also report the peak memory on a 1080p clip this long")
    parser.add_argument("--full", action="store_true", help="instead, time editors of the paper's size on crops (random weights)")
    parser.add_argument("--within", type=float, metavar="SECONDS", help="with --full: begin nothing further after these")


def run_bench(args: argparse.Namespace) -> dict[str, Any]:
    """Measure speed, size and memory."""
    if args.within is not None and not args.full:
        raise FlashLipsError("--within belongs to --full; add that, or leave --within out.")
    with progress_bar("bench", args, unit=" runs") as progress:
        if args.full:
            from ..bench.editors import full_speed

            return full_speed(progress=progress, within_s=args.within)
        from ..bench.dubs import bench

        return bench(args.video, args.audio, args.models, args.repeats, args.batch, args.long, progress)
