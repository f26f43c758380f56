"""Tests of restarts: when a rank or machine is killed (``--max-restarts``), or Slurm requeues a job, the run continues
from its last checkpoint. After an error of the user, or a signal to stop, ranks are not started again.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers.command import command, tiny_command
from helpers.metrics import lines, training, worst_difference
from helpers.ranks import free_port, run_ranks
from helpers.recipes import tiny_recipe
from helpers.running import Running, running
from trireme.trainer.build import train
from trireme.trainer.restart import launch_is_noted, note_launch

TESTS = Path(__file__).parents[1]
COMMON = ("trainer.max_steps=24", "checkpoint.every=4", "trainer.eval_every=8", "scheduler=cosine", "plan=ddp")
KILL_TWICE = "+callbacks.kill={_target_: helpers.callbacks.KillRank, rank: 1, steps: [7, 14]}"


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return {"PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    run_ranks(_train, 2, run_dir)
    return run_dir


def _train(run_dir: Path, *overrides: str) -> None:
    train(tiny_recipe(run_dir, *COMMON, *overrides))


def torchrun(run_dir: Path, *arguments: str, options: tuple[str, ...] = ("--standalone",), ranks: int = 2) -> list[str]:
    own = tiny_command(run_dir, *arguments)[len(command("train")) :]
    launcher = [sys.executable, "-m", "torch.distributed.run", *options, "--nproc-per-node", str(ranks)]
    return [*launcher, "-m", "trireme.launch.train", *own]


def attempts(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "logs").glob("*/attempt_*"))


@pytest.mark.long
def test_killed_twice_under_the_own_launcher(tmp_path: Path, undisturbed: Path, environment: dict[str, str]) -> None:
    arguments = (*COMMON, KILL_TWICE, "--nproc", "2", "--max-restarts", "2")
    with running(tiny_command(tmp_path, *arguments), tmp_path, environment) as run:
        result = run.end()
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("rank 1 was ended by SIGKILL") == 2
    assert result.stderr.count("starting all ranks again") == 2
    assert lines(tmp_path) == lines(undisturbed)
    assert attempts(tmp_path) == ["attempt_0", "attempt_1", "attempt_2"], "logs of all attempts are kept"


@pytest.mark.long
def test_too_few_restarts_end_with_the_failure(tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = (*COMMON, KILL_TWICE, "--nproc", "2", "--max-restarts", "1")
    with running(tiny_command(tmp_path, *arguments), tmp_path, environment) as run:
        result = run.end()
    assert result.returncode == 1
    assert result.stderr.count("starting all ranks again (1 of 1)") == 1
    assert "rank 1 was ended by SIGKILL" in result.stderr.rstrip().splitlines()[-1]


@pytest.mark.long
def test_killed_twice_under_torchrun(tmp_path: Path, undisturbed: Path, environment: dict[str, str]) -> None:
    options = ("--standalone", "--max-restarts", "2")
    with running(torchrun(tmp_path, *COMMON, KILL_TWICE, options=options), tmp_path, environment) as run:
        result = run.end()
    assert result.returncode == 0, result.stderr
    assert lines(tmp_path) == lines(undisturbed)


@pytest.mark.long
def test_a_restart_does_not_begin_as_the_launch_did(
    tmp_path: Path, undisturbed: Path, environment: dict[str, str]
) -> None:
    """``--fresh`` moves the old run aside only once; ``--resume PATH`` counts until the launch has saved something."""
    kill = "+callbacks.kill={_target_: helpers.callbacks.KillRank, rank: 1, steps: [21]}"
    # Saved in the background, the checkpoint of step 20 might not be complete at the kill.
    restarts = ("--nproc", "2", "--max-restarts", "1", "checkpoint.asynchronous=false")
    with running(
        tiny_command(tmp_path / "a", *COMMON, *restarts, "trainer.stop_at=16"), tmp_path / "a", environment
    ) as run:
        assert run.end().returncode == 0
    named = ("--resume", str(tmp_path / "a" / "checkpoints" / "step_00000016"))
    with running(tiny_command(tmp_path / "b", *COMMON, *restarts, kill, *named), tmp_path / "b", environment) as run:
        assert run.end().returncode == 0
    assert [line for line in lines(undisturbed) if line["step"] > 16] == lines(tmp_path / "b")
    assert "at step 20" in (tmp_path / "b" / "log.txt").read_text()
    own = tiny_command(tmp_path / "b", *COMMON, *restarts, kill, "--fresh")
    elastic = torchrun(tmp_path / "b", *COMMON, kill, "--fresh", options=("--standalone", "--max-restarts", "1"))
    for launch in (own, elastic):
        with running(launch, tmp_path / "b", environment) as run:
            assert run.end().returncode == 0
        assert lines(tmp_path / "b") == lines(undisturbed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "b.1", "b.2"]


def _resumed(run_dir: Path, resume: str, stop_at: int) -> int:
    return train(tiny_recipe(run_dir, "trainer.eval_at_end=false", f"trainer.stop_at={stop_at}"), resume=resume).step


def test_a_job_queued_again_goes_on_from_what_it_has_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds even if the first start ended before it had recorded at which step it began."""
    assert run_ranks(_resumed, 1, tmp_path / "a", "never", 2) == [2]
    named = str(tmp_path / "a" / "checkpoints" / "step_00000002")
    for count, stop_at in (("1", 4), ("2", 6)):
        monkeypatch.setenv("SLURM_RESTART_COUNT", count)
        assert run_ranks(_resumed, 1, tmp_path / "b", named, stop_at) == [stop_at]
    said = (tmp_path / "b" / "log.txt").read_text()
    assert f"resuming from {named} at step 2" in said
    assert f"resuming from {tmp_path}/b/checkpoints/step_00000004 at step 4" in said


