"""What the loop does beside learning: memory for time, measuring itself, and leaving logs."""

from __future__ import annotations

import csv
import dataclasses
import functools
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from stopping import run_with_stops
from torch import nn

from flashlips_core.models.editor_transformer import TRANSFORMER_TINY, EditorTransformer
from flashlips_core.models.editor_unet import EditorUNet, EditorUNetConfig
from flashlips_core.train.cost.flops import pose_cost, table
from flashlips_core.train.loop import trainer as loop
from flashlips_core.train.loop.ahead import Ahead
from flashlips_core.train.loop.attentive import attentive
from flashlips_core.train.loop.logs import add_row, read_rows
from flashlips_core.train.loop.meter import peak_flops
from flashlips_core.train.loop.processes import on_device, size_of
from flashlips_core.train.loop.trainer import TrainConfig, Trainer, fit, recompute_blocks
from flashlips_core.types import FlashLipsError

UNET = EditorUNetConfig(
    channels=(16, 16), encoder_blocks=(2, 2), decoder_blocks=(2, 2), reference_channels=16, reference_blocks=2,
    condition_dim=16, head_dim=16,
)  # fmt: skip
EDITORS = {"unet": lambda: EditorUNet(UNET), "transformer": lambda: EditorTransformer(TRANSFORMER_TINY)}


@dataclasses.dataclass(frozen=True)
class Batch:
    z: torch.Tensor
    references: torch.Tensor
    poses: torch.Tensor


def make_batch(generator):
    z, references = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 2, 4, 16, 16, generator=generator)
    return Batch(z, references, torch.randn(2, 12, generator=generator))


def edit_step(network, batch, generator):
    noise = torch.randn(batch.z.shape, generator=generator)
    return {"fit": (network(batch.z, network.prepare_references(batch.references), batch.poses) - noise).square().mean()}


def editor(kind):
    torch.manual_seed(0)
    network = EDITORS[kind]()
    for parameter in network.parameters():  # last layers start at zero, which would hide gradients
        nn.init.normal_(parameter, std=0.05)
    return network


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def linear_batch(generator):
    return torch.randn(8, 3, generator=generator)


def linear_step(network, batch, generator):
    return {"fit": network(batch).square().mean()}


@pytest.mark.parametrize("kind", EDITORS)
def test_recomputed_blocks_keep_less_and_give_the_same_gradients(kind):
    kept, gradients = [], []
    for is_recomputed in (False, True):
        network = editor(kind)
        if is_recomputed:
            recompute_blocks(network)
        kept.append(0)

        def note(tensor):
            kept[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = edit_step(network, make_batch(torch.Generator().manual_seed(1)), torch.Generator().manual_seed(2))["fit"]
        held = kept[-1]
        loss.backward()
        kept[-1] = held
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert kept[1] < 0.6 * kept[0]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_recomputing_needs_blocks(tmp_path):
    with pytest.raises(FlashLipsError, match="Linear has no blocks that can be recomputed; train with recompute=False"):
        fit(linear(), linear_batch, linear_step, TrainConfig(str(tmp_path), 1, recompute=True))


@pytest.mark.parametrize("setting", [{"recompute": True}, {"precision": "bf16", "accumulate": 2}])
def test_an_editors_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, setting):
    def run(folder, stops):
        config = TrainConfig(str(folder), 6, ema=0.9, **setting)
        return run_with_stops(lambda: editor("unet").to(memory_format=torch.channels_last), make_batch, edit_step, config, stops)

    whole, resumed = run(tmp_path / "a", [6]), run(tmp_path / "b", [2, 3, 6])
    assert whole[0] == resumed[0]
    assert all(torch.equal(value, resumed[1][name]) for name, value in whole[1].items())


