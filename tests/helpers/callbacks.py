"""Trainer callbacks for the recipes of tests. Some record or compare what a run does; others make a run slow, stop it,
let it hang, or let it fail.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
import warnings
from pathlib import Path

import torch
from trireme.trainer.callbacks.callback import Callback


class StopOnOneRank(Callback):
    """Asks to stop on one rank only."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_step_end(self, trainer, state, control) -> None:
        if trainer.mesh.rank == self.rank and state.step == self.step:
            control.request_stop("this rank has had enough")


class Leave(Callback):
    """Leaves early after a step, like a run that gets a signal or meets its time limit."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer, state, control) -> None:
        if state.step == self.step:
            control.interrupt("it is time")


class Recorder(Callback):
    """Writes every event it sees, with the step, to a file per rank."""

    def __init__(self, path: str) -> None:
        self.path, self.seen = path, []

    def __getattribute__(self, name: str):
        if name.startswith("on_"):
            return lambda trainer, state, control, *rest: self.seen.append(f"{name[3:]} {state.step}")
        return super().__getattribute__(name)

    def close(self) -> None:
        with open(f"{self.path}.{os.environ.get('RANK', 0)}", "w") as file:
            file.write("\n".join(self.seen))


class Remember(Callback):
    """Counts steps across resumes."""

    count = 0

    def on_step_end(self, trainer, state, control) -> None:
        self.count += 1
        trainer.extra_metrics["remembered"] = self.count

    def state_dict(self) -> dict:
        return {"count": self.count}

    def load_state_dict(self, state: dict) -> None:
        self.count = state["count"]


class Slow(Callback):
    """Makes steps slow, so that a signal arrives during one."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_step_begin(self, trainer, state, control) -> None:
        time.sleep(self.seconds)


class SlowAtFirst(Slow):
    """Makes steps slow until SLURM has queued the job again."""

    def on_step_begin(self, trainer, state, control) -> None:
        if "SLURM_RESTART_COUNT" not in os.environ:
            super().on_step_begin(trainer, state, control)


class Stuck(Callback):
    """Lets one rank hang in a step."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_step_begin(self, trainer, state, control) -> None:
        if trainer.mesh.rank == self.rank and state.step == self.step:
            while True:
                time.sleep(0.1)


class Poison(Callback):
    """Makes the loss of one rank NaN in the steps that begin when one of the ``samples`` counts is reached."""

    def __init__(self, rank: int, samples: list[int]) -> None:
        self.rank, self.samples = rank, samples

    def on_step_begin(self, trainer, state, control) -> None:
        if trainer.mesh.rank == self.rank and state.samples in self.samples:
            loss = trainer.task.loss
            trainer.task.loss = lambda outputs, targets: loss(outputs, targets) * float("nan")

    def on_pre_optimizer_step(self, trainer, state, control) -> None:
        vars(trainer.task).pop("loss", None)


class Unchanged(Callback):
    """Compares weights and moments before and after each step, bit for bit; adds ``unchanged`` to the metrics."""

    def on_step_begin(self, trainer, state, control) -> None:
        self.before = self._tensors(trainer)

    def on_step_end(self, trainer, state, control) -> None:
        after = self._tensors(trainer)
        same = after.keys() == self.before.keys() and all(after[k].equal(self.before[k]) for k in after)
        trainer.extra_metrics["unchanged"] = all(trainer.mesh.gather_objects(same))

    def _tensors(self, trainer) -> dict:
        local = {name: getattr(t, "_local_tensor", t) for name, t in trainer.strategy.saved_tensors().items()}
        return {name: tensor.clone() for name, tensor in local.items()}


class Jump(Callback):
    """Skips samples when training begins."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def on_train_begin(self, trainer, state, control) -> None:
        with state.read_only(False):  # what no callback of a user's own may do
            state.samples = self.samples


class Sleeper(Callback):
    """Lets one rank sleep before a step, once; with ``attempt`` only in that attempt of an elastic launch."""

    def __init__(self, rank: int, step: int, seconds: float, attempt: int | None = None) -> None:
        self.rank, self.step, self.seconds, self.attempt = rank, step, seconds, attempt

    def on_step_begin(self, trainer, state, control) -> None:
        count = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        if trainer.mesh.rank == self.rank and state.step == self.step and self.attempt in (None, count):
            time.sleep(self.seconds)


