"""The harness runs the real ComfyUI: shown with core nodes and a pack that each test run writes for itself."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from comfy_fixtures import TOYS, VERSIONS

import dev

pytestmark = pytest.mark.comfy

MODULE = """
import torch


class Unknown:
    def __repr__(self):
        return "something"


def versions(hint):
    import comfyui_version
    return {"version": comfyui_version.__version__, "hint": hint, "object": Unknown()}


def ramp():
    return torch.linspace(0, 1, 2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
"""


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def is_gone(process_id: int, within_s: float) -> bool:
    psutil = pytest.importorskip("psutil")
    try:
        psutil.Process(process_id).wait(within_s)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        return psutil.Process(process_id).status() == psutil.STATUS_ZOMBIE  # where nobody adopts orphans
    return True


def grey_images(number: int) -> dict:
    return node("EmptyImage", width=8, height=8, batch_size=number, color=0x808080)


@pytest.fixture(scope="session")
def toy_module(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("code") / "code.py"
    path.write_text(MODULE)
    return path


@pytest.fixture
def toys(bare_engine):
    """Each version's engine with the toy nodes."""
    if TOYS not in bare_engine.packs:
        assert bare_engine.load(TOYS) == ["ToyTrackFrames", "ToyWait"]
    return bare_engine


@pytest.fixture
def toy_server(start_server):
    """One version's server, which has the toy nodes."""
    return start_server(VERSIONS[0])


def test_a_graph_of_core_nodes_runs_and_its_outputs_come_back(bare_engine):
    run = bare_engine.run({"1": grey_images(2), "2": node("ImageInvert", image=["1", 0])}, keep=("1", "2"))
    assert run.is_success and not run.errors
    assert run.outputs["2"][0].shape == (2, 8, 8, 3)
    assert torch.allclose(run.outputs["1"][0] + run.outputs["2"][0], torch.ones(()))


def test_videos_and_sound_come_back_with_what_describes_them(bare_engine):
    prompt = {
        "1": grey_images(6),
        "2": node("EmptyAudio", duration=0.5, sample_rate=16_000, channels=1),
        "3": node("CreateVideo", images=["1", 0], fps=12.0, audio=["2", 0]),
        "4": node("SaveVideo", video=["3", 0], filename_prefix="made", format="mp4", codec="h264"),
    }
    run = bare_engine.run(prompt, keep=("2", "3"))
    assert run.is_success, run.errors
    assert run.outputs["2"][0]["waveform"].shape == (1, 1, 8000)
    assert (run.outputs["3"][0].type, run.outputs["3"][0].width) == ("VideoFromComponents", 8)
    assert [path.suffix for path in (bare_engine.base / "output").glob("made*")] == [".mp4"]


def test_a_packs_own_type_comes_back_with_its_fields(toys):
    run = toys.run({"1": grey_images(3), "2": node("ToyTrackFrames", images=["1", 0])}, keep="2")
    [track] = run.outputs["2"]
    assert track.type == "ToyTrack" and track.name == "toy" and track.means.shape == (3,)
    assert toys.node_info("ToyTrackFrames")["output"] == ["TOY_TRACK"]


def test_a_nodes_error_text_is_reported_with_the_node(toys):
    run = toys.run({"1": grey_images(9), "2": node("ToyTrackFrames", images=["1", 0])}, keep="2")
    assert run.errors == {"2": "At most 4 frames; pick fewer."} and not run.is_success


def test_a_refused_prompt_names_the_node_and_the_reason(toys):
    run = toys.run({"1": node("ToyWait")})
    assert list(run.errors) == ["1"] and "steps" in run.errors["1"]
    assert "no outputs" in toys.run({"1": grey_images(1)}).errors[""]


def test_progress_is_seen_and_cancel_stops_at_a_chosen_step(toys):
    prompt = {"1": node("ToyWait", steps=5)}
    run = toys.run(prompt, interrupt_at=("progress", 1))
    assert run.is_interrupted and not run.errors and run.names.count("progress") == 1
    run = toys.run(prompt)
    assert run.is_success and run.ui == {"1": {"toy": [5]}}
    values = [data["value"] for name, data in run.events if name == "progress"]
    assert (values[0], values[-1]) == (1, 5)  # ComfyUI leaves out those that follow within 0.1 s


def test_a_second_run_uses_the_cache_until_reset(toys):
    prompt = {"1": grey_images(2), "2": node("ToyTrackFrames", images=["1", 0])}
    assert not toys.run(prompt, keep="2").cached
    assert toys.run(prompt, keep="2").cached >= {"1", "2"}
    toys.reset()
    assert not toys.run(prompt, keep="2").cached


def test_functions_run_inside_comfyui_and_feed_graphs(bare_engine, toy_module):
    found = bare_engine.call(f"{toy_module}:versions", hint=7)
    assert (found["version"], found["hint"], found["object"].text) == (bare_engine.version, 7, "something")
    run = bare_engine.run({"1": node("TestMake", code=f"{toy_module}:ramp"), "2": node("ImageInvert", image=["1", 0])}, keep="2")
    assert torch.allclose(run.outputs["2"][0].flatten(), torch.linspace(1, 0, 96))


def test_a_pack_that_does_not_load_says_why(bare_engine, tmp_path):
    (tmp_path / "__init__.py").write_text("import not_there")
    with pytest.raises(RuntimeError, match="not_there"):
        bare_engine.load(tmp_path)


def test_the_server_runs_a_prompt_and_serves_its_files(toy_server):
    prompt = {"1": grey_images(1), "2": node("PreviewImage", images=["1", 0]), "3": node("ToyWait", steps=2)}
    run = toy_server.run(prompt)
    assert run.is_success, run.errors
    assert run.ui["3"] == {"toy": [2]}
    assert toy_server.view(run.ui["2"]["images"][0]).startswith(b"\x89PNG")
    assert "ToyWait" in toy_server.get("/object_info/ToyWait")


def test_the_server_reports_refusals_and_errors(toy_server):
    assert "steps" in toy_server.run({"1": node("ToyWait")}).errors["1"]
    prompt = {"1": grey_images(9), "2": node("ToyTrackFrames", images=["1", 0]), "3": node("PreviewAny", source=["2", 0])}
    run = toy_server.run(prompt)
    assert run.errors == {"2": "At most 4 frames; pick fewer."}


def test_cancel_stops_a_running_prompt_on_the_server(toy_server):
    prompt_id = toy_server.submit({"1": node("ToyWait", steps=3000)})["prompt_id"]
    names = []
    for name, _ in toy_server.follow(prompt_id):
        names.append(name)
        if names.count("progress") == 1 and name == "progress":
            toy_server.interrupt()
    assert names[-1] == "execution_interrupted"
    assert toy_server.run({"1": node("ToyWait", steps=1)}).is_success


@pytest.mark.browser
def test_the_front_end_loads_and_can_queue_a_prompt(toy_server, page):
    page.goto(toy_server.url)
    page.wait_for_function("window.app?.graph && !!window.LiteGraph?.registered_node_types?.ToyWait", timeout=60_000)
    page.evaluate("""async () => {
        app.graph.clear();
        app.graph.add(LiteGraph.createNode("ToyWait"));
        window.toy = new Promise(done => app.api.addEventListener("executed", event => done(event.detail.output)));
        await app.queuePrompt(0);
    }""")
    assert page.evaluate("window.toy") == {"toy": [3]} and page.problems == []


@pytest.mark.parametrize("mode", ["engine", "server"])
def test_no_process_outlives_its_owner(mode, tmp_path, start_engine):
    start_engine(VERSIONS[0])  # skips where there is no ComfyUI
    owner = textwrap.dedent(f"""
        import sys
        sys.path[:0] = {[str(Path(dev.__file__).parent), str(Path(__file__).parent)]!r}
        from pathlib import Path
        from comfy_host import Process
        print(Process({mode!r}, {VERSIONS[0]!r}, Path({str(tmp_path)!r}), "--port", "1").process.pid, flush=True)
        sys.stdin.read()
    """)
    with subprocess.Popen([sys.executable, "-c", owner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        process.kill()
    assert is_gone(child, within_s=30)
