"""The core's imports point down its layers, and importing it is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "flashlips_core"

# Lower may not import higher; modules of one level may import each other, but not in a ring.
LEVELS = [
    {"types", "system", "checks", "pixels", "turned"},
    {"checkpoint", "compose"},
    {"media", "stream", "audio", "face", "codec", "models", "flow", "poses", "pretrained"},
    {"sharpen"},
    {"references", "sidecar", "loading", "parts", "retrieval", "editing"},
    {"steps"},
    {"pipeline"},
]
BRIDGES = {"bridge", "bridge_models"}  # of the nodes to ComfyUI
TOP = len(LEVELS)  # data, train, evaluate, bench and what belongs to them
CLI = TOP + 1


@cache
def _modules() -> list[str]:
    paths = (p.relative_to(CORE).with_suffix("") for p in CORE.rglob("*.py"))
    names = [".".join(p.parts) for p in paths]
    return [n.removesuffix(".__init__") for n in names if n not in ("__init__", "__main__")]


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
def test_imports_point_down_the_layers(module):
    upward = {name for name in _imports(module) if _level(name) > _level(module)}
    assert not upward, f"{module} imports {sorted(upward)} from a higher layer"


def test_modules_do_not_import_each_other_in_a_ring():
    graph = {name: _imports(name) for name in _modules()}
    while graph:
        free = [name for name, needs in graph.items() if not needs & graph.keys()]
        assert free, f"import ring among {sorted(graph)}"
        for name in free:
            del graph[name]


@pytest.mark.parametrize("module", _modules())
def test_core_imports_nothing_of_comfyui_nor_torchvision(module):
    forbidden = {"comfy", "comfy_api", "folder_paths", "nodes", "server", "torchvision"}
    for node in ast.walk(ast.parse(_file(module).read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        assert not {n.partition(".")[0] for n in names} & forbidden, module


@pytest.mark.parametrize("file", sorted((ROOT / "nodes").glob("*.py")), ids=lambda file: file.stem)
def test_nodes_reach_comfyui_through_the_bridges_and_the_core_by_relative_imports(file):
    allowed = {"comfy_api.latest"} | ({"comfy", "folder_paths"} if file.stem in BRIDGES else set())
    for node in ast.walk(ast.parse(file.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in names:
            package = name.partition(".")[0]
            is_comfyuis = package in {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "server", "execution"}
            assert not is_comfyuis or {name, package} & allowed, f"{file.name} imports {name}"
            assert package not in {"flashlips_core", "torchvision", "torchaudio"}, f"{file.name} imports {name}"


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
