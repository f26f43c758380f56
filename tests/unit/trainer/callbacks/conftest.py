"""Fixtures for callback tests: the parts of a trainer that callbacks use, as plain objects in a single process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trireme.parallel.plan import Plan
from trireme.trainer.callbacks.callback import Callback
from trireme.trainer.trainer_state import Control, TrainerState
from trireme.trainer.training_clock import TrainingClock


class OneProcess:
    """The parts of a strategy that callbacks use, on one process."""

    generates, in_step = True, False

    def __init__(self) -> None:
        self.plan, self.module = Plan(), None
        self.mesh = SimpleNamespace(is_main=True, rank=0, world_size=1, device=torch.device("cpu"), any_flags=list)

    def generate(self, **arguments: Any) -> Any:
        return self.module.generate(**arguments)


class Run:
    """Drives callbacks through a run as the loop does: step, log, evaluate, save."""

    def __init__(self, run_dir: Path, max_steps: int = 10) -> None:
        self.state = TrainerState(max_steps=max_steps, stop_at=max_steps)
        self.control = Control()
        strategy = OneProcess()
        self.trainer: Any = SimpleNamespace(
            mesh=strategy.mesh,
            strategy=strategy,
            settings=SimpleNamespace(
                log_every=1, eval_every=None, eval_delay=0, eval_at_end=False, global_batch_size=4
            ),
            checkpoints=SimpleNamespace(every=None, at_end=False, metric="eval_loss", mode="min"),
            recipe=SimpleNamespace(
                seed=7,
                run=SimpleNamespace(log_format="text", progress=True),
                model=SimpleNamespace(spec=SimpleNamespace(title="Llama")),
                plan=SimpleNamespace(name="single", precision="fp32"),
            ),
            run_dir=run_dir,
            corpus=SimpleNamespace(has_held_out=True),
            task=SimpleNamespace(loss_unit="nats per token"),
            tokenizer=None,
            extra_metrics={},
            evaluating=0,
            loss=None,
            reference_lines={},
            flops_per_token=None,
            clock=TrainingClock(),
        )

    def fire(self, event: str, *callbacks: Callback, **extra: Any) -> None:
        for callback in callbacks:
            getattr(callback, event)(self.trainer, self.state, self.control, **extra)

    def line(self, **metrics: Any) -> dict[str, Any]:
        return {"step": self.state.step, **metrics}

    def evaluate(self, *callbacks: Callback, **metrics: float) -> None:
        self.fire("on_evaluate", *callbacks, metrics=metrics)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    folder = tmp_path / "demo"
    folder.mkdir()
    return Run(folder)
