"""Memory of ComfyUI while Lip-Sync Video edits a long 1080p clip, by hand:

    python tests/comfy/bench_memory.py --minutes 3

The workflow "5 Full pipeline" in the real engine, on the CPU: loaders first, then track and poses, then the edit alone, which is
what is measured. Linux only (/proc). Needs the environment that ``python dev.py test`` makes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from comfy_fixtures import VERSIONS  # noqa: E402
from comfy_host import Engine  # noqa: E402
from graphs import upstream  # noqa: E402

import dev  # noqa: E402
from flashlips_core.bench.dubs import demo_clip, demo_voice  # noqa: E402
from flashlips_core.bench.long_clip import write_long_clip, write_long_voice  # noqa: E402

LOADERS, MADE, EDIT = ("2", "5", "7", "10", "11"), ("3", "13"), "12"  # nodes of workflows/api/5 Full pipeline.json
EVERY_S = 0.5
RUN_S = 7200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--version", choices=VERSIONS, default=VERSIONS[0], help="of ComfyUI")
    parser.add_argument("--every", type=int, default=1, help="track every n-th frame; does not touch what is measured")
    print(json.dumps(measure(**vars(parser.parse_args())), indent=2))


def measure(minutes: float, version: str, every: int) -> dict[str, float]:
    """MB and minutes, labelled."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        engine = Engine(version, base)
        try:
            return _measured(engine, base, minutes, every)
        finally:
            engine.close()


def _measured(engine: Engine, base: Path, minutes: float, every: int) -> dict[str, float]:
    engine.load(dev.link_pack(base))
    seconds = Fraction(minutes).limit_denominator(600) * 60
    write_long_clip(demo_clip(), base / "input" / "long.mp4", seconds)
    write_long_voice(demo_voice(), base / "input" / "long.wav", seconds)
    prompt = json.loads((ROOT / "workflows" / "api" / "5 Full pipeline.json").read_text(encoding="utf-8"))
    prompt["1"]["inputs"]["path"], prompt["4"]["inputs"]["path"] = "long.mp4", "long.wav"
    prompt["2"]["inputs"]["every"] = every
    for keep in (LOADERS, MADE):
        run = engine.run(upstream(prompt, *keep), keep, timeout_s=RUN_S)
        if run.errors:
            raise SystemExit(f"ComfyUI refused: {run.errors}")
        if keep == LOADERS:
            loaded = _held(engine)
    started, watch = time.monotonic(), _Watch(engine)
    run = engine.run(upstream(prompt, EDIT), EDIT, timeout_s=RUN_S)
    took = time.monotonic() - started
    samples = watch.stop()
    if run.errors:
        raise SystemExit(f"ComfyUI refused: {run.errors}")
    last = samples[len(samples) // 4 :]
    slope = np.polyfit(np.linspace(0, 3 / 4 * minutes, len(last)), last, 1)[0]  # per minute of the clip
    return {
        "clip, minutes": minutes, "edit, minutes": took / 60, "loaded models, MB": loaded / 1e6, "peak, MB": max(samples) / 1e6,
        "peak above the loaded models, MB": (max(samples) - loaded) / 1e6, "growth per minute of the clip, MB": slope / 1e6,
    }  # fmt: skip


def _held(engine: Engine) -> int:
    """Bytes that the engine's process holds now."""
    status = Path(f"/proc/{engine.process.pid}/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


class _Watch:
    """Looks at the engine's memory from a thread until it is told to stop."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.samples, self.ended = engine, [], threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while not self.ended.wait(EVERY_S):
            self.samples.append(_held(self.engine))

    def stop(self) -> list[int]:
        self.ended.set()
        self.thread.join()
        return self.samples


if __name__ == "__main__":
    main()
