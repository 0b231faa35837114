"""How long the timeline takes to draw while it pans over a long track. By hand:

    python tests/comfy/bench_timeline.py [--frames 15000]

All curves are open, with a waveform and speech behind them, in the system's Chromium without a graphics card, on an empty page.
Prints, at three zooms, the median and the 95th percentile of the time in which our code draws one frame and of the time between
two of the browser's frames, and for how long the page's thread works at a frame, which a busy machine does not change much.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from comfy_fixtures import BROWSER_FLAGS  # noqa: E402
from scripts import open_site  # noqa: E402

from flashlips_core.poses.operations import Surroundings  # noqa: E402
from flashlips_core.poses.timeline import heard_in, timeline  # noqa: E402
from flashlips_core.types import AudioFeatures, LipPoses  # noqa: E402

FPS, PANS = 25, 120
SPANS = (15_000, 1500, 150)  # frames in view
PAN = """async ([span, pans]) => {
    const timeline = window.node.flashlipsTimeline, {track} = timeline.state, drawn = [], between = [];
    timeline.look({...timeline.state.view, first: 0, span});
    const frame = () => new Promise(done => requestAnimationFrame(done));
    let before = await frame();
    for (let i = 0; i < pans; i++) {
        timeline.state.view.first = (i / pans) * Math.max(track.frames - span, 0);
        const began = performance.now();
        timeline.paint();
        timeline.canvas.getContext("2d").getImageData(0, 0, 1, 1);  // waits until it is drawn
        drawn.push(performance.now() - began);
        const now = await frame();
        between.push(now - before);
        before = now;
    }
    return {drawn, between};
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=15_000)
    frames = parser.parse_args().frames
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=BROWSER_FLAGS)
        page = browser.new_page(viewport={"width": 1300, "height": 800})
        open_long_track(page, frames)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        for span in SPANS:
            before = worked(session)
            times = page.evaluate(PAN, [min(span, frames), PANS])
            each = (worked(session) - before) / PANS * 1000
            shown = ", ".join(
                f"{name} median {quantile(t, 0.5):.1f} ms, 95% {quantile(t, 0.95):.1f} ms" for name, t in times.items()
            )
            print(f"{span} of {frames} frames in view: worked {each:.1f} ms a frame, {shown}")
        browser.close()


def worked(session) -> float:
    """Seconds that the page's main thread has been running."""
    return next(
        metric["value"] for metric in session.send("Performance.getMetrics")["metrics"] if metric["name"] == "TaskDuration"
    )


def open_long_track(page, frames: int) -> None:
    """A page with a timeline 1200 pixels wide that shows all curves of a track."""
    choose = torch.Generator().manual_seed(0)
    poses = LipPoses(torch.randn(frames, 12, generator=choose), Fraction(FPS))
    samples = torch.randn(frames * 16_000 // FPS, generator=choose) * 0.1
    loud = (torch.arange(frames * 2) // 60 % 2).float() * 50 - 70  # 50 rows a second; speech for 1.2 s, then silence
    speech = AudioFeatures(torch.zeros(0, 0), Fraction(50), "", loud)
    sent = timeline(poses, Surroundings(torch.zeros(12)), heard_in(samples), speech)
    texts = {"en": json.loads((ROOT / "locales" / "en" / "main.json").read_text(encoding="utf-8"))}
    open_site(page, '<div id="box" style="width: 1200px; height: 700px"></div>')
    page.evaluate("([sent, texts]) => Object.assign(window, {sent, texts})", [sent, texts])
    page.evaluate("import('/extensions/pack/timeline.js')")
    page.evaluate("async () => { window.node = await makeNode(document.querySelector('#box')); }")
    page.evaluate("node.onExecuted({flashlips_timeline: [{filename: 'sent'}]})")
    page.wait_for_function("node.flashlipsTimeline.state.track")
    page.evaluate("node.flashlipsTimeline.toggleNumbers()")


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


if __name__ == "__main__":
    main()
