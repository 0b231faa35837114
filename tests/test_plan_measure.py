"""The training steps of the full preset, run and timed: real steps, loop and settings on toy networks."""

from __future__ import annotations

import json

import pytest
import torch
from toy_jobs import CPU, EDITORS, META, toy_frozen, toy_job, toy_pose

from flashlips_core.cli import main
from flashlips_core.train.cost import flops
from flashlips_core.train.cost.jobs import editor_job, finetune_jobs, full_jobs, pose_job
from flashlips_core.train.cost.speed import measure


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("kind", EDITORS)
@pytest.mark.parametrize("stage", flops.STEPS)
def test_a_step_of_either_stage_is_measured(kind, stage, recompute):
    result = measure(CPU, [toy_job(kind, stage, recompute)])
    (row,) = result["rows"]
    assert row["note"] == "" and (row["batch"], row["recomputed"]) == (4, recompute)
    assert row["samples_per_s"] == pytest.approx(4 / row["seconds"])
    assert row["tflop_per_sample"] > 0 and row["mfu"] > 0
    assert f"| {kind}, {stage} | 4 | {'yes' if recompute else 'no'} | " in result["table"]
    json.dumps(result)


def test_the_measured_flops_are_the_counted_ones():
    job = toy_job(batch=1)
    (row,) = measure(CPU, [job])["rows"]
    network, batch, step = job.build()
    from flashlips_core.train.loop.trainer import recompute_blocks

    recompute_blocks(network)
    cost = flops._cost("", network, lambda: step(network, batch, torch.Generator()))
    assert row["tflop_per_sample"] == pytest.approx(cost.flops / 1e12, rel=0.02)


def test_a_step_of_the_pose_transformer_is_measured():
    (row,) = measure(CPU, [pose_job(toy_pose, 10, CPU, recompute=True)])["rows"]
    assert row["name"] == "pose transformer, 10 frames" and row["seconds"] > 0 and not row["note"]


def test_what_stops_one_step_is_a_row_and_the_next_is_measured():
    def broken(message):
        def make():
            raise RuntimeError(message)

        return editor_job("broken", "masked", make, toy_frozen, 64, CPU, recompute=True)

    result = measure(CPU, [broken("CUDA out of memory. Tried"), broken("no kernel\nfor this"), toy_job()])
    assert [row["note"] for row in result["rows"]] == ["out of memory", "failed: no kernel for this", ""]
    assert "| broken | 4 | yes | out of memory |  |  |  |  |" in result["table"]


def test_no_step_is_started_after_its_time():
    (row,) = measure(CPU, [toy_job()], within_s=-1)["rows"]
    assert row["note"] == "not measured: out of time" and row["seconds"] is None
    assert measure(CPU, [toy_job()], only="512 px")["rows"] == []


def test_jobs_are_the_presets_as_trained_first():
    jobs = full_jobs(CPU)
    assert len(jobs) == 18 and [job.config.recompute for job in jobs] == [True] * 9 + [False] * 9
    assert jobs[0].name == "unet-250m, masked, 512 px" and jobs[8].name == "pose transformer, 100 frames"
    assert {(job.samples, job.config.precision, job.config.ema) for job in jobs} == {(4, "bf16", 0.9999)}
    assert jobs[0].config.weights["pixel_l1_lips"] == 100 and full_jobs(CPU, batch=2)[0].samples == 2


def test_steps_of_fine_tunings_are_measured():
    (row,) = measure(CPU, only="decoder of bundled-fast", batch=1)["rows"]
    assert row["seconds"] > 0 and (row["batch"], row["recomputed"], row["note"]) == (1, False, "")
    sizes = {job.name: job.samples for job in finetune_jobs(CPU)}
    assert sizes["fine-tune, bundled"] == 8 and sizes["fine-tune, decoder of bundled"] == 4 and len(sizes) == 8


def test_the_papers_networks_and_data_can_be_built_on_any_device():
    pytest.importorskip("diffusers")
    for job in full_jobs(META)[:1]:
        with META:
            network, batch, _ = job.build()
        tensors = [*network.parameters(), *network.buffers(), batch.images, batch.references, batch.lips]
        assert {tensor.device.type for tensor in tensors} == {"meta"} and batch.images.shape == (4, 3, 512, 512)
        judge, reader = flops.frozen_networks()  # on the default device again
        assert next(judge.codec.parameters()).device.type == next(reader.parameters()).device.type == "cpu"


def test_the_command_counts_or_measures(monkeypatch, capsys):
    monkeypatch.setattr("flashlips_core.train.cost.speed.all_jobs", lambda device, batch: [toy_job(batch=batch)])
    assert main(["cost", "--measure", "--device", "cpu", "--batch", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rows"][0]["batch"] == 2 and "peak GB" in result["table"]
    for options in (["--device", "cpu"], ["--within", "3"], ["--memory", "--device", "cpu"], ["--only", "editor"]):
        assert main(["cost", *options]) == 2
        assert "add " in capsys.readouterr().err
