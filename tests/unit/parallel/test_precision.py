"""The fp16 loss scale halves on overflow and grows after many good steps; other precisions have no loss scale."""

from __future__ import annotations

import pytest
from trireme.parallel.plan import Plan
from trireme.parallel.precision import LossScale


def after(precision: str, good_steps: int) -> LossScale:
    scale = LossScale(Plan(precision=precision))  # type: ignore[arg-type]
    for _ in range(good_steps):
        scale.update(overflow=False)
    return scale


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_other_precisions_have_no_scale(precision: str) -> None:
    scale = after(precision, 2 * LossScale.GROWTH_INTERVAL)
    assert scale.state_dict() == {"value": 1.0, "good_steps": 0}


def test_in_fp16_it_grows_and_halves() -> None:
    scale = after("fp16", LossScale.GROWTH_INTERVAL)
    assert scale.value == 2.0**17
    scale.update(overflow=True)
    assert scale.state_dict() == {"value": 2.0**16, "good_steps": 0}
