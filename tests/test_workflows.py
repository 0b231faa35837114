"""The shipped workflows fit the nodes, have API twins that are up to date, and run in the real ComfyUI to a playable file."""

from __future__ import annotations

import json
import re
import wave
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from comfy_fixtures import VERSIONS
from graphs import NOTES, input_specs, to_prompt, upstream
from sketch import PREVIEWING, SPEAKING

from flashlips_core.media import load_audio, probe, read_frames, write_video

pytestmark = pytest.mark.comfy

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
DEMO = ROOT / "flashlips_core" / "demo"
GRAPHS = Path(__file__).with_name("comfy") / "graphs.py"
FRAMES = 8  # of every workflow's result
TRAINED = 52  # frames to train on: about as few as Prepare Dataset takes
QUICK = {"FlashLipsPrepareDataset": {"shortest": 2.0}, "FlashLipsFineTuneLipEditor": {"steps": 2, "batch": 4, "lora_rank": 2},
         "FlashLipsFineTuneCodec": {"steps": 2, "batch": 2},
         "FlashLipsFineTunePoseModel": {"steps": 2, "batch": 4, "shortest": 2.0}}  # fmt: skip
CUT_AT = {2.9: 0.2}  # where "3 Two speakers" cuts the voice, s
RATE = 25
HEARD = 13  # frames of picture for the cut voice, which is longer than the cut clip
TO_THE_VOICE = ("1 Dub a video", "2 Talking photo", "3 Two speakers", "5 Full pipeline", "6 Shape the lips")
FINETUNE = ("9 Fine-tune an editor", "9 Fine-tune a way of speaking")


def name_of(path: Path) -> str:
    return path.stem


def infos_of(engine, graphs: list[dict]) -> dict[str, dict]:
    """What ComfyUI says of the nodes in these graphs; a missing node fails."""
    names = sorted({node["type"] for graph in graphs for node in graph["nodes"]} - set(NOTES))
    return engine.call(f"{GRAPHS}:object_info", names=names)


def cut_demo(folder: Path, frames: int, voice_s: float) -> dict[str, Path]:
    """The bundled clips and voice, cut and half the size, under the names in the workflows."""
    for name in ("face.mp4", "pair.mp4"):
        info = probe(DEMO / name)
        small = (replace(frame, planes=tuple(plane[::2, ::2] for plane in frame.planes)) for frame in read_frames(DEMO / name))
        like = replace(info, width=info.width // 2, height=info.height // 2)
        write_video(folder / name, islice(small, frames), like, audio=load_audio(DEMO / name))
    with wave.open(str(DEMO / "voice.wav")) as whole, wave.open(str(folder / "voice.wav"), "wb") as cut:
        cut.setparams(whole.getparams())
        cut.writeframes(whole.readframes(round(voice_s * whole.getframerate())))
    return {f"flashlips-demo/{path.name}": path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Path]:
    """Clips of a third of a second, which end before the voice."""
    return cut_demo(tmp_path_factory.mktemp("clips"), FRAMES, 0.5)


@pytest.fixture(scope="module")
def training_clips(tmp_path_factory) -> dict[str, Path]:
    """Clips that can be trained on; the voice ends after a third of a second."""
    return cut_demo(tmp_path_factory.mktemp("training-clips"), TRAINED, FRAMES / RATE)


def shortened(prompt: dict, clips: dict[str, Path]) -> dict:
    """The prompt with the cut clips in it, with times that lie inside them, and with a training of two steps."""
    cut = json.loads(json.dumps(prompt))
    for node in cut.values():
        for name, value in node["inputs"].items():
            if isinstance(value, str):
                node["inputs"][name] = str(clips.get(value, value)).replace('"start": 70, "stop": 76', '"start": 2, "stop": 4')
            elif isinstance(value, float):
                node["inputs"][name] = CUT_AT.get(value, value)
        node["inputs"] |= QUICK.get(node["class_type"], {})
    return cut


def test_the_pack_loads_without_a_warning(engine) -> None:
    logged = engine.packs[engine.base / "custom_nodes" / "flashlips"]
    assert not re.search("warn|error|deprecat|traceback", logged, re.IGNORECASE), logged


def test_there_are_the_promised_workflows() -> None:
    promised = {
        "1 Dub a video", "2 Talking photo", "3 Two speakers", "4 Lips from another performance", "5 Full pipeline",
        "6 Shape the lips", "7 Two backbones side by side", "8 Edit latents", "9 Fine-tune an editor",
        "9 Fine-tune a way of speaking",
    }  # fmt: skip
    assert promised <= {path.stem for path in WORKFLOWS}
    assert {path.stem for path in WORKFLOWS} == {path.stem for path in (ROOT / "workflows" / "api").glob("*.json")}


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_a_workflow_is_complete_on_paper(path: Path) -> None:
    graph = json.loads(path.read_text(encoding="utf-8"))
    assert graph["version"] == 0.4
    picture = path.with_suffix(".jpg").read_bytes()
    assert picture.startswith(b"\xff\xd8") and len(picture) < 60_000
    notes = [node for node in graph["nodes"] if node["type"] in NOTES]
    assert len(notes) == len(graph["groups"]) and all(note["widgets_values"][0].strip() for note in notes)
    assert "consent" in path.read_text(encoding="utf-8")
    assert graph["extra"]["ds"]["scale"] >= 0.6  # below 0.58 the classic renderer leaves letters out
    boxes = [(*node["pos"], *node["size"]) for node in graph["nodes"]]
    overlaps = [
        (a, b) for i, a in enumerate(boxes) for b in boxes[:i]
        if a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
    ]  # fmt: skip
    assert not overlaps


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_a_workflow_reads_from_left_to_right_and_no_wire_runs_behind_a_note(path: Path) -> None:
    graph = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in graph["nodes"]}
    for _, source, _, target, _, _ in graph["links"]:
        left, right = nodes[source], nodes[target]
        is_below = left["pos"][0] == right["pos"][0] and left["pos"][1] < right["pos"][1]
        assert left["pos"][0] + left["size"][0] < right["pos"][0] or is_below, (left["title"], right["type"])
    tops = [node["pos"][1] for node in nodes.values() if node["type"] not in NOTES]
    ends = [node["pos"][1] + node["size"][1] for node in nodes.values() if node["type"] not in NOTES]
    for note in (node for node in nodes.values() if node["type"] in NOTES):
        assert note["pos"][1] + note["size"][1] <= min(tops) or note["pos"][1] >= max(ends)  # wires run between nodes


