"""``python -m flashlips_core train finetune``: an editor for one person, from one clip of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .cli_options import add_models, add_tracking, load_lipsync, positive, progress_bar, settings_from
from .types import FlashLipsError


def add_finetune(parser: argparse.ArgumentParser) -> None:
    """Its options; their defaults are FineTuning's own."""
    from .train.finetune import FineTuning

    default = FineTuning()
    parser.add_argument("--video", required=True, help="the person talking, 20 s to 5 min; sound is not needed")
    parser.add_argument("--out", help="the editor to write, a .safetensors (default: the video's name, here)")
    group = parser.add_argument_group("training")
    length = group.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive, default=default.steps, help=f"more = closer, slower (default {default.steps})")
    length.add_argument("--minutes", type=float, help="train this long instead")
    group.add_argument(
        "--lora", type=int, default=0, metavar="RANK", help="train low-rank additions only (0, the default: all weights)"
    )
    group.add_argument("--lr", type=float, default=default.lr, help=f"learning rate: lower = gentler (default {default.lr:g})")
    group.add_argument("--batch", type=positive, default=default.batch, help=f"pairs per step (default {default.batch})")
    group.add_argument("--seed", type=int, default=default.seed, help=f"another number, another order (default {default.seed})")
    add_tracking(parser)
    add_models(parser)


def run_finetune(args: argparse.Namespace) -> dict[str, Any]:
    """Fit an editor to one person; stopped, the best so far stays, and the same command goes on."""
    from .checks import check_output
    from .loading import find_checkpoint, load_part
    from .train import finetune_data
    from .train.finetune import FineTuning, fine_tune

    if args.minutes is not None and not args.minutes > 0:
        raise FlashLipsError(f"--minutes must be above 0, got {args.minutes:g}; leave it out to train by steps.")
    if args.lora < 0:
        raise FlashLipsError(f"--lora must be 0 or more, got {args.lora}; 0 trains all weights.")
    source = find_checkpoint("editor", _editor(args))
    out = Path(args.out or f"{Path(args.video).stem}.safetensors")
    check_output(out, [source, args.video], (".safetensors",))
    lipsync = load_lipsync(args)
    editor = load_part("editor", source, lipsync.device)
    settings = FineTuning(args.steps, args.minutes, args.lr, args.batch, args.seed, lora=args.lora)
    with progress_bar("prepare", args) as progress:
        person = finetune_data.prepare_person(
            lipsync, args.video, settings_from(args), shortest_s=finetune_data.SHORTEST_S, progress=progress
        )
    with progress_bar("finetune", args, unit=" s" if args.minutes else " steps") as progress:
        done = fine_tune(editor, person, lipsync.codec, lipsync.lip_encoder, out, settings, progress)
    return {"stage": "finetune", "material": person.describe()} | done.as_dict()


def _editor(args: argparse.Namespace) -> str | Path:
    folder = Path(args.models) / "editor.safetensors" if args.models else None
    return args.editor or (folder if folder is not None and folder.is_file() else "bundled")


def say_finetune(result: dict[str, Any]) -> str:
    """The result for people."""
    before, after = result["before"], result["after"]
    gain = f"lips {before['psnr_db']:.2f} -> {after['psnr_db']:.2f} dB, sharpness {before['sharpness']:.2f} -> "
    return (
        f"{result['material']}\nOn held-out frames: {gain}{after['sharpness']:.2f} (best: step {after['step']} of "
        f"{result['steps']}, ended by: {result['ended']}).\nWrote {result['path']} and {result['sheet']}."
    )
