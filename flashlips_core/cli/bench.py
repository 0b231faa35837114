"""``python -m flashlips_core bench``: speed, size and memory."""

from __future__ import annotations

import argparse
import shlex
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
    parser.add_argument("--editor", nargs="+", metavar="NAME", help="editors to time, e.g. bundled bundled-fast (default: one)")
    parser.add_argument("--rivals", action="store_true", help="also time the networks of other methods, rebuilt at their sizes")
    parser.add_argument("--markdown", type=Path, metavar="FILE.md", help="write the tables there too")
    parser.add_argument("--full", action="store_true", help="instead, time editors of the paper's size on crops (random weights)")
    parser.add_argument("--within", type=float, metavar="SECONDS", help="with --full: begin nothing further after these")


def run_bench(args: argparse.Namespace) -> dict[str, Any]:
    """Measure speed, size and memory."""
    if args.within is not None and not args.full:
        raise FlashLipsError("--within belongs to --full; add that, or leave --within out.")
    if args.full and (args.rivals or args.markdown or args.editor):
        raise FlashLipsError("--full has a table of its own; leave out --rivals, --markdown and --editor.")
    with progress_bar("bench", args, unit=" runs") as progress:
        if args.full:
            from ..bench.editors import full_speed

            return full_speed(progress=progress, within_s=args.within)
        from ..bench.dubs import bench

        given = (args.video, args.audio, args.models, args.repeats, args.batch, args.long, args.rivals, args.editor or ())
        result = bench(*given, progress)
    if args.markdown:
        from ..bench.report import markdown

        args.markdown.write_text(markdown(result, command_of(args)), encoding="utf-8")
    return result


def command_of(args: argparse.Namespace) -> str:
    """The command that repeats this benchmark."""
    words = ["python -m flashlips_core bench"]
    for name in ("video", "audio", "repeats", "batch", "models", "long", "editor", "rivals", "markdown"):
        value = getattr(args, name)
        if value is not None and value is not False:
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{name}", *(shlex.quote(str(v)) for v in values)]
    return " ".join(words)
