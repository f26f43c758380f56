"""Throughput callback: add speed, memory and model FLOPs utilisation (MFU) to the logged metrics.

The speed is given as samples per second and seconds per step. MFU is the share of the hardware's peak that the model's
own arithmetic uses (PaLM, Chowdhery et al. 2022, appendix B): floating-point operations per token x tokens per second /
(peak of one device x number of devices). Recomputed activations do not count. GPU peaks are the vendors' figures for
dense matrices. A CPU has no such figure, so its peak is measured by a short matrix product on the cores that this
process may use.

Rates are computed over the training time since the previous logged step (``Trainer.clock``). This callback must come
after ``flow``.
"""

from __future__ import annotations

import re
import resource
import sys
import time
from typing import TYPE_CHECKING

from .callback import Callback

if TYPE_CHECKING:
    import torch

    from ...parallel.plan import Plan
    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState

MIB = 2**20

# TFLOP/s of dense matrices: (bf16 and fp16, tf32, fp32), from the vendors' data sheets; figures with sparsity are
# halved. Keys are whole words of the name that the driver reports; the longest match counts.
PEAK_TFLOPS: dict[str, tuple[float, float, float]] = {
    "B200": (2250, 1125, 75),
    "GH200": (989, 495, 67),
    "H200": (989, 495, 67),
    "H100": (989, 495, 67),
    "H100 PCIe": (756, 378, 51),
    "H100 NVL": (835, 418, 60),
    "H800": (989, 495, 67),
    "H20": (148, 74, 44),
    "A100": (312, 156, 19.5),
    "A800": (312, 156, 19.5),
    "A40": (150, 75, 37.4),
    "A10": (125, 62.5, 31.2),
    "A10G": (70, 35, 35),
    "L4": (121, 60, 30.3),
    "L40": (181, 90.5, 90.5),
    "L40S": (362, 183, 91.6),
    "V100": (125, 15.7, 15.7),
    "T4": (65, 8.1, 8.1),
    "RTX A6000": (155, 77.4, 38.7),
    "RTX 6000 Ada": (364, 182, 91.1),
    "RTX 3090": (71, 35.6, 35.6),
    "RTX 4090": (165, 82.6, 82.6),
    "RTX 5090": (210, 105, 105),
    "MI300X": (1307, 654, 163),
}


class Throughput(Callback):
    """Adds ``samples_per_second``, ``step_seconds``, ``memory_mib`` and, where it is known, ``mfu`` to training lines.

    Args:
        peak_flops: peak FLOP/s of one device, for MFU; null looks the GPU up in a table, or measures the CPU.
        memory: whether lines tell the memory.
    """

    def __init__(self, peak_flops: float | None = None, memory: bool = True) -> None:
        if peak_flops is not None and peak_flops <= 0:
            raise ValueError(f"peak_flops={peak_flops} is not above 0; use the FLOP/s of one device, such as 312e12")
        self.peak_flops, self.memory = peak_flops, memory

    def on_train_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if self.peak_flops is None and trainer.flops_per_token:
            # Measured on all ranks at once, so that ranks that share cores find the peak of their share.
            self.peak_flops = find_peak_flops(trainer.mesh.device, trainer.strategy.plan)

    def on_step_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if not control.log:
            return
        elapsed, extra = trainer.clock.elapsed(state), trainer.extra_metrics
        extra["samples_per_second"] = elapsed.samples / elapsed.seconds
        extra["step_seconds"] = elapsed.seconds / max(elapsed.steps, 1)
        if self.memory:
            extra["memory_mib"] = memory_mib(trainer.mesh.device)
        if self.peak_flops and trainer.flops_per_token:
            achieved = trainer.flops_per_token * elapsed.tokens / elapsed.seconds
            extra["mfu"] = achieved / (self.peak_flops * trainer.mesh.world_size)


def memory_mib(device: torch.device) -> float:
    """Memory in MiB: on CUDA the peak of torch's allocations so far, elsewhere what the process holds in RAM now."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / MIB
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / MIB
    except OSError:  # without /proc the peak is used instead; macOS counts bytes, other systems KiB
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / MIB if sys.platform == "darwin" else peak / 1024


def find_peak_flops(device: torch.device, plan: Plan) -> float | None:
    """FLOP/s that one device can reach in the plan's precision; None if the device is not known."""
    import torch

    if device.type == "cuda":
        return gpu_peak_flops(torch.cuda.get_device_name(device), plan)
    if device.type == "cpu":
        return measure_cpu_flops(torch.bfloat16 if plan.precision == "bf16" else torch.float32)
    return None


def gpu_peak_flops(name: str, plan: Plan) -> float | None:
    """Peak of a GPU by the name its driver reports; None if it is not in the table, or only a slice (MIG) of it."""
    found = [key for key in PEAK_TFLOPS if re.search(rf"\b{re.escape(key)}\b", name)]
    if not found or "MIG" in name:
        return None
    half, tf32, fp32 = PEAK_TFLOPS[max(found, key=len)]
    return 1e12 * (half if plan.precision in ("bf16", "fp16") else tf32 if plan.tf32 else fp32)


def measure_cpu_flops(dtype: torch.dtype, seconds: float = 0.15, size: int = 512) -> float:
    """FLOP/s of the fastest ``size`` x ``size`` matrix product within ``seconds``; uses no random numbers."""
    import torch

    matrix = torch.ones(size, size, dtype=dtype)
    fastest, deadline = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < deadline:
        torch.mm(matrix, matrix)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest
