"""``trireme.train``: a cell trains on one process or several, and holds metrics, plot, model and tokenizer in hand."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers.command import ROOTS
from helpers.metrics import training, worst_difference
from helpers.recipes import TINY
from trireme.launch.compose import compose
from trireme.launch.notebook import _text

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


def cell(run_dir: Path, plan: str, nproc: int, fault: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the cell as a fresh notebook kernel would."""
    key, _, roots = ROOTS.partition("=")
    overrides = {
        "run.dir": str(run_dir),
        key: roots.strip("[]").split(","),
        "plan": plan,
        "trainer.max_steps": 4,
        "+callbacks.seen": {"_target_": "__main__.Seen"},
    }
    text = textwrap.dedent(SCRIPT).format(overrides=repr(overrides), nproc=nproc, fault=fault)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=200)


def test_a_cell_trains_on_one_process_or_several(tmp_path: Path) -> None:
    one, two = cell(tmp_path / "one", "single", 1), cell(tmp_path / "two", "ddp", 2)
    for result in (one, two):
        assert result.returncode == 0, result.stderr
        shown = result.stdout.splitlines()[-1]
        assert '"step": 4' in shown and '"loss"' in shown and '"axes": 4' in shown and '"vocabulary": 512' in shown
    assert worst_difference(training(tmp_path / "one"), training(tmp_path / "two")) < 1e-5


def test_deepspeed_runs_on_one_process(tmp_path: Path) -> None:
    result = cell(tmp_path / "zero", "zero2", 1)
    assert result.returncode == 0, result.stderr
    assert [line["step"] for line in training(tmp_path / "zero")] == [1, 2, 3, 4]


def test_a_failing_rank_is_raised_once(tmp_path: Path) -> None:
    result = cell(tmp_path / "run", "ddp", 2, fault=True)
    assert result.returncode == 1
    assert result.stderr.count("RuntimeError: boom of one rank") == 1
    assert "RanksFailed" in result.stderr and "rank 1 of 2" in result.stderr


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 2.5e-4, "plain/path.jsonl", "two words", "it's", "a=b,[c]", [1, "x y"], {"a": [None, "b:c"]}],
)
def test_values_pass_through_hydra_unchanged(value: object, tmp_path: Path) -> None:
    recipe = tmp_path / "one.yaml"
    recipe.write_text("defaults: [/base, _self_]\n")
    assert compose(str(recipe), [f"+mine={_text(value)}"]).raw["mine"] == value
