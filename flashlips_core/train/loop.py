"""The one training loop: a stage is a batch function, a step function and a config.

Batches and noise are functions of (seed, step, process), so a resumed run sees exactly what an uninterrupted one would have seen.
Several processes, started by ``torchrun``, each take batches of their own and share their gradients.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import AveragedModel

from ..checkpoint import read_tensors, write_tensors
from ..types import FlashLipsError, Progress

log = logging.getLogger(__name__)

MakeBatch = Callable[[torch.Generator], Any]
Step = Callable[[nn.Module, Any, torch.Generator], dict[str, Tensor]]
Validate = Callable[[nn.Module, int], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, and where to. ``weights`` scale the losses that the step function returns."""

    run_dir: str
    steps: int
    lr: float = 1e-3
    schedule: str = "onecycle"  # "onecycle": warm up, then anneal to lr * 1e-4; "constant"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    ema: float = 0.999  # decay of the averaged weights that are kept; 0 keeps the raw ones
    accumulate: int = 1  # batches per optimiser step
    clip: float = 1.0  # largest gradient norm
    precision: str = "fp32"  # "bf16": convolutions and matrix products in bf16, weights and losses stay in fp32
    seed: int = 0
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    log_every: int = 50
    validate_every: int = 1000
    save_every_s: float = 120.0


def step_generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of one step, the same whether or not the run was interrupted before it."""
    return torch.Generator(device).manual_seed((seed << 32) + step)


def join_processes() -> None:
    """Meet the other processes that a launcher started; alone, do nothing."""
    if "WORLD_SIZE" in os.environ and not distributed.is_initialized():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def place() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def share_gradients(network: nn.Module) -> None:
    """Replace every gradient by its mean over the processes, in one message; a weight that a batch did not use counts as 0."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    distributed.all_reduce(flat)
    flat /= place()[1]
    for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = mean.view_as(parameter).clone(memory_format=torch.preserve_format)


class Trainer:
    """Everything a run must remember: weights, averaged weights, optimiser, step."""

    def __init__(self, network: nn.Module, config: TrainConfig):
        self.network, self.config, self.step = network, config, 0
        parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(parameters, config.lr, config.betas, weight_decay=config.weight_decay)
        self.ema = AveragedModel(network, multi_avg_fn=_warm_average(config.ema)) if config.ema else None
        self.state_path = Path(config.run_dir) / "state.safetensors"

    def learning_rate(self) -> float:
        """The rate of this step: 4 % linear warm-up, then cosine to 1e-4 of the peak ("onecycle"), or constant."""
        if self.config.schedule == "constant":
            return self.config.lr
        done, warm = self.step / self.config.steps, 0.04
        if done < warm:
            return self.config.lr * (0.04 + 0.96 * done / warm)
        cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * (done - warm) / (1 - warm))).item())
        return self.config.lr * (1e-4 + (1 - 1e-4) * cosine)

    def update(self, make_batch: MakeBatch, step: Step) -> dict[str, float]:
        """One optimiser step; returns the unweighted losses."""
        rank, processes = place()
        generator = step_generator(self.config.seed, self.step * processes + rank)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        totals: dict[str, float] = {}
        device = next(self.network.parameters()).device.type
        for _ in range(self.config.accumulate):
            with torch.autocast(device, torch.bfloat16, enabled=self.config.precision == "bf16"):
                losses = step(self.network, make_batch(generator), generator)
            total = sum(self.config.weights.get(name, 1.0) * value for name, value in losses.items())
            (total / self.config.accumulate).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.item() / self.config.accumulate
        if processes > 1:
            share_gradients(self.network)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        if not torch.isfinite(norm):
            raise FlashLipsError(
                f"Training stopped at step {self.step}: the gradient is {norm.item()}; "
                "the last good weights are kept, lower the rate."
            )
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        self.step += 1
        return totals

    def best(self) -> nn.Module:
        """The averaged network where one is kept, else the raw one."""
        return self.network if self.ema is None else self.ema.module

    def save(self) -> None:
        """Write the whole state; the previous one stays until the new one is complete."""
        tensors = {f"network.{k}": v.contiguous() for k, v in self.network.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{k}": v.contiguous().clone() for k, v in self.ema.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{k}": v.contiguous() for k, v in state.items()}
        write_tensors(
            self.state_path, tensors, {"version": 1, "role": "training-state", "config": {"step": self.step}, "notes": {}}
        )

    def resume(self) -> bool:
        """Continue from the run folder's state; False where there is none."""
        if not self.state_path.is_file():
            return False
        tensors, header = read_tensors(self.state_path)
        self.network.load_state_dict(_under(tensors, "network."))
        if self.ema is not None:
            self.ema.load_state_dict(_under(tensors, "ema."))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, "optimiser.").items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        self.optimiser.load_state_dict({"state": state, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self.step = header["config"]["step"]
        return True


def fit(
    network: nn.Module,
    make_batch: MakeBatch,
    step: Step,
    config: TrainConfig,
    validate: Validate | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Train ``network`` to ``config.steps`` and return the weights worth keeping.

    Args:
        make_batch: Draws one batch from a generator.
        step: Computes named losses for a batch; the loop sums them with ``config.weights`` (1 where unnamed).
        validate: Called with the weights worth keeping and the step; its numbers are logged.
    Raises:
        FlashLipsError: The loss became NaN or infinite; the last saved state stays.
    """
    join_processes()
    trainer = Trainer(network.train(), config)
    is_first = place()[0] == 0  # the one that writes
    if trainer.resume():
        log.info("resumed %s at step %d", config.run_dir, trainer.step)
    started, first, saved = time.monotonic(), trainer.step, time.monotonic()
    recent: dict[str, float] = {}
    while trainer.step < config.steps:
        for name, value in trainer.update(make_batch, step).items():
            recent[name] = recent.get(name, 0.0) + value
        if is_first and (trainer.step % config.log_every == 0 or trainer.step == config.steps):
            rate = (trainer.step - first) / (time.monotonic() - started)
            row = {"step": trainer.step, "steps_per_s": rate} | {k: v / config.log_every for k, v in recent.items()}
            _write_row(Path(config.run_dir) / "losses.csv", row)
            log.info(" ".join(f"{k} {v:.4g}" for k, v in row.items()))
            recent = {}
        if is_first and validate is not None and (trainer.step % config.validate_every == 0 or trainer.step == config.steps):
            scores = validate(trainer.best(), trainer.step)
            log.info("validation at %d: %s", trainer.step, " ".join(f"{k} {v:.4g}" for k, v in scores.items()))
        if is_first and (time.monotonic() - saved > config.save_every_s or trainer.step == config.steps):
            trainer.save()
            saved = time.monotonic()
        if progress is not None:
            progress(trainer.step, config.steps)
    return trainer.best()


def _warm_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """Exponential average whose memory grows with the run, so that a short run does not keep its random start."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        steps = int(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + steps) / (10 + steps)))

    return update


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _write_row(path: Path, row: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if is_new:
            writer.writeheader()
        writer.writerow(row)
