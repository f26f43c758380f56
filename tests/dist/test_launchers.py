"""The same recipe prints the same training lines under several launchers, including SLURM and a notebook; errors are
said once, and settings of accelerate become the plan.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from helpers.command import ROOTS, command, refused, tiny_command, trireme, trireme_here
from helpers.metrics import lines, training, worst_difference
from helpers.ranks import free_port
from helpers.recipes import FEW_FILES, TINY, tiny_recipe
from helpers.running import run_to_end
from helpers.slurm import Cluster, missing
from nbclient import NotebookClient
from trireme.trainer.build import train

STEPS = ("trainer.max_steps=4", "trainer.eval_every=2")
TORCHRUN = "torch.distributed.run --nproc-per-node 2"
LAUNCHERS = {
    "torchrun": f"{TORCHRUN} --standalone -m",
    "torchrun_static": f"{TORCHRUN} --nnodes 1 --node-rank 0 --master-addr 127.0.0.1 --master-port PORT -m",
    "deepspeed": "deepspeed.launcher.runner --num_accelerators 2 --master_port PORT --module",
    "deepspeed_include": "deepspeed.launcher.runner --hostfile HOSTFILE --include localhost:0,1 --no_ssh_check "
    "--master_addr 127.0.0.1 --master_port PORT --module",
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no --main_process_port PORT -m",
}
LONG = ("torchrun_static", "deepspeed", "deepspeed_include", "accelerate")


def launch(launcher: str, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    (folder / "hostfile").write_text("localhost slots=4\n")
    flags = LAUNCHERS[launcher].replace("PORT", str(free_port())).replace("HOSTFILE", str(folder / "hostfile"))
    own = tiny_command(folder / launcher, *STEPS, *overrides)[len(command("train")) :]
    arguments = [sys.executable, "-m", *flags.split(), "trireme.launch.train", *own]
    return run_to_end(arguments, folder / launcher, {"DS_ACCELERATOR": "cpu"})


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in this process."""
    folder = tmp_path_factory.mktemp("alone")
    train(tiny_recipe(folder, *STEPS))
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two ranks that trireme's own launcher starts."""
    folder = tmp_path_factory.mktemp("own")
    result = trireme("train", str(TINY), ROOTS, *STEPS, f"run.dir={folder}", "plan=ddp", "--nproc", "2")
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in LAUNCHERS]
)
def test_the_lines_are_the_same(launcher: str, tmp_path: Path, own: Path, alone: Path) -> None:
    result = launch(launcher, tmp_path, "plan=ddp")
    assert result.returncode == 0, result.stdout + result.stderr
    assert lines(tmp_path / launcher) == lines(own)
    assert "on 2 rank(s)" in (tmp_path / launcher / "log.txt").read_text()
    assert worst_difference(training(alone), training(tmp_path / launcher)) < 1e-5


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(missing()), reason=f"needs SLURM: {missing()}")
@pytest.mark.parametrize("tasks", ["node", "rank"])
def test_the_lines_of_a_job_are_the_same(
    tasks: str, slurm: Cluster, tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    job = ("launch=slurm", "launch.nodes=2", f"launch.tasks={tasks}", "launch.cpus_per_rank=1")
    result = trireme("launch", str(TINY), ROOTS, *STEPS, f"run.dir={tmp_path}", "plan=ddp", *job)
    submitted = re.match(r"submitted job (\d+)", result.stdout)
    assert submitted, result.stderr
    assert slurm.wait(submitted[1])["JobState"] == "COMPLETED"
    assert lines(tmp_path) == lines(own)


@pytest.mark.long
def test_the_lines_of_a_notebook_are_the_same(tmp_path: Path, own: Path) -> None:
    overrides = {
        "data.source.roots": [str(root) for root in FEW_FILES],
        "trainer.max_steps": 4, "trainer.eval_every": 2, "run.dir": str(tmp_path / "run"), "plan": "ddp",
    }  # fmt: skip
    cell = nbformat.v4.new_code_cell(f"import trireme\ntrireme.train({str(TINY)!r}, {overrides!r}, nproc=2).step")
    NotebookClient(nbformat.v4.new_notebook(cells=[cell]), timeout=200).execute()
    assert lines(tmp_path / "run") == lines(own)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["deepspeed_include", "accelerate"])
