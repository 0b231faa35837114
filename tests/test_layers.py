"""The core's imports point down its layers, and importing it is cheap."""

from __future__ import annotations

import subprocess
import sys
<<<<<<< HEAD
from functools import cache
from pathlib import Path
=======
>>>>>>> a1a76c0 (Layers: every folder has its level, circles are seen in functions too, a picture from the imports; architecture, contributing, ruff and pyrefly)

import pytest
from draw_layers import PICTURE, picture
from imports import CORE, ROOT, file_of, folder_of, folders, foreign_imports, imports, modules, ring

# Lower may not import higher. Those of one level may import each other, but not in a ring. Every file of the root, every folder
# and every folder of train stands on exactly one level.
LEVELS = [
<<<<<<< HEAD
    {"types", "system", "checks", "pixels", "turned"},
    {"checkpoint", "compose"},
    {"media", "stream", "audio", "face", "codec", "models", "flow", "poses", "pretrained"},
    {"sharpen"},
    {"references", "sidecar", "loading", "parts", "retrieval", "editing"},
=======
    {"types", "pixels", "turned", "stream"},
    {"checks", "system", "downloads", "checkpoint", "compose", "measures", "sharpen"},
    {"media", "flow", "poses", "models", "face"},
    {"audio", "codec", "losses"},
    {"sidecar", "loading", "drawings", "retrieval", "references"},
    {"editing"},
>>>>>>> a1a76c0 (Layers: every folder has its level, circles are seen in functions too, a picture from the imports; architecture, contributing, ruff and pyrefly)
    {"steps"},
    {"pipeline"},
    {"images", "dataset", "heads"},
    {"train.loop"},
    {"train.batches"},
    {"train.editor", "train.landmarks"},
    {"train"},
    {"train.finetune"},
    {"train.cost"},
    {"evaluate"},
    {"bench", "demo", "batch"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
BRIDGES = {"bridge", "bridge_models"}  # of the nodes to ComfyUI
COMFYUIS = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "server", "execution"}


def test_every_file_and_folder_has_its_level():
    assert set(folders()) == set(LEVEL) and sum(map(len, LEVELS)) == len(LEVEL)


<<<<<<< HEAD
def _level(module: str) -> int:
    head = module.partition(".")[0]
    head = "media" if head.startswith("media_") else head
    if head.startswith("cli"):
        return CLI
    return next((i for i, names in enumerate(LEVELS) if head in names), TOP)


def _file(module: str) -> Path:
    path = CORE / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _imports(module: str) -> set[str]:
    """Modules of the core that this one imports, anywhere in the file."""
    known = set(_modules())
    package = module.split(".") if _file(module).name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(_file(module).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            home = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            names = {f"{home}.{alias.name}".strip(".") for alias in node.names} & known
            found |= names or ({home} & known)
        elif isinstance(node, ast.ImportFrom):
            assert not node.module.startswith("flashlips_core"), f"{module}: write relative imports inside the core"
        elif isinstance(node, ast.Import):
            assert not any(a.name.startswith("flashlips_core") for a in node.names), (
                f"{module}: write relative imports inside the core"
            )
    return found - {module}


@pytest.mark.parametrize("module", _modules())
=======
@pytest.mark.parametrize("module", modules())
>>>>>>> a1a76c0 (Layers: every folder has its level, circles are seen in functions too, a picture from the imports; architecture, contributing, ruff and pyrefly)
def test_imports_point_down_the_layers(module):
    upward = {name for name in imports(module) if LEVEL[folder_of(name)] > LEVEL[folder_of(module)]}
    assert not upward, f"{module} imports {sorted(upward)} from a higher layer"


<<<<<<< HEAD
def test_modules_do_not_import_each_other_in_a_ring():
    graph = {name: _imports(name) for name in _modules()}
    while graph:
        free = [name for name, needs in graph.items() if not needs & graph.keys()]
        assert free, f"import ring among {sorted(graph)}"
        for name in free:
            del graph[name]
=======
def test_nothing_imports_in_a_ring():
    assert not ring(modules(), imports)
    assert not ring(folders(), lambda name: folders()[name])
>>>>>>> a1a76c0 (Layers: every folder has its level, circles are seen in functions too, a picture from the imports; architecture, contributing, ruff and pyrefly)


def test_a_ring_and_an_import_inside_a_function_are_seen():
    assert ring("abc", {"a": "b", "b": "a", "c": ""}.get) == ["a", "b"]
    assert "pipeline" in imports("cli.options")  # imported inside functions alone


@pytest.mark.parametrize("module", modules())
def test_core_imports_nothing_of_comfyui_nor_torchvision_and_itself_by_relative_imports(module):
    packages = {name.partition(".")[0] for name in foreign_imports(file_of(module))}
    assert not packages & (COMFYUIS | {"torchvision", CORE.name})


@pytest.mark.parametrize("file", sorted((ROOT / "nodes").glob("*.py")), ids=lambda file: file.stem)
def test_nodes_reach_comfyui_through_the_bridges_and_the_core_by_relative_imports(file):
    allowed = {"comfy_api.latest"} | ({"comfy", "folder_paths"} if file.stem in BRIDGES else set())
    for name in foreign_imports(file):
        package = name.partition(".")[0]
        assert package not in COMFYUIS or {name, package} & allowed, f"{file.name} imports {name}"
        assert package not in {CORE.name, "torchvision", "torchaudio"}, f"{file.name} imports {name}"


def test_no_test_file_imports_from_another():
    for file in (ROOT / "tests").rglob("*.py"):
        assert not [name for name in foreign_imports(file) if name.rpartition(".")[2].startswith("test_")], file.name


def test_the_picture_of_the_layers_is_the_one_that_the_imports_give():
    assert PICTURE.read_text() == picture(), "run 'python tests/draw_layers.py' and look at docs/layers.svg"


def test_importing_the_core_needs_neither_diffusers_nor_transformers_and_under_a_second_beyond_torch():
    script = """
import sys, time, torch
for name in ("diffusers", "transformers", "kornia", "mediapipe", "cv2", "torchvision", "torchaudio", "matplotlib"):
    sys.modules[name] = None
start = time.process_time()
import flashlips_core
from flashlips_core import LipSync, Report, FaceTrack, probe, load_codec, SamplerSettings
print(time.process_time() - start)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.0


def test_every_public_name_exists():
    import flashlips_core

    for name in flashlips_core.__all__:
        assert getattr(flashlips_core, name) is not None
    assert set(flashlips_core.__all__) <= set(dir(flashlips_core))
    with pytest.raises(AttributeError, match="no attribute 'lipsync'"):
        flashlips_core.lipsync  # noqa: B018
