import dataclasses
import os
import socket

import numpy as np
import pytest
import torch
from stopping import run_with_stops
from torch import nn

from flashlips_core.train.loop.logs import read_rows
from flashlips_core.train.loop.processes import leave
from flashlips_core.train.loop.trainer import TrainConfig, Trainer, fit
from flashlips_core.types import FlashLipsError


def line_batch(generator):
    x = torch.randn(16, 3, generator=generator)
    return x, x @ torch.tensor([[1.0], [-2.0], [0.5]])


def line_step(network, batch, generator):
    noise = torch.randn(batch[0].shape, generator=generator) * 0.01
    return {"fit": (network(batch[0] + noise) - batch[1]).square().mean()}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))


def test_training_learns(tmp_path):
    trainer = Trainer(network(), TrainConfig(str(tmp_path), 300, lr=1e-2))
    losses = [trainer.update(line_batch, line_step)["fit"] for _ in range(300)]
    assert np.mean(losses[-20:]) < 0.05 * np.mean(losses[:5])


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    def run(folder, stops):
        return run_with_stops(network, line_batch, line_step, TrainConfig(str(folder), 24, lr=1e-2, ema=0.9), stops)

    whole, resumed = run(tmp_path / "a", [24]), run(tmp_path / "b", [7, 15, 24])
    assert whole[0] == resumed[0]
    assert all(torch.equal(v, resumed[1][k]) for k, v in whole[1].items())


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    class Halves:
        """Gives the halves of one batch in turn."""

        def __init__(self, parts):
            self.parts, self.calls = parts, 0

        def __call__(self, generator):
            x, y = line_batch(torch.Generator().manual_seed(9))
            part = slice(None) if self.parts == 1 else slice(8 * (self.calls % 2), 8 * (self.calls % 2) + 8)
            self.calls += 1
            return x[part], y[part]

    results = []
    for parts in (1, 2):
        trainer = Trainer(network(), TrainConfig(str(tmp_path / str(parts)), 5, ema=0, accumulate=parts, clip=1e9))
        batches = Halves(parts)
        for _ in range(5):
            trainer.update(batches, plain_step)
        results.append(torch.cat([p.flatten() for p in trainer.network.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def plain_step(network, batch, generator):
    return {"fit": (network(batch[0]) - batch[1]).square().mean()}


def losses_of(run_dir):
    return [float(row["fit"]) for row in read_rows(run_dir / "losses.csv")]


def train_as_one_of_two(rank, folder, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    trained = fit(network(), line_batch, line_step, TrainConfig(str(folder), 6, lr=1e-2, ema=0, log_every=1))
    torch.save(torch.cat([p.detach().flatten() for p in trained.parameters()]), folder / f"{rank}.pt")
    leave()


def test_two_processes_train_as_one_that_sees_both_their_batches(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train_as_one_of_two, (tmp_path, port), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    config = TrainConfig(str(tmp_path / "alone"), 6, lr=1e-2, ema=0, accumulate=2, log_every=1)
    alone = fit(network(), line_batch, line_step, config)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, torch.cat([p.detach().flatten() for p in alone.parameters()]), rtol=1e-5, atol=1e-6)
    assert len(losses_of(tmp_path)) == 6
    assert losses_of(tmp_path) == pytest.approx(losses_of(tmp_path / "alone"), rel=1e-5, abs=1e-5)


def test_bf16_steps_learn_too(tmp_path):
    trainer = Trainer(network(), TrainConfig(str(tmp_path), 200, lr=1e-2, precision="bf16"))
    losses = [trainer.update(line_batch, plain_step)["fit"] for _ in range(200)]
    assert np.mean(losses[-20:]) < 0.2 * np.mean(losses[:5])
    assert all(p.dtype == torch.float32 for p in trainer.network.parameters())


def test_a_nan_loss_stops_and_keeps_the_saved_weights(tmp_path):
    config = TrainConfig(str(tmp_path), 4)
    fit(network(), line_batch, line_step, dataclasses.replace(config, steps=2))
    before = (tmp_path / "state.safetensors").read_bytes()
    words = r"step 2 \(batch 2 of seed 0\): the loss 'fit' is nan; the last good weights are kept"
    with pytest.raises(FlashLipsError, match=words):
        fit(network(), line_batch, lambda n, b, g: {"fit": n(b[0]).sum() * float("nan")}, config)
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_a_run_that_its_caller_stops_goes_on_at_that_very_step(tmp_path):
    config = TrainConfig(str(tmp_path), 5, lr=1e-2)

    def enough(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(network(), line_batch, line_step, config, progress=enough)
    steps = []
    fit(network(), line_batch, line_step, config, progress=lambda done, total: steps.append(done))
    assert steps == [4, 5]