def test_a_user_error_is_said_once(launcher: str, tmp_path: Path) -> None:
    result = launch(launcher, tmp_path, "plan=ddp", "trainer.max_stepz=3")
    said = result.stdout + result.stderr
    assert result.returncode != 0 and said.count("did you mean trainer.max_steps?") == 1, said


@pytest.mark.long
def test_deepspeed_with_a_hostfile_that_is_missing(tmp_path: Path) -> None:
    own = tiny_command(tmp_path / "run", *STEPS, "plan=ddp")[len(command("train")) :]
    flags = ["--hostfile", "nowhere", "--num_accelerators", "2", "--module", "trireme.launch.train"]
    arguments = [sys.executable, "-m", "deepspeed.launcher.runner", *flags, *own]
    result = run_to_end(arguments, tmp_path / "run", {"DS_ACCELERATOR": "cpu"})
    said = result.stdout + result.stderr
    assert result.returncode != 0 and said.count("there is no such file; DeepSpeed would train on this host alone") == 1
    assert "nowhere" in said and not (tmp_path / "run" / "metrics.jsonl").exists()


FSDP = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config: {fsdp_version: 2, fsdp_reshard_after_forward: false, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP}
mixed_precision: 'no'
num_machines: 1
num_processes: 2
use_cpu: false
"""


@pytest.mark.slow
def test_a_configuration_of_accelerate_is_the_plan(
    tmp_path: Path, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(FSDP)
    config = ("--accelerate-config", str(file))
    result = trireme("train", str(TINY), ROOTS, *STEPS, f"run.dir={tmp_path / 'run'}", *config)
    assert result.returncode == 0, result.stderr
    assert "name: fsdp_shard_grad_op" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert "on 2 rank(s)" in (tmp_path / "run" / "log.txt").read_text()
    assert worst_difference(training(alone), training(tmp_path / "run")) < 1e-5
    check = (capsys, "check", str(TINY), ROOTS, *config)
    refused(trireme_here(*check, "plan=ddp"), "plan", "fsdp_shard_grad_op", "remove one")
    refused(trireme_here(*check, "--nproc", "4"), "--nproc", "num_processes: 2")
    file.write_text(FSDP.replace("FSDP\n", "DEEPSPEED\n").replace("fsdp_config", "deepspeed_config").replace(
        "{fsdp_version: 2, fsdp_reshard_after_forward: false, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP}",
        "{zero_stage: 1, gradient_accumulation_steps: 7, gradient_clipping: 0.25}",
    ))  # fmt: skip
    refused(trireme_here(*check), "gradient_accumulation_steps: 7")


@pytest.mark.long
def test_the_launcher_of_accelerate_hands_its_configuration_on(tmp_path: Path, alone: Path) -> None:
    (tmp_path / "accelerate.yaml").write_text(FSDP)
    own = tiny_command(tmp_path / "run", *STEPS)[len(command("train")) :]
    flags = ["--config_file", str(tmp_path / "accelerate.yaml"), "--main_process_port", "0"]
    arguments = [sys.executable, "-m", "accelerate.commands.launch", *flags, "-m", "trireme.launch.train", *own]
    result = run_to_end(arguments, tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "name: fsdp_shard_grad_op" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert worst_difference(training(alone), training(tmp_path / "run")) < 1e-5


@pytest.mark.parametrize("option", [[], ["--fresh"]], ids=["", "fresh"])
def test_what_comes_before_ranks_imports_no_torch(option: list[str], tmp_path: Path) -> None:
    """Importing torch takes seconds, in which no rank starts."""
    code = """
import sys
from trireme.launch import train
from trireme.launch.cli import main
train.start_ranks = lambda *given, **options: sys.exit(3 if {"torch", "transformers"} & set(sys.modules) else 4)
main(sys.argv[1:])
"""
    recipe = [str(TINY), f"run.dir={tmp_path / 'run'}", "plan=ddp", "--nproc", "2", *option]
    assert subprocess.run([sys.executable, "-c", code, "train", *recipe], cwd=tmp_path).returncode == 4
