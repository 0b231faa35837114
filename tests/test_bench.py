"""Benchmarks: stage tables, other methods at toy size, the page."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from flashlips_core.bench import dubs, report, rivals, stages
from flashlips_core.bench.rivals import Method, Network
from flashlips_core.bench.wav2lip import Wav2Lip
from flashlips_core.cli import main
from flashlips_core.pipeline import LipSync


def test_a_stage_is_the_median_of_its_runs_over_the_frames_in_the_order_of_a_frames_way():
    runs = [
        {"edit": 3.0, "read": 1.0, "new": 0.0},
        {"edit": 9.0, "read": 1.0, "new": 0.0},
        {"edit": 3.0, "read": 5.0, "new": 0.0},
    ]
    rows = stages.stage_rows(runs, 100, {"edit": (7, 0.5)})
    assert [row.name for row in rows] == ["decode the video", "edit", "new"]
    assert [row.ms for row in rows] == [10, 30, 0] and [row.share for row in rows] == [0.25, 0.75, 0]
    assert (rows[1].lowest_ms, rows[1].highest_ms, rows[1].parameters, rows[1].gflop) == (30, 90, 7, 0.5)
    text = stages.table(stages.as_dicts(rows))
    assert "| edit | 0.00 M | 0.5 | 30 (30 to 90) | 33.3 | 75 % |" in text


def test_the_work_of_the_bundled_networks_is_counted():
    lipsync = LipSync.load(device="cpu", editor="bundled-fast")
    work = stages.work_of(lipsync, 1)
    assert work["edit"][0] == sum(p.numel() for p in lipsync.editor.parameters()) and work["edit"][1] > 0.1
    encoder, decoder = lipsync.codec.network.encoder, lipsync.codec.network.decoder
    assert work["encode crop"][0] == sum(p.numel() for p in encoder.parameters())
    assert work["decode crop"][0] == sum(p.numel() for p in decoder.parameters())


def test_wav2lip_has_its_public_size_and_draws_faces():
    network = Wav2Lip().eval()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 36.3
    with torch.inference_mode():
        assert network(torch.zeros(2, 1, 80, 16), torch.zeros(2, 6, 96, 96)).shape == (2, 3, 96, 96)


def test_other_methods_have_their_public_sizes():
    pytest.importorskip("diffusers")
    sizes = {}
    for method in rivals.methods():
        for network in () if method.name.startswith(rivals.OURS) else method.networks:
            with torch.device("meta"):
                sizes[method.name, network.name.partition(",")[0]] = sum(p.numel() for p in network.build().parameters())
    assert round(sizes["MuseTalk 1.5", "U-Net"] / 1e6) == 850 and round(sizes["LatentSync 1.6", "U-Net"] / 1e6) == 850
    assert (
        round(sizes["MuseTalk 1.5", "SD VAE"] / 1e6, 1) == 83.7 and round(sizes["MuseTalk 1.5", "Whisper tiny"] / 1e6, 1) == 8.2
    )


def test_a_network_that_is_needed_often_costs_as_often():
    def run(network: nn.Module) -> torch.Tensor:
        return network(torch.zeros(1, 64))

    built = []

    def build() -> nn.Module:
        built.append(nn.Linear(64, 64))
        return built[-1]

    once, often = (Method(str(n), 8, [Network("a", build, run, n), Network("b", build, run, 0)]) for n in (1, 40))
    told = []
    costs = rivals.side_by_side([once, often], runs=3, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    assert costs[1].gflop == pytest.approx(40 * costs[0].gflop) and costs[0].gflop == pytest.approx(2 * 64 * 64 / 1e9)
    assert costs[0].parameters == 64 * 65 and costs[0].parts["b"] == 0 <= costs[0].ms and costs[0].timed == 3
    assert len(built) == 1  # the same work is done once


def test_our_own_networks_are_timed_in_the_same_way():
    own = rivals.side_by_side([method for method in rivals.methods() if method.name == "ours, bundled-fast"], runs=1)[0]
    lipsync = LipSync.load(device="cpu", editor="bundled-fast")
    size = sum(p.numel() for network in (lipsync.editor, lipsync.codec) for p in network.parameters())
    assert (
        own.parameters == size
        and own.crop_px == lipsync.crop_px
        and own.ms > 0
        and set(own.parts) == {"encode", "edit", "decode"}
    )


def test_others_stand_as_multiples_of_ours():
    costs = [rivals.Cost(name, 8, 10_000_000, 5.0, ms, 3, "", {}) for name, ms in (("ours, small", 20.0), ("Slow", 400.0))]
    lines = rivals.table(rivals.as_dicts(costs)).splitlines()
    assert "times ours, small" in lines[0] and lines[2].startswith("| ours, small | 8 | 10 M | 5 | 1 |")
    assert lines[3].startswith("| Slow | 8 | 10 M | 5 | 20 |")


RUN = {
    "video": "64x48, 25 frames", "crop px": 64, "warm-up runs": 1, "timed runs": 2, "batch": 8, "frames per second, median": 12.5,
    "frames per second, lowest and highest": [10.0, 15.0], "peak GB of the process": 1.5,
    "stages": stages.as_dicts(stages.stage_rows([{"edit": 1.0}], 10, {})),
}  # fmt: skip


def test_the_page_says_what_machine_when_and_by_which_command():
    costs = [rivals.Cost(name, 512, 10_000_000, 5.0, ms, 3, "n", {}) for name, ms in (("ours", 20.0), ("Slow", 400.0))]
    result = {
        "conditions": dubs.conditions(), "networks": [{"network": "n", "parameters": 5_000_000, "GFLOP": 1.5}],
        "end to end": {"default": RUN}, "rivals": rivals.as_dicts(costs),
    }  # fmt: skip
    text = report.markdown(result, "bench --rivals")
    assert "Written by `bench --rivals`" in text and "- date: 20" in text and "- torch: " in text and "- processor: " in text
    assert "**12.5 frames per second** (10 to 15)" in text and "| Slow | 512 | 10 M | 5 | 20 | n |" in text
    assert "| edit |" in text and "| n | 5.00 M | 1.5 |" in text
    assert "No frame needed an edit" not in text
    busy = result | {"conditions": {"cores": 2, report.LOAD: 9.0}, "end to end": {"default": RUN | {"stages": []}}}
    assert report.BUSY in report.markdown(busy, "bench") and report.NO_EDIT in report.markdown(busy, "bench")
    assert "Beside other methods" not in report.markdown({name: result[name] for name in ("conditions", "networks")}, "bench")


def test_options_that_do_not_go_together_are_said(capsys):
    assert main(["bench", "--full", "--rivals"]) == 2
    assert "--full has a table of its own" in capsys.readouterr().err


def test_the_command_writes_the_page(monkeypatch, tmp_path, capsys):
    seen = []

    def bench(*given):
        seen.append(given)
        return {"conditions": dubs.conditions(), "networks": [], "end to end": {"bundled-fast": RUN}}

    monkeypatch.setattr("flashlips_core.bench.dubs.bench", bench)
    page = tmp_path / "B.md"
    assert main(["bench", "--repeats", "2", "--editor", "bundled-fast", "--markdown", str(page), "--json"]) == 0
    assert seen[0][3] == 2 and seen[0][7] == ["bundled-fast"]
    assert f"bench --repeats 2 --batch 8 --editor bundled-fast --markdown {page}" in page.read_text()
    assert json.loads(capsys.readouterr().out)["end to end"]
