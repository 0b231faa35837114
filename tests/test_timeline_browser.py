"""The timeline in the real ComfyUI: what is drawn becomes operations and poses, is undone and kept, and moves no node."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from comfy_fixtures import VERSIONS

pytestmark = [pytest.mark.comfy, pytest.mark.browser]

DEMO = Path(__file__).resolve().parents[1] / "flashlips_core" / "demo"
SECONDS, FRAMES = 1, 25
PATIENCE_MS = 180_000
READY = "window.app?.graph && !!window.LiteGraph?.registered_node_types?.FlashLipsEditPoses"
EDITS = "app.graph._nodes.filter(node => node.type === 'FlashLipsEditPoses').sort((a, b) => a.pos[0] - b.pos[0])"
SHOW = """() => {
    const node = EDITS[0];
    [app.canvas.ds.scale, app.canvas.ds.offset[0], app.canvas.ds.offset[1]] = [1, 120 - node.pos[0], 120 - node.pos[1]];
    app.canvas.setDirty(true, true);
}""".replace("EDITS", EDITS)
TEXT = f"{EDITS}[0].widgets.find(widget => widget.name === 'operations').value"
SEEN = f"[...{EDITS}[0].flashlipsTimeline.values]"  # after the edits, as the browser shows them
MADE = f"[...{EDITS}[1].flashlipsTimeline.state.track.values]"  # by Python: what the second node was given
SAME_SEED = """() => app.graph._nodes.flatMap(node => node.widgets ?? [])
    .filter(widget => widget.name === "control_after_generate").forEach(widget => { widget.value = "fixed"; })"""
PLACES = "Object.fromEntries(app.graph._nodes.map(node => [node.id, [...node.pos]]))"  # the chosen one is last in the list
LANE = """async key => {
    const {placed} = await import("/extensions/flashlips/timeline_draw.js");
    const {canvas, state} = EDITS[0].flashlipsTimeline, lane = placed(state, canvas.clientHeight).find(lane => lane.key === key);
    return [lane.top / canvas.clientHeight, lane.height / canvas.clientHeight];
}""".replace("EDITS", EDITS)


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


GRAPH = {
    "1": node("LoadAudio", audio="voice.wav"),
    "2": node("FlashLipsLoadAudioEncoder", name="bundled"),
    "3": node("FlashLipsLoadPoseModel", name="bundled"),
    "4": node("FlashLipsEncodeAudio", audio_encoder=["2", 0], audio=["1", 0]),
    "5": node("FlashLipsSamplePoses", pose_model=["3", 0], features=["4", 0], seed=1, temperature=0.6),
    "6": node("FlashLipsEditPoses", poses=["5", 0], features=["4", 0], audio=["1", 0], operations="[]"),
    "7": node("FlashLipsEditPoses", poses=["6", 0], operations="[]"),
    "8": node("FlashLipsPreviewPoses", poses=["7", 0]),
}


@pytest.fixture(params=[(version, renderer) for version in VERSIONS for renderer in ("classic", "nodes-2")], ids="-".join)
def opened(request, start_server, page):
    """A page with the graph, run once."""
    version, renderer = request.param
    server = start_server(version)
    with wave.open(str(DEMO / "voice.wav")) as whole, wave.open(str(server.base / "input" / "voice.wav"), "wb") as cut:
        cut.setparams(whole.getparams())
        cut.writeframes(whole.readframes(SECONDS * whole.getframerate()))
    server.post("/settings/Comfy.TutorialCompleted", True)  # no templates over the graph
    page.set_default_timeout(PATIENCE_MS)
    page.goto(server.url)
    page.wait_for_function(READY)
    page.evaluate("is_new => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', is_new)", renderer == "nodes-2")
    page.evaluate("graph => app.loadApiJson(graph, 'timeline')", GRAPH)
    page.wait_for_function(f"{EDITS}.length === 2")
    page.evaluate(SAME_SEED)
    run(page)
    page.evaluate(SHOW)
    page.wait_for_timeout(1000)
    return page


def run(page) -> None:
    """Queue the graph, wait for its end and until every timeline shows what it has sent."""
    page.evaluate(f"window.shown = {EDITS}.map(node => node.flashlipsTimeline.state.track)")
    page.evaluate("""async () => {
        const ended = new Promise((done, failed) => {
            app.api.addEventListener("execution_success", done, {once: true});
            app.api.addEventListener("execution_error", event => failed(new Error(event.detail.exception_message)), {once: true});
        });
        await app.queuePrompt(0);
        await ended;
    }""")
    page.wait_for_function(
        f"{EDITS}.every(({{flashlipsTimeline: {{state}}}}, i) => state.track && state.track !== window.shown[i])"
    )


def drag(page, key: str, *points: tuple[float, float]) -> None:
    """Along shares of a lane's width and height."""
    box, gutter = page.locator(".fl-canvas").first.bounding_box(), 90
    top, height = page.evaluate(LANE, key)
    for place, (x, y) in enumerate(points):
        page.mouse.move(
            box["x"] + gutter + x * (box["width"] - gutter - 4),
            box["y"] + box["height"] * (top + y * height),
            steps=1 if not place else 6,
        )
        if not place:
            page.mouse.down()
    page.mouse.up()


