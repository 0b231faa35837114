"""What is said about the nodes outside their schema, made of their schema: English locale, lists in the help pages.

    python tests/comfy/texts.py

writes locales/en/nodeDefs.json, and in js/docs/*.md the lists from "## Inputs" to the first heading that is written by hand. The
Chinese locale and all other text is written by hand; tests/test_node_docs.py says what is missing.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from comfy_host import Engine  # noqa: E402
from graphs import has_control, input_specs, is_widget, object_info  # noqa: E402

import dev  # noqa: E402

DOCS, LOCALES = ROOT / "js" / "docs", ROOT / "locales"
LISTS = re.compile(r"## Inputs\n.*?(?=## (?:Tips|Limits|Operations)\n)", re.DOTALL)
OPEN = ("bundled", "none")  # first of the choices that depend on the files of a machine


def english(info: dict) -> dict:
    """A node's entry in nodeDefs.json."""
    inputs = {}
    for name, kind, options in input_specs(info):
        inputs[name] = {"name": label(name, options), "tooltip": escaped(options.get("tooltip", ""))}
        if is_widget(kind, options) and has_control(name, options):
            inputs["control_after_generate"] = {"name": "control after generate"}
    tooltips = info["output_tooltips"]
    outputs = {
        str(index): {"name": label(name), **({"tooltip": escaped(tooltip)} if tooltip else {})}
        for index, (name, tooltip) in enumerate(zip(info["output_name"], tooltips, strict=True))
    }
    found = {"display_name": info["display_name"], "description": escaped(info["description"]), "inputs": inputs}
    return found | ({"outputs": outputs} if outputs else {})


def label(name: str, options: dict | None = None) -> str:
    """What stands on the node: names keep their underscores for prompts alone."""
    return (options or {}).get("display_name") or name.replace("_", " ")


def escaped(text: str) -> str:
    """Text that the front end's translator (vue-i18n) shows as it stands: some signs mean something to it."""
    return re.sub(r"[{}@|]", lambda sign: f"{{'{sign[0]}'}}", text)


def lists(info: dict) -> str:
    """A node's inputs and outputs as Markdown; no tables, because the front end shows help in a narrow column."""
    optional, rows = info["input"].get("optional", {}), []
    for name, kind, options in input_specs(info):
        is_free = name in optional and not is_widget(kind, options)
        about = ", ".join(filter(None, [kind_of(kind), "optional" * is_free, range_of(kind, options)]))
        rows.append(f"- **{label(name, options)}** ({about}): {options.get('tooltip', '')}")
    text = "## Inputs\n\n" + "\n".join(rows) + "\n\n## Outputs\n\n"
    outputs = zip(info["output_name"], info["output"], info["output_tooltips"], strict=True)
    rows = [f"- **{label(name)}** ({kind_of(kind)})" + (f": {tooltip}" if tooltip else "") for name, kind, tooltip in outputs]
    return text + ("\n".join(rows) or "None: the result is shown on the node.") + "\n\n"


def kind_of(kind: object) -> str:
    """A type as users know it."""
    words = {"COMBO": "choice", "INT": "whole number", "FLOAT": "number", "BOOLEAN": "on/off", "STRING": "text"}
    return words.get(kind, str(kind)) if isinstance(kind, str) else "choice"


def range_of(kind: object, options: dict) -> str:
    """A widget's default and what it allows."""
    default = options.get("default")
    if kind in ("INT", "FLOAT"):
        ends = f"; {options['min']} to {options['max']}" if options["max"] < 1 << 60 else ""
        return f"default {default}{ends}"
    if kind == "COMBO":
        choices = options.get("options", [])
        return f"default {default}" + (f"; {', '.join(choices)}" if choices and choices[0] not in OPEN else "")
    if kind == "BOOLEAN":
        return "default on" if default else "default off"
    return f"default `{default}`" if kind == "STRING" and default else ""


def with_lists(text: str, info: dict) -> str:
    """A help page with its lists up to date."""
    return LISTS.sub(lambda _: lists(info), text)


def english_file(infos: dict[str, dict]) -> str:
    """locales/en/nodeDefs.json for the nodes of the pack."""
    return json.dumps({name: english(infos[name]) for name in sorted(infos)}, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine("0.30.0", Path(folder))
        try:
            names = engine.load(dev.link_pack(engine.base))
            infos = engine.call(f"{Path(__file__).with_name('graphs.py')}:{object_info.__name__}", names=names)
        finally:
            engine.close()
    write(infos)


def write(infos: dict[str, dict]) -> None:
    (LOCALES / "en").mkdir(parents=True, exist_ok=True)
    (LOCALES / "en" / "nodeDefs.json").write_text(english_file(infos), encoding="utf-8")
    for name, info in infos.items():
        page = DOCS / f"{name}.md"
        if page.exists():
            page.write_text(with_lists(page.read_text(encoding="utf-8"), info), encoding="utf-8")


if __name__ == "__main__":
    main()
