"""Tests of ``trireme batch-size``, which searches for the largest micro-batch that fits into memory: it prints one line
per size that it tries, and says if the global batch size ends the search.
"""

from __future__ import annotations

import re

import pytest
from helpers.command import ROOTS, trireme_here
from helpers.recipes import TINY

SHOWS = (
    "+callbacks.progress={_target_: trireme.trainer.callbacks.progress.Progress}",
    "+callbacks.sample={_target_: trireme.trainer.callbacks.sample.Sample, prompts: [import]}",
)


@pytest.mark.slow
def test_a_try_is_one_line_and_the_limit_is_named(capfd: pytest.CaptureFixture[str], tmp_path) -> None:
    run = f"run.dir={tmp_path / 'run'}"
    result = trireme_here(capfd, "batch-size", str(TINY), ROOTS, run, "trainer.global_batch_size=4", *SHOWS)
    assert result.returncode == 0, result.stderr
    tried, limit, answer = result.stdout.splitlines()
    assert tried == "micro-batches of 4: fit"
    assert re.fullmatch(
        r"larger ones were not tried: trainer.global_batch_size=4 is .* trainer.global_batch_size=16", limit
    )
    assert answer == "trainer.micro_batch_size=4   # 1 micro-batch(es) per step"
    assert "step" not in result.stderr and "sample" not in result.stderr
    assert not (tmp_path / "run").exists()
