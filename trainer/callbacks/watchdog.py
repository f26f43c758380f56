"""Watchdog callback: when a run hangs, report which rank the others are waiting for, and at which line of code it is;
end the run if the recipe asks for that.

All ranks train in lockstep. When one of them stops (a loader waits for a dead disk, a callback never returns, a rank
does not enter a collective), all others wait in their next collective, so the cause cannot be seen from one process
alone. Therefore a thread in every rank writes the position of the rank's main thread to the store of the process group
every few seconds. When no step, evaluation or save has ended for ``timeout`` seconds, each rank writes the stacks of
its threads to ``logs/stacks_rank_N.txt``, and the lowest rank that still answers reports the positions of all ranks.

The cost is a thread that wakes every five seconds and walks one stack, and a few small messages to the store; steps
themselves are not affected. ``timeout`` must be longer than the slowest step, evaluation and save.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from ..error_file import record
from .callback import Callback, Metrics

if TYPE_CHECKING:
    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState

log = logging.getLogger("trireme.watchdog")
Place = dict[str, Any]
"""Position of a rank. ``waits``: collective or empty; ``at``: file, line, function; ``step``: steps done; ``count``:
number of the message."""


class Hang(Exception):
    """The run hangs; the text names the rank that holds the others up."""


class Watchdog(Callback):
    """Reports a run that no longer advances, and ends it if told to.

    Args:
        timeout: seconds without the end of a step, evaluation or save after which a run counts as hanging.
        action: ``report`` reports each hang once; ``end`` also ends all ranks, which a launcher with ``--max-restarts``
            then starts again from the last checkpoint.
    """

    def __init__(self, timeout: float = 600.0, action: Literal["report", "end"] = "report") -> None:
        if timeout <= 0:
            raise ValueError(f"timeout={timeout} is not above 0; use more seconds than the slowest step takes")
        if action not in ("report", "end"):
            raise ValueError(f"action={action!r} is not known; write report or end")
        self.timeout, self.action = timeout, action
        self.interval = min(5.0, timeout / 10)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def on_train_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        self._advance(state)
        if self._thread is not None:
            return
        self._rank, self._ranks = trainer.mesh.rank, trainer.mesh.world_size
        self._logs, self._watched = trainer.run_dir / "logs", threading.get_ident()
        import torch.distributed as dist

        # A second connection, since a collective that waits for a key blocks that of the process group.
        store: Any = dist.distributed_c10d._get_default_store() if self._ranks > 1 else None
        self._store: Any = store.clone() if store is not None else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def on_step_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        self._advance(state)

    def on_evaluate(self, trainer: Trainer, state: TrainerState, control: Control, metrics: Metrics) -> None:
        self._advance(state)

    def on_save(self, trainer: Trainer, state: TrainerState, control: Control, path: Path) -> None:
        self._advance(state)

    def on_wait(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        self._advance(state)

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * self.interval)
        self._thread = None

    def _advance(self, state: TrainerState) -> None:
        self._advanced_at, self._step = time.monotonic(), state.step

    # -- the thread -------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        count, stalls, handled = 0, 0, 0.0
        try:
            while not self._stop.wait(self.interval):
                count += 1
                self._beat(count, look_inside=False)
                advanced_at = self._advanced_at
                if advanced_at == handled:  # this hang was reported already
                    continue
                stalled = time.monotonic() - advanced_at > self.timeout
                if stalled and self._store:
                    self._store.add("watchdog/stalls", 1)
                seen = self._store.add("watchdog/stalls", 0) if self._store else 0
                if stalled or seen != stalls:
                    handled, stalls = advanced_at, seen
                    self._look_around(count, advanced_at)
        except (RuntimeError, OSError) as error:  # the store has ended together with the launcher
            log.debug("the watchdog has ended: %s", error)

    def _look_around(self, count: int, advanced_at: float) -> None:
        """Write stacks; report if this is the lowest rank that answers; end the rank if ``action`` is ``end``."""
        self._write_stacks()
        before = self._beats()
        for _ in range(3):  # peers notice meanwhile, and write their positions
            if self._stop.wait(self.interval):
                return
            count += 1
            self._beat(count, look_inside=True)
        beats = self._beats()
        if self._advanced_at != advanced_at:  # the run was only slow
            return
        silent = [rank for rank in range(self._ranks) if rank not in beats or beats[rank] == before.get(rank)]
        seconds = time.monotonic() - advanced_at
        if min(set(range(self._ranks)) - set(silent), default=self._rank) == self._rank:
            report = describe(beats, silent, seconds, self._logs)
            log.error("%s", report)
            if self.action == "end":
                self._end(report)
        elif self.action == "end":
            deadline = time.monotonic() + 10 * self.interval
            while not self._has("report") and time.monotonic() < deadline:
                time.sleep(self.interval / 5)
            self._end(self._get("report") if self._has("report") else f"no step for {seconds:.0f} s")

    def _end(self, report: str) -> None:
        """End this process from the thread, since the main thread does not return."""
        record(Hang(report))
        self._put("report", report)
        logging.shutdown()
        os._exit(1)

    def _write_stacks(self) -> None:
        try:
            self._logs.mkdir(exist_ok=True)
            with open(self._logs / f"stacks_rank_{self._rank}.txt", "a") as file:
                file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}, step {self._step}\n")
                file.flush()
                faulthandler.dump_traceback(file)
        except OSError as error:
            log.warning("stacks cannot be written: %s", error.strerror)

    def _beat(self, count: int, look_inside: bool) -> None:
        self._put(f"beat/{self._rank}", self._place(count, look_inside))

    def _place(self, count: int, look_inside: bool) -> Place:
        place = place_of(sys._current_frames().get(self._watched), look_inside)
        return {**place, "step": self._step, "count": count}

    def _beats(self) -> dict[int, Place]:
        """The last message of every rank, by rank."""
        if self._store is None:
            return {0: self._place(time.monotonic_ns(), True)}
        return {rank: self._get(f"beat/{rank}") for rank in range(self._ranks) if self._has(f"beat/{rank}")}

    def _put(self, key: str, value: Any) -> None:
        if self._store is not None:
            self._store.set(f"watchdog/{key}", json.dumps(value))

    def _get(self, key: str) -> Any:
        return json.loads(self._store.get(f"watchdog/{key}"))

    def _has(self, key: str) -> bool:
        return self._store is not None and self._store.check([f"watchdog/{key}"])


def place_of(frame: FrameType | None, look_inside: bool = True) -> Place:
    """Position of a thread: the collective it waits in, if any, and the innermost line outside of libraries.

    Args:
        look_inside: also find collectives that C++ waits for (in backward passes), which takes tens of milliseconds.
    """
    waits, inner = "", frame
    while frame is not None and (library := _library(frame)):
        if library == "distributed" and frame.f_code.co_name != "wrapper":  # a decorator that logs
            waits = frame.f_code.co_name  # ends as the outermost frame: the function that was called from outside
        elif frame.f_code.co_name == "_engine_run_backward":
            waits = (look_inside and pending_collective()) or "backward"
        frame = frame.f_back
    if not waits and look_inside:
        waits = pending_collective()
    shown = frame if waits and frame is not None else inner
    if shown is None:
        return {"waits": "", "at": "an ended thread"}
    return {"waits": waits, "at": f"{_short(shown.f_code.co_filename)}:{shown.f_lineno} {shown.f_code.co_name}"}


def pending_collective() -> str:
    """The oldest unfinished collective of this process, from torch's flight recorder; empty if there is none."""
    try:
        from torch._C import _distributed_c10d as c10d

        dump: Any = c10d._dump_fr_trace_json  # type: ignore[attr-defined]
        entries = json.loads(dump(onlyActive=True)).get("entries", [])
    except (ImportError, AttributeError, RuntimeError, ValueError):  # not in this build, or no process group
        return ""
    open_ones = [entry["profiling_name"] for entry in entries if not entry["retired"]]
    return open_ones[0].partition(":")[2] if open_ones else ""


