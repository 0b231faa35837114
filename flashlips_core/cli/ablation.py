"""``python -m flashlips_core ablation``: how many numbers a lip pose needs."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .options import positive, progress_bar


def add_ablation(parser: argparse.ArgumentParser) -> None:
    """The options of ``ablation``."""
    from ..train.ablation import EXTRA_DIMS

    parser.add_argument("--data", type=Path, required=True, help="as for 'train'")
    parser.add_argument("--folder", type=Path, required=True, help="of the run, in which 'train prepare' has cut the mouths")
    parser.add_argument("--extra", type=int, nargs="+", default=list(EXTRA_DIMS), help="numbers beside the 8 main ones")
    parser.add_argument("--steps", type=positive, default=1500, help="of each training (default 1500)")


def run_ablation(args: argparse.Namespace) -> dict[str, Any]:
    """Train the lip teacher with poses of several sizes and show what each is good for, on people and clips held out."""
    from ..train.ablation import ablate, table
    from ..train.lip import LipTeacherSettings
    from ..train.run import Run

    with progress_bar("ablation", args, unit=" steps") as progress:
        rows = ablate(Run(args.data, args.data, args.folder, LipTeacherSettings()), args.extra, args.steps, progress=progress)
    return {"rows": [asdict(row) for row in rows], "table": table(rows)}
