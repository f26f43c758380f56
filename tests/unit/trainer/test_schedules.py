"""Schedules: pure functions of the step with the shapes they are named for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from trireme.trainer.schedules import TRANSFORMERS_NAME, ScheduleConfig, build_schedule

GROUP = Path(__file__).parents[3] / "configs" / "scheduler"


@pytest.mark.parametrize("name", TRANSFORMERS_NAME)
def test_every_schedule_has_a_file_and_runs(name: str) -> None:
    config = ScheduleConfig(**yaml.safe_load((GROUP / f"{name}.yaml").read_text()))
    assert config.name == name
    schedule = build_schedule(config, 100)
    values = [schedule(step) for step in range(100)]
    assert all(0 <= value <= 1 for value in values) and max(values) > 0.9
    assert [schedule(step) for step in reversed(range(100))] == values[::-1]  # no state
    if name != "constant":
        assert values[0] == 0 and values[4] == pytest.approx(0.8)


def test_shapes() -> None:
    cosine = build_schedule(ScheduleConfig("cosine", min_lr_ratio=0.1), 100)
    assert (cosine(0), cosine(50), cosine(100)) == pytest.approx((1.0, 0.55, 0.1))
    linear = build_schedule(ScheduleConfig("linear", warmup_steps=10), 110)
    assert (linear(5), linear(10), linear(60), linear(110)) == pytest.approx((0.5, 1.0, 0.5, 0.0))
    inverse = build_schedule(ScheduleConfig("inverse_sqrt", warmup_steps=100), 1000)
    assert inverse(400) == pytest.approx(0.5)
    stable = build_schedule(ScheduleConfig("warmup_stable_decay", warmup_steps=10, decay_ratio=0.2), 100)
    assert (stable(10), stable(79), stable(90)) == pytest.approx((1.0, 1.0, 0.5))
    restarts = build_schedule(ScheduleConfig("cosine_with_restarts", num_cycles=2), 100)
    assert (restarts(25), restarts(50)) == pytest.approx((0.5, 1.0))
    polynomial = build_schedule(ScheduleConfig("polynomial", power=2.0), 100)
    assert polynomial(50) == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"name": "linear", "num_cycles": 2.0}, "num_cycles"),
        ({"name": "constant", "warmup_steps": 5}, "constant_with_warmup"),
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, "contradict"),
        ({"warmup_ratio": 1.5}, "between 0 and 1"),
        ({"warmup_steps": -1}, "negative"),
    ],
)
def test_options_that_do_not_apply_are_refused(wrong: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ScheduleConfig(**wrong)
