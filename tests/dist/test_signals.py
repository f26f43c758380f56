"""On a first signal during training, or shortly before the time limit, all ranks save at the same step and exit. A
signal before training, or a second interrupt, ends the run at once.

The same command then resumes the run bit for bit.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil
import pytest
from helpers.command import tiny_command
from helpers.metrics import lines
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from helpers.running import running, until
from trireme.trainer.build import train
from trireme.trainer.interruption import STARTED

DDP = ("plan=ddp", "--nproc", "2")
Undisturbed = Callable[[str], list]
SLOW = "+callbacks.slow={_target_: helpers.callbacks.Slow, seconds: 0.05}"
STEPS = ("trainer.max_steps=60", "trainer.eval_every=15", "checkpoint.every=25", "scheduler=cosine")
ARGUMENTS = (*STEPS, SLOW)


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return {"PYTHONPATH": f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A function that gives the metric lines of a run without any signal, under a plan."""

    @cache
    def run_once(plan: str) -> list:
        run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
        run_ranks(_train, 2 if plan == "ddp" else 1, run_dir, *STEPS, f"plan={plan}")
        return lines(run_dir)

    return run_once


def saved_and_left(result, run_dir: Path) -> int:
    """Assert that the run saved and left with exit code 75; returns its step."""
    assert result.returncode == 75, result.stderr
    assert "Traceback" not in result.stderr and "exit code" not in result.stderr, result.stderr
    left = re.search(r"left at step (\d+) of 60 \((.*)\): saved; the same command goes on from there", result.stderr)
    assert left, result.stderr
    step = int(left[1])
    assert (run_dir / "checkpoints" / f"step_{step:08d}" / "manifest.json").is_file()
    assert not list((run_dir / "checkpoints").glob(".*"))
    return step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "sent"),
    [
        ("ddp", signal.SIGTERM),
        pytest.param("single", signal.SIGINT, marks=pytest.mark.long),
        pytest.param("ddp", signal.SIGUSR1, marks=pytest.mark.long),
        pytest.param("ddp", signal.SIGINT, marks=pytest.mark.long),
        pytest.param("single", signal.SIGTERM, marks=pytest.mark.long),
        pytest.param("single", signal.SIGUSR1, marks=pytest.mark.long),
    ],
)
def test_a_signal_saves_and_the_same_command_goes_on(
    plan: str, sent: signal.Signals, tmp_path: Path, undisturbed: Undisturbed, environment: dict[str, str]
) -> None:
    command = tiny_command(tmp_path / "run", *ARGUMENTS, *(DDP if plan == "ddp" else ()))
    with running(command, tmp_path / "run", environment) as run:
        run.wait_for_lines(7)
        assert len(run.ranks) == (2 if plan == "ddp" else 0)
        run.send(sent)
        result = run.end()
    step = saved_and_left(result, tmp_path / "run")
    assert ("saving after this step; Ctrl-C again ends at once" in result.stderr) == (sent == signal.SIGINT)
    assert f"({sent.name})" in result.stderr
    assert lines(tmp_path / "run") == [line for line in undisturbed(plan) if line["step"] <= step]
    with running(command, tmp_path / "run", environment) as run:
        assert run.end().returncode == 0
    assert lines(tmp_path / "run") == undisturbed(plan)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/ptmx"), reason="needs terminals: mount devpts")
