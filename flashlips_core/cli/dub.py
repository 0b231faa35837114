"""``python -m flashlips_core sync | track | poses``: a dub, and its two halves on their own."""

from __future__ import annotations

import argparse
from typing import Any

from ..types import FlashLipsError
from .options import (
    add_finish,
    add_gain,
    add_models,
    add_sampler,
    add_tracking,
    check_outputs,
    load_lipsync,
    positive,
    progress_bar,
    rate,
    settings_from,
)

# ---- sync ------------------------------------------------------------------------------------------------------------------


def add_sync(parser: argparse.ArgumentParser) -> None:
    """The options of ``sync``."""
    parser.add_argument("video", help="the video to edit")
    parser.add_argument("audio", nargs="?", help="the voice: a sound or video file (default with --driving: that video's own)")
    parser.add_argument("-o", "--out", required=True, help="the video to write: .mp4, .mov, .mkv or .webm")
    add_choices(parser)


def add_choices(parser: argparse.ArgumentParser) -> None:
    """What may be chosen about a dub."""
    group = parser.add_argument_group("lips")
    group.add_argument("--driving", metavar="VIDEO", help="take the lip motion from this video's face instead of from sound")
    group.add_argument("--poses", metavar="FILE", help="take the lip motion from this file, as 'poses' writes it")
    add_gain(group, None)
    group.add_argument("--no-gate", dest="gate", action="store_false", help="let the mouth move in silence")
    add_sampler(parser)
    add_tracking(parser)
    parser.add_argument("--track", metavar="FILE", help="use this face track, as 'track' writes it")
    group = parser.add_argument_group("editing and output")
    group.add_argument(
        "--length",
        default="cut",
        choices=("auto", "cut", "loop", "ping-pong", "hold", "silence"),
        help="where sound and picture differ in length; auto: as long as the sound (default cut)",
    )
    add_finish(group)
    group.add_argument("--mode", default="mask-free", choices=("mask-free", "masked"), help="masked: for a stage-1 editor")
    group.add_argument("--batch", type=positive, default=8, help="frames edited at once: lower needs less memory (default 8)")
    group.add_argument("--crf", type=int, default=16, help="quality of the video: 0 lossless, lower = better (default 16)")
    group.add_argument("--preset", default="veryfast", help="x264's preset: slower = smaller file (default veryfast)")
    group.add_argument(
        "--no-tag", dest="is_tagged", action="store_false", help="do not say in the file that the lip motion is synthetic"
    )
    add_models(parser)


def run_sync(args: argparse.Namespace) -> dict[str, Any]:
    """Dub a video, file to file."""
    from ..media import CONTAINERS, probe
    from ..sidecar import load_poses, load_track

    if args.driving and args.poses:
        raise FlashLipsError("Both --driving and --poses were given; choose one source of lip motion.")
    if not (args.audio or args.driving or args.poses):
        raise FlashLipsError("There is nothing to lip-sync to; name a sound file, or give --driving or --poses.")
    if args.poses and args.gain is not None:
        raise FlashLipsError("Poses of a file are used as they are; give --gain to the command 'poses' that makes them instead.")
    check_outputs(args, [args.video, args.audio, args.driving, args.track, args.poses], tuple(CONTAINERS))
    if args.driving and not args.audio and probe(args.driving).audio_rate is None:
        raise FlashLipsError(
            f"{args.driving} has no sound: name a voice after the video; the video's own name keeps the sound that it has."
        )
    settings, lipsync = settings_from(args), load_lipsync(args)
    track = load_track(args.track) if args.track else None
    poses = load_poses(args.poses) if args.poses else None
    if args.driving:
        with progress_bar("driving video", args) as progress:
            poses = lipsync.moved(lipsync.poses_from_video(args.driving, progress=progress), settings.gain)
    with progress_bar("sync", args) as progress:
        report = lipsync.dub(
            args.video, args.audio or args.driving, args.out, settings, track=track, poses=poses, progress=progress
        )
    return report.as_dict()


def say_sync(result: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"Wrote {result['path']}: {result['frames']} frames, {result['edited']} edited, {result['without_face']} without a face, "
        f"in {result['total_s']:.1f} s ({result['frames_per_second']:.1f} frames a second)."
    ]
    lines += [f"  {name:<20}{seconds:8.2f} s" for name, seconds in result["seconds"].items()]
    return "\n".join(lines)


# ---- track -----------------------------------------------------------------------------------------------------------------


def add_track(parser: argparse.ArgumentParser) -> None:
    """The options of ``track``."""
    parser.add_argument("video", help="the video to look at")
    parser.add_argument("-o", "--out", required=True, help="the track to write: .safetensors")
    add_tracking(parser)
    add_models(parser)


def run_track(args: argparse.Namespace) -> dict[str, Any]:
    """Find and follow a face; write its track."""
    from ..sidecar import check_sidecar, save_track

    check_outputs(args, [args.video])
    check_sidecar(args.out, "track")
    with progress_bar("track", args) as progress:
        track = load_lipsync(args).track(args.video, settings_from(args), progress=progress)
    save_track(track, args.out)
    side = track.boxes[track.present, 2] - track.boxes[track.present, 0]
    return {
        "path": args.out,
        "frames": len(track),
        "with_face": int(track.present.sum()),
        "crop_px": float(side.mean()),
        "fps": float(track.fps),
    }


def say_track(result: dict[str, Any]) -> str:
    """The result for people."""
    seen = f"a face in {result['with_face']} of {result['frames']} frames"
    return f"Wrote {result['path']}: {seen}, crop {result['crop_px']:.0f} px wide."


# ---- poses -----------------------------------------------------------------------------------------------------------------


def add_poses(parser: argparse.ArgumentParser) -> None:
    """The options of ``poses``."""
    parser.add_argument("input", help="a voice (sound or video file), or with --from-video a video of a face")
    parser.add_argument("-o", "--out", required=True, help="the poses to write: .safetensors")
    parser.add_argument("--from-video", action="store_true", help="read the lips of the face instead of listening to the sound")
    parser.add_argument(
        "--fps", type=rate, help="poses per second, e.g. 30000/1001 (default: 25 from sound, the video's own from a face)"
    )
    add_gain(parser, 1.0)
    parser.add_argument("--no-gate", dest="gate", action="store_false", help="let the mouth move in silence")
    add_sampler(parser)
    add_tracking(parser)
    add_models(parser)


def run_poses(args: argparse.Namespace) -> dict[str, Any]:
    """Make lip poses from sound or from a face; write them."""
    from ..poses.motion import resample
    from ..sidecar import check_sidecar, save_poses

    check_outputs(args, [args.input])
    check_sidecar(args.out, "poses")
    lipsync, settings = load_lipsync(args), settings_from(args)
    if args.from_video:
        with progress_bar("track", args) as progress:
            track = lipsync.track(args.input, settings, progress=progress)
        with progress_bar("read lips", args) as progress:
            poses = lipsync.poses_from_video(args.input, track, progress=progress)
    else:
        with progress_bar("poses", args) as progress:
            poses = lipsync.poses_from_audio(args.input, settings=settings, progress=progress)
    poses = lipsync.moved(resample(poses, args.fps) if args.fps else poses, args.gain)
    save_poses(poses, args.out)
    return {"path": args.out, "poses": len(poses), "fps": float(poses.fps), "seconds": len(poses) / float(poses.fps)}


def say_poses(result: dict[str, Any]) -> str:
    """The result for people."""
    return f"Wrote {result['path']}: {result['poses']} poses, {result['fps']:g} a second."
