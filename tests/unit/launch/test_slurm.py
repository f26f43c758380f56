"""Tests of SLURM jobs that need no SLURM: the ``launch`` section of a recipe, ranks per node, the batch script, and how
a process in the job finds its rank and the storage of its node from environment variables.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from helpers.command import ROOTS, refused, trireme_here
from helpers.recipes import TINY
from trireme.configs.validate import read
from trireme.launch.launch_config import LaunchConfig, Shape
from trireme.launch.slurm.job_script import Run, Script
from trireme.launch.slurm.job_task import CACHES, first_host, take_rank, tasks_per_node, use_node_storage
from trireme.parallel.plan import Plan

DDP = Plan(name="ddp", replicate="auto")
THREE = Plan(name="tp_pp", pipeline=2, tensor=2)
FIXED = Plan(name="tp", tensor=4)


@dataclass
class _Root:
    launch: LaunchConfig


@pytest.mark.parametrize(
    ("plan", "given", "shape"),
    [
        (DDP, {}, Shape(1, 1)),
        (DDP, {"nodes": 2}, Shape(2, 1)),
        (DDP, {"nodes": 2, "gpus_per_node": 8}, Shape(2, 8)),
        (DDP, {"nodes": 2, "gpus_per_node": 8, "ranks_per_node": 4}, Shape(2, 4)),
        (THREE, {"nodes": 2}, Shape(2, 2)),
        (THREE, {"gpus_per_node": 2}, Shape(2, 2)),
        (FIXED, {"gpus_per_node": 2}, Shape(2, 2)),
        (FIXED, {"nodes": 4}, Shape(4, 1)),
        (FIXED, {}, Shape(1, 4)),
    ],
)
def test_ranks_follow_from_the_plan(plan: Plan, given: dict, shape: Shape) -> None:
    assert LaunchConfig(kind="slurm", **given).shape(plan) == shape


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"nods": 2}, "launch.nodes"),
        ({"nodes": 0}, "must be at least 1"),
        ({"time": "soon"}, "write HH:MM:SS"),
        ({"memory": "much"}, "write 64G"),
        ({"gpu_type": "a100"}, "set gpus_per_node"),
        ({"cpus_per_task": 4}, "launch.cpus_per_rank"),
        ({"sbatch": {"partition": "x"}}, "write launch.partition"),
        ({"sbatch": {"p": "x"}}, "not a long option"),
        ({"env": {"A B": 1}}, "not the name of a variable"),
        ({"job_name": "a\nb"}, "line break"),
        ({"tasks": "nodes"}, "did you mean node?"),
        ({"mail_user": "me"}, "mail_type"),
        ({"container_mounts": ["/a:/b"]}, "needs a container"),
        ({"kind": "local", "nodes": 2}, "write launch=slurm"),
        ({"signal_seconds": 70000}, "at most 65535"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given: dict, words: str) -> None:
    part, problems = read({"launch": {"kind": "slurm", **given}}, _Root)
    assert part is None
    assert words in "\n".join(map(str, problems))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., CompletedProcess[str]]:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return partial(trireme_here, capsys)


def test_all_problems_come_together(run: Callable[..., CompletedProcess[str]]) -> None:
    given = ("launch", str(TINY), ROOTS, "launch=slurm", "launch.nodes=3")
    result = run(*given, "plan=ddp", "launch.tim=1", "launch.memory=big", "optimizer.lrr=1", "--nproc", "2")
    refused(result, "launch.tim", "did you mean launch.time?", "launch.memory", "optimizer.lr", "--nproc")
    refused(run(*given, "plan=tp", "plan.tensor=4"), "got 3 processes", "launch.ranks_per_node")
    refused(
        run(*given, "plan=ddp", "trainer.global_batch_size=6", "launch.tasks=rank", "--max-restarts", "1"), "tasks=node"
    )
    refused(run(*given, "plan=ddp", "seed=1,2"), "seed")
    refused(run("launch", str(TINY), ROOTS, "launch=slrum"), "did you mean launch=slurm?")


def test_check_counts_the_ranks_of_the_job(run: Callable[..., CompletedProcess[str]]) -> None:
    given = ("check", str(TINY), ROOTS, "launch=slurm", "launch.nodes=2", "launch.gpus_per_node=2")
    assert "plan   ddp, 4 processes" in run(*given, "plan=ddp", "trainer.micro_batch_size=1").stdout
    assert "plan   auto, 4 processes" in run(*given, "plan=auto", "trainer.micro_batch_size=1").stdout
    refused(run(*given, "plan=ddp", "trainer.global_batch_size=6"), "trainer.global_batch_size")
    refused(run(*given, "plan=tp", "plan.tensor=3", "--nproc", "3"), "launch.nodes", "--nproc")


def test_without_slurm_the_script_is_printed_and_nothing_is_written(
    run: Callable[..., CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["launch", str(TINY), ROOTS, f"run.dir={tmp_path}/run", "plan=ddp", "launch=slurm", "launch.nodes=2",
             "launch.gpus_per_node=8", "launch.time=1-00:00:00", "trainer.global_batch_size=32"]  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path))
    shown = run(*given, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    for line in ("--nodes=2", "--gpus-per-node=8", "--time=1-00:00:00", "--signal=B:USR1@120", "--requeue"):
        assert f"#SBATCH {line}\n" in shown.stdout
    array = run(*given, "--dry-run", "-m", "seed=1,2,3", "launch.at_once=2")
    assert "#SBATCH --array=0-2%2\n" in array.stdout and "seed=2" in array.stdout
    assert "plan=auto" in run(*given, "plan=auto", "--dry-run").stdout, "chosen where it trains"
    refused(run(*given), "SLURM", "is not installed here", "sbatch", "--dry-run")
    refused(run("jobs"), "SLURM", "is not installed here", "squeue", "trireme logs RUN")
    refused(run(*given, "-m", "launch.nodes=1,2", "--dry-run"), "differs between jobs of the sweep")
    assert not list(tmp_path.iterdir())


def test_local_is_train(run: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    given = ("launch", str(TINY), ROOTS, f"run.dir={tmp_path}/run", "trainer.max_steps=1")
    assert "plan   single, 1 process" in run(*given, "--dry-run").stdout
    assert not list(tmp_path.iterdir())
    assert run(*given).returncode == 0
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_script_is_shell_and_keeps_every_character(tmp_path: Path) -> None:
    """Paths and values with spaces, quotes, dollars and percent signs reach the tasks as they are."""
    odd = tmp_path / 'it\'s 100% "odd" $HOME'
    odd.mkdir()
    show = "import os, sys; print(repr(sys.argv[1:]), os.environ['ODD'], os.environ['TRIREME_LOGS'])"
    launch = LaunchConfig(kind="slurm", env={"ODD": "$X 'y'"}, setup=["cd /"], wrap=["env"], modules=["cuda/12"])
    run = Run(odd, [f"run.dir='{odd}'", "a=[b,c]", "*"])
    script = Script(launch, Shape(1, 1), "job", odd, tmp_path, [run])
    text = script.text()
    assert script.log_of("7") == f"{odd}/logs/slurm_7.log"
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    assert f'#SBATCH --output="{tmp_path}/it\'s 100%% \\"odd\\" $HOME/logs/slurm_%j.log"\n' in text
    # The same shell code with a program of ours in place of srun's tasks.
    command = text[text.index("srun ") : text.index('"${arguments[@]}"')]
    stand_in = f"module() {{ :; }}; scontrol() {{ :; }}\n{text.replace(command, f'python3 -c {shlex.quote(show)} ')}"
    done = subprocess.run(
        ["bash"], input=stand_in, text=True, capture_output=True, env={**os.environ, "SLURM_JOB_ID": "7"}
    )
    assert done.stdout.strip() == f"{run.arguments!r} $X 'y' {odd}/logs/slurm_7.0", done.stderr


def test_containers_see_the_folders_of_the_run(tmp_path: Path) -> None:
    def script(**given) -> str:
        launch = LaunchConfig(kind="slurm", gpus_per_node=2, container="image.sqsh", **given)
        return Script(launch, Shape(1, 2), "job", Path("/runs/a"), tmp_path, [Run(Path("/runs/a"), [])]).text()

    pyxis = script(container_mounts=["/data:/data"])
    assert f"--container-mounts={tmp_path}:{tmp_path},/runs/a:/runs/a,/data:/data" in pyxis
    assert "    python -m trireme.launch.slurm.job_node" in pyxis
    apptainer = script(container_engine="apptainer")
    assert f"apptainer exec --nv --bind {tmp_path} --bind /runs/a --pwd {tmp_path} image.sqsh python -m" in apptainer


def test_containers_see_what_links_lead_to_and_where_recipes_lie(tmp_path: Path) -> None:
    work, scratch, recipes = tmp_path / "work", tmp_path / "scratch", tmp_path / "recipes"
    for folder in (work, scratch / "a", recipes):
        folder.mkdir(parents=True)
    (work / "runs").symlink_to(scratch)
    launch = LaunchConfig(kind="slurm", container="image.sqsh")
    runs = [Run(work / "runs" / "a", []), Run(work / ".." / "outside" / "b=1,c=2", [])]
    script = Script(launch, Shape(1, 2), "job", work / ".." / "outside", work, runs, [recipes])
    folders = [work, tmp_path / "outside", recipes, scratch / "a"]
    assert f"--container-mounts={','.join(f'{folder}:{folder}' for folder in folders)} " in script.text()
    assert not script.unmountable()
    alone = Script(launch, Shape(1, 2), "job", runs[1].dir, work, runs[1:])
    assert alone.unmountable() == [tmp_path / "outside" / "b=1,c=2"]


def test_settings_of_setup_do_not_change_the_script(tmp_path: Path) -> None:
    """``set -e`` would end the script at the first signal, and ``cd`` would change the folder of its tasks."""
    launch = LaunchConfig(kind="slurm", setup=["set -eu", "cd /"])
    text = Script(launch, Shape(1, 1), "job", tmp_path, tmp_path, [Run(tmp_path, [])]).text()
    start, end = text.index("srun "), text.index('"${arguments[@]}"')
    tasks = text.replace(text[start:end], 'sh -c "pwd; exit 75" ')
    program = 'scontrol() { echo "$1" >&2; }\n' + tasks
    environment = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
    done = subprocess.run(["bash"], input=program, text=True, capture_output=True, env=environment)
    assert done.returncode == 75 and done.stdout.splitlines()[0] == str(tmp_path), done.stderr
    assert "requeue" in done.stderr.splitlines()


def test_a_rank_finds_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "gone")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    told = {"STEP_NUM_TASKS": "5", "PROCID": "3", "LOCALID": "1", "NODEID": "1", "STEP_TASKS_PER_NODE": "2(x2),1",
            "STEP_NODELIST": "gpu[07-09]", "JOB_ID": "20001", "STEP_ID": "2"}  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    take_rank()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [os.environ[name] for name in names] == ["3", "5", "1", "2", "gpu07", "14003"]
    monkeypatch.setenv("RANK", "9")  # set by a launcher, whose value counts
    take_rank()
    assert os.environ["RANK"] == "9"


def test_one_task_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    take_rank()
    assert "RANK" not in os.environ


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("rack[2-3]n[07-09,12]-ib,login", "rack2n07-ib"),
        ("a,b[1-2]", "a"),
        ("", "localhost"),
    ],
)
def test_the_first_of_hosts(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_tasks_of_nodes() -> None:
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_node("16") == [16]


def test_node_storage_holds_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in CACHES:
        monkeypatch.setenv(name, "gone")
        monkeypatch.delenv(name)
    monkeypatch.setenv("SCRATCH_OF_JOB", str(tmp_path))
    monkeypatch.setenv("TRIREME_NODE_STORAGE", "$SCRATCH_OF_JOB/mine")
    monkeypatch.setenv("HF_DATASETS_CACHE", "/own")
    use_node_storage()
    assert os.environ["TRIREME_NODE_STORAGE"] == f"{tmp_path}/mine"
    assert os.environ["TRIREME_CACHE"] == f"{tmp_path}/mine/trireme"
    assert os.environ["HF_DATASETS_CACHE"] == "/own"
