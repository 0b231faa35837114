"""The memory of training steps, counted on fake tensors, beside what the same steps hold on real ones."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import TINY_EDITOR, tiny_codec
from torch import nn
from toy_jobs import toy_job, toy_pose

from flashlips_core.checkpoint import BUNDLED
from flashlips_core.cli import main
from flashlips_core.models.editor_unet import EditorUNet
from flashlips_core.models.lip_encoder import LipEncoder, LipEncoderConfig
from flashlips_core.train.cost import flops, memory
from flashlips_core.train.cost.jobs import Job, decoder_job, finetune_job, pose_job
from flashlips_core.train.cost.memory import LiveBytes, counted, needs
from flashlips_core.train.cost.speed import measure
from flashlips_core.train.finetune import editor
from flashlips_core.train.loop.trainer import TrainConfig

CPU = torch.device("cpu")
MIB = 2**20


def real_peak(job):
    """What forward and backward of the job hold on real tensors."""
    with LiveBytes() as live:
        network, batch, step = job.build()
        network.train()
        sum(step(network, batch, torch.Generator()).values()).backward()
    return live.peak


def toy_reader():
    return LipEncoder(LipEncoderConfig(channels=(8, 8), blocks=(1, 1), mouth_px=32))


def toy_tuning(**settings):
    makers = partial(EditorUNet, TINY_EDITOR), tiny_codec, toy_reader
    return finetune_job("toy", makers, 256, editor.FineTuning(**settings), torch.device("cuda"))


def test_storages_count_once_and_while_they_live():
    with LiveBytes() as live:
        one = torch.zeros(MIB // 4)
        view = one[:10].reshape(2, 5)
        assert live.now == MIB
        two = one + 1
        assert live.now == live.peak == 2 * MIB
        del one
        assert live.now == 2 * MIB, "a view keeps what it is of"
        del view, two
    assert (live.now, live.peak) == (0, 2 * MIB)


@pytest.mark.parametrize("kind", ["unet", "transformer"])
@pytest.mark.parametrize("stage", flops.STEPS)
def test_a_counted_step_holds_what_a_real_one_does(kind, stage):
    job = toy_job(kind, stage, recompute=False)
    job = replace(job, config=replace(job.config, precision="fp32"))
    state = (memory.MOMENTS_BYTES + memory.MEAN_BYTES) * sum(p.numel() for p in job.build()[0].parameters())
    assert counted(job).gb * 1e9 - state == pytest.approx(real_peak(job), rel=0.03)


def test_less_is_held_in_16_bits_and_where_blocks_are_recomputed():
    job = toy_job("transformer", "masked", recompute=False)
    wide, half, again = (
        counted(replace(job, config=replace(job.config, **changes))).gb
        for changes in ({"precision": "fp32"}, {"precision": "bf16"}, {"recompute": True})
    )
    assert again < half < wide


def test_the_update_counts_where_the_network_is_large_and_its_batch_small():
    def build():
        return nn.Linear(1000, 1000, bias=False), torch.rand(1, 1000), lambda network, batch, _: {"loss": network(batch).sum()}

    need = counted(Job("linear", 1, TrainConfig("", 1), build))
    assert need.gb * 1e9 == pytest.approx((flops.STATE_BYTES + memory.ROOT_BYTES) * 1e6, rel=0.01)


def test_large_editors_are_tuned_in_less_memory(monkeypatch):
    plain = counted(toy_tuning())
    assert (plain.recomputed, plain.precision, plain.batch) == (False, "fp32", 8)
    monkeypatch.setattr(editor, "LARGE", 0)
    saving = counted(toy_tuning())
    assert (saving.recomputed, saving.precision) == (True, "bf16") and saving.gb < 0.6 * plain.gb
    assert counted(toy_tuning(batch=4)).gb < 0.7 * saving.gb


@pytest.mark.parametrize("lora", [0, 2])
def test_what_is_counted_for_a_card_runs(monkeypatch, lora):
    monkeypatch.setattr(editor, "LARGE", 0)
    job = toy_tuning(lora=lora)
    (row,) = measure(CPU, [replace(job, config=replace(job.config, device="cpu"))])["rows"]
    assert job.config.precision == "bf16" and row["recomputed"] and row["seconds"] > 0 and not row["note"]


def test_every_bundled_fine_tuning_and_the_pose_transformer_are_counted():
    result = needs("fine-tune, bundled")
    assert [row["name"] for row in result["rows"]] == [f"fine-tune, {name}" for name in BUNDLED]
    assert all(0.1 < row["gb"] < 2 for row in result["rows"]) and "| fine-tune, bundled | 8 | no | fp32 | 0." in result["table"]
    assert counted(pose_job(toy_pose, 10, CPU, recompute=True)).gb > 0


def test_the_command_counts_and_nothing_fake_stays_behind(capsys):
    assert main(["cost", "--memory", "--only", "decoder of bundled-fast", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["batch"] == 4 and 0.01 < row["gb"] < 0.5
    assert type(torch.rand(2)) is torch.Tensor
    given, seen = torch.rand(1, 4, 2, 2, dtype=torch.float64), []
    norm = nn.GroupNorm(1, 4).double()
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    norm(given)
    assert seen == [torch.float64], "norms are still given fp32"


def test_a_decoder_learns_alone():
    network, batch, _ = decoder_job("toy", lambda: tiny_codec().network, 256, 4, CPU).build()
    assert {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad} == {"decoder"}
    assert batch.pixels.shape[2] == 8 * batch.cells.shape[2]
