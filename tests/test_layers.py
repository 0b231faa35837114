"""The core's imports point down its layers, and importing it is cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest
from draw_layers import PICTURE, picture
from imports import CORE, ROOT, file_of, folder_of, folders, foreign_imports, imports, modules, ring

# Lower may not import higher. Those of one level may import each other, but not in a ring. Every file of the root, every folder
# and every folder of train without stages stands on exactly one level.
LEVELS = [
    {"types", "pixels", "turned", "stream"},
    {"checks", "system", "downloads", "checkpoint", "compose", "measures", "sharpen"},
    {"media", "flow", "models", "face"},
    {"audio", "poses", "codec", "pretrained"},
    {"sidecar", "loading", "parts", "drawings", "retrieval", "references"},
    {"editing"},
    {"steps"},
    {"pipeline"},
    {"images", "dataset", "heads", "batch"},
    {"train.loop"},
    {"train.batches"},
    {"train"},
    {"train.finetune"},
    {"train.cost"},
    {"evaluate"},
    {"bench", "demo"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
BRIDGES = {"bridge", "bridge_models", "progress"}  # of the nodes to ComfyUI
COMFYUIS = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "server", "execution"}


def test_every_file_and_folder_has_its_level():
    assert set(folders()) == set(LEVEL) and sum(map(len, LEVELS)) == len(LEVEL)


@pytest.mark.parametrize("module", modules())
def test_imports_point_down_the_layers(module):
    upward = {name for name in imports(module) if LEVEL[folder_of(name)] > LEVEL[folder_of(module)]}
    assert not upward, f"{module} imports {sorted(upward)} from a higher layer"


def test_nothing_imports_in_a_ring():
    assert not ring(modules(), imports)
    assert not ring(folders(), lambda name: folders()[name])


def test_a_ring_and_an_import_inside_a_function_are_seen():
    assert ring("abc", {"a": "b", "b": "a", "c": ""}.get) == ["a", "b"]
    assert "pipeline" in imports("cli.options")  # imported inside functions alone


@pytest.mark.parametrize("module", modules())
def test_core_imports_nothing_of_comfyui_nor_torchvision_and_itself_by_relative_imports(module):
    packages = {name.partition(".")[0] for name in foreign_imports(file_of(module))}
    assert not packages & (COMFYUIS | {"torchvision", CORE.name})


@pytest.mark.parametrize("file", sorted((ROOT / "nodes").glob("*.py")), ids=lambda file: file.stem)
def test_nodes_reach_comfyui_through_the_bridges_and_the_core_by_relative_imports(file):
    allowed = {"comfy_api.latest"} | ({"comfy", "folder_paths", "server"} if file.stem in BRIDGES else set())
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
