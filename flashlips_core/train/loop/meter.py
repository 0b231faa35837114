"""How fast a run is: samples a second, FLOPs per sample, the share of the machine's peak that they come to (MFU), memory.

FLOPs are those of the matrix products, convolutions and attention of one step, forward and backward, 1 multiply-add = 2, frozen
networks included; with recomputed blocks also what is computed a second time.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ...measures import peak_resident_bytes

# Dense bfloat16 products with float32 sums, FLOP/s, by a part of the card's name, the first that fits (NVIDIA's data sheets).
PEAKS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "H800": 989e12, "GH200": 989e12, "A100": 312e12,
    "A800": 312e12, "L40S": 362e12, "L4": 121e12, "A10G": 70e12, "RTX 4090": 165e12, "RTX 4080": 97e12, "RTX 3090": 71e12,
    "RTX 3080": 59e12, "RTX 3070": 40e12, "RTX 3060": 25e12,
}  # fmt: skip


@functools.cache
def peak_flops(device: torch.device, is_bf16: bool) -> tuple[float, str]:
    """FLOP/s that the device can do at most, and where the number is from: a data sheet, or a short measurement here."""
    if device.type == "cuda" and is_bf16:
        name = torch.cuda.get_device_name(device)
        for part, peak in PEAKS.items():
            if part in name:
                return peak, f"data sheet of {part}, bf16"
    types = (torch.float32, torch.bfloat16) if is_bf16 else (torch.float32,)  # a CPU may have no fast bfloat16
    return max(measured_peak(device, dtype) for dtype in types), "measured by a matrix product"


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best FLOP/s of a few square matrix products."""
    side = 8192 if device.type == "cuda" else 768
    matrix = torch.full((side, side), 0.5, device=device, dtype=dtype)
    seconds = []
    for _ in range(4):
        start = _now(device)
        matrix @ matrix
        seconds.append(_now(device) - start)
    return 2 * side**3 / min(seconds[1:])


def peak_memory_bytes(device: torch.device) -> int | None:
    """Most bytes held so far: by tensors on a GPU, else by the process; None where the system cannot tell."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes()


class Meter:
    """Counts a step's FLOPs and times the steps.

    Args:
        processes: how many run the same step beside this one.
    """

    def __init__(self, device: torch.device, is_bf16: bool, processes: int) -> None:
        self.device, self.is_bf16, self.processes = device, is_bf16, processes
        self.flops = 0  # of a step in this process
        self.samples = 0  # of a step in this process
        self._steps, self._seconds = 0, 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time one step."""
        start = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - start
        self._steps += 1

    def count(self, run: Callable[[], object], times: int) -> None:
        """Count the FLOPs of ``run()``, ``times`` of which are a step. Its results are no good: counting rounds differently."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            run()
        self.flops = max(counter.get_total_flops(), 1) * times

    def report(self) -> dict[str, float]:
        """Since the last report: steps and samples a second of all processes, GFLOP per sample, MFU, peak memory."""
        row: dict[str, float] = {}
        if self._steps:
            rate = self._steps / self._seconds
            row = {"steps_per_s": rate, "samples_per_s": rate * self.samples * self.processes}
            if self.flops:
                row["mfu"] = rate * self.flops / peak_flops(self.device, self.is_bf16)[0]
        if self.samples and self.flops:
            row["gflop_per_sample"] = self.flops / self.samples / 1e9
        memory = peak_memory_bytes(self.device)
        if memory is not None:
            row["peak_gb"] = memory / 1e9
        self._steps, self._seconds = 0, 0.0
        return row


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
