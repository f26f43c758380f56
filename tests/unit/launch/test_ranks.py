"""Tests of ranks that the command starts: the error message when one fails, and that no rank is left running. Also
tested: a sweep (``--multirun``) trains all of its jobs, even after one has diverged.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command import command, refused, tiny_command, trireme_here
from helpers.recipes import TINY
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


CRASH = "callbacks.fault\n  faults.Fault raises RuntimeError: boom of one rank in on_step_begin ("


@pytest.mark.parametrize(
    ("plan", "kind", "rank", "code", "seen", "tracebacks"),
    [
        ("ddp", "user", 1, 2, "data = 3\n  is odd on this rank\n  fix: even it out", 0),
        pytest.param(
            "ddp",
            "crash",
            1,
            1,
            CRASH,
            0,
            marks=pytest.mark.long,
        ),
        pytest.param(
            "zero2",
            "crash",
            1,
            1,
            CRASH,
            0,
            marks=pytest.mark.long,
        ),
        ("pp_1f1b", "crash", 1, 1, CRASH, 0),
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
    """The failure is printed once, and the whole run ends within half a minute of it."""
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


@pytest.mark.slow
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
    # torch's agent prints the refusal, indented, once and last.
    said = " ".join(result.stderr.split())
    assert said.count("data = 3 is odd on this rank fix: even it out") == 1
    assert "fix: even it out" in "".join(result.stderr.splitlines()[-12:]), result.stderr


def test_a_sweep_trains_every_job_and_ends_with_a_table(
    tmp_path: Path, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Jobs that have diverged are in the table too: they do not end the sweep, never win, and set the exit code."""
    arguments = tiny_command(
        tmp_path / "s", "--multirun", "optimizer.lr=1e9,1e-3", "trainer.max_steps=3", "trainer.eval_samples=2"
    )
    result = run_to_end(arguments, tmp_path / "s", environment)
    assert result.returncode == 3, result.stderr
    for rate in ("1000000000.0", "0.001"):
        assert (tmp_path / "s" / f"optimizer.lr={rate}" / "metrics.jsonl").is_file()
    table = result.stdout[result.stdout.index("job ") :]
    diverged, won = [line.split() for line in table.splitlines() if line.strip().startswith("optimizer.lr")]
    assert diverged[:4] == ["optimizer.lr=1000000000.0", "eval_loss", "nan", "diverged"]
    assert won[0] == "optimizer.lr=0.001" and won[3:5] == ["*", "done"]
    assert "best: optimizer.lr=0.001 with eval_loss" in table
    again = trireme_here(capsys, "train", str(TINY), f"run.dir='{tmp_path}/s/optimizer.lr=0.001'", "-m", "seed=1,2")
    refused(again, "run.dir", "holds a run")


@pytest.mark.long
def test_a_sweeper_that_chooses_by_results_is_told_them(tmp_path: Path, environment: dict[str, str]) -> None:
    plugins = tmp_path / "hydra_plugins"
    plugins.mkdir()
    (plugins / "told.py").write_text(TOLD)
    environment["PYTHONPATH"] = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    environment["TOLD"] = str(tmp_path / "told.json")
    arguments = tiny_command(
        tmp_path / "s", "--multirun", "hydra/sweeper=told", "optimizer.lr=1e-3", "trainer.max_steps=1"
    )
    result = run_to_end(arguments, tmp_path / "s", environment)
    assert result.returncode == 0, result.stderr
    (told,) = json.loads((tmp_path / "told.json").read_text())
    lines = [json.loads(line) for line in next((tmp_path / "s").glob("*/metrics.jsonl")).read_text().splitlines()]
    assert told == lines[-1]["eval_loss"]


TOLD = """
import json, os
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

ConfigStore.instance().store(group="hydra/sweeper", name="told", node={"_target_": "hydra_plugins.told.Told"})


class Told(Sweeper):
    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        done = self.launcher.launch([arguments], initial_job_idx=0)
        with open(os.environ["TOLD"], "w") as file:
            json.dump([job.return_value for job in done], file)
"""
