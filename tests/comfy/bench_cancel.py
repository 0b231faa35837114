"""Seconds from Cancel until ComfyUI has stopped, by hand:

    python tests/comfy/bench_cancel.py --times 8

Runs the bundled workflows that hold the long nodes in the real server, on the CPU, and presses Cancel over HTTP at moments spread
over each run. A node that ends before Cancel comes is not counted, so a quick one may be missing from the result. Needs the
environment that ``python dev.py test`` makes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from comfy_fixtures import VERSIONS  # noqa: E402
from comfy_host import Server  # noqa: E402

import dev  # noqa: E402

GRAPHS = (
    "5 Full pipeline", "1 Dub a video", "4 Lips from another performance", "8 Edit latents", "9 Fine-tune an editor",
)  # fmt: skip
LONG = {
    "FlashLipsTrackFace", "FlashLipsSamplePoses", "FlashLipsEncodeAudio", "FlashLipsEncodePoses", "FlashLipsLipSync",
    "FlashLipsLipSyncVideo", "FlashLipsCropFaces", "FlashLipsPasteFaces", "FlashLipsEditLatents", "FlashLipsPrepareDataset",
    "FlashLipsFineTuneCodec", "FlashLipsFineTuneLipEditor", "FlashLipsFineTunePoseModel",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=8, help="how often Cancel is pressed in each node")
    parser.add_argument("--version", choices=VERSIONS, default=VERSIONS[0], help="of ComfyUI")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for name in ("custom_nodes", "input"):
            (base / name).mkdir()
        dev.link_pack(base)
        server = Server(args.version, base)
        try:
            waits = measure(server, args.times)
        finally:
            server.close()
    found = {node: {"times": len(w), "median, s": median(w), "longest, s": max(w)} for node, w in waits.items()}
    print(json.dumps(found, indent=2))


def measure(server: Server, times: int) -> dict[str, list[float]]:
    """Node -> seconds from each Cancel to the end of the run."""
    waits: dict[str, list[float]] = defaultdict(list)
    for name in GRAPHS:
        prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
        for key, entry in prompt.items():
            if entry["class_type"] in LONG and entry["class_type"] not in waits:
                for turn in range(times):
                    changed = fresh(prompt, key, turn)
                    waited = cancelled(server, changed, key, 0.2 + 1.3 * turn / times)
                    if waited is not None:  # else the node ended before
                        waits[entry["class_type"]].append(waited)
    return waits


def fresh(prompt: dict, key: str, turn: int) -> dict:
    """The prompt with a seed or a name of its own, so that nothing that the node makes is cached."""
    inputs = prompt[key]["inputs"]
    own = {name: f"{inputs[name]}_{turn}" if name == "name" else turn + 1 for name in ("seed", "name") if name in inputs}
    own |= {"threshold": 0.5 + turn / 1000} if "threshold" in inputs else {}
    return {**prompt, key: {**prompt[key], "inputs": {**inputs, **own}}}


def cancelled(server: Server, prompt: dict, key: str, after_s: float) -> float | None:
    """Press Cancel ``after_s`` after the node began; seconds until the run had ended, None if the node was quicker."""
    pressed: list[float] = []

    def press() -> None:
        pressed.append(time.monotonic())
        server.interrupt()

    timer = None
    for event, data in server.follow(server.submit(prompt)["prompt_id"]):
        ended = time.monotonic()
        if event == "executing" and data["node"] == key and timer is None:
            timer = threading.Timer(after_s, press)
            timer.start()
        elif event == "executing" and timer is not None and not pressed:
            timer.cancel()
            server.interrupt()
            timer = None
        if event == "execution_interrupted":
            return ended - pressed[0] if pressed else None
    return None


if __name__ == "__main__":
    main()