def test_the_mark_of_an_earlier_launch_is_not_taken_for_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch may be restarted before its ranks have recorded at which step it began."""
    for name in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    assert not launch_is_noted(tmp_path)
    elastic = ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID", ("none", "one", "other"))
    for count, variable, names in (elastic, ("SLURM_RESTART_COUNT", "SLURM_JOB_ID", ("12", "13"))):
        monkeypatch.setenv(count, "1")
        for name in names:
            monkeypatch.setenv(variable, name)
            assert not launch_is_noted(tmp_path)
            note_launch(tmp_path, "auto")
            assert launch_is_noted(tmp_path)
        monkeypatch.delenv(count)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a second launch in the same job")
    assert not launch_is_noted(tmp_path)
    note_launch(tmp_path, "auto", submitted=True)
    assert launch_is_noted(tmp_path), "noted when the job was submitted, before it had a number"


def test_fresh_is_not_forgotten_by_a_first_attempt_that_ended_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert run_ranks(_resumed, 1, tmp_path / "run", "auto", 2) == [2]
    monkeypatch.setenv("SLURM_JOB_ID", "2")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    recipe = tiny_recipe(tmp_path / "run", "trainer.eval_at_end=false", "trainer.stop_at=1")
    assert run_ranks(lambda: train(recipe, fresh=True).step, 1) == [1]
    assert (tmp_path / "run.1").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["own", pytest.param("torchrun", marks=pytest.mark.long)])
def test_what_the_user_must_mend_is_not_tried_again(launcher: str, tmp_path: Path, environment: dict[str, str]) -> None:
    """Only the ranks can refuse here: the folder holds a run of another recipe."""
    run_ranks(_train, 1, tmp_path, "trainer.stop_at=4")
    changed = (*COMMON, "seed=8")
    launch = (
        tiny_command(tmp_path, *changed, "--nproc", "2", "--max-restarts", "3")
        if launcher == "own"
        else torchrun(tmp_path, *changed, options=("--standalone", "--max-restarts", "3"))
    )
    with running(launch, tmp_path, environment) as run:
        result = run.end()
    assert result.returncode == (2 if launcher == "own" else 1), result.stderr
    assert result.stderr.count("holds a run of another recipe (changed: seed)") == 1
    if launcher == "own":
        assert "Traceback" not in result.stderr and result.stderr.count("fix:") == 1, result.stderr
        assert attempts(tmp_path) == ["attempt_0"]


@pytest.mark.long
def test_told_to_leave_under_torchrun(tmp_path: Path, undisturbed: Path, environment: dict[str, str]) -> None:
    """torchrun passes SIGTERM on and waits; ranks that have saved are not started again."""
    slow = "+callbacks.slow={_target_: helpers.callbacks.Slow, seconds: 0.3}"
    launch = torchrun(tmp_path, *COMMON, slow, options=("--standalone", "--max-restarts", "3"))
    with running(launch, tmp_path, environment) as run:
        run.wait_for_lines(5)
        assert len(run.ranks) == 2
        run.send(signal.SIGTERM)
        result = run.end()
    assert result.returncode == 1, "torchrun has no other"
    assert result.stderr.count("saved; the same command goes on from there") == 1
    with running(launch, tmp_path, environment) as run:  # now one rank gets a signal that torchrun does not see
        run.wait_for_lines(15)
        run.ranks[1].send_signal(signal.SIGUSR1)
        result = run.end()
    assert result.returncode == 1
    assert result.stderr.count("saved; the same command goes on from there") == 1
    with running(launch, tmp_path, environment) as run:
        assert run.end().returncode == 0
    assert lines(tmp_path) == lines(undisturbed)


@pytest.mark.long
def test_a_node_is_lost_and_the_other_goes_on(tmp_path: Path, undisturbed: Path, environment: dict[str, str]) -> None:
    """Two agents, one killed with its ranks: fewer ranks, the same global batch, the same losses."""
    port = free_port()
    options = ("--nnodes", "1:2", "--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-id", "lost",
               "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1",
               "--rdzv-conf", "last_call_timeout=45,keep_alive_interval=1,keep_alive_max_attempt=3")  # fmt: skip
    slow = "+callbacks.slow={_target_: helpers.callbacks.Slow, seconds: 0.5}"
    launch = torchrun(tmp_path, *COMMON, slow, options=options, ranks=1)
    with running(launch, tmp_path, environment) as first:
        _wait_for_port(port)
        with running(launch, tmp_path, environment) as second:
            first.wait_for_lines(9)
            _kill_with_ranks(second)
            result = first.end()
    assert result.returncode == 0, result.stderr
    whole = training(tmp_path)
    assert [line["step"] for line in whole] == list(range(1, 25))
    assert worst_difference(training(undisturbed), whole) < 1e-5
    assert "on 1 rank(s)" in (tmp_path / "log.txt").read_text()
    assert "on 2 rank(s)" in (tmp_path / "log.txt").read_text()


def _wait_for_port(port: int) -> None:
    """Wait until the first agent serves the rendezvous, so that the second one joins it."""
    import socket

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("no rendezvous")


def _kill_with_ranks(run: Running) -> None:
    ranks = run.ranks
    assert len(ranks) == 1
    run.process.kill()
    for rank in ranks:
        rank.kill()
