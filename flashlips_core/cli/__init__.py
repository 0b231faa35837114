"""``python -m flashlips_core sync | batch | track | poses | data | heads | train | average | ablation | cost | eval | bench``.

Exit codes: 0 done, 2 something the user can mend (one sentence on stderr, no output file), 128 + n stopped by signal n (130 is
Ctrl-C).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..system.terminal import exit_code, say, steady_streams, stoppable
from ..types import FlashLipsError
from .ablation import add_ablation, run_ablation
from .average import add_average, run_average, say_average
from .batch import add_batch, run_batch, say_batch
from .bench import add_bench, run_bench
from .cost import add_cost, run_cost
from .data import add_data, run_data, say_data
from .dub import add_poses, add_sync, add_track, run_poses, run_sync, run_track, say_poses, say_sync, say_track
from .evaluate import add_eval, run_eval
from .heads import add_heads, run_heads, say_heads
from .options import FAILED, Parser, common_options, say_as_json
from .train import add_train, run_train, say_train


class Command(NamedTuple):
    """One subcommand."""

    help: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], dict[str, Any]]
    say: Callable[[dict[str, Any]], str]


COMMANDS = {
    "sync": Command("dub a video, file to file", add_sync, run_sync, say_sync),
    "batch": Command("dub many videos", add_batch, run_batch, say_batch),
    "track": Command("find and follow a face", add_track, run_track, say_track),
    "poses": Command("lip poses from sound or from a face", add_poses, run_poses, say_poses),
    "data": Command("build a training set from videos", add_data, run_data, say_data),
    "heads": Command("render heads for training, or film one", add_heads, run_heads, say_heads),
    "train": Command("run a training stage", add_train, run_train, say_train),
    "average": Command("the mean of editors that one run led through", add_average, run_average, say_average),
    "ablation": Command("how many numbers a lip pose needs", add_ablation, run_ablation, say_as_json),
    "cost": Command("what training steps of the paper's size cost", add_cost, run_cost, say_as_json),
    "eval": Command("measure the model on held-out clips", add_eval, run_eval, say_as_json),
    "bench": Command("measure speed, size and memory", add_bench, run_bench, say_as_json),
}


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
    steady_streams()
    with stoppable():
        try:
            args = build_parser(next((a for a in arguments if a in COMMANDS), None)).parse_args(arguments)
            level = logging.ERROR if args.quiet else logging.INFO if args.verbose else logging.WARNING
            logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
            command = COMMANDS[args.command]
            result = command.run(args)
        except FlashLipsError as error:
            return _fail(str(error))
        except KeyboardInterrupt as stop:
            say(sys.stderr, "\nStopped; no half-written file is left.")
            return exit_code(stop)
        except (RuntimeError, MemoryError, OSError, ImportError) as error:
            from ..system.memory import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            return _fail("Out of memory; choose a smaller --batch, shorter or smaller media, or --device cpu.")
        say(sys.stdout, json.dumps(result, default=str) if args.json else command.say(result))
    return 0


def _fail(message: str) -> int:
    say(sys.stderr, " ".join(message.split()))
    return FAILED
