"""The one training loop: a stage is a batch function, a step function and a config.

Batches and noise are functions of (seed, number of the batch), and batches are numbered through all processes. So a resumed run
sees exactly what an uninterrupted one would have seen, and two processes see what one sees that accumulates two batches.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from ...checkpoint import read_tensors, write_tensors
from ...models.layers import RecomputedBlock
from ...types import FlashLipsError, Progress, Waiting
from .ahead import Ahead
from .attentive import attentive
from .logs import RunLog
from .meter import Meter, peak_flops
from .processes import join, on_device, size_of
from .settings import setting

log = logging.getLogger(__name__)

MakeBatch = Callable[[torch.Generator], Any]
Step = Callable[[nn.Module, Any, torch.Generator], dict[str, Tensor]]
Validate = Callable[[nn.Module, int], dict[str, float]]
Sheet = Callable[[nn.Module], Tensor]

SHEET_BATCH = 2**32 - 1  # number of the batch that sample sheets show, which no run reaches


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, and where to: what every stage that trains has, and more of its own in a class below this one.

    Args:
        run_dir: folder of the run's state, logs and sheets.
        weights: scale the losses that the step function returns.
        device: None: where the network is, or each process's own card under a launcher. Stages name it, see ``run.Run``.
    """

    run_dir: str = ""
    steps: int = setting(1000, "optimiser steps")
    lr: float = setting(1e-3, "highest learning rate")
    schedule: str = setting("onecycle", "onecycle: warm up, then anneal to 1e-4 of lr; or constant")
    weight_decay: float = setting(0.01, "AdamW's")
    betas: tuple[float, float] = setting((0.9, 0.99), "AdamW's")
    ema: float = setting(0.999, "decay of the averaged weights that are kept; 0 keeps the raw ones")
    accumulate: int = setting(1, "batches per optimiser step and process")
    clip: float = setting(1.0, "largest gradient norm")
    precision: str = setting("fp32", "bf16: convolutions and matrix products in bf16, weights and losses stay in fp32")
    recompute: bool = setting(False, "gradient checkpointing: blocks keep no activations, but run twice")
    device: str | None = setting(None, "where all of it computes (None: each process's own card, or the CPU)")
    seed: int = setting(0, "another number, another order")
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    log_every: int = setting(50, "steps between rows of losses.csv")
    tensorboard: bool = setting(False, "write TensorBoard's files too")
    validate_every: int = setting(1000, "steps between measurements and sheets")
    save_every_s: float = setting(120.0, "seconds between states from which a stopped run goes on")

    def __post_init__(self) -> None:
        for name, known in (("schedule", ("onecycle", "constant")), ("precision", ("fp32", "bf16"))):
            if getattr(self, name) not in known:
                raise FlashLipsError(f"The {name} is '{getattr(self, name)}'; choose one of {', '.join(known)}.")
        for name in ("steps", "accumulate", "log_every", "validate_every"):
            if getattr(self, name) < 1:
                raise FlashLipsError(f"The setting {name} is {getattr(self, name)}; it must be 1 or more.")


def step_generator(seed: int, number: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of one batch, the same whether or not the run was interrupted before it."""
    return torch.Generator(device).manual_seed((seed << 32) + number)


def _at(device: torch.device) -> contextlib.AbstractContextManager:
    """Steps and sheets make masks and noise without naming a device: while this lasts, the default one is the network's."""
    return contextlib.nullcontext() if device.type == "cpu" else device


class _StepModule(nn.Module):
    """A step as a module's forward: what DDP wraps, so that it sees everything that the step does with the network."""

    def __init__(self, network: nn.Module, step: Step, device: torch.device, is_bf16: bool):
        super().__init__()
        self.network, self.step, self.device, self.is_bf16 = network, step, device, is_bf16

    def forward(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16) if self.is_bf16 else contextlib.nullcontext(), _at(self.device):
            return self.step(self.network, batch, generator)


class Trainer:
    """Everything a run must remember: weights, averaged weights, optimiser, step."""

    def __init__(self, network: nn.Module, config: TrainConfig):
        self.processes = join()
        device = config.device or self.processes.device
        self.network, self.config, self.step = network if device is None else network.to(device), config, 0
        self.device = next(network.parameters()).device
        if config.recompute:
            recompute_blocks(network)
        parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(parameters, config.lr, config.betas, weight_decay=config.weight_decay)
        self.ema = _averaged(network, config.ema) if config.ema else None
        self.state_path = Path(config.run_dir) / "state.safetensors"
        self.meter = Meter(self.device, config.precision == "bf16", self.processes.count)
        self._shared: tuple[Step, nn.Module] | None = None
        self._ahead = Ahead()

    def learning_rate(self) -> float:
        """The rate of this step: 4 % linear warm-up, then cosine to 1e-4 of the peak ("onecycle"), or constant."""
        if self.config.schedule == "constant":
            return self.config.lr
        done, warm = self.step / self.config.steps, 0.04
        if done < warm:
            return self.config.lr * (0.04 + 0.96 * done / warm)
        cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * (done - warm) / (1 - warm))).item())
        return self.config.lr * (1e-4 + (1 - 1e-4) * cosine)

    def update(self, make_batch: MakeBatch, step: Step, waiting: Waiting | None = None) -> dict[str, float]:
        """One optimiser step; returns the unweighted losses, means over its batches in all processes.

        Args:
            waiting: called now and then before the weights change; what it raises leaves them as they were.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        with self.meter.step():
            with attentive(waiting):
                losses = self._gradients(make_batch, step)
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip).item()
            if not math.isfinite(norm):
                raise FlashLipsError(self._complaint(losses, norm))
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            if self.ema is not None:
                self.ema.update_parameters(self.network)
        self.step += 1
        return losses

    def _gradients(self, make_batch: MakeBatch, step: Step) -> dict[str, float]:
        """Backward through every batch of this step, shared with the other processes after the last one."""
        parts = self.config.accumulate
        values, samples = [], 0
        for part in range(parts):
            batch, generator = self._draw(make_batch, self._first_batch() + part * self.processes.count + self.processes.rank)
            samples += size_of(batch)
            module = self._module(step, batch, generator)
            with self.processes.unshared(module) if part < parts - 1 else contextlib.nullcontext():
                losses = module(batch, generator)
                (self._total(losses) / parts).backward()
            values.append(torch.stack([value.detach().float() for value in losses.values()]))
        self.meter.samples = samples
        means = self.processes.mean(torch.stack(values).mean(0))
        return dict(zip(losses, means.tolist(), strict=True))

    def _draw(self, make_batch: MakeBatch, number: int) -> tuple[Any, torch.Generator]:
        """A batch and the random numbers for its step, both on the network's device."""
        if self.device.type == "cpu":  # which would only be taken from the step that is computed
            generator = step_generator(self.config.seed, number)
            return make_batch(generator), generator

        def draw(number: int) -> Any:
            return on_device(make_batch(step_generator(self.config.seed, number)), self.device)

        following = number + self.processes.count
        return self._ahead.take(draw, number, following), step_generator(self.config.seed, number, self.device)

    def _module(self, step: Step, batch: Any, generator: torch.Generator) -> nn.Module:
        """The step over the network, made once; its FLOPs are counted before other processes listen to its gradients."""
        if self._shared is None or self._shared[0] is not step:
            module = _StepModule(self.network, step, self.device, self.config.precision == "bf16")
            if not self.meter.flops:
                self._count_flops(module, batch, generator)
            self._shared = step, self.processes.share(module)
        return self._shared[1]

    def _count_flops(self, module: nn.Module, batch: Any, generator: torch.Generator) -> None:
        """Count a step on its first batch; weights, buffers, gradients and random numbers stay as they were."""
        buffers = [(buffer, buffer.clone()) for buffer in self.network.buffers()]  # batch norms keep running statistics
        copied = torch.Generator(generator.device).set_state(generator.get_state())
        self.meter.count(lambda: self._total(module(batch, copied)).backward(), self.config.accumulate)
        self.network.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        return sum(self.config.weights.get(name, 1.0) * value for name, value in losses.items())

    def _first_batch(self) -> int:
        return self.step * self.config.accumulate * self.processes.count

    def _complaint(self, losses: dict[str, float], norm: float) -> str:
        first, count = self._first_batch(), self.config.accumulate * self.processes.count
        batches = f"batch {first}" if count == 1 else f"batches {first} to {first + count - 1}"
        broken = [f"the loss '{name}' is {value}" for name, value in losses.items() if not math.isfinite(value)]
        return (
            f"Training stopped at step {self.step} ({batches} of seed {self.config.seed}): "
            f"{', '.join(broken) or f'the gradient is {norm}'}; the last good weights are kept in {self.config.run_dir}: "
            "look at that data, or lower the rate."
        )

    def _kept(self) -> dict[str, nn.Module]:
        return {"network": self.network} | ({} if self.ema is None else {"ema": self.ema})

    def best(self) -> nn.Module:
        """The averaged network where one is kept, else the raw one."""
        return self.network if self.ema is None else self.ema.module

    def save(self) -> None:
        """Write the whole state but the weights that do not learn; the previous one stays until the new one is complete."""
        tensors = {}
        for name, module in self._kept().items():
            still = _frozen_names(module)
            tensors |= {f"{name}.{k}": v.contiguous() for k, v in module.state_dict().items() if k not in still}
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
        try:
            for name, module in self._kept().items():
                still = _frozen_names(module)
                own = {k: v for k, v in module.state_dict().items() if k in still}
                module.load_state_dict(own | _under(tensors, f"{name}."))
        except RuntimeError as error:
            raise FlashLipsError(
                f"The run in {self.config.run_dir} trained another network ({str(error).splitlines()[-1].strip()[:150]}); "
                "choose another folder, or take that state away to start anew."
            ) from error
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
    sheet: Sheet | None = None,
    is_attentive: bool = False,
) -> nn.Module:
    """Train ``network`` to ``config.steps`` and return the weights worth keeping.

    Args:
        make_batch: Draws one batch from a generator.
        step: Computes named losses for a batch; the loop sums them with ``config.weights`` (1 where unnamed).
        validate: Called with the weights worth keeping and the step; its numbers are logged.
        progress: Told of every step; what it raises stops the run, which is saved first.
        sheet: Called as often with those weights; its picture (3, H, W) in [-1, 1] is written to ``sheets/<step>.png``.
        is_attentive: ``progress`` is also told within steps, so that a stop need not wait for one (networks without running
            statistics only). The state is saved before a validation, which a stop may cut off and the next run repeats.
    Raises:
        FlashLipsError: The loss became NaN or infinite; the last good state stays.
    """
    trainer = Trainer(network.train(), config)
    if trainer.resume():
        log.info("resumed %s at step %d", config.run_dir, trainer.step)
    is_first = trainer.processes.is_first  # the one that writes
    logs = RunLog(config.run_dir, config.tensorboard and is_first)
    _introduce(trainer)
    saved, recent = time.monotonic(), []
    waiting = functools.partial(_tell, progress, trainer) if is_attentive and progress is not None else None
    with contextlib.closing(logs):
        if is_first and is_attentive and trainer.step and trainer.step % config.validate_every == 0:
            _look(trainer, logs, validate, sheet)
        while trainer.step < config.steps:
            recent.append(trainer.update(make_batch, step, waiting))
            is_last = trainer.step == config.steps
            if is_first and (trainer.step % config.log_every == 0 or is_last):
                logs.numbers("losses", trainer.step, trainer.meter.report() | _means(recent) | {"lr": trainer.learning_rate()})
                recent = []
            if is_first and (trainer.step % config.validate_every == 0 or is_last):
                if is_attentive:
                    trainer.save()
                _look(trainer, logs, validate, sheet)
            if is_first and (time.monotonic() - saved > config.save_every_s or is_last):
                trainer.save()
                saved = time.monotonic()
            if progress is not None:
                _tell(progress, trainer)
    return trainer.best()


