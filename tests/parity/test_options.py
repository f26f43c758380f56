"""Activation recomputation, torch.compile and deterministic kernels do not change the losses and gradient norms, under
plans of several kinds.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.options import witnesses
from helpers.ranks import run_ranks
from parity.matrix import TOLERANCE, Case, difference, overridden

COMPILED = [
    pytest.param(plan, "plan.compile=true", marks=pytest.mark.long) for plan in ("ddp", "fsdp_full_shard", "tp")
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("options")


@pytest.mark.parametrize(
    ("plan", "option"),
    [
        ("ddp", "plan.recompute=selective"),
        ("zero3", "plan.recompute=full"),
        ("tp_sp", "plan.recompute=full"),
        ("tp", "plan.recompute=selective"),
        ("pp_1f1b", "plan.recompute=full"),
        ("zero2", "plan.deterministic=true"),
        ("fsdp_full_shard", "plan.deterministic=true"),
        *COMPILED,
        pytest.param("pp_1f1b", "plan.compile=true", marks=pytest.mark.long),
    ],
)
def test_an_option_does_not_change_the_trajectory(
    plan: str, option: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, heeded = Case(plan, "llama", 4, "full"), witnesses(monkeypatch, option)
    assert difference(overridden(case, option), folder, 4, run_ranks) < TOLERANCE
    assert all(calls.value for calls in heeded)


@pytest.mark.long
def test_another_backend_of_the_compiler_does_not_change_the_trajectory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, option = Case("ddp", "llama", 4, "full"), "plan.compile_backend=aot_eager"
    heeded = witnesses(monkeypatch, option)
    assert difference(overridden(case, "plan.compile=true", option), folder, 4, run_ranks) < TOLERANCE
    assert all(calls.value for calls in heeded)
