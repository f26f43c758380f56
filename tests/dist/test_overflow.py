"""Tests of the callback ``overflow``, which finds the module whose output becomes NaN or infinite, and writes down the
outputs of chosen steps.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.kept_ranks import kept_ranks
from helpers.recipes import tiny_recipe
from trireme.trainer.build import train

LAYER = "model.layers.1.mlp.dense_h_to_4h"


def _train(run_dir: Path, *overrides: str) -> int:
    return train(tiny_recipe(run_dir, *overrides)).step


def _explode(run_dir: Path, *overrides: str) -> int:
    explode = ["+callbacks.explode._target_=helpers.callbacks.Explode", "+callbacks.explode.step=3"]
    return _train(
        run_dir, "callbacks=[minimal,overflow]", *explode, f"+callbacks.explode.name={LAYER}.weight", *overrides
    )


@pytest.mark.parametrize("plan", ["fsdp_full_shard", "pp_1f1b"])
def test_the_module_is_found_and_all_ranks_stop(tmp_path: Path, plan: str) -> None:
    assert kept_ranks(_explode, 2, tmp_path, f"plan={plan}") == [3, 3]
    texts = [file.read_text() for file in sorted(tmp_path.glob("overflow*.txt"))]
    found = [text for text in texts if f"step 3: {LAYER} gives numbers that are not finite" in text]
    assert found, texts
    last = found[0].splitlines()
    assert any("model.layers.1.input_layernorm" in line for line in last), "what led to it is shown"
    assert "output" in last[-1] and ("inf" in last[-1] or "nan" in last[-1])


def test_chosen_steps_are_written_down(tmp_path: Path) -> None:
    options = ["callbacks.overflow.trace_steps=[2]", "trainer.max_steps=3", "model.loss=chunked"]
    _train(tmp_path, "callbacks=[minimal,overflow]", *options)
    text = (tmp_path / "overflow.txt").read_text()
    assert text.startswith("step 2\n") and "not finite" not in text and "model.embed_tokens" in text
    assert text.count("lm_head (Linear)") == 4, "once per micro-batch of the step"
