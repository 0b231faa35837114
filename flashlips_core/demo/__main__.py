"""``python dev.py demo``: dub a clip and show what happened: video, side by side, contact sheet, plot, seconds per stage."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..audio import to_mono_16k
from ..bench.dubs import demo_clip, demo_voice
from ..drawings.sheets import plot_motion, side_by_side, side_by_side_info, write_mouth_sheet
from ..media import load_audio, probe, read_frames, write_video
from ..pipeline import LipSync
from ..types import FaceTrack, FlashLipsError, Progress

OUT = Path("output") / "demo"


@dataclass
class Demo:
    """The files of one demo and how long each step took."""

    out: Path
    seconds: dict[str, float] = field(default_factory=dict)
    frames: int = 0

    @property
    def dubbed(self) -> Path:
        return self.out / "dubbed.mp4"

    @property
    def side_by_side(self) -> Path:
        return self.out / "side_by_side.mp4"

    @property
    def sheet(self) -> Path:
        return self.out / "contact_sheet.png"

    @property
    def plot(self) -> Path:
        return self.out / "motion.png"

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Count the time inside as this step's."""
        start = time.perf_counter()
        yield
        self.seconds[step] = time.perf_counter() - start


def run_demo(video: Path, audio: Path, out: Path, progress: Callable[[str], Progress], lipsync: LipSync | None = None) -> Demo:
    """Dub ``video`` with ``audio`` into the folder ``out``.

    Args:
        progress: Makes a progress callback for a step of that name.
        lipsync: Loaded models; None loads the bundled ones.
    """
    demo = Demo(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlashLipsError(f"Cannot make the folder {out} ({error.strerror}); choose another --out.") from error
    with demo.timed("load the models"):
        lipsync = lipsync or LipSync.load()
        sound = load_audio(audio)
        for part in ("codec", "editor", "lip_encoder", "pose_model", "audio_encoder", "detector"):
            getattr(lipsync, part)
    with demo.timed("track the face"):
        track = lipsync.track(video, progress=progress("track the face"))
    with demo.timed("audio to lip poses"):
        look = lipsync.look(video, track)
        features = lipsync.audio_encoder.encode(to_mono_16k(sound))
        poses = lipsync.poses_for(sound, look.poses)
    with demo.timed("edit and write"):
        report = lipsync.dub(video, sound, demo.dubbed, track=track, poses=poses, progress=progress("edit and write"))
        demo.frames = report.frames
    with demo.timed("side by side"), closing(read_frames(video)) as left, closing(read_frames(demo.dubbed)) as right:
        both = side_by_side(left, right)
        write_video(demo.side_by_side, both, side_by_side_info(probe(demo.dubbed)), keep_audio_from=demo.dubbed)
    with demo.timed("read back, sheet and plot"):
        write_mouth_sheet(demo.sheet, {"source": video, "dubbed": demo.dubbed}, track.boxes[: demo.frames])
        openings = {"dubbed": _opening(lipsync, demo.dubbed, track.first(demo.frames)), "source": _opening(lipsync, video, track)}
        plot_motion(demo.plot, features.level_db.numpy(), float(features.rate_hz), poses, openings, float(track.fps))
    return demo


def summary(demo: Demo) -> str:
    """Where the files are and how long each step took."""
    wall = max(demo.seconds.get("edit and write", 0.0), 1e-9)
    names = ("dubbed", "side_by_side", "sheet", "plot")
    lines = [f"{name.replace('_', ' '):<15}{getattr(demo, name)}" for name in names] + [""]
    lines += [f"{name:<28}{value:7.1f} s" for name, value in demo.seconds.items()]
    return "\n".join([*lines, "", f"{demo.frames} frames, edited and written at {demo.frames / wall:.1f} frames a second"]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, 2 for what the user can mend, 130 when stopped."""
    parser = argparse.ArgumentParser(prog="dev.py demo", description="Dub a clip with a voice and show what happened.")
    parser.add_argument("--video", type=Path, help="a video of a person (default: the bundled clip)")
    parser.add_argument("--audio", type=Path, help="a voice (default: the bundled one)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder for the results (default: {OUT})")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        demo = run_demo(args.video or demo_clip(), args.audio or demo_voice(), args.out.absolute(), _progress_bar)
    except FlashLipsError as error:
        sys.stderr.write(f"\n{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped.\n")
        return 130
    sys.stdout.write(summary(demo))
    return 0


def _opening(lipsync: LipSync, video: Path, track: FaceTrack) -> np.ndarray:
    """The mouth opening of each frame as the lip encoder reads it, without looking at the sound. (T,)."""
    poses = lipsync.poses_from_video(video, track).values
    return lipsync.lip_encoder.opening(poses.to(lipsync.lip_encoder.opening_weight)).float().cpu().numpy()


def _progress_bar(step: str) -> Progress:
    """A bar on stderr for one step."""
    from tqdm import tqdm

    bar = tqdm(desc=step, unit=" frames")

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show


if __name__ == "__main__":
    sys.exit(main())
