"""Every node is explained: a help page with its schema in it, an English locale that equals it, a whole Chinese one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import texts
import tomllib
from comfy_fixtures import VERSIONS

ROOT = Path(__file__).resolve().parents[1]
DOCS, LOCALES = ROOT / "js" / "docs", ROOT / "locales"
GRAPHS = Path(__file__).with_name("comfy") / "graphs.py"
PICTURE = re.compile(r"!\[[^\]]+\]\(([^)]+)\)")
MOST_BYTES = 40_000  # of a help page's picture


def locale(language: str) -> dict:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def keys(value: object, path: str = "") -> set[str]:
    """Every key of nested objects, with the path to it."""
    if not isinstance(value, dict):
        return set()
    return {found for name, inner in value.items() for found in {f"{path}/{name}", *keys(inner, f"{path}/{name}")}}


@pytest.fixture(scope="module")
def infos(start_engine_with_pack) -> dict[str, dict]:
    """What the newest ComfyUI says of every node of the pack."""
    engine = start_engine_with_pack(VERSIONS[0])
    names = engine.call(f"{GRAPHS}:pack_nodes", prefix="FlashLips")
    return engine.call(f"{GRAPHS}:object_info", names=names)


@pytest.mark.comfy
def test_the_english_locale_equals_the_schema(infos) -> None:
    assert (LOCALES / "en" / "nodeDefs.json").read_text(encoding="utf-8") == texts.english_file(infos), "run tests/comfy/texts.py"


@pytest.mark.comfy
def test_every_node_has_a_help_page_with_its_inputs_and_outputs(infos) -> None:
    assert {page.stem for page in DOCS.glob("*.md")} == set(infos)
    for name, info in infos.items():
        text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
        assert text.startswith(f"# {info['display_name']}\n")
        assert texts.lists(info) in text, f"{name}.md: run tests/comfy/texts.py"
        assert "## Tips\n" in text and "## Limits\n" in text


@pytest.mark.comfy
def test_every_input_has_a_tooltip(infos) -> None:
    bare = [f"{name}.{part}" for name, entry in locale("en").items() for part, about in entry["inputs"].items()
            if part != "control_after_generate" and not about["tooltip"]]  # fmt: skip
    assert not bare


def test_the_chinese_locale_has_every_text() -> None:
    english, chinese = locale("en"), locale("zh")
    assert keys(english) == keys(chinese)
    for entry in chinese.values():
        assert re.search(r"[\u4e00-\u9fff]", entry["display_name"]) and re.search(r"[\u4e00-\u9fff]", entry["description"])


def test_pictures_of_help_pages_exist_and_are_small() -> None:
    for page in DOCS.glob("*.md"):
        for name in PICTURE.findall(page.read_text(encoding="utf-8")):
            picture = DOCS / name
            assert picture.is_file() and picture.stat().st_size < MOST_BYTES, f"{page.name}: {name}"


def test_the_front_door_asks_for_consent_and_disclosure() -> None:
    text = (DOCS / "FlashLipsLipSync.md").read_text(encoding="utf-8")
    assert "consent" in text and "wherever you show it" in text


def test_the_registry_finds_name_icon_and_the_oldest_comfyui() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    about = project["tool"]["comfy"]
    assert about["DisplayName"] == "FlashLips" and (ROOT / about["Icon"]).is_file()
    assert about["requires-comfyui"] == f">={VERSIONS[-1]}"
    assert project["project"]["license"] and "comfy" not in project["project"]["name"].lower()
