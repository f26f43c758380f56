"""Tests of asynchronous checkpoints: each holds the state of its own step, only one is written at a time, and a full
disk, a failure or a kill costs no complete checkpoint.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from helpers.command import tiny_command
from helpers.disk import small_disk
from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from helpers.running import running
from helpers.zero import load_deepspeed
from safetensors.torch import load_file
from trireme.errors import ComponentFailed, UserError
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build, train
from trireme.trainer.callbacks.callback import Callback
from trireme.trainer.checkpoint.save.staging import Staging
from trireme.trainer.checkpoint.save.write_checkpoint import Writer
from trireme.trainer.loop import Trainer
from trireme.trainer.run_folder import open_run_folder

FEW = ["trainer.max_steps=6", "checkpoint.every=2", "checkpoint.keep_last=null", "trainer.eval_at_end=false"]


class Held(Writer):
    """A writer that waits for the file ``go``, so that a test decides which steps happen before it writes."""

    go: Path

    def write(self, contents):
        deadline = time.monotonic() + 60
        while not self.go.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        return super().write(contents)


class Watch(Callback):
    """Creates the file ``go`` at the end of a step, and notes when checkpoints were begun and complete."""

    def __init__(self, go: Path, after: int) -> None:
        self.go, self.after, self.seen = go, after, []

    def on_step_end(self, trainer, state, control) -> None:
        if state.step == self.after:
            self.go.touch()
        self.seen.append((state.step, trainer.store.in_flight, trainer.store.writing))

    def on_save(self, trainer, state, control, path: Path) -> None:
        assert (path / "manifest.json").exists()
        self.seen.append((path.name, state.step))

    def on_train_end(self, trainer, state, control) -> None:
        self.seen.append("end")


def _trainer(run_dir: Path, after: int, overrides: list[str]) -> tuple[Trainer, Watch]:
    """A trainer that writes its first checkpoint only after step ``after``."""
    recipe = tiny_recipe(run_dir, *FEW, *overrides)
    mesh = build_mesh(recipe.plan)
    if mesh.is_main:
        open_run_folder(run_dir, fresh=False)
    mesh.barrier()
    trainer = build(recipe, mesh)
    watch = trainer.callbacks["watch"] = Watch(run_dir / f"go.{mesh.rank}", after)
    trainer.store._writer.__class__, Held.go = Held, watch.go
    return trainer, watch


def _fit(run_dir: Path, after: int, *overrides: str) -> list:
    trainer, watch = _trainer(run_dir, after, list(overrides))
    trainer.fit()
    trainer.mesh.close()
    return watch.seen


def _plain(run_dir: Path, *overrides: str) -> None:
    train(tiny_recipe(run_dir, *FEW, *overrides))


def _start(plan: str, ranks: int, function, *args: object) -> list:
    if plan.startswith("zero"):
        load_deepspeed()
    return [function(*args)] if ranks == 1 else kept_ranks(function, ranks, *args)


def _tensors(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint on disk, by file and name."""
    files = sorted((run_dir / "checkpoints" / f"step_{step:08d}" / "tensors").glob("*.safetensors"))
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def _state(run_dir: Path, step: int) -> dict:
    return json.loads((run_dir / "checkpoints" / f"step_{step:08d}" / "state.json").read_text())


@pytest.mark.parametrize(
    ("plan", "ranks"),
    [
        ("single", 1),
        ("fsdp_full_shard", 2),
        pytest.param("ddp", 2, marks=pytest.mark.long),
        pytest.param("zero2", 2, marks=pytest.mark.long),
        pytest.param("tp", 2, marks=pytest.mark.long),
        pytest.param("pp_1f1b", 2, marks=pytest.mark.long),
    ],
)
def test_a_checkpoint_holds_the_weights_of_its_own_step(plan: str, ranks: int, tmp_path: Path) -> None:
    """Two steps change the weights before the first checkpoint is written; it holds the weights of its own step."""
    average = [] if plan.startswith("zero") else ["+ema.decay=0.9"]
    options = [f"plan={plan}", "model=gpt2_tiny", *average]
    _start(plan, ranks, _plain, tmp_path / "waited", *options, "checkpoint.asynchronous=false")
    seen = _start(plan, ranks, _fit, tmp_path / "going", 4, *options)
    assert all((4, True, True) in events for events in seen), seen
    for step in (2, 4, 6):
        waited, going = _tensors(tmp_path / "waited", step), _tensors(tmp_path / "going", step)
        assert waited.keys() == going.keys() and len(waited) > 10
        assert all(torch.equal(waited[name], going[name]) for name in waited)
        one, other = (_state(tmp_path / run, step) for run in ("waited", "going"))
        assert one["trainer"] == other["trainer"] and one["scalars"] == other["scalars"]
    assert lines(tmp_path / "waited") == lines(tmp_path / "going")


class Busy(Staging):
    """Buffers that the writing thread does not fill, so that the training thread must copy everything."""

    def copy(self) -> None:
        deadline = time.monotonic() + 60
        while self._left and time.monotonic() < deadline:
            time.sleep(0.002)
        super().copy()


def test_tensors_are_copied_before_the_next_step_changes_them(tmp_path: Path) -> None:
    _plain(tmp_path / "waited", "checkpoint.asynchronous=false")
    trainer, _ = _trainer(tmp_path / "going", 0, [])
    (tmp_path / "going" / "go.0").touch()
    trainer.store.staging = Busy()
    trainer.fit()
    for step in (2, 4, 6):
        waited, going = _tensors(tmp_path / "waited", step), _tensors(tmp_path / "going", step)
        assert waited.keys() == going.keys() and all(torch.equal(waited[name], going[name]) for name in waited)


