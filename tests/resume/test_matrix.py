"""Tests of resumed runs: they go on bit for bit under the plan that saved them, and under other plans with the samples
and losses of an uninterrupted run. The models include adapters, dropout and NEFTune, Perceiver AR, and Transformer-XL
with its memory of earlier text.

``make resume-matrix`` tests all pairs of plans. A resume from another plan also uses another global batch size.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from resume.matrix import ADAPTED, GLOBAL_BATCH, PLANS, RELATED, Case, Found, adapted, full, resumed, ring


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


def _all_sound(found: dict[str, Found], count: int) -> None:
    wrong = {name: one for name, one in found.items() if not one.sound}
    assert not wrong and len(found) == count, wrong


RING = ("single", "tp", "zero3", "pp_1f1b", "fsdp_full_shard")
"""One plan of each way to place state. Eight ranks and offload are in the whole matrix."""


@pytest.mark.slow
@pytest.mark.parametrize("plan", RING)
def test_a_run_goes_on_where_it_was_saved(plan: str, folder: Path) -> None:
    _all_sound(resumed(folder, plan, ring(RING)[plan]), 3)


@pytest.mark.long
@pytest.mark.parametrize("plan", RELATED)
def test_related_plans_resume_where_they_were_saved(plan: str, folder: Path) -> None:
    _all_sound(resumed(folder, plan, ring(RELATED)[plan]), 3)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_goes_on_from_every_other(plan: str, folder: Path) -> None:
    cases = full()[plan]
    _all_sound(resumed(folder, plan, cases), len(cases))


QUICK = ("zero3", "pp_1f1b", "fsdp_full_shard")
"""Plans of ``ADAPTED`` that place adapters in different ways; each resumes the checkpoint of the one before."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "variant"),
    [
        pytest.param("zero3", "dora", marks=pytest.mark.long),
        pytest.param("pp_1f1b", "lora", marks=pytest.mark.long),
        ("fsdp_full_shard", "lora"),
    ],
)
def test_adapters_go_on_where_they_were_saved(plan: str, variant: str, folder: Path) -> None:
    before = QUICK[QUICK.index(plan) - 1]
    cases = [Case(before, plan, variant=variant), Case(plan, plan, variant=variant)]
    _all_sound(resumed(folder, plan, cases), len(cases))


@pytest.mark.slow
def test_a_run_that_draws_prefixes_goes_on_drawing_them(folder: Path) -> None:
    """Perceiver AR: stages hand on latents alone, and what is drawn is a function of the position in the stream."""
    plan = "fsdp_full_shard"
    cases = [Case("pp_1f1b", plan, variant="perceiver_ar"), Case(plan, plan, variant="perceiver_ar")]
    _all_sound(resumed(folder, plan, cases), len(cases))


@pytest.mark.slow
def test_a_memory_goes_on_with_its_lane(folder: Path) -> None:
    """Transformer-XL: what each lane remembers is a tensor of the checkpoint, read by the rank that goes on with it."""
    plan = "fsdp_full_shard"
    cases = [Case("zero1", plan, variant="transformer_xl"), Case(plan, plan, variant="transformer_xl")]
    _all_sound(resumed(folder, plan, cases), len(cases))


@pytest.mark.long
@pytest.mark.parametrize("plan", RING)
def test_noise_goes_on_where_the_run_was_saved(plan: str, folder: Path) -> None:
    """NEFTune and dropout draw what an uninterrupted run draws: bit by bit under the same plan."""
    cases = [case for case in ring(RING, "noise")[plan] if case.batch == GLOBAL_BATCH]
    _all_sound(resumed(folder, plan, cases), 2)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("plan", ADAPTED)
@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_adapters_of_every_plan_go_on_under_every_other(variant: str, plan: str, folder: Path) -> None:
    cases = adapted(variant)[plan]
    _all_sound(resumed(folder, plan, cases), len(cases))


def test_a_pair_that_differs_is_not_sound() -> None:
    """Each condition of ``Found.sound`` can fail."""
    good = {"state": True, "samples": True, "difference": 1e-7}
    assert Found(**good).sound and Found(**good, exact=True).sound
    for worse in ({"differing": ["model.x"]}, {"state": False}, {"samples": False}, {"exact": False}):
        assert not Found(**{**good, **worse}).sound
    for difference in (1e-3, float("nan")):
        assert not Found(**{**good, "difference": difference}).sound
    assert not Found(**good, error="rank 0 failed").sound
