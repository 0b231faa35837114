"""Pictures of nodes for their help pages, and of workflows for the template browser. By hand, after nodes changed:

    python tests/comfy/take_pictures.py FlashLipsFineTuneLipEditor "9 Fine-tune an editor"

A node's id makes js/docs/<id>.jpg, a workflow's name workflows/<name>.jpg, "readme" the README's picture. Workflows run first, so
that nodes show their results: minutes on a CPU. Needs the environment that ``python dev.py test`` makes, and Chromium.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import av  # noqa: E402
import numpy as np  # noqa: E402
from comfy_fixtures import BROWSER_FLAGS, VERSIONS  # noqa: E402
from comfy_host import Server  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402

import dev  # noqa: E402

DOCS, WORKFLOWS, README_PICTURE = ROOT / "js" / "docs", ROOT / "workflows", ROOT / "docs" / "comfyui.jpg"
VIEW = {"width": 1600, "height": 1400}
MARGIN_X, MARGIN_Y = 90, 24  # around a node, in pixels
THUMBNAIL = 400
PICTURE_BYTES, README_BYTES = 40_000, 100_000
SHOWN, GAP = 250, 4  # height of its part that shows what the run has made; between two pictures
FITTED = 0.94  # of the view's width that a graph takes
README, FRONT_DOOR, README_WIDTH = "readme", "1 Dub a video", 1000
ABOUT_PICTURES = (
    "6 Shape the lips",
    "9 Fine-tune an editor",
    "9 Fine-tune a way of speaking",
)  # workflows whose point is a plot or a sheet
SIDE, BAR = 60, 100  # pixels at the left and at the top of the view that ComfyUI's own bars cover
LOADED_MS = 4000  # pictures and videos on nodes after a run
READY = "window.app?.graph && !!window.LiteGraph?.registered_node_types?.FlashLipsLipSync"
SETTINGS = {
    "Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": True, "Comfy.Minimap.Visible": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
}  # fmt: skip
OPEN = "graph => app.loadGraphData(graph)"
RUN = """async () => {
    const event = name => new Promise(done => app.api.addEventListener(name, ({detail}) => done(detail), {once: true}));
    const started = event("execution_start"), ended = event("execution_success"), failed = event("execution_error");
    await app.queuePrompt(0);
    const refused = new Promise(done => setTimeout(done, 60000));
    await Promise.race([started, refused.then(() => { throw new Error("ComfyUI did not take the graph"); })]);
    await Promise.race([ended, failed.then(detail => { throw new Error(detail.exception_message); })]);
}"""
LOOK_AT = """([left, top, scale]) => {
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [-left, -top];
    app.canvas.setDirty(true, true);
}"""
RENAME = """id => {
    const node = app.graph.getNodeById(id);
    node.title = node.constructor.title;  // what the menu calls it, not what this graph does
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", help="node ids and names of workflows")
    wanted = parser.parse_args().names
    graphs = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(WORKFLOWS.glob("*.json"))}
    homes = {name: home_of(name, graphs) for name in wanted}
    with comfy_page() as (server, page):
        for workflow in dict.fromkeys(homes.values()):
            graph = graphs[workflow]
            page.evaluate(OPEN, graph)
            page.evaluate(RUN)
            page.wait_for_timeout(LOADED_MS)
            for name in (name for name, home in homes.items() if home == workflow):
                if name == README:
                    picture, path = whole_graph(page, graph), README_PICTURE
                elif name in graphs:
                    picture, path = thumbnail(server, page, graph, name in ABOUT_PICTURES), WORKFLOWS / f"{name}.jpg"
                else:
                    picture, path = node_picture(page, graph, name), DOCS / f"{name}.jpg"
                save_small(picture, path)
                print(path.relative_to(ROOT), picture.size, path.stat().st_size, "bytes")


def save_small(picture: Image.Image, path: Path) -> None:
    """As a JPEG that a node's help page or the template browser may carry: larger ones lose quality, then size."""
    limit = README_BYTES if path == README_PICTURE else PICTURE_BYTES
    picture = picture.convert("RGB")
    for quality, width in ((82, picture.width), (75, picture.width), (75, 640), (65, 560)):
        smaller = ImageOps.contain(picture, (width, picture.height)) if width < picture.width else picture
        smaller.save(path, quality=quality, optimize=True)
        if path.stat().st_size < limit:
            return


def home_of(wanted: str, graphs: dict[str, dict]) -> str:
    """The workflow of this name, or the first one that has this node."""
    if wanted == README or wanted in graphs:
        return FRONT_DOOR if wanted == README else wanted
    found = [name for name, graph in graphs.items() if any(entry["type"] == wanted for entry in graph["nodes"])]
    if not found:
        sys.exit(f"'{wanted}' is neither a workflow nor a node of one; name one of {', '.join(graphs)}, {README} or a node's id.")
    return found[0]