def test_one_save_at_a_time_completes_at_the_same_step_on_all_ranks(tmp_path: Path) -> None:
    """The save of step 2 is held back until step 4 is done; the save of step 4 waits for it, the end for the last."""
    first, second = kept_ranks(_fit, 2, tmp_path, 4, "plan=ddp")
    saved = [event for event in first if isinstance(event[0], str)]
    assert saved == [event for event in second if isinstance(event[0], str)]
    assert [name for name, *_ in saved] == ["step_00000002", "step_00000004", "step_00000006", "e"]
    assert saved[0][1] == 4 and first[-1] == second[-1] == "end"
    for events in (first, second):
        assert [(step, in_flight) for step, in_flight, _ in (e for e in events if e[0] in (3, 4))] == [
            (3, True),
            (4, True),
        ]


def test_a_metric_belongs_to_the_step_that_was_saved(tmp_path: Path) -> None:
    """The best checkpoint is kept although later steps were evaluated while it was written."""
    _fit(tmp_path, 4, "trainer.eval_every=2", "checkpoint.keep_last=1", "checkpoint.keep_best=1", "optimizer.lr=0.1")
    metrics = {line["step"]: line["eval_loss"] for line in lines(tmp_path) if "eval_loss" in line}
    best = min(metrics, key=metrics.__getitem__)
    kept = {int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step_*")}
    assert kept == {best, 6}


def test_a_full_disk_is_reported_and_training_goes_on(tmp_path: Path) -> None:
    """The disk has room for one checkpoint and a half: the first stays, later ones fail, training reaches its end."""
    with small_disk(tmp_path / "disk", 4800 * 1024) as disk:
        messages = kept_ranks(_refused, 2, disk / "run", "plan=ddp")
        assert all("could not be written" in message for message in messages)
        assert [path.name for path in (disk / "run" / "checkpoints").iterdir()] == ["step_00000002"]
        log = (disk / "run" / "log.txt").read_text()
        assert log.count("No space left on device") == 2 and "all 6 steps are done" in log


def _refused(run_dir: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as refusal:
        _plain(run_dir, *overrides)
    return str(refusal.value)


def _without_memory(run_dir: Path, *overrides: str) -> list:
    trainer, watch = _trainer(run_dir, 0, list(overrides))
    for rank in range(2):
        (run_dir / f"go.{rank}").touch()
    if trainer.mesh.rank == 1:
        trainer.store.staging = Staging(reserve=2**60)
    trainer.fit()
    trainer.mesh.close()
    return watch.seen


def test_without_memory_for_a_copy_training_waits(tmp_path: Path) -> None:
    """If one rank lacks the memory, all ranks save while training waits, and no tensor is missing."""
    for seen in kept_ranks(_without_memory, 2, tmp_path, "plan=ddp"):
        assert [event for event in seen if isinstance(event[0], str)][:3] == [
            (f"step_{step:08d}", step) for step in (2, 4, 6)
        ]
        assert not any(in_flight for step, in_flight, _ in (event for event in seen if isinstance(event[0], int)))
    assert len(_tensors(tmp_path, 6)) > 10


def _fails_later(run_dir: Path, *overrides: str) -> None:
    """Training fails at step 3 on rank 1, while the checkpoint of step 2 is in flight."""
    trainer, watch = _trainer(run_dir, 3, list(overrides))

    def fail(trainer, state, control) -> None:
        if state.step == 3 and trainer.mesh.rank == 1:
            for rank in range(2):
                (run_dir / f"go.{rank}").touch()
            raise RuntimeError("a fault of its own")

    watch.on_step_end = fail
    try:
        trainer.fit()
    except (ComponentFailed, RuntimeError):  # the other rank loses its peer
        trainer.store.close()


def test_a_failure_in_training_does_not_lose_the_save_in_flight(tmp_path: Path) -> None:
    run_ranks(_fails_later, 2, tmp_path, "plan=ddp")
    assert (tmp_path / "checkpoints" / "step_00000002" / "manifest.json").exists()


@pytest.mark.long
def test_killed_while_writing(tmp_path: Path) -> None:
    """One rank gets SIGKILL while a checkpoint is half written: the next start resumes from the one before it."""
    options = ["trainer.max_steps=24", "checkpoint.every=1", "scheduler=cosine", "trainer.eval_at_end=false"]
    options += ["plan=ddp"]
    run_dir, folders = tmp_path / "killed", tmp_path / "killed" / "checkpoints"
    with running(tiny_command(run_dir, *options, "--nproc", "2"), run_dir) as run:
        run.wait_for_lines(1)
        ranks = run.ranks
        while not any(int(path.name[6:14]) > 3 for path in folders.glob(".step_*.partial")):
            assert run.process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        ranks[1].kill()
        result = run.end()
    assert result.returncode == 1 and "SIGKILL" in result.stderr, result.stderr
    complete = list(folders.glob("step_*"))
    assert complete and all((folder / "manifest.json").exists() for folder in complete)
    for folder in (run_dir, tmp_path / "whole"):
        kept_ranks(_resumed, 2, folder, options)
    assert lines(run_dir) == lines(tmp_path / "whole")
    ours, theirs = _tensors(run_dir, 24), _tensors(tmp_path / "whole", 24)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def _resumed(run_dir: Path, options: list[str]) -> None:
    train(tiny_recipe(run_dir, *options))