def test_a_run_measures_itself(tmp_path):
    network = editor("transformer")
    fit(network, make_batch, edit_step, TrainConfig(str(tmp_path), 4, log_every=2, accumulate=3))
    [*_, row] = read_rows(tmp_path / "losses.csv")
    value = {name: float(text) for name, text in row.items()}
    assert value["samples_per_s"] == pytest.approx(6 * value["steps_per_s"])
    assert value["mfu"] > 0 and value["peak_gb"] > 0.05
    linear_flops = 2 * 3 * 8 * (1 + 1)  # forward, and the weight's gradient: the input needs none
    trainer = Trainer(linear(), TrainConfig(str(tmp_path / "b"), 1))
    trainer.update(linear_batch, linear_step)
    assert trainer.meter.flops == linear_flops
    # A Transformer's products cost about 6 FLOPs per weight and token, forward and backward: 64 target, 128 reference tokens.
    blocks = sum(p.numel() for p in network.blocks.parameters() if p.ndim == 2)
    assert 0.5 < value["gflop_per_sample"] * 1e9 / (6 * blocks * (64 + 128)) < 2


def test_what_a_machine_can_do_at_most_comes_from_its_data_sheet_or_is_measured(monkeypatch):
    speed, source = peak_flops(torch.device("cpu"), False)
    assert speed > 1e8 and "measured" in source
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_flops(torch.device("cuda", 0), True) == (989e12, "data sheet of H100, bf16")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert peak_flops(torch.device("cuda", 1), True)[0] == 756e12


def test_a_table_keeps_its_rows_when_a_column_is_added(tmp_path):
    path = tmp_path / "run" / "losses.csv"
    add_row(path, {"step": 1, "a": 2.0})
    add_row(path, {"step": 2, "b": 3.0})
    add_row(path, {"step": 3, "a": 4.0})
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["step", "a", "b"], ["1", "2.0", ""], ["2", "", "3.0"], ["3", "4.0", ""]]


def test_validation_and_sheets_are_written_as_often_as_asked(tmp_path):
    def sheet(network):
        return torch.stack([torch.full((4, 6), value) for value in (-1.0, 0.0, 1.0)])

    config = TrainConfig(str(tmp_path), 5, validate_every=2)
    fit(linear(), linear_batch, linear_step, config, lambda network, step: {"score": step / 10}, sheet=sheet)
    assert [(r["step"], r["score"]) for r in read_rows(tmp_path / "validation.csv")] == [("2", "0.2"), ("4", "0.4"), ("5", "0.5")]
    assert sorted(p.name for p in (tmp_path / "sheets").iterdir()) == ["0000002.png", "0000004.png", "0000005.png"]
    picture = np.asarray(Image.open(tmp_path / "sheets" / "0000005.png"))
    assert picture.shape == (4, 6, 3) and picture[0, 0].tolist() == [0, 128, 255]


def test_losses_are_means_over_the_rows_steps_even_where_the_last_are_few(tmp_path):
    trainer = Trainer(linear(), TrainConfig(str(tmp_path / "a"), 3))
    losses = [trainer.update(linear_batch, linear_step)["fit"] for _ in range(3)]
    fit(linear(), linear_batch, linear_step, TrainConfig(str(tmp_path / "b"), 3, log_every=2))
    written = [float(row["fit"]) for row in read_rows(tmp_path / "b" / "losses.csv")]
    assert written == pytest.approx([(losses[0] + losses[1]) / 2, losses[2]])