def press(page, action: str) -> None:
    page.locator(f".flashlips-timeline button[data-action={action}]").first.click()


def test_a_drawn_curve_becomes_operations_and_poses(opened) -> None:
    page = opened
    places, before = page.evaluate(PLACES), page.evaluate(MADE)
    assert page.evaluate(SEEN) == pytest.approx(before, abs=0.01)
    press(page, "draw")
    drag(page, "curve 0", (0.3, 0.5), (0.4, 0.2), (0.6, 0.3))
    (drawn,) = json.loads(page.evaluate(TEXT))
    assert drawn["op"] == "draw" and drawn["curve"] == "opening" and drawn["points"][0][1] < drawn["points"][-1][1]
    assert FRAMES * 0.25 < drawn["start"] < drawn["stop"] < FRAMES * 0.65
    seen = page.evaluate(SEEN)
    assert np.abs(np.subtract(seen, before)).max() > 0.1
    run(page)
    made = page.evaluate(MADE)
    assert made == pytest.approx(seen, abs=0.01)  # Python did what the browser had shown
    page.keyboard.press("d")
    drag(page, "sound", (0.1, 0.5), (0.3, 0.5))
    page.keyboard.press("Delete")
    rest = json.loads(page.evaluate(TEXT))[1]
    assert rest["op"] == "rest" and rest["stop"] - rest["start"] in range(4, 8)
    page.keyboard.press("Control+c")
    drag(page, "ruler", (0.7, 0.5), (0.72, 0.5))
    page.keyboard.press("Control+v")
    assert json.loads(page.evaluate(TEXT))[2]["op"] == "copy"
    kept = page.evaluate(TEXT)
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert json.loads(page.evaluate(TEXT)) == [drawn]
    page.keyboard.press("Control+Shift+z")
    page.keyboard.press("Control+Shift+z")
    assert page.evaluate(TEXT) == kept
    assert page.evaluate(PLACES) == places and page.evaluate("app.graph._nodes.length") == len(GRAPH)  # no node moved or deleted
    page.wait_for_timeout(2000)  # ComfyUI saves the workflow a little later
    page.reload()
    page.wait_for_function(READY)
    page.wait_for_function(f"{EDITS}.length === 2")
    assert json.loads(page.evaluate(TEXT)) == json.loads(kept)
    run(page)
    run(page)  # nothing has changed: what is cached is sent again
    assert not [problem for problem in page.problems if "timeline" in problem.lower() or "flashlips" in problem.lower()]


def test_edits_of_a_newer_version_are_kept_and_said_and_a_deleted_node_leaves_nothing(opened) -> None:
    page = opened
    newer = '[{"op": "wiggle", "how": "much"}]'
    page.evaluate(f"text => {{ {EDITS}[0].widgets.find(widget => widget.name === 'operations').value = text; }}", newer)
    page.wait_for_function("document.querySelector('.fl-status.fl-problem')?.textContent.includes('wiggle')")
    drag(page, "curve 0", (0.3, 0.5), (0.6, 0.2))
    page.keyboard.press("Delete")
    page.keyboard.press("Control+v")
    assert page.evaluate(TEXT) == newer
    page.evaluate(f"window.gone = {EDITS}.map(node => node.flashlipsTimeline); {EDITS}.forEach(node => app.graph.remove(node))")
    page.wait_for_function("!document.querySelector('.flashlips-timeline')")
    assert page.evaluate("gone.every(timeline => timeline.ended.signal.aborted && timeline.player.audio === null)")
    assert not [problem for problem in page.problems if "timeline" in problem.lower() or "flashlips" in problem.lower()]
