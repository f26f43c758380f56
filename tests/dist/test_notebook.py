"""``trireme.train`` trains from a notebook cell on one or several processes, returns metrics, plot and model, and can
be stopped and continued.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import trireme
from helpers.metrics import lines, training, worst_difference
from helpers.recipes import FEW_FILES, TINY
from helpers.running import run_to_end, running, until
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel
from trireme.launch import notebook
from trireme.launch.compose import compose
from trireme.launch.notebook import _text
from trireme.trainer import build
from trireme.trainer.build import train
from trireme.trainer.interruption import STARTED
from trireme.trainer.loop import TrainResult

TESTS = Path(__file__).parents[1]
SCRIPT = f"""
import json, sys
import trireme
from trireme.trainer.callbacks.callback import Callback

class Seen(Callback):
    '''Defined in a cell: forked ranks know it too.'''
    def on_step_end(self, trainer, state, control):
        if {{fault}} and state.step == 3 and trainer.mesh.rank == 1:
            raise RuntimeError("boom of one rank")

run = trireme.train(
    {str(TINY)!r},
    {{overrides}},
    nproc={{nproc}},
)
print(json.dumps({{{{
    "step": run.step,
    "columns": sorted(run.metrics.columns),
    "axes": len(run.plot().axes),
    "text": run.tokenizer.decode(run.model.generate(**run.tokenizer("def", return_tensors="pt"), max_new_tokens=2)[0]),
    "vocabulary": run.model.config.vocab_size,
}}}}))
"""


def tiny_overrides(run_dir: Path, plan: str, steps: int) -> dict[str, Any]:
    roots = [str(root) for root in FEW_FILES]
    return {"run.dir": str(run_dir), "data.source.roots": roots, "plan": plan, "trainer.max_steps": steps}


def cell(run_dir: Path, plan: str, nproc: int, fault: bool = False, steps: int = 4) -> subprocess.CompletedProcess[str]:
    """Run the cell as a fresh notebook kernel would."""
    overrides = {**tiny_overrides(run_dir, plan, steps), "+callbacks.seen": {"_target_": "__main__.Seen"}}
    text = textwrap.dedent(SCRIPT).format(overrides=repr(overrides), nproc=nproc, fault=fault)
    return run_to_end([sys.executable, "-c", text], run_dir)


@contextmanager
def kernel() -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    manager, client = start_new_kernel()
    try:
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def outputs(client: BlockingKernelClient, message: str) -> str:
    """Everything that the cell prints until it ends."""
    said = []
    while True:
        answer = client.get_iopub_msg(timeout=200)
        kind, content = answer["msg_type"], answer["content"]
        if answer["parent_header"].get("msg_id") != message:
            continue
        if kind == "status" and content["execution_state"] == "idle":
            return "".join(said)
        said.append(content.get("text") or content.get("data", {}).get("text/plain") or content.get("evalue", ""))


def wait_for_lines(run_dir: Path, count: int) -> None:
    metrics = run_dir / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= count)


@pytest.mark.slow
def test_a_cell_trains_on_one_process_or_several(tmp_path: Path) -> None:
    one, two = cell(tmp_path / "one", "single", 1), cell(tmp_path / "two", "ddp", 2)
    for result in (one, two):
        assert result.returncode == 0, result.stderr
        shown = result.stdout.splitlines()[-1]
        assert '"step": 4' in shown and '"loss"' in shown and '"axes": 4' in shown and '"vocabulary": 512' in shown
    assert worst_difference(training(tmp_path / "one"), training(tmp_path / "two")) < 1e-5


@pytest.mark.slow
def test_deepspeed_runs_on_one_process(tmp_path: Path) -> None:
    result = cell(tmp_path / "zero", "zero2", 1)
    assert result.returncode == 0, result.stderr
    assert [line["step"] for line in training(tmp_path / "zero")] == [1, 2, 3, 4]


def test_a_failing_rank_is_raised_once(tmp_path: Path) -> None:
    result = cell(tmp_path / "run", "ddp", 2, fault=True)
    assert result.returncode == 1
    assert result.stderr.count("RuntimeError: boom of one rank") == 1
    assert "RanksFailed" in result.stderr and "rank 1 of 2" in result.stderr


@pytest.mark.parametrize("plan", ["single", pytest.param("zero1", marks=pytest.mark.long)])
def test_where_there_are_gpus_one_process_is_forked_too(
    plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has used a GPU could not fork ranks for a later cell. The GPU is only pretended here."""
    monkeypatch.setattr(notebook, "_gpu_to_leave_alone", lambda: True)

    def noted(recipe: Any, **options: Any) -> TrainResult:
        (tmp_path / "trained_in").write_text(str(os.getpid()))
        return train(recipe, **options)

    monkeypatch.setattr(build, "train", noted)
    assert trireme.train(str(TINY), tiny_overrides(tmp_path / "run", plan, 2)).step == 2
    assert int((tmp_path / "trained_in").read_text()) != os.getpid()


