"""``python -m flashlips_core data build``: from talking videos to a training set."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from .options import load_lipsync, positive, progress_bar


def add_data(parser: argparse.ArgumentParser) -> None:
    """The options of ``data build``."""
    from ..dataset.build import BuildSettings

    default = BuildSettings()
    parser.add_argument("action", choices=["build"], metavar="build", help="build: make a set, or go on with a stopped one")
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video files, folders (with all below them) or patterns")
    parser.add_argument("-o", "--out", required=True, help="folder of the set; a stopped build there goes on")
    group = parser.add_argument_group("samples")
    group.add_argument(
        "--crop-px", type=positive, default=default.crop_px,
        help=f"side of the editor's square, a multiple of 64; stored a quarter wider (default {default.crop_px})",
    )  # fmt: skip
    group.add_argument("--latents", dest="has_latents", action="store_true", help="store the codec's latents of every square too")
    group.add_argument(
        "--landmarker", metavar="FILE", help="MediaPipe's .task file: adds landmarks and blendshapes, which training needs"
    )
    group.add_argument("--shard-mb", type=positive, default=default.shard_mb, help=f"of a shard (default {default.shard_mb})")
    group.add_argument(
        "--threshold", type=float, default=default.threshold,
        help=f"lowest detection score that counts as a face (default {default.threshold})",
    )  # fmt: skip
    _add_limits(parser)
    group = parser.add_argument_group("split")
    group.add_argument(
        "--identity", default=default.identity, metavar="folder|file|CSV",
        help="who is who: a video's folder, every video another person, or a CSV file with path, identity and maybe split "
        f"(default {default.identity})",
    )  # fmt: skip
    for name in ("val", "test"):
        share = getattr(default, name)
        group.add_argument(f"--{name}", type=float, default=share, help=f"share of the identities (default {share})")
    group.add_argument("--seed", type=int, default=default.seed, help=f"of the split and the order (default {default.seed})")
    parser.add_argument(
        "--workers", type=positive, default=1, help="processes that share the videos, each with its own networks (default 1)"
    )
    group = parser.add_argument_group("models (a path or a hub id; default: the bundled ones)")
    group.add_argument("--models", metavar="DIR", help="folder with <role>.safetensors files")
    for name in ("lip-encoder", "codec", "detector"):
        group.add_argument(f"--{name}", dest=name.replace("-", "_"), metavar="MODEL")
    group.add_argument("--device", help="cuda, mps or cpu (default: the first there is)")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    from ..dataset.filters import Limits

    group, default = parser.add_argument_group("what is kept"), Limits()
    helps = {
        "min_face_px": (float, "side of the editor's square in the video's pixels"),
        "min_sharpness": (float, "variance of the Laplacian of the square at 256 px"),
        "max_missing": (float, "share of frames without the face"),
        "min_seconds": (float, "shortest stretch of a face"),
        "max_seconds": (float, "longer stretches are parted"),
        "min_sync": (float, "correlation of mouth motion and loudness"),
        "max_lag": (int, "frames that sound and mouth may be apart"),
    }
    for name, (kind, text) in helps.items():
        value = getattr(default, name)
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, help=f"{text} (default {value:g})")
    group.add_argument("--keep-silent", action="store_true", help="keep videos without sound, which all stages but 'poses' use")


def run_data(args: argparse.Namespace) -> dict[str, Any]:
    """Build a training set from talking videos; a stopped build goes on when it is run again."""
    from ..dataset.build import BuildSettings, build
    from ..dataset.filters import Limits

    given = vars(args)
    limits = Limits(**{f.name: given[f.name] for f in fields(Limits)})
    settings = BuildSettings(limits=limits, **{f.name: given[f.name] for f in fields(BuildSettings) if f.name != "limits"})
    with progress_bar("data", args, unit=" kB") as progress:
        return build(args.videos, args.out, load_lipsync(args), settings, progress, args.workers)


def say_data(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"Wrote {result['path']}: {result['kept']} of {result['candidates']} stretches of a face from {result['videos']} videos, "
        f"{60 * result['hours_kept']:.1f} minutes, in {result['shards']} shards; {result['report']} shows them."
    ]
    lines += [f"  {result['unreadable']} videos could not be read"] if result["unreadable"] else []
    lines += [f"  {result['without_face']} videos show no face"] if result["without_face"] else []
    lines += [f"  {count} dropped: {reason}" for reason, count in result["dropped"].items()]
    for split, totals in result["splits"].items():
        lines.append(f"  {split:<6}{result['identities'][split]:6} identities {totals['samples']:8} samples")
    return "\n".join(lines)
