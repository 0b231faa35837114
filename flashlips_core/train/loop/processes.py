"""One process or many: ``accelerate launch`` or ``torchrun`` starts them, Accelerate joins them, the loop asks here.

A single process does not touch Accelerate: its state belongs to the whole Python process, which inside ComfyUI is not ours.
"""

from __future__ import annotations

import contextlib
import gc
import os
from typing import Any

import torch
from torch import Tensor, nn

from ...types import FlashLipsError


class Alone:
    """The only process."""

    rank, count, is_first = 0, 1, True
    device: torch.device | None = None  # wherever the caller has put the network

    def share(self, module: nn.Module) -> nn.Module:
        """The module whose gradients are means over all processes."""
        return module

    def unshared(self, module: nn.Module) -> contextlib.AbstractContextManager:
        """While it lasts, gradients stay each process's own: more batches follow before the optimiser's step."""
        return contextlib.nullcontext()

    def mean(self, values: Tensor) -> Tensor:
        """The mean of each process's values."""
        return values


class Together:
    """One of several processes, joined by Accelerate: DistributedDataParallel over NCCL, or over gloo on CPUs."""

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator, DistributedDataParallelKwargs
        except ModuleNotFoundError as error:
            if error.name != "accelerate":
                raise
            raise FlashLipsError(
                "Training with several processes needs accelerate; install it with: pip install accelerate"
            ) from error
        # A batch need not use every weight: poses of references are left out of some.
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        # Precision is the run's setting, the same with any number of processes: the loop casts, not the launcher.
        is_cpu = not torch.cuda.is_available()  # without being told, Accelerate leaves processes on CPUs each for itself
        self._accelerator = Accelerator(cpu=is_cpu, mixed_precision="no", kwargs_handlers=[unused])
        self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes
        self.is_first = self._accelerator.is_main_process
        self.device = self._accelerator.device
        if self.count != int(os.environ["WORLD_SIZE"]):
            raise FlashLipsError(
                f"{os.environ['WORLD_SIZE']} processes were started and Accelerate joined {self.count}; start them with "
                "accelerate launch or torchrun, which also set RANK and LOCAL_RANK."
            )

    def share(self, module: nn.Module) -> nn.Module:
        """Wrap, and give every process the first one's weights."""
        return self._accelerator.prepare_model(module)

    def unshared(self, module: nn.Module) -> contextlib.AbstractContextManager:
        """DDP's no_sync."""
        return self._accelerator.no_sync(module)

    def mean(self, values: Tensor) -> Tensor:
        """All-reduce."""
        return self._accelerator.reduce(values, "mean")


def leave() -> None:
    """Part from the other processes, at the end of the program; alone, do nothing."""
    if not torch.distributed.is_initialized():
        return
    gc.collect()  # DDP's modules hold the group in cycles; a group that outlives this aborts the interpreter as it ends
    torch.distributed.barrier()  # the first process keeps the store that the others still read
    torch.distributed.destroy_process_group()


def join() -> Alone | Together:
    """Meet the other processes that a launcher started."""
    return Together() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Alone()


def own_device() -> str:
    """This process's own card, or the CPU where there is none."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def is_first_process() -> bool:
    """Whether this process is the one that writes files."""
    return os.environ.get("RANK", "0") == "0"


def on_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on ``device``: tensors in dataclasses, dicts, lists and tuples; anything else as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: on_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(on_device(value, device) for value in batch)
    if hasattr(batch, "__dataclass_fields__"):
        return type(batch)(**{name: on_device(getattr(batch, name), device) for name in batch.__dataclass_fields__})
    return batch


def size_of(batch: Any) -> int:
    """Samples in a batch: the first dimension of its first tensor; 0 where there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    if hasattr(batch, "__dataclass_fields__"):
        batch = [getattr(batch, name) for name in batch.__dataclass_fields__]
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else ()
    return next((size for size in map(size_of, parts) if size), 0)
