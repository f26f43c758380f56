"""Code for the scripts that ``compare.py`` runs, one for each library: the training job's settings, data and model, and
measurements of its time and memory.

This file runs in the environments of all libraries, so it imports only numpy, torch, transformers and peft.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RATE, BETAS, EPS, CLIP = 1e-3, (0.9, 0.95), 1e-8, 1.0
"""Settings of AdamW, with a constant learning rate and no decay, and the norm at which gradients are clipped."""


@dataclass
class Job:
    """One run of one library."""

    folder: Path
    """Weights, tokenizer and blocks; the run writes below ``out``."""
    out: Path
    plan: str
    shape: dict[str, Any]

    @property
    def accumulation(self) -> int:
        """Micro-batches of a rank in a step."""
        return self.shape["global_batch"] // self.shape["micro_batch"] // int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def on_gpu(self) -> bool:
        return self.shape["device"] == "cuda"

    @property
    def bf16(self) -> bool:
        return self.shape["precision"] == "bf16"

    def model(self) -> Any:
        """The model with the given weights, on the CPU; adapters in it if the job trains them."""
        import torch
        from transformers import AutoModelForCausalLM

        # Weights stay fp32 beside a compute type of 16 bits, as in trireme; a frozen base needs no more than bf16.
        dtype = torch.bfloat16 if self.bf16 and self.shape["lora"] else torch.float32
        model = AutoModelForCausalLM.from_pretrained(self.folder / "weights", dtype=dtype, attn_implementation="sdpa")
        model.config.use_cache = False
        if self.shape["lora"]:
            from peft import get_peft_model

            model = get_peft_model(model, self.adapter())
        return model

    def adapter(self) -> Any:
        """The configuration of the adapters for peft; each library draws their first values itself."""
        from peft import LoraConfig

        return LoraConfig(r=self.shape["lora"], lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")

    def blocks(self, which: str) -> Blocks:
        """The blocks of ``train`` in the order of the steps, or those of ``held_out``."""
        return Blocks(self.folder / f"{which}.npy")


class Blocks:
    """A data set of torch with blocks of tokens, all of which are labels."""

    def __init__(self, file: Path) -> None:
        import numpy as np

        self.tokens = np.load(file, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        ids = torch.from_numpy(self.tokens[index].astype("int64"))
        return {"input_ids": ids, "labels": ids}


@dataclass
class Marks:
    """The times and the memory of one rank's run."""

    job: Job
    steps: list[float] = field(default_factory=list)
    """Time of day at the end of each step."""
    processor: list[float] = field(default_factory=list)
    """CPU seconds that this rank had used at the end of each step, with all its threads."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration of the evaluation and of the export."""
    peaks: dict[str, float] = field(default_factory=dict)
    """MiB: greatest memory of training, and of the evaluation after it."""
    loss: float | None = None
    """Loss on the held-out blocks after the last step, which shows that all peers have done the same."""

    def step(self) -> None:
        """Note the end of a step. Waits for the GPU at the steps whose times are used."""
        if self.job.on_gpu and len(self.steps) + 1 in (1, 2, self.job.shape["save_after"], self.job.shape["steps"]):
            import torch

            torch.cuda.synchronize()
        self.steps.append(time.time())
        self.processor.append(time.process_time())

    def begin(self) -> None:
        """Begin an evaluation or export. The peak of memory before the first of them is that of training."""
        self.peaks.setdefault("training", peak(self.job.on_gpu))
        forget_peak(self.job.on_gpu)
        self._began = time.time()

    def end(self, what: str) -> None:
        self.seconds[what], self.peaks[what] = time.time() - self._began, peak(self.job.on_gpu)

    def write(self) -> None:
        """Write the measurements of this rank into a file, for the comparison."""
        kept = {"steps": self.steps, "processor": self.processor, "seconds": self.seconds, "peaks": self.peaks}
        kept["loss"] = self.loss
        (self.job.out / f"marks_{os.environ.get('RANK', '0')}.json").write_text(json.dumps(kept))


def peak(on_gpu: bool) -> float:
    """The greatest memory of this process since it was last forgotten, in MiB: resident, or allocated on its GPU."""
    if on_gpu:
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def forget_peak(on_gpu: bool) -> None:
    if on_gpu:
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def read_job() -> Job:
    """The job that the comparison has written."""
    given = json.loads(Path(sys.argv[1]).read_text())
    return Job(Path(given["folder"]), Path(given["out"]), given["plan"], given["shape"])