def frozen_copy(network: nn.Module) -> nn.Module:
    """For a step that needs the network as it is now."""
    return copy.deepcopy(network).requires_grad_(False).eval()


def one_by_one(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """A function of each sample (1, ...) of a batch, computed a second time in the backward pass: the memory of one sample."""
    return torch.cat([checkpoint(function, one, use_reentrant=False) for one in batch.split(1)])


def recompute_blocks(network: nn.Module) -> None:
    """Gradient checkpointing: let every block that can compute its activations a second time instead of keeping them."""
    blocks = [module for module in network.modules() if isinstance(module, RecomputedBlock)]
    if not blocks:
        raise FlashLipsError(f"{type(network).__name__} has no blocks that can be recomputed; train with recompute=False.")
    for block in blocks:
        block.is_recomputed = True


def _introduce(trainer: Trainer) -> None:
    size = sum(p.numel() for p in trainer.network.parameters() if p.requires_grad)
    peak, source = peak_flops(trainer.device, trainer.config.precision == "bf16")
    log.info(
        "%.2f M parameters, %s on %s, %d process(es), peak of each %.3g TFLOP/s (%s)",
        size / 1e6, trainer.config.precision, trainer.device, trainer.processes.count, peak / 1e12, source,
    )  # fmt: skip


def _tell(progress: Progress, trainer: Trainer) -> None:
    """Report the steps so far. A caller who has had enough raises here, and none of them is lost."""
    try:
        progress(trainer.step, trainer.config.steps)
    except BaseException:
        if trainer.processes.is_first:
            trainer.save()
        raise


def _look(trainer: Trainer, logs: RunLog, validate: Validate | None, sheet: Sheet | None) -> None:
    """Judge the weights worth keeping, by numbers and by a picture."""
    with _at(trainer.device):
        if validate is not None and (scores := validate(trainer.best(), trainer.step)):
            logs.numbers("validation", trainer.step, scores)
        if sheet is not None:
            logs.sheet(trainer.step, sheet(trainer.best()))


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _averaged(network: nn.Module, decay: float) -> AveragedModel:
    """The averaged weights; those that do not learn are the network's own."""
    averaged = AveragedModel(network, multi_avg_fn=_warm_average(decay))
    for ours, theirs in zip(averaged.module.parameters(), network.parameters(), strict=True):
        if not theirs.requires_grad:
            ours.data = theirs.data
    return averaged


def _warm_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """Exponential average whose memory grows with the run, so that a short run does not keep its random start."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        steps = int(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + steps) / (10 + steps)))

    return update


def _frozen_names(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if not parameter.requires_grad}


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
