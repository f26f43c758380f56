"""Overflow callback: find the module whose activation first becomes NaN or infinite, and record what led to it.

In each module's forward pass, the smallest and largest magnitude of weights, inputs and outputs is recorded. When one
is not finite, the latest records are written to ``overflow.txt`` in the run folder (``overflow.RANK.txt`` on other
ranks), and the run stops on all ranks after the step. ``trace_steps`` writes the records of chosen steps, finite or
not: values near 65,504 are about to overflow in fp16, and values far below 6e-8 become zero in fp16.

Use it only to find a fault: each record waits for the device, so steps take several times as long.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .callback import Callback

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState

log = logging.getLogger("trireme.trainer")
TITLE = f"{'smallest':>12} {'largest':>12}   of"


class Overflow(Callback):
    """Stops at the first activation that is not finite, and writes down how it came to be.

    Args:
        frames: number of modules before it whose numbers are shown.
        trace_steps: steps (from 1 on) whose numbers are written down in any case.
    """

    def __init__(self, frames: int = 21, trace_steps: list[int] | None = None) -> None:
        if frames < 1:
            raise ValueError(f"frames={frames} is below 1; use 21 or so")
        if any(step < 1 for step in trace_steps or ()):
            raise ValueError(f"trace_steps={trace_steps} has a step below 1; the first step is 1")
        self.trace_steps = set(trace_steps or ())
        self._recent: deque[str] = deque(maxlen=frames)
        self._handles: list[RemovableHandle] = []
        self._found, self._tracing, self._step = "", False, 0

    def on_train_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        self.close()
        rank = "" if trainer.mesh.is_main else f".{trainer.mesh.rank}"
        self._file = trainer.run_dir / f"overflow{rank}.txt"
        for model in trainer.strategy.modules:
            for name, module in model.named_modules():
                self._handles.append(module.register_forward_hook(self._hook(name or "model")))

    def on_step_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        self._step = state.step + 1
        self._tracing = self._step in self.trace_steps
        self._recent.clear()
        if self._tracing:
            self._write(f"step {self._step}\n{TITLE}")

    def on_step_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if self._found:
            control.request_stop(self._found)

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, name: str) -> Any:
        def note(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if self._found:
                return
            lines, finite = [f"  {name} ({type(module).__name__})"], True
            weights = module.named_parameters(recurse=False)
            for what, tensor in [*weights, *_tensors("input", inputs), *_tensors("output", outputs)]:
                least, most = _range(tensor)
                finite &= what.startswith("input") or math.isfinite(most)
                lines.append(f"{least:12.3e} {most:12.3e}   {what}")
            text = "\n".join(lines)
            self._recent.append(text)
            if self._tracing:
                self._write(text)
            if not finite:
                self._found = f"step {self._step}: {name} gives numbers that are not finite; see {self._file}"
                log.error("%s", self._found)
                self._write("\n".join([self._found, TITLE, *self._recent]))

        return note

    def _write(self, text: str) -> None:
        with Path(self._file).open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")


def _tensors(what: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Floating-point tensors anywhere in a value, with names."""
    import torch

    from ...models.head_output import HeadOutput

    if isinstance(value, HeadOutput):
        yield what, value.losses
    elif isinstance(value, torch.Tensor):
        if value.is_floating_point() and value.numel():
            yield what, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(f"{what}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensors(f"{what}[{index}]" if len(value) > 1 else what, item)


def _range(tensor: Tensor) -> tuple[float, float]:
    """Smallest and largest magnitude in this rank's part of a tensor; NaN if it holds one."""
    from ...parallel.clip import local

    part = local(tensor.detach())
    if not part.numel():  # a shard without elements
        return 0.0, 0.0
    magnitudes = part.abs()
    return magnitudes.min().item(), magnitudes.max().item()
