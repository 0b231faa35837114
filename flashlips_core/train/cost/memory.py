"""How much GPU memory training steps need, counted without a GPU: ``python -m flashlips_core cost --memory``.

The steps run on fake tensors, which have shapes, types and lifetimes but no values. Counted are the bytes that live at once: the
least that a card must have free. What its convolutions use for themselves, and the driver, come on top.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..loop.trainer import recompute_blocks
from .jobs import Job, all_jobs

log = logging.getLogger(__name__)

ALIGNED = 512  # bytes: PyTorch's allocator hands out multiples of it
# Of every parameter that learns; the roots of the second moments are made for all of them at once when AdamW updates
GRADIENT_BYTES, MOMENTS_BYTES, MEAN_BYTES, ROOT_BYTES = 4, 8, 4, 4
GPU = torch.device("cuda")
CPU = torch.device("cpu")  # where fake tensors pretend to be: PyTorch without CUDA cannot pretend to have it


@dataclass(frozen=True)
class Need:
    """What one step holds at once."""

    name: str
    batch: int
    recomputed: bool
    precision: str
    gb: float


class PlainCopies(TorchFunctionMode):
    """Lets copies of networks be made of fake tensors, whose own way takes their mode along."""

    def __torch_function__(self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            copied = tensor.detach().clone()
            memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
        return memo[id(tensor)]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that live, as they are made and go."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:  # a view of something that is counted
            return
        self._known[key] = -(-storage.nbytes() // ALIGNED) * ALIGNED
        self.now += self._known[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)


def needs(only: str = "", batch: int | None = None) -> dict:
    """What every step whose name holds ``only`` needs; a table for people is among the results.

    Args:
        batch: samples per step; None for each one's own.
    """
    rows = []
    for job in all_jobs(GPU, batch, is_fake=True):
        if only in job.name:
            rows.append(counted(job))
            log.info("%s", rows[-1])
    return {"rows": [asdict(row) for row in rows], "table": table(rows)}


def table(rows: Sequence[Need]) -> str:
    """The rows in Markdown."""
    lines = ["| step | batch | recomputed | precision | GB |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row.name} | {row.batch} | {'yes' if row.recomputed else 'no'} | {row.precision} | {row.gb:.3g} |")
    return "\n".join(lines)


def counted(job: Job) -> Need:
    """Run the job's step, forward and backward, on fake tensors, and add what the optimiser and the averaged weights hold."""
    config = job.config
    with FakeTensorMode(), CPU, PlainCopies(), LiveBytes() as live, _norms_in_fp32():
        network, batch, step = job.build()
        network.train()
        if config.recompute:
            recompute_blocks(network)
        held = live.peak = live.now
        with torch.autocast("cpu", torch.bfloat16) if config.precision == "bf16" else nullcontext():
            losses = step(network, batch, torch.Generator())
        sum(losses.values()).backward()
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    kept = MOMENTS_BYTES + (MEAN_BYTES if config.ema else 0)
    at_update = held + (GRADIENT_BYTES + ROOT_BYTES) * trained
    total = max(live.peak, at_update) + kept * trained
    return Need(job.name, job.samples, config.recompute, config.precision, total / 1e9)


@contextmanager
def _norms_in_fp32() -> Iterator[None]:
    """Under autocast a GPU normalises groups and layers in fp32, a CPU, which the fake tensors are on, does not."""

    def widen(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return tuple(x.float() for x in args) if isinstance(module, (nn.GroupNorm, nn.LayerNorm)) else None

    handle = register_module_forward_pre_hook(widen)
    try:
        yield
    finally:
        handle.remove()
