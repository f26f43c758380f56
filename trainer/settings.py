"""Dataclasses of three recipe sections: ``run`` (run folder, logging, progress bars), ``trainer`` (length, batch sizes,
when to log and evaluate) and ``ema`` (averaged weights).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ..errors import refuse
from .cadence import Every
from .folders import name_problem
from .interruption import parse_time

MOST = {
    "global_batch_size": 2**24,
    "micro_batch_size": 2**24,
    "eval_micro_batch_size": 2**24,
    "max_steps": 10**12,
    "stop_at": 10**12,
    "log_every": 10**12,
    "eval_every": 10**12,
    "eval_delay": 10**12,
    "epochs": 10**9,
}
"""Far more than a run can do; beyond it counters and lists of samples no longer fit into 64 bits or memory."""
NULL = {
    "eval_every": ", or null to evaluate at the end only",
    "eval_samples": ", or null for all",
    "max_grad_norm": ", or null to turn it off",
}
"""Meaning of null for keys that may be null, as the end of a fix."""
YEAR = 525_600
"""Minutes of a year."""
Precision = Literal["fp32", "bf16", "fp16"]
Level = Literal["debug", "info", "warning", "error", "critical"]


@dataclass
class RunConfig:
    """Folder, logging and placement of a run."""

    dir: str
    """Run folder for recipe, metrics, logs and checkpoints. The same command uses the same folder and resumes there."""
    log_level: Level = "info"
    """Lowest level that rank 0 logs to the terminal; files keep everything from info on. transformers, datasets,
    accelerate and DeepSpeed use the same level, but ``warning`` if it is ``info``."""
    log_level_replica: Level = "warning"
    """Lowest level that other ranks log to the terminal; their lines begin with their rank."""
    log_on_each_node: bool = False
    """Let the first rank of every node log at ``log_level`` too."""
    log_format: Literal["text", "json"] = "text"
    """Format of the terminal's output: text for people, or lines of JSON for programs. A line of JSON has time, level,
    logger, rank, message, and the metrics of training lines and evaluations; that of a refusal has field, value, why
    and fix. Files in the run folder keep their form."""
    progress: bool = True
    """Draw progress bars on a terminal. ``false`` prints lines in their place, as into a file; the bars of datasets,
    tokenizers, transformers and the hub are switched off too."""
    group: str | None = None
    """Name that the runs of one study or sweep share; trackers log it."""
    trial: int | None = None
    """Number of this run in its study. ``trireme search`` sets it, and trackers log it."""
    bind_cores: bool = False
    """Bind each rank, its threads and its loader processes to cores of its own, on one NUMA node if they fit."""

    def __post_init__(self) -> None:
        if wrong := name_problem(self.dir):
            raise ValueError(f"dir={self.dir!r} {wrong}")
        self.dir = str(Path(os.path.expanduser(self.dir)))


@dataclass
class TrainerConfig:
    """Length of training, batch sizes, and intervals of logging and evaluation."""

    ALTERNATIVES: ClassVar = (("max_steps", "epochs"),)
    max_steps: int | None = None
    """Optimizer steps of the whole run, which also set the length of schedules. Give this or ``epochs``."""
    epochs: float | None = None
    """Passes over the training data, from which ``max_steps`` follows."""
    stop_at: int | None = None
    """Stop after this step, while schedules still use ``max_steps``; the run can be resumed."""
    global_batch_size: int = 8
    """Samples of one optimizer step, over all ranks. Gradient accumulation follows from it."""
    micro_batch_size: int = 8
    """Samples of one forward pass on one rank."""
    max_grad_norm: float | None = 1.0
    """Global norm to which the gradient is clipped; null does not clip."""
    log_every: Every = 1
    """Steps between training lines, or ``epoch``: one at the end of each pass."""
    eval_every: Every | None = None
    """Steps between evaluations on held-out data, or ``epoch``: one at the end of each pass. null evaluates only at the
    end."""
    eval_delay: int = 0
    """Steps before which ``eval_every`` does not evaluate; passes with ``eval_every=epoch``."""
    eval_on_start: bool = False
    """Evaluate before the first step, so that the curve begins with the untrained model."""
    eval_at_end: bool = True
    """Evaluate after the last step."""
    eval_samples: int | None = None
    """Held-out samples per evaluation; null takes all (a stream needs a number)."""
    eval_micro_batch_size: int | None = None
    """Samples of one forward pass on one rank in evaluations and predictions; null takes ``micro_batch_size``."""
    eval_precision: Precision | None = None
    """Precision of matrix products in evaluations and predictions; null takes that of the plan."""
    eval_weights: Precision = "fp32"
    """Type of the weights in ``trireme evaluate`` and ``trireme predict``: bf16 halves their memory. Training evaluates
    with the weights that it has."""
    max_time: str | int | None = None
    """Wall-clock limit, counted from the start of the run, before which it saves and stops: "HH:MM:SS", "D-HH:MM:SS"
    or "MM", in quotes (YAML reads 12:30:00 as the number 45000). A number below 60 is minutes."""
    timeout_minutes: float = 30.0
    """Minutes that a rank waits for its peers in a collective before the run fails."""
    join_minutes: float = 10.0
    """Minutes that ranks wait for all others at the start, since a job may get its hosts one by one."""

    def __post_init__(self) -> None:
        refuse(self._flaws())

    def _flaws(self) -> Iterator[str]:
        if self.max_time is not None:
            try:
                parse_time(self.max_time)
            except ValueError as error:
                yield str(error)
        for name in (
            "max_steps",
            "stop_at",
            "global_batch_size",
            "micro_batch_size",
            "log_every",
            "eval_every",
            "eval_samples",
            "eval_micro_batch_size",
        ):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                yield f"{name}={value} must be at least 1; write 1 or more{NULL.get(name, '')}"
        if self.eval_delay < 0:
            yield f"eval_delay={self.eval_delay} must not be negative; 0 waits for nothing"
        if self.eval_delay and self.eval_every is None:
            yield f"eval_delay={self.eval_delay} has no effect without eval_every; set it, or leave this out"
        for name in ("epochs", "max_grad_norm", "timeout_minutes", "join_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                yield f"{name}={value} must be positive; write a number above 0{NULL.get(name, '')}"
        for name, most in MOST.items():
            value = getattr(self, name)
            if isinstance(value, int | float) and most < value < math.inf:
                yield f"{name}={value} is wrong because it is above {most}; use a smaller number"
        for name in ("timeout_minutes", "join_minutes"):
            if getattr(self, name) > YEAR:
                yield f"{name}={getattr(self, name)} is more than a year; use minutes, such as 30"
        if self.max_steps is not None and self.epochs is not None:
            yield (
                f"max_steps={self.max_steps} and epochs={self.epochs} contradict; give one and set the other to null"
            )
        if self.max_steps is None and self.epochs is None:
            yield "max_steps and epochs are both null; give one, for example trainer.max_steps=1000"

    def total_steps(self, train_size: int | None, step: int = 0, samples: int = 0) -> int:
        """Optimizer steps of the whole run. Every sample is seen at least ``epochs`` times.

        Args:
            train_size: number of training samples, None for a stream.
            step, samples: steps and samples before the batch got its present size.
        """
        if self.max_steps is not None:
            return self.max_steps
        assert train_size is not None and self.epochs is not None
        left = self.epochs * train_size - samples
        return max(step + max(math.ceil(left / self.global_batch_size), 0), 1)


@dataclass
class EmaConfig:
    """Exponential moving average of the weights; saved in checkpoints as ``ema.<name>``, exported with ``--ema``."""

    decay: float = 0.999
    """Share of the old average that is kept per step."""
    evaluate: bool = True
    """Evaluate with the averaged weights."""

    def __post_init__(self) -> None:
        refuse(self._flaws())

    def _flaws(self) -> Iterator[str]:
        if not 0 < self.decay < 1:
            yield f"decay={self.decay} must lie between 0 and 1; 0.999 is usual"
