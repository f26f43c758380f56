"""A recipe can use Python files in its own folder: every process of a run imports them without setting PYTHONPATH."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command import ROOTS
from helpers.recipes import TINY
from trireme.launch.cli import main

CODE = """
from pathlib import Path

from trireme.trainer.callbacks.callback import Callback
from trireme.trainer.data.collator import CausalLMCollator


class Note(Callback):
    def on_train_end(self, trainer, state, control):
        (trainer.run_dir / f"rank{trainer.mesh.rank}").touch()


class Collator(CausalLMCollator):
    pass
"""


@pytest.mark.slow
def test_ranks_and_data_workers_find_them_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, elsewhere = tmp_path / "beside", tmp_path / "elsewhere"
    beside.mkdir()
    elsewhere.mkdir()
    (beside / "own_parts.py").write_text(CODE)
    recipe = beside / "mine.yaml"
    recipe.write_text(
        TINY.read_text()
        + "collator:\n  _target_: own_parts.Collator\ncallbacks:\n  note:\n    _target_: own_parts.Note\n"
    )
    monkeypatch.chdir(elsewhere)
    overrides = ["plan=ddp", "data.num_workers=1", "trainer.max_steps=2", f"run.dir={tmp_path / 'run'}"]
    assert main(["train", str(recipe), ROOTS, "--nproc", "2", *overrides]) == 0
    assert {path.name for path in (tmp_path / "run").glob("rank?")} == {"rank0", "rank1"}
