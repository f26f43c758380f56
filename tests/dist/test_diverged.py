"""Tests of runs whose loss or weights become NaN or infinite: how the run reports this, and how it ends.

The run names the first such step and ends with an exit code of its own. Checkpoints with such weights are never used
for a resume.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
from helpers.command import ROOTS, refused, trireme_here
from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines
from helpers.recipes import TINY, tiny_recipe
from trireme.errors import UserError
from trireme.launch.error_report import DIVERGED, Diverged
from trireme.launch.failures import raise_failure
from trireme.trainer.build import train
from trireme.trainer.checkpoint.layout import not_finite

TOO_FAST = ("optimizer.lr=1e9", "trainer.max_steps=6")
NO_CHECKPOINT = ("checkpoint.at_end=false", "trainer.eval_at_end=false")


def _ended(run_dir: Path, *overrides: str) -> tuple[str, int]:
    result = train(tiny_recipe(run_dir, *TOO_FAST, *overrides))
    return result.not_finite, result.step


def checkpoints(run_dir: Path) -> dict[int, str | None]:
    return {int(path.name[5:]): not_finite(path) for path in sorted((run_dir / "checkpoints").glob("step_*"))}


def test_the_command_says_the_step_at_once_and_ends_with_a_code_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("train", str(TINY), ROOTS, f"run.dir={tmp_path}", *TOO_FAST)
    keep = ("checkpoint.every=1", "checkpoint.keep_last=1")
    ended = trireme_here(capsys, *run, *keep)
    assert ended.returncode == DIVERGED == 3
    first = next(line["step"] for line in lines(tmp_path) if line.get("grad_norm") == "nan")
    assert ended.stderr.count("is not finite (nan)") == 1 and f"step {first}: the norm of the gradient" in ended.stderr
    assert "the run has diverged: at step 6 of 6 the weights are not finite" in ended.stderr
    sound, *rest = checkpoints(tmp_path).items()
    assert sound[1] is None and sound[0] < first, "the last good one is not pushed out"
    assert rest == [(6, f"the weights are not finite (since step {first})")]
    listed = trireme_here(capsys, "checkpoints", str(tmp_path), "--json")
    assert listed.returncode == 1 and [bool(found["not_finite"]) for found in json.loads(listed.stdout)] == [
        False,
        True,
    ]
    again = trireme_here(capsys, *run, *keep)
    assert again.returncode == DIVERGED
    assert "was saved with a fault: the weights are not finite" in again.stderr, "why it is not resumed from"
    assert f"resuming from {tmp_path}/checkpoints/step_{sound[0]:08d}" in again.stderr


def test_where_no_checkpoint_is_finite_a_resume_is_refused(tmp_path: Path, capsys, caplog) -> None:
    run = ("train", str(TINY), ROOTS, f"run.dir={tmp_path}", *TOO_FAST)
    assert trireme_here(capsys, *run).returncode == DIVERGED
    refused(trireme_here(capsys, *run), "--resume", "the weights are not finite", "--fresh")
    named = trireme_here(capsys, *run, "--resume", str(tmp_path / "checkpoints" / "step_00000006"))
    refused(named, "the weights are not finite")
    monitored = logging.getLogger("trireme.checkpoint")
    monitored.addHandler(caplog.handler)
    exported = trireme_here(capsys, "export", str(tmp_path), str(tmp_path / "out"))
    monitored.removeHandler(caplog.handler)
    assert exported.returncode == 0 and "was saved with a fault: the weights are not finite" in caplog.text


@pytest.mark.parametrize(
    ("plan", "ranks"),
    [
        (("plan=ddp",), 2),
        (("plan=fsdp_full_shard",), 2),
        (("plan=tp",), 2),
        (("plan=pp_1f1b",), 2),
        (("plan=zero3",), 2),
        (("plan=zero1",), 1),
        (("plan.precision=fp16", "plan=zero2"), 1),
        (("ema=average",), 1),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, tuple) else "",
)
def test_all_ranks_agree_under_every_plan(plan: tuple[str, ...], ranks: int, tmp_path: Path) -> None:
    (reason, step), *others = kept_ranks(_ended, ranks, tmp_path, *plan)
    assert reason and step == 6
    assert others == [(reason, step)] * (ranks - 1)
    assert checkpoints(tmp_path)[6] == reason
    said = (tmp_path / "log.txt").read_text()
    assert said.count("the run has diverged") == 1
    if "plan.precision=fp16" not in plan:  # fp16 skips steps to find the loss scale
        assert (
            len(re.findall(r"step \d+(: the norm of the gradient| is skipped, since its gradient) is not", said)) == 1
        )


@pytest.mark.parametrize("callbacks", [(), ("+callbacks.early={_target_: ${early}}",)])
def test_without_checkpoint_and_evaluation_the_code_is_the_same(callbacks: tuple[str, ...], tmp_path: Path) -> None:
    early = "trireme.trainer.callbacks.early_stopping.EarlyStopping"
    overrides = [text.replace("${early}", early) for text in callbacks]
    ending = ("trainer.eval_every=1", "checkpoint.at_end=false") if callbacks else NO_CHECKPOINT
    result = train(tiny_recipe(tmp_path, *TOO_FAST, *ending, *overrides))
    assert result.not_finite
    assert not checkpoints(tmp_path)


def test_what_is_not_finite_is_not_exported(tmp_path: Path) -> None:
    export = "+callbacks.export={_target_: trireme.trainer.callbacks.export.Export}"
    train(tiny_recipe(tmp_path, *TOO_FAST, export))
    assert not (tmp_path / "exported").exists()
    said = (tmp_path / "log.txt").read_text()
    assert "step_00000006 is not exported: it was saved with a fault: the weights are not finite" in said
    assert "nothing is exported" in said


def test_one_bad_batch_that_is_skipped_spoils_nothing(tmp_path: Path) -> None:
    skip = "+callbacks.nonfinite={_target_: trireme.trainer.callbacks.nonfinite.NonFinite}"
    poison = "+callbacks.poison={_target_: helpers.callbacks.Poison, rank: 0, samples: [16]}"
    result = train(tiny_recipe(tmp_path, "trainer.max_steps=3", "trainer.eval_at_end=false", skip, poison))
    assert not result.not_finite and checkpoints(tmp_path) == {3: None}
    assert "diverged" not in (tmp_path / "log.txt").read_text()


def test_a_batch_that_is_not_skipped_is_said_with_its_step(tmp_path: Path) -> None:
    poison = "+callbacks.poison={_target_: helpers.callbacks.Poison, rank: 0, samples: [8]}"
    result = train(tiny_recipe(tmp_path, "trainer.max_steps=4", "trainer.log_every=100", poison))
    assert result.not_finite == "the weights are not finite (since step 2)"
    assert "step 2: the norm of the gradient is not finite (nan)" in (tmp_path / "log.txt").read_text()


def test_an_interrupted_run_that_has_diverged_is_not_queued_again(tmp_path: Path) -> None:
    """SLURM's script queues a job again for exit code 75 alone."""
    with pytest.raises(Diverged):
        raise_failure({0: _Ended(3), 1: _Ended(-15)}, 2, lambda rank: "")  # type: ignore[dict-item]
    result = train(tiny_recipe(tmp_path, *TOO_FAST, "+callbacks.leave={_target_: helpers.callbacks.Leave, step: 4}"))
    assert result.interrupted and result.not_finite
    with pytest.raises(UserError, match="not finite"):
        train(tiny_recipe(tmp_path, *TOO_FAST))


class _Ended:
    """The result of a rank that has ended with an exit code, as torch's launcher gives it."""

    error_file_data = None

    def __init__(self, exitcode: int) -> None:
        self.exitcode = exitcode
