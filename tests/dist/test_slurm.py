"""Tests of jobs on a real SLURM cluster: exact resumes after preemption, cancellation and time limits, sweeps, ranks
that fail, logs, refusals, and the scripts of ``docs/slurm.md``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers.command import ROOTS, command, refused, trireme, trireme_here
from helpers.metrics import lines
from helpers.ranks import run_ranks
from helpers.recipes import TINY, tiny_recipe
from helpers.running import run_to_end
from helpers.slurm import Cluster, missing
from helpers.zero import can_compile, load_deepspeed
from safetensors.torch import load_file
from trireme.trainer.build import train

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"needs SLURM: {missing()}"),
    pytest.mark.timeout(1200),  # a job that is queued again waits two minutes for credentials to expire
]
NEEDS_COMPILER = pytest.mark.skipif(not can_compile(), reason="DeepSpeed's operators need g++ and ninja")
TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "slurm.md"
TWO = ("launch=slurm", "launch.nodes=2")
COMMON = ("trainer.eval_every=10", "checkpoint.every=8", "scheduler=cosine")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment that jobs inherit from the submitting process."""
    monkeypatch.setenv("PYTHONPATH", f"{TESTS}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def slow(seconds: float) -> str:
    """The override that makes steps long enough for a signal to arrive during one."""
    return f"+callbacks.slow={{_target_: helpers.callbacks.SlowAtFirst, seconds: {seconds}}}"


def arguments(run_dir: Path, *more: str) -> list[str]:
    return [str(TINY), ROOTS, f"run.dir={run_dir}", *COMMON, *more]


def launched(run_dir: Path, *more: str) -> str:
    """Submit through ``trireme launch``; returns the number of the job."""
    return submitted(trireme("launch", *arguments(run_dir, *more)))


def submitted(result: subprocess.CompletedProcess[str]) -> str:
    """The number of the job."""
    assert result.returncode == 0, result.stderr
    found = re.match(r"submitted job (\d+)", result.stdout)
    assert found, result.stdout
    return found[1]


def log_of(run_dir: Path) -> str:
    return Path(json.loads((run_dir / "slurm.json").read_text())["log"]).read_text()


def wait_for_lines(slurm: Cluster, job: str, run_dir: Path, count: int) -> None:
    metrics, deadline = run_dir / "metrics.jsonl", time.monotonic() + 200
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= count):
        assert time.monotonic() < deadline, f"job {job} does not come that far: {slurm.show(job)}"
        time.sleep(0.1)


def _train(run_dir: Path, *overrides: str) -> None:
    train(tiny_recipe(run_dir, *COMMON, *overrides))


def weights(run_dir: Path) -> Counter:
    """(name, shape, digest) of the tensors of the last checkpoint, or of their pieces."""
    newest = max((run_dir / "checkpoints").iterdir())
    found = Counter()
    for file in (newest / "tensors").glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            found[name, tuple(tensor.shape), hashlib.sha256(tensor.numpy().tobytes()).hexdigest()] += 1
    return found


def assert_same_run(run_dir: Path, undisturbed: Path) -> None:
    """Assert equal losses and equal weights, bit for bit."""
    assert lines(run_dir) == lines(undisturbed)
    assert weights(run_dir) == weights(undisturbed) != Counter()