class KillRank(Callback):
    """Kills one rank (SIGKILL) before a step, each time in another attempt of an elastic launch."""

    def __init__(self, rank: int, steps: list[int]) -> None:
        self.rank, self.steps = rank, steps

    def on_step_begin(self, trainer, state, control) -> None:
        count = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        if trainer.mesh.rank == self.rank and count < len(self.steps) and state.step == self.steps[count]:
            os.kill(os.getpid(), signal.SIGKILL)


class Speaks(Callback):
    """Logs an info message and a warning on every rank."""

    def on_train_begin(self, trainer, state, control) -> None:
        log = logging.getLogger("trireme.tests")
        log.info("info of %d", trainer.mesh.rank)
        log.warning("warning of %d", trainer.mesh.rank)


class KeepFirstBatch(Callback):
    """Writes the micro-batches of the first step to a file per rank."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_step_end(self, trainer, state, control) -> None:
        if state.step == 1:
            torch.save([vars(micro) for micro in trainer.batch.micro_batches], f"{self.path}.{trainer.mesh.rank}")


class Guest(Callback):
    """Records the steps during which it is registered."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step_end(self, trainer, state, control) -> None:
        self.steps.append(state.step)


class LooksBack(Callback):
    """Writes history, FLOPs and best checkpoint to a file when the run ends; adds ``Guest`` for one step."""

    def __init__(self, path: str) -> None:
        self.path, self.guest = path, Guest()

    def on_step_begin(self, trainer, state, control) -> None:
        if state.step == 4:
            trainer.callbacks.add("guest", self.guest)
        elif "guest" in trainer.callbacks:
            trainer.callbacks.remove("guest")

    def on_train_end(self, trainer, state, control) -> None:
        best = trainer.best_checkpoint
        seen = {
            "lines": trainer.history.lines,
            "flops": trainer.total_flops,
            "best": best.name if best else None,
            "guest": self.guest.steps,
        }
        Path(f"{self.path}.{os.environ.get('RANK', 0)}").write_text(json.dumps(seen))


class Explode(Callback):
    """Makes one weight infinite before a step, on the ranks that hold it."""

    def __init__(self, name: str, step: int) -> None:
        self.name, self.step = name, step

    def on_step_begin(self, trainer, state, control) -> None:
        for name, parameter in trainer.strategy.named_parameters():
            if state.step + 1 == self.step and name == self.name:
                getattr(parameter, "_local_tensor", parameter).data.fill_(float("inf"))


class Warns(Callback):
    """Warns as libraries do, through Python's ``warnings``."""

    def on_train_begin(self, trainer, state, control) -> None:
        warnings.warn("that is old", DeprecationWarning, stacklevel=1)
        warnings.warn("that is unwise", UserWarning, stacklevel=1)


class SeenTokens(Callback):
    """Adds a number to the metrics that tells which tokens all ranks have seen, and in which order."""

    def on_step_end(self, trainer, state, control) -> None:
        mine = [row for micro in trainer.batch.micro_batches for row in micro.inputs["input_ids"][:, :2].tolist()]
        rows = [row for part in trainer.mesh.gather_objects(mine) for row in part]
        trainer.extra_metrics["seen"] = sum((place + 1) * (a + 1000 * b) for place, (a, b) in enumerate(rows))


class EndPass(Callback):
    """Ends a pass early after each of the given steps, by a request of one rank only."""

    def __init__(self, rank: int, steps: list[int]) -> None:
        self.rank, self.steps, self.ends = rank, steps, []

    def on_step_end(self, trainer, state, control) -> None:
        if trainer.mesh.rank == self.rank and state.step in self.steps:
            control.end_pass = True

    def on_epoch_end(self, trainer, state, control) -> None:
        self.ends.append((state.step, state.epoch))

    def on_log(self, trainer, state, control, metrics) -> None:
        metrics["ends"] = len(self.ends)


class Predicted(Callback):
    """Writes the metrics of predictions to a file per rank."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_predict(self, trainer, state, control, metrics) -> None:
        Path(f"{self.path}.{trainer.mesh.rank}").write_text(json.dumps(metrics))


class Fails(Callback):
    """Raises a ``UserError`` before step ``step``."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer, state, control) -> None:
        if state.step == self.step - 1:
            from trireme.errors import UserError

            raise UserError("the mast breaks")
