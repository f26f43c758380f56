"""Real ranks started by the command: what a person sees when one of them fails, and that none is left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command import command, tiny_command
from helpers.running import Running, run_to_end, running

FAULT = '''
import os, signal, time
from trireme import Problem, UserError
from trireme.trainer.callbacks.callback import Callback

class Fault(Callback):
    """Fails in one rank before its second step."""

    def __init__(self, kind: str, rank: int) -> None:
        self.kind, self.rank = kind, rank

    def on_step_begin(self, trainer, state, control):
        if self.kind == "wait":
            time.sleep(0.5)
        if trainer.mesh.rank != self.rank or state.step != 1:
            return
        open(FAILED, "w").close()
        if self.kind == "user":
            raise UserError(Problem("data", "is odd on this rank", "even it out", 3))
        if self.kind == "crash":
            raise RuntimeError("boom of one rank")
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "faults.py").write_text(f"FAILED = {str(tmp_path / 'failed')!r}\n{FAULT}")
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    return {**kept, "PYTHONPATH": f"{tmp_path}:{kept.get('PYTHONPATH', '')}"}


def faulty(run_dir: Path, kind: str, rank: int, *arguments: str, plan: str = "ddp") -> list[str]:
    fault = f"+callbacks.fault={{_target_: faults.Fault, kind: {kind}, rank: {rank}}}"
    return tiny_command(run_dir, fault, f"plan={plan}", "--nproc", "2", *arguments)


@pytest.mark.parametrize(
    ("plan", "kind", "rank", "code", "seen", "tracebacks"),
    [
        ("ddp", "user", 1, 2, "data = 3\n  is odd on this rank\n  fix: even it out", 0),
        ("ddp", "crash", 1, 1, "RuntimeError: boom of one rank\n(rank 1 of 2; its output: ", 1),
        pytest.param(
            "zero2",
            "crash",
            1,
            1,
            "RuntimeError: boom of one rank\n(rank 1 of 2; its output: ",
            1,
            marks=pytest.mark.long,
        ),
        ("pp_1f1b", "crash", 1, 1, "RuntimeError: boom of one rank\n(rank 1 of 2; its output: ", 1),
        ("ddp", "kill", 1, 1, "rank 1 was ended by SIGKILL", 0),
        pytest.param("fsdp_full_shard", "kill", 1, 1, "rank 1 was ended by SIGKILL", 0, marks=pytest.mark.long),
        pytest.param("pp_1f1b", "kill", 1, 1, "rank 1 was ended by SIGKILL", 0, marks=pytest.mark.long),
        pytest.param("tp", "kill", 1, 1, "rank 1 was ended by SIGKILL", 0, marks=pytest.mark.long),
        pytest.param("zero3", "kill", 1, 1, "rank 1 was ended by SIGKILL", 0, marks=pytest.mark.long),
    ],
)
def test_a_failing_rank_is_shown_once(
    plan: str, kind: str, rank: int, code: int, seen: str, tracebacks: int, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Seen once, and the whole run ends within half a minute of the failure."""
    result = run_to_end(faulty(tmp_path / "run", kind, rank, plan=plan), tmp_path / "run", environment)
    assert time.time() - (tmp_path / "failed").stat().st_mtime < 30
    assert result.returncode == code, result.stderr
    assert result.stderr.count(seen) == 1, result.stderr
    assert result.stderr.count("Traceback") == tracebacks, result.stderr
    assert "torch.distributed.elastic" not in result.stderr
    assert "Connection" not in result.stderr  # what the other rank saw


@pytest.fixture
def waiting(tmp_path: Path, environment: dict[str, str]) -> Iterator[Running]:
    """A run of two ranks in the middle of its training."""
    arguments = faulty(tmp_path / "run", "wait", 0, "trainer.max_steps=500")
    with running(arguments, tmp_path / "run", environment) as run:
        run.wait_for_lines(1, timeout=200)
        yield run


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 75), (signal.SIGKILL, -9)])
def test_no_rank_outlives_the_command(sent: signal.Signals, code: int, waiting: Running) -> None:
    assert len(waiting.ranks) == 2
    waiting.send(sent)
    result = waiting.end(timeout=60)
    assert result.returncode == code
    assert "Traceback" not in result.stderr


def test_a_user_error_of_one_rank_is_seen_under_torchrun(tmp_path: Path, environment: dict[str, str]) -> None:
    own = faulty(tmp_path / "run", "user", 1)
    arguments = [argument for argument in own[len(command()) :] if argument not in ("train", "--nproc", "2")]
    launcher = [
        own[0],
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "trireme.launch.train",
    ]
    result = run_to_end([*launcher, *arguments], tmp_path / "run", environment)
    assert result.returncode != 0
    # By torch's agent, which indents it; once, and last.
    said = " ".join(result.stderr.split())
    assert said.count("data = 3 is odd on this rank fix: even it out") == 1
    assert "fix: even it out" in "".join(result.stderr.splitlines()[-12:]), result.stderr


def test_multirun_trains_every_job(tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = tiny_command(
        tmp_path / "s", "--multirun", "seed=1,2", "trainer.max_steps=1", "trainer.eval_at_end=false"
    )
    result = run_to_end(arguments, tmp_path / "s", environment)
    assert result.returncode == 0, result.stderr
    for seed in (1, 2):
        assert (tmp_path / "s" / f"seed={seed}" / "metrics.jsonl").is_file()
