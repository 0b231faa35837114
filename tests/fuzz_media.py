"""Truncated and bit-flipped files through probe, track, sync: ``python tests/fuzz_media.py [COUNT] [SEED] [SECONDS]``, by hand.

Small networks and a steady face stand in for the real ones, so that the files are what is tried. Each file must give a result or
one sentence: no crash, no other exception, no hang over 60 s, no file left behind. Prints what did not, and a count.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
HANG_S = 60
CLIPS = {
    "a.mp4": {"audio_rate": 44_100}, "b.mp4": {"container_options": (("movflags", "frag_keyframe+empty_moov"),)},
    "c.mkv": {"audio_rate": 48_000}, "d.webm": {"codec": "libvpx-vp9"}, "e.ts": {"audio_rate": 48_000}, "f.avi": {},
    "g.mov": {"pix_fmt": "yuv422p10le", "audio_rate": 22_050, "audio_codec": "pcm_s16le"}, "h.flv": {"audio_rate": 44_100},
    "i.wav": {"size": None, "audio_rate": 16_000, "audio_codec": "pcm_s16le"}, "j.m4a": {"size": None, "audio_rate": 44_100},
    "k.flac": {"size": None, "audio_rate": 44_100, "audio_codec": "flac"}, "l.mp3": {"size": None, "audio_rate": 44_100,
    "audio_codec": "libmp3lame"}, "m.mkv": {"codec": "ffv1", "size": (63, 47)},
    "n.mp4": {"pts": tuple(i * 1800 + i * i * 90 for i in range(25))},
}  # fmt: skip


def make_clips(folder: Path) -> list[Path]:
    """Whole files of every kind."""
    from fractions import Fraction

    from conftest import ClipSpec, make_clip

    paths = []
    for name, fields in CLIPS.items():
        grid = {} if name[-3:] == "mp4" else {"time_base": Fraction(1, 25), "pts": tuple(range(25))}
        paths.append(make_clip(folder, ClipSpec(**{"name": name, **grid, **fields})))
    return paths


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """The same file, cut, with flipped bits, with a hole, or with a part twice."""
    values = np.frombuffer(data, np.uint8).copy()
    kind = random.integers(4)
    if kind == 0:
        return data[: random.integers(1, len(data))]
    start = int(random.integers(len(values)))
    stop = min(len(values), start + int(random.integers(1, 2000)))
    if kind == 1:
        places = random.integers(0, len(values), random.integers(1, 200))
        values[places] ^= (1 << random.integers(0, 8, len(places))).astype(np.uint8)
    elif kind == 2:
        values[start:stop] = random.integers(0, 256) if random.random() < 0.5 else random.integers(0, 256, stop - start)
    else:
        values = np.concatenate([values[:stop], values[start:]])
    return values.tobytes()


def work(models: str, pipe) -> None:
    """A process that tries one file after the other."""
    import torch
    from toy_dubs import SteadyFace

    from flashlips_core.media import probe, read_frames
    from flashlips_core.pipeline import LipSync
    from flashlips_core.types import FlashLipsError

    torch.set_num_threads(1)
    lipsync = LipSync.load(models, device="cpu", detector=SteadyFace())
    steps = {
        "probe": lambda video, voice, out: (probe(video), sum(1 for _ in read_frames(video))),
        "track": lambda video, voice, out: lipsync.track(video),
        "sync": lambda *files: lipsync.dub(*files, preset="ultrafast", length="hold", gate=False),
    }
    while (task := pipe.recv()) is not None:
        results = {}
        for name, use in steps.items():
            try:
                use(*task)
                results[name] = "a result"
            except FlashLipsError as error:
                results[name] = "a sentence" if "\n" not in str(error) else f"several lines: {error!r}"
            except Exception as error:  # noqa: BLE001 - this is what is looked for
                results[name] = f"{type(error).__name__}: {error}"
        pipe.send(results)


class Worker:
    """A process that can be replaced when it crashes or hangs."""

    def __init__(self, models: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(models, other), daemon=True)
        self.process.start()
        other.close()

    def run(self, *task: str) -> dict[str, str] | str:
        """What became of a file; a word where the process did not survive it."""
        self.pipe.send(task)
        try:
            return self.pipe.recv() if self.pipe.poll(3 * HANG_S) else "a hang"
        except EOFError:
            self.process.join()
            return f"a crash ({self.process.exitcode})"

    def end(self) -> None:
        """Stop it, also when it hangs."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self.process.join(1)
        self.process.kill()


def main(count: int = 500, seed: int = 0, seconds: int = 36_000) -> int:
    """Try ``count`` files, or as many as ``seconds`` allow; returns how many did something else than they may."""
    from toy_dubs import CROP_PX, toy_networks

    from flashlips_core import checkpoint

    random, seen, wrong, slowest = np.random.default_rng(seed), Counter(), [], 0.0
    with tempfile.TemporaryDirectory() as home:
        folder, models, outs = (Path(home) / name for name in ("clips", "models", "outs"))
        for made in (folder, models, outs):
            made.mkdir()
        for role, network in toy_networks().items():
            checkpoint.save(network, models / f"{role}.safetensors", role, {"licence": "test", "crop_px": CROP_PX})
        whole = make_clips(folder)
        worker, end, index = Worker(str(models)), time.perf_counter() + seconds, -1
        for index in itertools.takewhile(lambda _: time.perf_counter() < end, range(count)):
            source = whole[random.integers(len(whole))]
            bad = folder / f"bad-{index}{source.suffix}"
            bad.write_bytes(damaged(source.read_bytes(), random))
            is_sound = CLIPS[source.name].get("size", 1) is None
            pair = (str(whole[0]), str(bad)) if is_sound else (str(bad), str(folder / "i.wav"))
            started = time.perf_counter()
            results = worker.run(*pair, str(outs / "out.mp4"))
            slowest = max(slowest, time.perf_counter() - started)
            left = [path.name for path in outs.iterdir() if path.name != "out.mp4"]
            if isinstance(results, str):
                wrong.append((index, source.name, results))
                worker.end()
                worker = Worker(str(models))
                results = {"file": results}
            wrong += [(index, source.name, f"{k}: {v}") for k, v in results.items() if v not in ("a result", "a sentence")]
            wrong += [(index, source.name, f"left {left}")] if left else []
            seen.update(f"{name}: {what}" for name, what in results.items())
            for path in (bad, *outs.iterdir()):
                path.unlink()
        worker.end()
    for case in wrong:
        print("file {}, from {}: {}".format(*case))
    print(f"{index + 1} files, seed {seed}, slowest {slowest:.1f} s: {len(wrong)} wrong; {dict(sorted(seen.items()))}")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(min(1, main(*map(int, sys.argv[1:]))))
