"""``python -m flashlips_core heads``: rendered heads, which no camera can film."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..types import FlashLipsError
from .options import common_options, positive, progress_bar


def add_heads(parser: argparse.ArgumentParser) -> None:
    """The options of ``heads set`` and ``heads clip``."""
    from ..heads.set import SetConfig

    actions, common = parser.add_subparsers(dest="action", required=True, metavar="ACTION"), common_options()
    pictures = actions.add_parser("set", help="pictures for training, one npz per person", parents=[common])
    clip = actions.add_parser("clip", help="a video of a head that says a line", parents=[common])
    for action in (pictures, clip):
        action.add_argument("--mesh", required=True, help="ict_facekit_f16.npz")
        action.add_argument("-o", "--out", required=True, help="folder (set) or .mp4 file (clip)")
    for field in fields(SetConfig):
        option, kind = f"--{field.name.replace('_', '-')}", int if field.name in ("other_poses", "skins", "seed") else positive
        pictures.add_argument(option, type=kind, default=field.default, help=f"default {field.default}")
    pictures.add_argument("--photos", help="npz of frontal faces (images, points) to take skins from")
    clip.add_argument("--phones", required=True, help="JSON list of [ARPAbet phone, start s, end s]")
    clip.add_argument("--audio", help="sound of the line, muxed as AAC")
    clip.add_argument("--seconds", type=float, default=5.0, help="default 5")
    clip.add_argument("--size", type=positive, default=512, help="px (default 512)")
    clip.add_argument("--seed", type=int, default=0, help="another number, another head (default 0)")


def run_heads(args: argparse.Namespace) -> dict[str, Any]:
    """Render heads for training (a stopped set goes on), or film one that says a line."""
    from ..heads.clip import film
    from ..heads.mesh import load_head
    from ..heads.set import SetConfig, make_set

    mesh = load_head(args.mesh)
    if args.action == "set":
        config = SetConfig(**{field.name: getattr(args, field.name) for field in fields(SetConfig)})
        with progress_bar("heads", args, unit=" people") as progress:
            make_set(mesh, args.out, config, args.photos, progress)
    else:
        phones = read_phones(args.phones)
        with progress_bar("heads", args) as progress:
            film(mesh, phones, args.out, args.audio, args.seconds, args.size, args.seed, progress)
    return {"path": args.out}


def read_phones(path: str) -> list:
    """The line that a head says."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlashLipsError(
            f"The phones {path} cannot be read ({error}); give a JSON list of [phone, start s, end s]."
        ) from error


def say_heads(result: dict[str, Any]) -> str:
    """The result for people."""
    return f"Wrote {result['path']}."
