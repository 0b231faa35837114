"""The pack's JavaScript without ComfyUI: its pure parts by node, or all of it on an empty page beside a stand-in for ComfyUI."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "js"
WAIT_S = 120
SITE = "http://pack.test"
# As much of ComfyUI's front end as the timeline asks for: one node with its widgets, in a box of the page.
APP = """
export const app = {
    extensionManager: {setting: {get: name => name === "Comfy.Locale" ? window.language ?? "en" : false}}, graph: null,
    canvas: {processMouseWheel() {}, processMouseDown() {}},
    registerExtension(extension) { (window.extensions ??= []).push(extension); },
};
window.makeNode = async (box, text = "[]") => {
    for (const extension of window.extensions) await extension.setup?.();
    const node = {
        comfyClass: "FlashLipsEditPoses", size: [0, 0], setSize() {}, setDirtyCanvas() {},
        widgets: [{name: "operations", value: text, options: {}}],
        addDOMWidget(name, type, element, options) {
            box.append(element);
            const widget = {name, type, element, options};
            this.widgets.push(widget);
            return widget;
        },
    };
    for (const extension of window.extensions) extension.nodeCreated?.(node);
    return node;
};
"""
API = """
export const api = {
    apiURL: path => path,
    fetchApi: async path => new Response(JSON.stringify(path === "/i18n" ? window.texts : window.sent)),
};
"""


def run_in_node(node: str, folder: Path, code: str, given: object) -> object:
    """The result of an async function's body that sees ``given`` and ``load(file)``, a module of js/ without ComfyUI in it.

    Args:
        folder: takes copies of the modules, since node must be told that they are modules.
    """
    for path in SCRIPTS.glob("*.js"):
        shutil.copy(path, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "given.json").write_text(json.dumps(given))
    (folder / "main.js").write_text(
        'import { readFileSync } from "node:fs";\n'
        'const given = JSON.parse(readFileSync(new URL("given.json", import.meta.url), "utf8"));\n'
        "const load = (name) => import(`./${name}`);\n"
        f"const answer = await (async () => {{ {code} }})();\n"
        "process.stdout.write(JSON.stringify(answer ?? null));\n"
    )
    made = subprocess.run([node, "main.js"], cwd=folder, capture_output=True, text=True, timeout=WAIT_S)
    if made.returncode:
        raise AssertionError(made.stderr)
    return json.loads(made.stdout)


def run_in_page(page, code: str, given: object) -> object:
    """The same in a browser's page."""
    open_site(page)
    return page.evaluate(f"async given => {{ const load = name => import(`/extensions/pack/${{name}}`); {code} }}", given)


def open_site(page, body: str = "") -> None:
    """An empty page from which the pack's modules can be imported."""

    def answer(route) -> None:
        path = route.request.url.removeprefix(SITE)
        stand_ins = {"/scripts/app.js": APP, "/scripts/api.js": API}
        if path == "/":
            route.fulfill(content_type="text/html", body=f"<!doctype html>{body}")
        elif path in stand_ins:
            route.fulfill(content_type="text/javascript", body=stand_ins[path])
        elif (file := SCRIPTS / Path(path).name).is_file():
            route.fulfill(content_type="text/javascript", body=file.read_text(encoding="utf-8"))
        else:
            route.fulfill(status=404)

    page.route(f"{SITE}/**", answer)
    page.goto(f"{SITE}/")