def test_the_time_limit_counts_from_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit does not count from the start of the notebook, which may have been days ago."""
    monkeypatch.delenv(STARTED, raising=False)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: time.time() - 7200)
    overrides = {**tiny_overrides(tmp_path, "single", 3), "trainer.max_time": "00:10:00"}
    assert trireme.train(str(TINY), overrides).step == 3
    assert STARTED not in os.environ


@pytest.mark.long
@pytest.mark.parametrize("nproc", [1, 2])
def test_the_stop_button_saves_and_the_same_cell_goes_on(nproc: int, tmp_path: Path) -> None:
    """In a kernel: SIGINT to its process group, as Jupyter sends it."""
    run_dir, overrides = tmp_path / "run", tiny_overrides(tmp_path / "run", "ddp" if nproc > 1 else "single", 60)
    slow = {**overrides, "+callbacks.slow": {"_target_": "helpers.callbacks.SlowAtFirst", "seconds": 0.3}}
    text = f"import trireme; run = trireme.train({str(TINY)!r}, {slow!r}, nproc={nproc}); print('stands at', run.step)"
    with kernel() as (manager, client):
        client.execute(f"import sys; sys.path.insert(0, {str(TESTS)!r})")
        first = client.execute(text)
        wait_for_lines(run_dir, 3)
        manager.interrupt_kernel()
        said = outputs(client, first)
        stopped = int(said.rsplit("stands at ", 1)[1])
        assert 3 <= stopped < 60 and f"left at step {stopped} of 60 (SIGINT): saved" in said, said
        assert (run_dir / "checkpoints" / f"step_{stopped:08d}").exists()
        assert "default_int_handler" in outputs(client, client.execute("import signal; signal.getsignal(2)"))
        assert "stands at 60" in outputs(client, client.execute(text))
    undisturbed = cell(tmp_path / "undisturbed", "ddp" if nproc > 1 else "single", nproc, steps=60)
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert lines(run_dir) == lines(tmp_path / "undisturbed")


@pytest.mark.long
def test_stopping_twice_ends_at_once(tmp_path: Path) -> None:
    """A script: SIGINT to its process alone, while a step takes long."""
    overrides = tiny_overrides(tmp_path / "run", "ddp", 60)
    endless = {**overrides, "+callbacks.slow": {"_target_": "helpers.callbacks.Slow", "seconds": 100}}
    text = f"import trireme; trireme.train({str(TINY)!r}, {endless!r}, nproc=2)"
    text = f"import sys; sys.path.insert(0, {str(TESTS)!r}); {text}"
    with running([sys.executable, "-c", text], tmp_path / "run") as run:
        log = tmp_path / "run" / "log.txt"
        until(lambda: log.exists() and "on 2 rank(s)" in log.read_text())
        time.sleep(2)  # until the first step has begun
        ranks = psutil.Process(run.process.pid).children(recursive=True)
        assert len(ranks) >= 2
        run.seen.update(ranks)  # forked ranks, whose environment does not show that they are ranks
        run.send(signal.SIGINT)
        time.sleep(3)
        assert run.process.poll() is None, "waits for the step"
        run.send(signal.SIGINT)
        result = run.end(timeout=20)
    assert result.returncode != 0 and result.stderr.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 2.5e-4, "plain/path.jsonl", "two words", "it's", "a=b,[c]", [1, "x y"], {"a": [None, "b:c"]}],
)
def test_values_pass_through_hydra_unchanged(value: object, tmp_path: Path) -> None:
    recipe = tmp_path / "one.yaml"
    recipe.write_text("defaults: [/base, _self_]\n")
    assert compose(str(recipe), [f"+mine={_text(value)}"]).raw["mine"] == value
