"""Tests of learning-rate schedules: their shapes, the same values as in transformers, functions that a user writes, and
refused options.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers.optimization import get_scheduler
from trireme.trainer.check_steps import check_steps
from trireme.trainer.schedules import ScheduleConfig, build_schedule
from trireme.trainer.settings import TrainerConfig

GROUP = Path(__file__).parents[3] / "configs" / "scheduler"
NAMES = sorted(path.stem for path in GROUP.glob("*.yaml") if path.stem != "own")


@pytest.mark.parametrize("name", NAMES)
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
    ("options", "theirs"),
    [
        ({"name": "constant"}, {}),
        ({"name": "constant_with_warmup"}, {}),
        ({"name": "linear"}, {}),
        ({"name": "cosine"}, {"min_lr_rate": 0.0}),
        ({"name": "cosine", "min_lr_ratio": 0.13, "num_cycles": 1.7}, {"min_lr_rate": 0.13, "num_cycles": 1.7}),
        ({"name": "cosine_with_restarts"}, {}),
        ({"name": "cosine_with_restarts", "num_cycles": 3.0}, {"num_cycles": 3}),
        ({"name": "polynomial"}, {}),
        ({"name": "polynomial", "power": 2.5, "min_lr_ratio": 0.0}, {"power": 2.5, "lr_end": 0.0}),
        ({"name": "inverse_sqrt"}, {}),
        ({"name": "warmup_stable_decay"}, {"num_decay_steps": 10, "decay_type": "linear"}),
        ({"name": "warmup_stable_decay", "decay_ratio": 0.3, "decay_type": "1-sqrt", "min_lr_ratio": 0.07},
         {"num_decay_steps": 31, "decay_type": "1-sqrt", "min_lr_ratio": 0.07}),
        ({"name": "warmup_stable_decay", "decay_ratio": 0.0, "decay_type": "cosine"},
         {"num_decay_steps": 0, "decay_type": "cosine"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("warmup", [0, 17])
def test_formulas_are_those_of_transformers_to_the_bit(
    options: dict[str, Any], theirs: dict[str, Any], warmup: int
) -> None:
    steps, name = 103, options["name"]
    names = {"cosine": "cosine_with_min_lr"}
    unit = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    scheduler: Any = get_scheduler(
        names.get(name, name),
        unit,
        num_warmup_steps=warmup,
        num_training_steps=None if name.startswith(("constant", "inverse")) else steps,
        scheduler_specific_kwargs=theirs,
    )
    ours = build_schedule(ScheduleConfig(**options, warmup_steps=None if name == "constant" else warmup), steps)
    expected = scheduler.lr_lambdas[0]
    assert [ours(step) for step in range(steps + 2)] == [expected(step) for step in range(steps + 2)]


@pytest.mark.parametrize(("ratio", "steps", "warmup"), [(0.05, 30, 2), (0.05, 100, 5), (0.5, 5, 3), (0.0, 10, 0)])
def test_warmup_from_a_ratio_rounds_up(ratio: float, steps: int, warmup: int) -> None:
    assert ScheduleConfig(warmup_ratio=ratio).warmup(steps) == warmup == math.ceil(ratio * steps)


def test_a_given_zero_is_a_zero() -> None:
    assert build_schedule(ScheduleConfig("polynomial", min_lr_ratio=0.0), 10)(10) == 0.0
    assert build_schedule(ScheduleConfig("warmup_stable_decay", decay_ratio=0.0), 10)(9) == 1.0


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"name": "linear", "num_cycles": 2.0}, "num_cycles"),
        ({"name": "constant", "warmup_steps": 5}, "constant_with_warmup"),
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, "contradict"),
        ({"warmup_ratio": 1.5}, "between 0 and 1"),
        ({"warmup_steps": -1}, "negative"),
        ({"num_cycles": 0.0}, "num_cycles=0.0 must be positive"),
        ({"num_cycles": -2.0}, "num_cycles=-2.0 must be positive"),
        ({"num_cycles": math.inf}, "num_cycles"),
        ({"name": "cosine_with_restarts", "num_cycles": 1.5}, "is not whole"),
        ({"name": "cosine_with_restarts", "num_cycles": 0.5}, "is not whole"),
        ({"name": "polynomial", "power": 0.0}, "power=0.0 must be positive"),
        ({"name": "polynomial", "power": -1.0}, "power=-1.0 must be positive"),
        ({"min_lr_ratio": -0.1}, "between 0 and 1"),
        ({"min_lr_ratio": math.nan}, "between 0 and 1"),
        ({"name": "warmup_stable_decay", "warmup_ratio": 0.6, "decay_ratio": 0.6}, "more than the whole run"),
        ({"min_lr_ratio": 2.0, "num_cycles": -1.0}, "min_lr_ratio=2.0(.|\n)*num_cycles=-1.0"),
    ],
)
def test_options_that_do_not_apply_are_refused(wrong: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ScheduleConfig(**wrong)


def half_of(max_steps: int, share: float = 0.5) -> Any:
    return lambda step: torch.tensor(share) if step < max_steps // 2 else 1


def test_a_function_of_ones_own_follows_the_warm_up() -> None:
    own = {"_target_": f"{__name__}.half_of", "share": 0.25}
    schedule = build_schedule(ScheduleConfig("own", warmup_steps=4, factor=own), 20)
    assert [schedule(step) for step in (0, 2, 4, 9, 10, 19)] == [0, 0.5, 0.25, 0.25, 1, 1]


OWN_CODE = """
def number(max_steps): return 3
def raises(max_steps): return lambda step: {}[step]
def text(max_steps): return lambda step: "a"
def negative(max_steps): return lambda step: -1
def late(max_steps): return lambda step: 1 if step < max_steps - 1 else float("nan")
class Refuses:
    def __init__(self, max_steps): raise OSError("no file")
"""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("number", "gives a int, not a function"),
        ("raises", "raises KeyError: 0"),
        ("text", "gives 'a' at step 0"),
        ("negative", "gives -1.0 times the learning rate"),
        ("late", "gives nan times the learning rate at step 19"),
        ("Refuses", "raises OSError: no file"),
    ],
)
def test_a_function_that_is_no_schedule_is_refused(
    name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_schedules.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    scheduler = ScheduleConfig("own", factor={"_target_": f"own_schedules.{name}"})
    (problem,) = check_steps(TrainerConfig(max_steps=20), scheduler, 20)
    assert problem.field == "scheduler.factor._target_" and why in problem.why


def test_own_and_its_function_belong_together() -> None:
    with pytest.raises(ValueError, match="factor is required by own"):
        ScheduleConfig("own")
    with pytest.raises(ValueError, match="factor is not an option of cosine"):
        ScheduleConfig("cosine", factor={"_target_": "math.sqrt"})
