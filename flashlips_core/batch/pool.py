"""Workers as processes of this machine: one for each GPU, or a few that share the cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

import torch

from ..system.children import end_with_parent
from ..types import device_of
from .work import Worker, WorkerOptions

CORES_EACH = 2  # of a worker on the CPU: reading, the networks and x264 take turns, and two of them fill two cores

_here: list[Worker] = []  # of a child process: its worker


class Hand(Protocol):
    """One worker, seen from outside."""

    def submit(self, task: str, label: str, *arguments: Any) -> Future:
        """Let the worker do this; its method's name, and what to call it where people watch."""

    def close(self) -> None:
        """End the worker and what it is doing."""


class Pool(Protocol):
    """Where workers come from."""

    count: int  # how many there shall be
    lost: tuple[type[Exception], ...]  # what a future raises whose worker has died

    def start(self, place: int) -> Hand:
        """A new worker, the ``place``-th."""

    def stop(self) -> None:
        """Ask all workers to drop what they are doing."""

    def close(self) -> None:
        """After the last worker has been closed."""


class LocalPool:
    """Processes of this machine; each is an executor of its own, so that one that dies takes none along."""

    lost = (BrokenProcessPool,)

    def __init__(self, folder: str, device: str | None = None, count: int | None = None) -> None:
        self._folder, self._device = folder, device
        kind = device_of(device).type
        self._gpus = torch.cuda.device_count() if kind == "cuda" and device in (None, "cuda") else 0
        is_on_cpu = kind == "cpu"
        self.count = count or self._gpus or (max(1, (os.cpu_count() or 1) // CORES_EACH) if is_on_cpu else 1)
        self._threads = max(1, torch.get_num_threads() // self.count) if is_on_cpu else None
        self._context = multiprocessing.get_context("spawn")
        self._stop = self._context.Event()

    def start(self, place: int) -> LocalHand:
        """A process with its own card, or its share of the cores."""
        device = f"cuda:{place % self._gpus}" if self._gpus else self._device
        given = (WorkerOptions(self._folder, device, self._threads), self._stop)
        return LocalHand(ProcessPoolExecutor(1, self._context, _begin, given))

    def stop(self) -> None:
        """Workers look at this several times a second."""
        self._stop.set()

    def close(self) -> None:
        """Nothing else is held."""


class LocalHand:
    """One process."""

    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor

    def submit(self, task: str, label: str, *arguments: Any) -> Future:
        """Its result, later."""
        return self._executor.submit(_do, task, *arguments)

    def close(self) -> None:
        """Wait until it has ended."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def _begin(options: WorkerOptions, stop: Any) -> None:
    end_with_parent()
    for name in {"SIGINT", "SIGHUP"} & set(dir(signal)):  # these reach all of a terminal's processes; the parent asks the others
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    _here.append(Worker(options, stop.is_set))


def _do(task: str, *arguments: Any) -> Any:
    return getattr(_here[0], task)(*arguments)
