"""Tests that training under each plan gives the losses and gradient norms of a single process, each plan with some of
the models. ``make parity`` tests more combinations of plan and model.

Most models other than decoders are tested in ``tests/dist/test_shapes.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trireme
from parity.matrix import LAYOUTS, SPREAD, TOLERANCE, Case, differences

SMALL = [
    *(Case(plan, "persimmon", 4, "uneven") for plan in SPREAD),
    *(Case(plan, "gpt2", 4, "noise") for plan in ("zero2", "tp_sp", "pp_interleaved")),
    # One pair in each micro-batch, whose features noise makes almost orthogonal now and then.
    Case("fsdp_hybrid_shard", "contrastive", 4, "noise"),
    # One more family for each kind of plan: tied and fused (GPT-2), grouped queries (Llama), biases (GPT-NeoX).
    *(Case(plan, "gpt2", 4, "full") for plan in ("fsdp_full_shard", "pp_1f1b")),
    *(Case(plan, "llama", 1, "uneven") for plan in ("tp", "pp_gpipe")),
    Case("pp_zero_bubble", "gpt_neox", 1, "full"),
    # Behind the first block only the last positions go on, and prefixes are drawn at random.
    *(Case(plan, "perceiver_ar", 4, "uneven") for plan in ("fsdp_full_shard", "tp_sp", "pp_1f1b")),
    *(Case(plan, "perceiver_ar", 1, "noise") for plan in ("ddp", "tp")),
    Case("ddp", "llama_lora", 4, "uneven"),
    Case("pp_1f1b", "llama_lora", 4, "noise"),
    *(Case(plan, "gpt2_dora", 4, "full") for plan in ("fsdp_full_shard", "tp")),
]
STEPS = 6


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


@pytest.mark.slow
@pytest.mark.parametrize("plan", SPREAD)
def test_a_plan_equals_one_process(plan: str, folder: Path) -> None:
    found = differences([case for case in SMALL if case.plan == plan], folder, STEPS)
    assert found and max(found.values()) < TOLERANCE, found


def test_every_plan_is_in_the_matrix() -> None:
    plans = {path.stem for path in (Path(trireme.__file__).parent / "configs" / "plan").glob("*.yaml")}
    assert plans - {"auto"} == set(LAYOUTS)  # auto stands for one of the others