def test_a_terminal_that_hangs_up_costs_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    """When the connection breaks, ranks save and leave, although their output can no longer be written."""
    command, metrics = tiny_command(tmp_path / "run", *ARGUMENTS, *DDP), tmp_path / "run" / "metrics.jsonl"
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
        os.execve(command[0], command, {**os.environ, **environment})
    try:
        deadline = time.monotonic() + 240
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 7):
            assert time.monotonic() < deadline, "it does not come that far"
            if select.select([terminal], [], [], 0.05)[0]:
                os.read(terminal, 4096)
        os.close(terminal)
        until(lambda: os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 75
    finally:
        if psutil.pid_exists(process):
            os.kill(process, signal.SIGKILL)
    step = lines(tmp_path / "run")[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / f"step_{step:08d}" / "manifest.json").exists()
    assert f"left at step {step} of 60 (SIGHUP)" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.long
def test_a_signal_to_one_rank_is_heeded_by_all(
    tmp_path: Path, undisturbed: Undisturbed, environment: dict[str, str]
) -> None:
    """An evaluation that is due at that step is made up for after the resume."""
    evaluating = (*ARGUMENTS, "trainer.eval_every=1")
    command = tiny_command(tmp_path / "run", *evaluating, *DDP)
    with running(command, tmp_path / "run", environment) as run:
        run.wait_for_lines(7)
        run.ranks[1].send_signal(signal.SIGTERM)
        result = run.end()
    step = saved_and_left(result, tmp_path / "run")
    assert lines(tmp_path / "run")[-1]["step"] == step and "loss" in lines(tmp_path / "run")[-1]
    with running(command, tmp_path / "run", environment) as run:
        assert run.end().returncode == 0
    whole = lines(tmp_path / "run")
    assert [line["step"] for line in whole] == [step for step in range(1, 61) for _ in range(2)]
    regular = [line for line in whole if "loss" in line or line["step"] % 15 == 0]
    assert regular == undisturbed("ddp")


@pytest.mark.long
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_loader_processes_of_the_same_group_live_until_all_is_saved(
    sent: signal.Signals, tmp_path: Path, undisturbed: Undisturbed, environment: dict[str, str]
) -> None:
    command = tiny_command(tmp_path / "run", *ARGUMENTS, "data.num_workers=2")
    with running(command, tmp_path / "run", environment) as run:
        run.wait_for_lines(7)
        os.killpg(run.process.pid, sent)
        result = run.end()
    saved_and_left(result, tmp_path / "run")
    with running(command, tmp_path / "run", environment) as run:
        assert run.end().returncode == 0
    assert lines(tmp_path / "run") == undisturbed("single")


@pytest.mark.parametrize("plan", [pytest.param("single", marks=pytest.mark.long), "ddp"])
def test_a_second_interrupt_ends_at_once(plan: str, tmp_path: Path, environment: dict[str, str]) -> None:
    """This works even if a rank hangs in a step. A signal that one keystroke sends twice counts once."""
    stuck = "+callbacks.stuck={_target_: helpers.callbacks.Stuck, rank: 0, step: 3}"
    command = tiny_command(tmp_path / "run", *ARGUMENTS, stuck, *(DDP if plan == "ddp" else ()))
    with running(command, tmp_path / "run", environment) as run:
        run.wait_for_lines(3)
        _ = run.ranks
        run.send(signal.SIGINT)
        time.sleep(0.2)
        run.send(signal.SIGINT)
        time.sleep(3)  # more than SAME_KEYSTROKE after the first, however late that was handled
        assert run.process.poll() is None
        run.send(signal.SIGINT)
        result = run.end(timeout=30)
    assert result.returncode == 130
    assert "Traceback" not in result.stderr
    assert result.stderr.count("saving after this step; Ctrl-C again ends at once") == 1


@pytest.mark.long
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_before_training_a_signal_ends_at_once(
    sent: signal.Signals, code: int, tmp_path: Path, environment: dict[str, str]
) -> None:
    with running(tiny_command(tmp_path / "run", *ARGUMENTS, *DDP), tmp_path / "run", environment) as run:
        deadline = time.monotonic() + 60
        while len(run.ranks) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        run.send(sent)
        result = run.end(timeout=40)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr


def _train(run_dir: Path, *overrides: str) -> tuple[int, str]:
    result = train(tiny_recipe(run_dir, *overrides))
    return result.step, result.interrupted


@pytest.mark.parametrize("ranks", [1, 2])
def test_when_the_time_is_nearly_over_all_is_saved(ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is an hour, of which a minute is left; the evaluation that is due is made up for later."""
    plan = ("plan=ddp", "trainer.max_steps=4", "trainer.eval_every=1", "checkpoint.at_end=false")
    monkeypatch.setenv(STARTED, str(time.time() - 3540))
    left = run_ranks(_train, ranks, tmp_path / "run", *plan, "trainer.max_time=01:00:00")
    assert left == [(1, "trainer.max_time=01:00:00 is nearly over")] * ranks
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000001"]
    assert [line["step"] for line in lines(tmp_path / "run")] == [1]
    assert run_ranks(_train, ranks, tmp_path / "run", *plan) == [(4, "")] * ranks
    assert run_ranks(_train, ranks, tmp_path / "undisturbed", *plan) == [(4, "")] * ranks
    assert lines(tmp_path / "run") == lines(tmp_path / "undisturbed")


@pytest.mark.long
def test_the_run_ends_before_its_time_is_over(
    tmp_path: Path, undisturbed: Undisturbed, environment: dict[str, str]
) -> None:
    command = tiny_command(tmp_path / "run", *ARGUMENTS, *DDP)
    limit, began = 100, time.monotonic()
    slow = "callbacks.slow.seconds=2"
    with running([*command, f"trainer.max_time=00:01:{limit - 60}", slow], tmp_path / "run", environment) as run:
        result = run.end()
    assert time.monotonic() - began < limit
    step = saved_and_left(result, tmp_path / "run")
    assert f"trainer.max_time=00:01:{limit - 60} is nearly over" in result.stderr
    assert step >= 1
    with running(command, tmp_path / "run", environment) as run:
        assert run.end().returncode == 0
    assert lines(tmp_path / "run") == undisturbed("ddp")