def describe(beats: dict[int, Place], silent: list[int], seconds: float, logs: Path) -> str:
    """One sentence on the positions of all ranks, those that hold others up first."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for rank, place in sorted(beats.items()):
        if rank not in silent:
            groups[place["waits"], place["at"]].append(rank)
    parts = [f"{_ranks(ranks)} in {at} (not in a collective)" for (waits, at), ranks in groups.items() if not waits]
    parts += [f"{_ranks([rank])} not heard of any more" for rank in silent]
    for (waits, at), ranks in groups.items():
        if waits:
            parts.append(f"{_ranks(ranks, 'waits', 'wait')} in {waits}, called from {at}")
    step = min((place["step"] for place in beats.values()), default=0)
    return f"no step for {seconds:.0f} s after step {step}: {'; '.join(parts)} (all stacks: {logs}/stacks_rank_*.txt)"


def _ranks(ranks: list[int], one: str = "is", many: str = "are") -> str:
    return f"rank {ranks[0]} {one}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} {many}"


def _library(frame: FrameType) -> str:
    """``distributed`` or ``torch`` for code of these libraries; empty for other code."""
    path = frame.f_code.co_filename.replace(os.sep, "/")
    if "/torch/distributed/" in path or "/deepspeed/comm/" in path:
        return "" if "/torch/distributed/elastic/" in path else "distributed"
    return "torch" if "/torch/" in path or "/deepspeed/" in path or path.endswith("/contextlib.py") else ""


def _short(path: str) -> str:
    here = os.getcwd() + os.sep
    return path.removeprefix(here)