@contextmanager
def comfy_page() -> Iterator[tuple[Server, Any]]:
    """The newest ComfyUI with the pack, and a browser that shows it."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        dev.link_pack(Path(folder))
        user = Path(folder) / "user" / "default"
        user.mkdir(parents=True)
        (user / "comfy.settings.json").write_text(json.dumps(SETTINGS))
        server = Server(VERSIONS[0], Path(folder))
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=BROWSER_FLAGS)
            page = browser.new_page(viewport=VIEW)
            page.set_default_timeout(300_000)
            page.goto(server.url)
            page.wait_for_function(READY)
            page.wait_for_load_state("networkidle")
            yield server, page
            browser.close()
        finally:
            server.close()


def node_picture(page: Any, graph: dict, node: str) -> Image.Image:
    """The first node of this kind with its surroundings, at full size."""
    entry = next(entry for entry in graph["nodes"] if entry["type"] == node)
    page.evaluate(RENAME, entry["id"])
    page.evaluate(LOOK_AT, [entry["pos"][0] - 500, entry["pos"][1] - 200, 1.0])
    page.wait_for_timeout(1000)
    box = page.locator(f'[data-node-id="{entry["id"]}"]').bounding_box()
    return shot(page, box["x"] - MARGIN_X, box["y"] - MARGIN_Y, box["width"] + 2 * MARGIN_X, box["height"] + 2 * MARGIN_Y)


def thumbnail(server: Server, page: Any, graph: dict, is_about_picture: bool) -> Image.Image:
    """What the run has made, above the graph: frames of its video, or the plot or sheet that it shows."""
    rest = THUMBNAIL - SHOWN
    picture = Image.new("RGB", (THUMBNAIL, THUMBNAIL))
    picture.paste(side_by_side([largest_picture(server)] if is_about_picture else frames_made(server, graph)))
    picture.paste(ImageOps.fit(graph_picture(page, graph, THUMBNAIL / rest), (THUMBNAIL, rest)), (0, SHOWN))
    return picture


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """One or two pictures, the upper part of a thumbnail."""
    whole = Image.new("RGB", (THUMBNAIL, SHOWN), "white")
    width = THUMBNAIL if len(pictures) == 1 else (THUMBNAIL - GAP) // 2
    for place, picture in enumerate(pictures):
        whole.paste(ImageOps.fit(picture, (width, SHOWN)), (place * (width + GAP), 0))
    return whole


def made_files(server: Server, endings: tuple[str, ...]) -> list[bytes]:
    """The files of these kinds that nodes have shown in the last run."""
    *_, run = server.get("/history").values()
    items = [item for shown in run["outputs"].values() for item in shown.get("images", [])]
    return [server.view(item) for item in items if item["filename"].endswith(endings)]


def largest_picture(server: Server) -> Image.Image:
    """Of those that nodes have shown in the last run."""
    pictures = [Image.open(BytesIO(content)) for content in made_files(server, (".png",))]
    return max(pictures, key=lambda image: image.width * image.height)


def frames_made(server: Server, graph: dict) -> list[Image.Image]:
    """Before and after, or the two results of a graph that makes two; of a wide video the result alone.

    The frame is the one at which the two differ most.
    """
    videos = [frames_of(BytesIO(content)) for content in made_files(server, (".mp4",))]
    if len(videos) == 1:
        videos.insert(0, frames_of(str(source_of(graph, server))))
    first, second = (np.stack(video[: min(map(len, videos))]) for video in videos[:2])
    if second.shape[2] > 1.3 * second.shape[1] or first.shape != second.shape:
        return [Image.fromarray(second[len(second) // 2])]
    place = int(np.abs(first.astype(np.int16) - second).mean((1, 2, 3)).argmax())
    return [Image.fromarray(video[place]) for video in (first, second)]


def source_of(graph: dict, server: Server) -> Path:
    """The video that the graph's first Load Video reads; the pack's own ones lie in its demo folder."""
    paths = [entry["widgets_values"][0] for entry in graph["nodes"] if entry["type"] == "FlashLipsLoadVideo"]
    name = next(path for path in paths if path.endswith(".mp4"))
    own = ROOT / "flashlips_core" / "demo" / Path(name).name
    return own if own.is_file() else server.base / "input" / name


def frames_of(file: BytesIO | str) -> list[np.ndarray]:
    """(H, W, 3) each."""
    with av.open(file) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def whole_graph(page: Any, graph: dict) -> Image.Image:
    """All of the graph."""
    left, top, right, bottom = bounds_of(graph)
    picture = graph_picture(page, graph, (right - left) / (bottom - top))
    return picture.resize((README_WIDTH, round(picture.height * README_WIDTH / picture.width)), Image.Resampling.LANCZOS)


def bounds_of(graph: dict) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of all groups."""
    boxes = np.array([group["bounding"] for group in graph["groups"]])
    return (*boxes[:, :2].min(0).tolist(), *(boxes[:, :2] + boxes[:, 2:]).max(0).tolist())


def graph_picture(page: Any, graph: dict, aspect: float) -> Image.Image:
    """The graph in its whole width, from its upper edge down as far as ``aspect`` (width over height) allows."""
    left, top, right, _ = bounds_of(graph)
    width = right - left
    view = VIEW["width"] - SIDE
    scale = FITTED * view / width
    margin = (view / scale - width) / 2
    page.evaluate(LOOK_AT, [left - margin - SIDE / scale, top - margin - BAR / scale, scale])
    page.wait_for_timeout(1000)
    return shot(page, SIDE, BAR, view, view / aspect)


def shot(page: Any, left: float, top: float, width: float, height: float) -> Image.Image:
    """A part of the page."""
    clip = {"x": left, "y": top, "width": width, "height": height}
    return Image.open(BytesIO(page.screenshot(clip=clip)))


if __name__ == "__main__":
    main()