def test_tensorboard_gets_the_numbers_that_the_table_has(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(linear(), linear_batch, linear_step, TrainConfig(str(tmp_path), 4, log_every=2, tensorboard=True))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    written = [event.value for event in events.Scalars("losses/fit")]
    assert written == pytest.approx([float(row["fit"]) for row in read_rows(tmp_path / "losses.csv")], rel=1e-6)


def test_without_tensorboard_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(FlashLipsError, match="TensorBoard is not installed; run pip install tensorboard"):
        fit(linear(), linear_batch, linear_step, TrainConfig(str(tmp_path), 1, tensorboard=True))


def test_a_state_of_another_network_is_one_sentence_and_stays(tmp_path):
    fit(linear(), linear_batch, linear_step, TrainConfig(str(tmp_path), 1))
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(FlashLipsError, match="trained another network"):
        fit(nn.Sequential(nn.Linear(3, 2)), linear_batch, linear_step, TrainConfig(str(tmp_path), 2))
    assert (tmp_path / "state.safetensors").read_bytes() == before


@pytest.mark.parametrize(("settings", "words"), [({"precision": "fp16"}, "fp32, bf16"), ({"accumulate": 0}, "1 or more")])
def test_settings_that_cannot_be_are_refused(tmp_path, settings, words):
    with pytest.raises(FlashLipsError, match=words):
        TrainConfig(str(tmp_path), 1, **settings)


def test_batches_of_any_make_are_counted_and_moved():
    batch = make_batch(torch.Generator())
    moved = on_device({"a": [batch], "b": ("text", torch.zeros(3))}, torch.device("meta"))
    assert moved["a"][0].z.device.type == moved["b"][1].device.type == "meta" and moved["b"][0] == "text"
    assert size_of({"name": "text", "batch": batch}) == 2 and size_of("text") == 0


def test_the_plans_count_agrees_with_what_a_pose_step_must_cost():
    """A Transformer's products cost about 6 FLOPs per weight and frame, forward and backward; attention adds a little."""
    cost = pose_cost(num_frames=50)
    blocks = 12 * (4 + 2 * 4) * 960**2  # depth * (attention + MLP) weights
    assert 1 < cost.flops / (6 * blocks * 50) < 1.3
    assert cost.parameters == pytest.approx(150e6, rel=0.01) and cost.state_bytes == 20 * cost.parameters
    assert "| pose transformer, 50 frames (fp32) | 149.7 M | 0.0" in table([cost])


# ---- stops within a step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_a_stop_within_a_step_loses_nothing_but_that_step(tmp_path, monkeypatch, part):
    monkeypatch.setattr(loop, "attentive", functools.partial(attentive, every_s=0))
    config = TrainConfig(str(tmp_path / "whole"), steps=4, ema=0.9)
    whole = fit(editor("unet"), make_batch, edit_step, config, is_attentive=True)
    calls, computed = [], []

    def stop(done, total):
        calls.append(done)
        is_there = bool(computed) if part == "forward" else "lost" in computed
        if done == 2 and is_there:
            raise KeyboardInterrupt

    def told_step(network, batch, generator):
        losses = edit_step(network, batch, generator)
        if calls and calls[-1] == 2:
            computed.append("forward")
            losses["fit"].register_hook(lambda _: computed.append("lost"))
        return losses

    config = dataclasses.replace(config, run_dir=str(tmp_path / "parts"))
    with pytest.raises(KeyboardInterrupt):
        fit(editor("unet"), make_batch, told_step, config, progress=stop, is_attentive=True)
    assert computed and max(calls) == 2
    resumed = fit(editor("unet"), make_batch, edit_step, config, is_attentive=True)
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_validation_that_was_cut_off_is_repeated(tmp_path):
    config, looked = TrainConfig(str(tmp_path), steps=4, validate_every=2), []

    def validate(network, step):
        looked.append(step)
        if len(looked) == 1:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        fit(editor("unet"), make_batch, edit_step, config, validate, is_attentive=True)
    fit(editor("unet"), make_batch, edit_step, config, validate, is_attentive=True)
    assert looked == [2, 2, 4]


def test_attentive_asks_between_operations_and_not_more_often_than_it_should():
    asked = []
    with attentive(lambda: asked.append(1), every_s=1000):
        torch.ones(3) + 1
    assert not asked
    with attentive(lambda: asked.append(1), every_s=0):
        torch.ones(3) + 1
    assert len(asked) == 2
    with attentive(None):
        assert (torch.ones(3) + 1).sum() == 6


def test_the_next_batch_is_drawn_while_this_one_is_used():
    drawn = []

    def draw(number):
        drawn.append(number)
        if number == 3:
            raise FlashLipsError("no third")
        return number * 10

    ahead = Ahead()
    assert ahead.take(draw, 0, 1) == 0 and ahead.take(draw, 1, 2) == 10
    assert ahead.take(draw, 7, 2) == 70, "an unforeseen number"
    assert ahead.take(draw, 2, 3) == 20
    with pytest.raises(FlashLipsError, match="no third"):
        ahead.take(draw, 3, 4)
    assert drawn == [0, 1, 2, 7, 2, 3]
