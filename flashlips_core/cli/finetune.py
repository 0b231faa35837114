"""``python -m flashlips_core train finetune``: an editor for one person, from one clip of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..types import FlashLipsError
from .options import add_models, add_tracking, load_lipsync, positive, progress_bar, settings_from


def add_finetune(parser: argparse.ArgumentParser) -> None:
    """Its options; their defaults are FineTuning's own."""
    from ..train.finetune.editor import FineTuning

    default = FineTuning()
    parser.add_argument("--video", required=True, help="the person talking, 20 s to 5 min; sound is not needed")
    parser.add_argument("--out", help="the editor to write, a .safetensors (default: the video's name, here)")
    parser.add_argument(
        "--style", metavar="FILE", help="also let the pose model learn how the person speaks, and write it here; needs sound"
    )
    parser.add_argument(
        "--decoder", metavar="FILE",
        help="first let the codec's decoder learn the person's face, for as many steps or minutes, and write the codec here",
    )  # fmt: skip
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
    from ..checks import check_output
    from ..loading import find_checkpoint, load_part
    from ..train.finetune import person as finetune_data
    from ..train.finetune.codec import check_learnable
    from ..train.finetune.editor import FineTuning, fine_tune

    if args.minutes is not None and not args.minutes > 0:
        raise FlashLipsError(f"--minutes must be above 0, got {args.minutes:g}; leave it out to train by steps.")
    if args.lora < 0:
        raise FlashLipsError(f"--lora must be 0 or more, got {args.lora}; 0 trains all weights.")
    source = find_checkpoint("editor", part_named(args, "editor"))
    out = Path(args.out or f"{Path(args.video).stem}.safetensors")
    check_output(out, [source, args.video], (".safetensors",))
    lipsync = load_lipsync(args)
    editor = load_part("editor", source)  # copies of it learn on the device
    settings = FineTuning(args.steps, args.minutes, args.lr, args.batch, args.seed, lora=args.lora)
    if args.style:
        _check_style(args, out)
    if args.decoder:
        check_output(args.decoder, [source, args.video], (".safetensors",))
        check_learnable(lipsync.codec)
    results = [Path(file).resolve() for file in (out, args.decoder, args.style) if file]
    if len(set(results)) < len(results):
        raise FlashLipsError("--out, --decoder and --style name the same file; give each a name of its own.")
    with progress_bar("prepare", args) as progress:
        person = finetune_data.prepare_person(
            lipsync, args.video, settings_from(args), shortest_s=finetune_data.SHORTEST_S, progress=progress
        )
    result, codec = {"stage": "finetune", "material": person.describe()}, lipsync.codec
    if args.decoder:
        result["decoder"], codec = _decoder(args, lipsync, person)
    with progress_bar("finetune", args, unit=" s" if args.minutes else " steps") as progress:
        result |= fine_tune(editor, person, codec, lipsync.lip_encoder, out, settings, progress, device=lipsync.device).as_dict()
    return result | ({"style": _style(args, lipsync, person.track)} if args.style else {})


def _decoder(args: argparse.Namespace, lipsync: Any, person: Any) -> tuple[dict[str, Any], Any]:
    """Let the decoder learn the person: what came of it, and the new codec."""
    from ..codec import load_codec
    from ..train.finetune.codec import CodecTuning, tune_decoder

    with progress_bar("decoder", args, unit=" s" if args.minutes else " steps") as progress:
        settings = CodecTuning(args.steps, args.minutes, seed=args.seed)
        done = tune_decoder(lipsync.codec, person, args.decoder, settings, progress)
    return done.as_dict(), load_codec(args.decoder, lipsync.device)


def _check_style(args: argparse.Namespace, out: Path) -> None:
    """Say what would fail before the long work."""
    from ..checks import check_output
    from ..media import probe

    check_output(args.style, [out, args.video], (".safetensors",))
    if not probe(args.video).audio_rate:
        raise FlashLipsError(f"{args.video} has no sound to learn a way of speaking from; leave --style out.")


def _style(args: argparse.Namespace, lipsync: Any, track: Any) -> dict[str, Any]:
    """Let the pose model learn from the same clip."""
    from ..audio import to_mono_16k
    from ..loading import find_checkpoint, load_part
    from ..media import load_audio
    from ..train.finetune import speech

    with progress_bar("style", args, unit=" steps") as progress:
        samples = to_mono_16k(load_audio(args.video))
        emotion = None
        if lipsync.emotion_encoder and lipsync.pose_model.config.emotion_dim:
            emotion = lipsync.emotion_encoder.encode(samples)
        base = load_part("pose-model", find_checkpoint("pose-model", part_named(args, "pose-model")), lipsync.device)
        settings = speech.StyleTuning(minutes=args.minutes, seed=args.seed)
        return speech.tune_style(
            base, lipsync.audio_encoder.encode(samples), lipsync.poses_from_video(args.video, track), args.style, settings,
            emotion, speech.SHORTEST_S, progress,
        ).as_dict()  # fmt: skip


def part_named(args: argparse.Namespace, role: str) -> str | Path:
    """What the options name for a role."""
    file = Path(args.models) / f"{role}.safetensors" if args.models else None
    return getattr(args, role.replace("-", "_")) or (file if file is not None and file.is_file() else "bundled")


def say_finetune(result: dict[str, Any]) -> str:
    """The result for people."""
    decoder = say_decoder(result["decoder"]) if "decoder" in result else ""
    return (
        f"{result['material']}{decoder}\nOn held-out frames: {say_gain(result)}\nWrote {result['path']} and {result['sheet']}."
    ) + (say_style(result["style"]) if "style" in result else "")


def say_gain(done: dict[str, Any]) -> str:
    """Held-out lips before and after."""
    before, after = done["before"], done["after"]
    return (
        f"lips {before['psnr_db']:.2f} -> {after['psnr_db']:.2f} dB, sharpness {before['sharpness']:.2f} -> "
        f"{after['sharpness']:.2f} (best: step {after['step']} of {done['steps']}, ended by: {done['ended']})."
    )


def say_decoder(result: dict[str, Any]) -> str:
    """The same of the decoder."""
    return (
        f"\nThe decoder, on held-out frames: {say_gain(result)}\nWrote {result['path']}; beside the new editor it is found by "
        "itself, elsewhere give it as --codec."
    )


def say_style(result: dict[str, Any]) -> str:
    """The same of the pose model."""
    before, after = result["before"], result["after"]
    changes = ", ".join(f"{name} {before[name]:.3f} -> {after[name]:.3f}" for name in ("loss", "correlation", "size"))
    return (
        f"\nWay of speaking, on held-out speech: {changes} (best: step {after['step']} of {result['steps']}, ended by: "
        f"{result['ended']}).\nWrote {result['path']}."
    )