def test_workflows_fit_the_nodes_and_their_api_twins_are_up_to_date(engine) -> None:
    graphs = {path: json.loads(path.read_text(encoding="utf-8")) for path in WORKFLOWS}
    infos = infos_of(engine, list(graphs.values()))
    for path, graph in graphs.items():
        for node in graph["nodes"]:
            if node["type"] not in NOTES:
                known = {name: kind for name, kind, _ in input_specs(infos[node["type"]])}
                shown = {slot["name"]: slot["type"] for slot in node["inputs"]}
                wanted = {name: "COMBO" if isinstance(kind, list) else kind for name, kind in known.items()}
                assert shown == wanted, (path.name, node["type"])
        twin = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
        assert to_prompt(graph, infos.__getitem__) == twin, f"{path.name} has an old API twin: run tests/comfy/build_workflows.py"


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_a_workflow_runs_to_a_playable_file(path: Path, engine, clips, training_clips) -> None:
    """Its file has the frames of the cut clip or voice, their rate and the new sound, and another mouth."""
    if path.stem in FINETUNE:
        clips = training_clips
    prompt = shortened(json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8")), clips)
    run = engine.run(prompt)
    assert run.is_success, run.errors
    assert run.previewed >= {key for key, node in prompt.items() if node["class_type"] in PREVIEWING}
    assert run.said.keys() >= {key for key, node in prompt.items() if node["class_type"] in SPEAKING}
    [saved] = [entry for shown in run.ui.values() for entry in shown.get("images", []) if entry["filename"].endswith(".mp4")]
    file = engine.base / saved["type"] / saved["subfolder"] / saved["filename"]
    info, pictures = probe(file), [frame.planes[0] for frame in read_frames(file)]
    count = HEARD if path.stem in TO_THE_VOICE else FRAMES
    assert (len(pictures), info.num_frames, info.fps, info.audio_rate) == (count, count, RATE, 22_050)
    sound = load_audio(file).samples
    assert abs(sound.shape[1] / 22_050 - count / RATE) < 0.05 and sound.abs().max() > 0.01
    name = "pair.mp4" if path.stem in ("3 Two speakers", "4 Lips from another performance") else "face.mp4"
    before = [frame.planes[0] for frame in read_frames(clips[f"flashlips-demo/{name}"], stop=FRAMES)]
    clearly = 2
    if path.stem == "2 Talking photo":  # from its first frame on; the cut voice has hardly begun when it ends
        before, clearly = pictures[:1] * count, 1
    height, width = before[0].shape
    pairs = zip(pictures[: len(before)], before, strict=True)
    changed = np.stack([np.abs(a[:, :width].astype(int) - b) for a, b in pairs]).max(0)
    assert changed[height // 2 :].max() > clearly * changed[: height // 4].max()  # lips, and not the hair


def api_twin(name: str) -> dict:
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_server_dubs_cancels_and_dubs_again(start_server, clips, tmp_path) -> None:
    """POST the API workflow, follow the websocket, fetch the file; a long run is cancelled half-way, and the next one works."""
    server, prompt = start_server(VERSIONS[0]), api_twin("1 Dub a video")
    seen = []
    for name, _ in server.follow(server.submit(prompt)["prompt_id"]):  # the whole demo: seconds of work
        seen.append(name)
        if name == "progress" and seen.count("progress") == 2:
            server.interrupt()
    assert seen[-1] == "execution_interrupted"
    run = server.run(shortened(prompt, clips))
    assert run.is_success, run.errors
    [saved] = [item for shown in run.ui.values() for item in shown.get("images", []) if item["filename"].endswith(".mp4")]
    (tmp_path / "fetched.mp4").write_bytes(server.view(saved))
    assert probe(tmp_path / "fetched.mp4").num_frames == HEARD


OURS = {path.stem for path in (ROOT / "js" / "docs").glob("*.md")}
TWINS = {path.stem: api_twin(path.stem) for path in WORKFLOWS}
EVER_SAVED = sorted({node["class_type"] for twin in TWINS.values() for node in twin.values() if node["class_type"] in OURS})
# What a node may answer where this input is missing: one of two is needed, a mix has nothing to mix in, the test's clip is
# shorter than the default
SAID = {
    "video": "Connect either a video or images", "images": "Connect either a video or images",
    "other": "There is no other track to mix in", "shortest": "too short to learn from",
}  # fmt: skip


@pytest.mark.parametrize("node_id", EVER_SAVED)
def test_a_prompt_without_one_of_a_nodes_optional_inputs_still_runs(
    start_engine_with_pack, clips, training_clips, node_id
) -> None:
    """As a prompt that was saved before the input was added lacks it: each in turn, values and wires."""
    engine = start_engine_with_pack(VERSIONS[0])
    optional = engine.node_info(node_id)["input"].get("optional", {})
    homes = [(n, k) for n, twin in TWINS.items() for k, node in twin.items() if node["class_type"] == node_id]
    name, key = next((h for h in homes if optional.keys() & TWINS[h[0]][h[1]]["inputs"].keys()), homes[0])
    prompt = shortened(TWINS[name], training_clips if name in FINETUNE else clips)
    assert optional.keys() & prompt[key]["inputs"].keys() or node_id == "FlashLipsLoadVideo"  # all that it has is required
    for missing in optional.keys() & prompt[key]["inputs"].keys():
        old = json.loads(json.dumps(prompt))
        del old[key]["inputs"][missing]
        is_training = node_id in ("FlashLipsFineTuneCodec", "FlashLipsFineTuneLipEditor")  # their first report will do
        if node_id.startswith("FlashLipsFineTune") and missing != "name":  # other settings need another file
            old[key]["inputs"]["name"] = f"{node_id}_without_{missing}"
        keep = () if node_id in ("FlashLipsSaveVideo", "FlashLipsCompareVideo") else key  # they have no outputs
        run = engine.run(upstream(old, key), keep, ("progress", 1) if is_training else None)
        is_said = missing in SAID and SAID[missing] in run.errors.get(key, "")
        assert run.is_success or is_training and run.is_interrupted or is_said, (missing, run.errors)


def test_old_prompts_without_optional_values_still_run(engine, clips) -> None:
    """Every value that a prompt may leave out is left out, of every node of the full pipeline; wires stay."""
    prompt = shortened(api_twin("5 Full pipeline"), clips)
    infos = engine.call(f"{GRAPHS}:object_info", names=sorted({node["class_type"] for node in prompt.values()}))
    left_out = 0
    for node in prompt.values():
        optional = infos[node["class_type"]]["input"].get("optional", {})
        kept = {name: value for name, value in node["inputs"].items() if name not in optional or isinstance(value, list)}
        left_out += len(node["inputs"]) - len(kept)
        node["inputs"] = kept
    run = engine.run(prompt)
    assert left_out > 20 and run.is_success, run.errors
