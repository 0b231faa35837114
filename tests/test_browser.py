"""In a real browser: the template is found under the pack's name, opens whole, runs, and its result plays, in either renderer."""

from __future__ import annotations

import json
import wave
from dataclasses import replace
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import pytest
from comfy_fixtures import VERSIONS

from flashlips_core.media import probe, read_frames, write_video

pytestmark = [pytest.mark.comfy, pytest.mark.browser]

ROOT = Path(__file__).resolve().parents[1]
DEMO, WORKFLOWS = ROOT / "flashlips_core" / "demo", ROOT / "workflows"
FRAMES, RATE = 6, 25
TEMPLATE = "1 Dub a video"
PATIENCE_MS = 300_000
READY = "window.app?.graph && !!window.LiteGraph?.registered_node_types?.FlashLipsLipSync"
UNKNOWN = "app.graph._nodes.map(node => node.type).filter(type => !(type in LiteGraph.registered_node_types))"
SET_PATHS = """files => {
    for (const node of app.graph._nodes.filter(node => node.type === "FlashLipsLoadVideo"))
        node.widgets[0].value = files[node.title];
    const save = app.graph._nodes.find(node => node.type === "FlashLipsSaveVideo");
    save.widgets.find(widget => widget.name === "codec").value = "h264";  // encoding takes a while: a preview could come between
}"""
PLAYER = "[...(await import('/extensions/flashlips/compare.js')).players]"
COMPARED = f"""async () => {{
    const [player] = {PLAYER};
    const settled = async () => {{
        const isBusy = () => player.videos.some(video => video.readyState < 2 || video.seeking);
        while (isBusy()) await new Promise(done => setTimeout(done, 50));
        return player.videos.map(video => Math.floor(video.currentTime * player.data.fps));
    }};
    const press = key => player.root.dispatchEvent(new KeyboardEvent("keydown", {{key, bubbles: true, cancelable: true}}));
    const found = {{frames: player.data.frames, first: await settled()}};
    press("ArrowRight");
    found.second = await settled();
    press("End");
    found.last = await settled();
    press("s");
    found.view = player.view;
    press("w");
    player.share = 1;
    player.draw();
    const pen = player.canvas.getContext("2d");
    const [box] = player.boxes();
    const picture = () => pen.getImageData(box.x, box.y + box.height / 2, box.width, box.height / 2 - 8).data;
    const before = picture();
    player.share = 0;
    player.draw();
    const after = picture();
    found.changed = before.filter((value, place) => Math.abs(value - after[place]) > 12).length;
    press(" ");
    const apart = [];
    for (let i = 0; i < 40; i++) {{  // several times the clip: it loops, and one may begin again a moment before the other
        await new Promise(done => setTimeout(done, 50));
        apart.push(Math.abs(player.videos[0].currentTime - player.videos[1].currentTime) * player.data.fps);
    }}
    found.playing = player.playing;
    found.apart = apart.sort((a, b) => a - b)[20];
    press(" ");
    return found;
}}"""
DELETE_PLAYER = f"""async () => {{
    const [player] = {PLAYER};
    app.graph.remove(app.graph._nodes.find(node => node.type === "FlashLipsCompareVideo"));
    let heard = 0;
    player.act = () => heard++;
    player.root.dispatchEvent(new KeyboardEvent("keydown", {{key: " ", bubbles: true}}));
    player.draw = () => heard++;
    for (const video of player.videos) video.dispatchEvent(new Event("seeked"));
    await new Promise(done => setTimeout(done, 300));
    const files = player.videos.filter(video => video.getAttribute("src")).length;
    return {{players: {PLAYER}.length, heard, files, ended: player.ended.signal.aborted}};
}}"""
OLD_VALUES = """async () => {
    const old = {type: "FlashLipsLipSync", id: 1, pos: [0, 0], size: [300, 400], flags: {}, mode: 0, inputs: [], outputs: [],
                 properties: {}, widgets_values: ["left", "cut", 1.15, 7, false, 20, false, true, "bundled", 0.5, "frame"]};
    await app.loadGraphData({version: 0.4, last_node_id: 1, last_link_id: 0, nodes: [old], links: [], groups: [], config: {}});
    return Object.fromEntries(app.graph._nodes[0].widgets.map(widget => [widget.name, widget.value]));
}"""
TO_PROMPT = """async graph => {
    await app.loadGraphData(graph);
    return (await app.graphToPrompt()).output;
}"""
MAKE_PREVIEW = "window.preview = LiteGraph.createNode('FlashLipsPreviewTrack')"
IS_PLAYABLE = "[...document.querySelectorAll('video')].some(video => video.src.includes('dubbed') && video.readyState >= 2)"
PLAY = """async () => {
    const video = [...document.querySelectorAll("video")].find(video => video.src.includes("dubbed"));
    video.muted = true;
    video.currentTime = 0;
    await video.play();
    await new Promise(done => video.requestVideoFrameCallback(done));
    return {duration: video.duration, width: video.videoWidth, shown: video.clientWidth};
}"""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """A quarter of a second of the bundled clip, at half its size, and of the voice, by the titles of their nodes."""
    folder = tmp_path_factory.mktemp("clips")
    info = probe(DEMO / "face.mp4")
    small = (replace(frame, planes=tuple(plane[::2, ::2] for plane in frame.planes)) for frame in read_frames(DEMO / "face.mp4"))
    write_video(folder / "face.mp4", islice(small, FRAMES), replace(info, width=info.width // 2, height=info.height // 2))
    with wave.open(str(DEMO / "voice.wav")) as whole, wave.open(str(folder / "voice.wav"), "wb") as cut:
        cut.setparams(whole.getparams())
        cut.writeframes(whole.readframes(round(FRAMES / RATE * whole.getframerate())))
    return {"Video": str(folder / "face.mp4"), "Voice": str(folder / "voice.wav")}


def open_template(page, name: str) -> None:
    """As a user does it: Templates, the pack's name, the picture."""
    if not page.get_by_test_id("template-workflows-content").count():  # a new user finds them open
        page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text("flashlips", exact=True).first.click()
    page.get_by_test_id(f"template-workflow-{name}").click()
    page.wait_for_function("app.graph._nodes.some(node => node.type === 'FlashLipsLipSync')")


def test_the_server_hands_out_templates_help_and_translations(start_server) -> None:
    server = start_server(VERSIONS[0])
    names = server.get("/workflow_templates")["flashlips"]
    assert TEMPLATE in names
    for name in names:
        assert server.get(f"/api/workflow_templates/flashlips/{quote(name)}.json")["nodes"]
        assert server.get_bytes(f"/api/workflow_templates/flashlips/{quote(name)}.jpg").startswith(b"\xff\xd8")
    assert server.get_bytes("/extensions/flashlips/docs/FlashLipsLipSync.md").startswith(b"# Lip Sync")
    assert server.get_bytes("/extensions/flashlips/docs/FlashLipsLipSync.jpg").startswith(b"\xff\xd8")
    translations = server.get("/i18n")
    assert all("FlashLipsLipSync" in translations[language]["nodeDefs"] for language in ("en", "zh"))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("renderer", ["classic", "nodes-2"])
def test_the_template_opens_runs_and_its_result_plays(version: str, renderer: str, start_server, page, files) -> None:
    page.set_default_timeout(PATIENCE_MS)
    page.goto(start_server(version).url)
    page.wait_for_function(READY)
    is_new = renderer == "nodes-2"
    page.evaluate("async is_new => await app.extensionManager.setting.set('Comfy.VueNodes.Enabled', is_new)", is_new)
    open_template(page, TEMPLATE)
    assert page.evaluate(UNKNOWN) == []
    assert page.evaluate("!!document.querySelector('[data-node-id]')") == is_new  # that renderer draws nodes as HTML
    page.evaluate(MAKE_PREVIEW)
    page.wait_for_function("window.preview.previewMediaType === 'image'")  # not a video, though it has such an input
    page.evaluate(SET_PATHS, files)
    page.get_by_test_id("queue-button").click()
    page.wait_for_function(IS_PLAYABLE)
    played = page.evaluate(PLAY)
    assert played["duration"] == pytest.approx(FRAMES / RATE, abs=0.05)
    assert played["width"] == 256 and played["shown"] > 100
    compared = page.evaluate(COMPARED)
    assert compared["frames"] == FRAMES and compared["view"] == "side"
    assert (compared["first"], compared["second"], compared["last"]) == ([0, 0], [1, 1], [FRAMES - 1] * 2)
    assert compared["changed"] > 20  # the mouth
    assert compared["playing"] and compared["apart"] < 3  # frames, most of the time
    assert page.evaluate(DELETE_PLAYER) == {"players": 0, "heard": 0, "files": 0, "ended": True}
    assert not [text for text in page.said if "blob:" in text]  # a preview picture taken for the result
    assert not [problem for problem in page.problems if "flashlips" in problem.lower()]


def test_a_workflow_from_before_the_seeds_control_keeps_its_values(start_server, page) -> None:
    page.set_default_timeout(PATIENCE_MS)
    page.goto(start_server(VERSIONS[0]).url)
    page.wait_for_function(READY)
    values = page.evaluate(OLD_VALUES)
    kept = {"face": "left", "length": "cut", "seed": 7, "close_in_silence": False, "crf": 20, "tag": False, "download": True}
    assert values.items() >= kept.items() and (values["sharpen"], values["start"], values["fit"]) == (0.5, "frame", True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_front_end_makes_the_api_twins_of_the_workflows(version: str, start_server, page) -> None:
    page.set_default_timeout(PATIENCE_MS)
    page.goto(start_server(version).url)
    page.wait_for_function(READY)
    for path in WORKFLOWS.glob("*.json"):
        made = page.evaluate(TO_PROMPT, json.loads(path.read_text(encoding="utf-8")))
        assert page.evaluate(UNKNOWN) == []
        assert made == json.loads((WORKFLOWS / "api" / path.name).read_text(encoding="utf-8")), path.name
