"""Tests of two features that build on accelerate: the search for the largest micro-batch, and generation with
``device_map``, which spreads a model over memory and disk.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from helpers.command import ROOTS, command
from helpers.recipes import TINY, tiny_recipe
from trireme.launch.generate_text import generate
from trireme.trainer.build import train
from trireme.trainer.checkpoint.export.export_folder import export

HUNGRY = '''
import torch
from trireme.trainer.callbacks.callback import Callback

class Hungry(Callback):
    """Needs memory that grows steeply with the micro-batch: 8 samples ask for more than any machine has."""

    def on_step_end(self, trainer, state, control):
        torch.empty(64 ** trainer.settings.micro_batch_size)
'''


@pytest.mark.long
def test_the_largest_micro_batch_that_fits_is_found(tmp_path: Path) -> None:
    (tmp_path / "hungry.py").write_text(HUNGRY)
    result = subprocess.run(
        [*command("batch-size", str(TINY)), ROOTS, "plan=ddp", "--nproc", "2", "trainer.global_batch_size=16",
         "+callbacks.hungry._target_=hungry.Hungry"],
        capture_output=True, text=True, timeout=240, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "micro-batches of 8: out of memory" in result.stdout
    assert "trainer.micro_batch_size=4   # 2 micro-batch(es) per step" in result.stdout
    assert not (tmp_path / "runs").exists()


def test_a_model_spread_over_memory_and_disk_writes_the_same(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path / "run", "model=llama_tiny", "trainer.max_steps=1"))
    folder = str(export(str(tmp_path / "run"), str(tmp_path / "out")))
    plain = generate(folder, "def main(", max_new_tokens=8)
    layers = [f"model.layers.{number}" for number in range(4)]
    here = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", *layers[:2]], "cpu")
    for device_map in ("auto", {**here, **dict.fromkeys(layers[2:], "disk")}):
        assert generate(folder, "def main(", max_new_tokens=8, device_map=device_map) == plain
