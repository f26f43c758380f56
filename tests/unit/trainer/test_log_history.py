"""Test that after a resume the log history holds the metrics up to the resumed step, with NaN as a number."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trireme.trainer.log_history import LogHistory


def test_numbers_that_are_not_finite_come_back_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": "nan"}\n{"step": 2, "loss": 3.0}\n{"step": 3, "lo')
    mesh = SimpleNamespace(is_main=True, broadcast_object=lambda value: value)
    trainer: Any = SimpleNamespace(state=SimpleNamespace(step=1), mesh=mesh, run_dir=tmp_path)
    history = LogHistory()
    history.begin(trainer)
    (line,) = history.lines
    assert line["step"] == 1 and math.isnan(line["loss"])