@pytest.mark.slow
def test_two_nodes_that_are_preempted_go_on_exactly(
    slurm: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, options = tmp_path / "run", ("plan=ddp", "trainer.max_steps=30")
    job = launched(run_dir, *options, *TWO, slow(0.2))
    wait_for_lines(slurm, job, run_dir, 5)
    slurm.run("scontrol", "requeue", job)
    assert str(run_dir) in (shown := trireme_here(capsys, "jobs").stdout) and re.search(rf"{job} .*/30", shown), shown
    refused(trireme_here(capsys, "launch", *arguments(run_dir, *options, *TWO)), f"belongs to job {job}, which is")
    refused(trireme_here(capsys, "train", *arguments(run_dir, *options)), f"belongs to job {job}, which is")
    assert slurm.wait(job)["JobState"] == "COMPLETED", log_of(run_dir)
    assert slurm.show(job)["Restarts"] == "1"
    said = log_of(run_dir)
    assert len(re.findall(r"left at step \d+ of 30 \(SIG(TERM|USR1)\): saved", said)) == 1, said
    assert "resuming from" in said and "Traceback" not in said
    run_ranks(_train, 2, tmp_path / "undisturbed", *options)
    assert_same_run(run_dir, tmp_path / "undisturbed")
    assert trireme_here(capsys, "logs", str(run_dir), "-n", "1").stdout == said.splitlines(keepends=True)[-1]


@pytest.mark.long
@pytest.mark.parametrize("tasks", ["node", "rank"])
def test_a_job_makes_way_for_an_urgent_one(tasks: str, slurm: Cluster, tmp_path: Path) -> None:
    """SLURM's scheduler preempts it: it saves within the grace time, waits its turn, and goes on."""
    run_dir, options = tmp_path / "run", ("plan=ddp", "trainer.max_steps=40")
    job = launched(run_dir, *options, *TWO, f"launch.tasks={tasks}", slow(0.3))
    wait_for_lines(slurm, job, run_dir, 4)
    urgent = slurm.run(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"
    )
    assert slurm.wait(urgent)["JobState"] == "COMPLETED"
    assert slurm.wait(job)["JobState"] == "COMPLETED", log_of(run_dir)
    assert slurm.show(job)["Restarts"] == "1"
    said = log_of(run_dir)
    assert len(re.findall(r"left at step \d+ of 40 \(SIG(TERM|USR1)\): saved", said)) == 1 and "resuming from" in said
    run_ranks(_train, 2, tmp_path / "undisturbed", *options)
    assert_same_run(run_dir, tmp_path / "undisturbed")


@pytest.mark.long
@NEEDS_COMPILER
@pytest.mark.parametrize("tasks", ["node", "rank"])
def test_zero_2_into_its_time_limit(tasks: str, slurm: Cluster, tmp_path: Path) -> None:
    """The job needs more than the three minutes that it asks for. SLURM looks every 30 s for jobs near their limit."""
    load_deepspeed()  # compiled here, not while the job's time runs
    run_dir, options = tmp_path / "run", ("plan=zero2", "trainer.max_steps=400")
    limits = ("launch.time=00:03:00", "launch.signal_seconds=20", f"launch.tasks={tasks}")
    job = launched(run_dir, *options, *TWO, *limits, slow(0.5))
    done = slurm.wait(job, timeout=800)
    assert done["JobState"] == "COMPLETED", log_of(run_dir)
    assert int(done["Restarts"]) >= 1
    said = log_of(run_dir)
    assert re.search(r"left at step \d+ of 400 \(SIGUSR1\): saved", said), said
    assert f"job {job} is queued again" in said
    run_ranks(_train, 2, tmp_path / "undisturbed", *options, timeout=240)
    assert_same_run(run_dir, tmp_path / "undisturbed")


@pytest.mark.long
def test_cancelled_jobs_have_saved(slurm: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cancelled jobs do not queue themselves again, a waiting job ends at once, and the same command resumes the run.

    Commands run in this process: the imports of a new one would take longer than the job's few steps.
    """
    run_dir, options = tmp_path / "run", ("plan=ddp", "trainer.max_steps=40", "launch.tasks=rank", *TWO)
    waits = arguments(tmp_path / "waits", *options, "launch.sbatch={exclusive: true}")
    job = launched(run_dir, *options, slow(0.5))
    wait_for_lines(slurm, job, run_dir, 3)
    blocked = submitted(trireme_here(capsys, "launch", *waits))
    assert slurm.state(blocked) == "PENDING"
    assert f"cancelled {blocked}" in trireme_here(capsys, "cancel", blocked).stdout
    result = trireme_here(capsys, "cancel", str(run_dir))
    assert result.returncode == 0 and "ended" in result.stdout, result.stderr
    assert slurm.wait(job)["ExitCode"] == "75:0"
    assert re.search(r"left at step \d+ of 40 \(SIGINT\): saved", log_of(run_dir))
    refused(trireme_here(capsys, "cancel", str(run_dir)), "is over")
    again = launched(run_dir, *options)
    assert slurm.wait(again)["JobState"] == "COMPLETED"
    run_ranks(_train, 2, tmp_path / "undisturbed", "plan=ddp", "trainer.max_steps=40")
    assert_same_run(run_dir, tmp_path / "undisturbed")


@pytest.mark.long
@pytest.mark.parametrize("name", ["ranks.sbatch", "torchrun.sbatch"])
def test_the_scripts_of_the_document(name: str, slurm: Cluster, tmp_path: Path) -> None:
    """Each script is run as docs/slurm.md has it. The test sends SLURM's warning before the time limit itself."""
    blocks = re.findall(r"```bash\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    script = tmp_path / name
    script.write_text(next(block for block in blocks if f"# {name}\n" in block))
    options, run_dir = ("plan=ddp", "trainer.max_steps=40"), tmp_path / "run"
    given = [str(script), *arguments(run_dir, *options, slow(0.3))]
    output = f"--output={tmp_path}/out.log"
    job = subprocess.run(
        ["sbatch", "--parsable", output, *given], capture_output=True, text=True, check=True
    ).stdout.strip()
    wait_for_lines(slurm, job, run_dir, 4)
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    done = slurm.wait(job)
    said = (tmp_path / "out.log").read_text()
    assert done["JobState"] == "COMPLETED", said
    assert done["Restarts"] == "1"
    assert re.search(r"left at step \d+ of 40 \(SIGUSR1\): saved", said), said
    run_ranks(_train, 2, tmp_path / "undisturbed", *options)
    assert_same_run(run_dir, tmp_path / "undisturbed")


@pytest.mark.long
def test_a_sweep_is_an_array(slurm: Cluster, tmp_path: Path) -> None:
    run_dir = tmp_path / "sweep"
    own = f"launch.node_storage={tmp_path}/storage/$SLURM_JOB_ID"
    more = ("launch.setup=[echo set up on $SLURMD_NODENAME]", "launch.env={CACHED: 1}", "launch.wrap=[nice]", own)
    result = trireme("launch", *arguments(run_dir, "launch=slurm", *more, "optimizer.lr=1e-3,2e-3", "-m"))
    job = re.match(r"submitted job (\d+) with 2 tasks", result.stdout)
    assert job, result.stdout + result.stderr
    for task in range(2):
        assert slurm.wait(f"{job[1]}_{task}")["JobState"] == "COMPLETED"
    for rate in ("0.001", "0.002"):
        own = run_dir / f"optimizer.lr={rate}"
        run_ranks(_train, 1, tmp_path / rate, f"optimizer.lr={rate}")
        assert_same_run(own, tmp_path / rate)
        said = trireme("logs", str(own)).stdout
        assert "10 steps of 8 samples" in said and re.search("^set up on n[12]$", said, re.MULTILINE), said
    assert trireme("jobs").stdout.count("10/10") >= 2
    assert len(list((tmp_path / "storage").iterdir())) == 2, "one for each task"
    assert weights(tmp_path / "0.001") != weights(tmp_path / "0.002")


FAULT = '''
from trireme.trainer.callbacks.callback import Callback

class Fault(Callback):
    """One rank fails before its third step."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_step_begin(self, trainer, state, control):
        if trainer.mesh.rank == self.rank and state.step == 2:
            raise RuntimeError("boom of one rank")
'''


@pytest.mark.long
@pytest.mark.parametrize("tasks", ["node", "rank"])
def test_the_rank_that_failed_first_has_the_last_word(
    tasks: str, slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faults.py").write_text(FAULT)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ['PYTHONPATH']}")
    run_dir, fault = tmp_path / "run", "+callbacks.fault={_target_: faults.Fault, rank: 3}"
    shape = (*TWO, "launch.gpus_per_node=2", f"launch.tasks={tasks}", "launch.cpus_per_rank=2")
    job = launched(run_dir, "plan=ddp", "trainer.micro_batch_size=1", *shape, fault)
    done = slurm.wait(job)
    assert (done["JobState"], done["ExitCode"], done["Restarts"]) == ("FAILED", "1:0", "0")
    *_, why, fix, rank = log_of(run_dir).rstrip().splitlines()
    assert "boom of one rank" in why and "fix: " in fix and "rank 3 of 4" in rank, log_of(run_dir)
    assert "boom of one rank" in trireme("logs", str(run_dir), "--rank", "3").stdout


@pytest.mark.long
def test_a_killed_rank_is_started_again_within_the_job(slurm: Cluster, tmp_path: Path) -> None:
    run_dir, options = tmp_path / "run", ("plan=ddp", "trainer.max_steps=20")
    kill = "+callbacks.kill={_target_: helpers.callbacks.KillRank, rank: 1, steps: [12]}"
    job = launched(run_dir, *options, *TWO, kill, "--max-restarts", "1")
    done = slurm.wait(job)
    assert (done["JobState"], done["Restarts"]) == ("COMPLETED", "0"), log_of(run_dir)
    assert "rank 1 was ended by SIGKILL" in log_of(run_dir)
    run_ranks(_train, 2, tmp_path / "undisturbed", *options)
    assert_same_run(run_dir, tmp_path / "undisturbed")


@pytest.mark.long
def test_what_the_cluster_refuses_is_one_message(
    slurm: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = (capsys, "launch", *arguments(tmp_path / "run", "plan=ddp", *TWO))
    nowhere = trireme_here(*launch, "launch.partition=nowhere")
    refused(nowhere, "launch.partition", "refused by sbatch", "partition")
    too_long = trireme_here(*launch, "launch.partition=short", "launch.time=01:00:00")
    refused(too_long, "launch.time", "refused by sbatch")
    refused(trireme_here(*launch, "launch.gpus_per_node=9", "trainer.global_batch_size=36"), "refused by sbatch")
    refused(trireme_here(*launch, "launch.sbatch={nonsense: 1}"), "launch.sbatch", "nonsense")
    refused(trireme_here(capsys, "cancel", "999999"), "is over, or does not exist")
    refused(trireme_here(capsys, "cancel", str(tmp_path / "none")), "neither a run folder nor")
    refused(trireme_here(capsys, "logs", str(tmp_path / "none")), "there is no such folder")


@pytest.mark.long
def test_logs_can_be_followed_to_the_end(slurm: Cluster, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = launched(run_dir, "plan=ddp", *TWO, slow(0.1))
    following = run_to_end(command("logs", str(run_dir), "-f"), run_dir)
    assert following.returncode == 0, following.stderr
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    output = following.stdout
    assert output == log_of(run_dir) and "resuming" not in output and "10 steps of 8 samples" in output
