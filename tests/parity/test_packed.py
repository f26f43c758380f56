"""Tests that packed documents give the same losses and gradient norms as documents in rows of their own, under every
plan of ``parity.packed``; and that runs with dropout and NEFTune, packed or padded, give the same under several plans
as in one process.

Tested are Llama, and two decoders in which transformers alone would mix the documents of a row (OPT, RecurrentGemma).
The test with noise trains GPT-NeoX under ddp and pp_1f1b. ``make parity`` tests all decoders.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from parity.packed import PLANS, TOLERANCE, differences, noisy_difference

FAMILIES = ("llama", "opt", "recurrent_gemma")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packed")


QUICK = ("single", "tp", "zero3")
OTHERS = ("zero3", "fsdp_full_shard", "tp", "3d")
"""Plans whose tests with noise are long."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan", [pytest.param(plan, marks=[] if plan in QUICK else [pytest.mark.long]) for plan in PLANS]
)
def test_packed_documents_equal_documents_alone(plan: str, folder: Path) -> None:
    found = differences(plan, FAMILIES, folder)
    assert set(found) == set(FAMILIES) and max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("rows", ["packed", "padded"])
@pytest.mark.parametrize("plan", ["ddp", "pp_1f1b", *(pytest.param(plan, marks=pytest.mark.long) for plan in OTHERS)])
def test_documents_draw_the_same_noise_under_every_plan(plan: str, rows: str, folder: Path) -> None:
    assert noisy_difference(plan, "gpt_neox", rows, folder) < TOLERANCE
