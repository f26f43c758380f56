"""Tests of checkpoints under ZeRO: saved tensors equal those of one process, training resumes from them (also under
another stage), and each rank reads only its part. DeepSpeed's own optimizer and scheduler match the recipe's.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.joined_rows import joined_rows
from helpers.kept_ranks import kept_ranks
from helpers.zero import (
    ADAMW,
    CPU,
    NEEDS_OPERATORS,
    SWAPPED,
    TOLERANCE,
    Case,
    build,
    load_deepspeed,
    on_ranks,
    plain,
    train,
    worst,
)
from torch import Tensor
from trireme.parallel.tensor_rows import Rows
from trireme.parallel.zero.operators import aio_compatible, load_operator
from trireme.parallel.zero.options import DeepSpeedOptions, OffloadOptimizer, OffloadParam
from trireme.parallel.zero.zero_strategy import DeepSpeedStrategy
from trireme.trainer.optimizers import optimizer_factory

pytestmark = NEEDS_OPERATORS


@pytest.fixture(scope="module", autouse=True)
def _deepspeed() -> None:
    load_deepspeed()


def _whole(strategy: DeepSpeedStrategy) -> tuple[dict[str, Tensor], list[int]]:
    """The tensors that all ranks save together, and the bytes that each rank saves."""
    saved = strategy.saved_tensors()
    sizes = strategy.mesh.gather_objects(sum(tensor.nbytes for tensor in saved.values()))
    return joined_rows(strategy.mesh, saved), sizes


def _read_from(saved: dict[str, Tensor]) -> Any:
    def read(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            first, rows = (tensor.first, tensor.shape[0]) if isinstance(tensor, Rows) else (0, None)
            tensor.as_subclass(Tensor).copy_(saved[name] if rows is None else saved[name][first : first + rows])

    return read


def _shapes(saved: dict[str, Tensor]) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in saved.items()}


def _resumed(strategy: DeepSpeedStrategy, case: Case, saved: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    strategy.attach_optimizer(optimizer_factory(case.optimizer))
    strategy.load(_read_from(saved), _shapes(saved), scalars)


def _interrupted(first: Case, second: Case) -> tuple[list, list, list[float]]:
    """Train all steps under ``first``, then the last ones again under ``second`` from the state saved in the middle."""
    whole = build(first)
    whole.attach_optimizer(optimizer_factory(first.optimizer))
    train(whole, first, last=3)
    saved, sizes = _whole(whole)
    scalars = json.loads(json.dumps(whole.scalars()))
    expected = train(whole, first, first=3)
    again = build(second)
    _resumed(again, second, saved, scalars)
    found = train(again, second, first=3)
    after, reloaded = _whole(whole)[0], _whole(again)[0]
    worst_tensor = max((after[name].float() - reloaded[name].float()).abs().max().item() for name in after)
    whole.mesh.close()
    return expected, found, [*sizes, worst_tensor]


OFFLOADED = DeepSpeedOptions(stage=3, offload_optimizer=CPU, offload_param=OffloadParam("cpu"))
SAME = [DeepSpeedOptions(stage=stage) for stage in (0, 1, 2, 3)] + [
    DeepSpeedOptions(stage=2, offload_optimizer=CPU),
    OFFLOADED,
]


@pytest.mark.parametrize("options", SAME, ids=["0", "1", "2", "3", "2 offload", "3 offload"])
def test_resume_continues_bit_exactly(options: DeepSpeedOptions) -> None:
    case = Case(options)
    expected, found, (one, other, difference) = kept_ranks(_interrupted, 2, case, case)[0]
    assert expected == found
    assert difference == 0
    assert abs(one - other) < 0.1 * (one + other)


def test_shards_of_uneven_length_resume_bit_exactly() -> None:
    """DeepSpeed's own setter fails if a parameter (here of 33 numbers) does not divide over the ranks."""
    case = Case(DeepSpeedOptions(stage=3), family="gpt2", overrides={"n_embd": 33, "n_head": 3})
    expected, found, (_, _, difference) = kept_ranks(_interrupted, 2, case, case)[0]
    assert expected == found and difference == 0


def _shares_read(case: Case) -> list[float]:
    """The share of all saved elements that each rank reads."""
    whole = build(case)
    whole.attach_optimizer(optimizer_factory(case.optimizer))
    train(whole, case, last=2)
    saved, _ = _whole(whole)
    again, counts, fill = build(case), Counter(), _read_from(saved)
    again.attach_optimizer(optimizer_factory(case.optimizer))

    def read(tensors: dict[str, Tensor]) -> None:
        counts.update({name: tensor.numel() for name, tensor in tensors.items()})
        fill(tensors)

    again.load(read, _shapes(saved), json.loads(json.dumps(whole.scalars())))
    shares = whole.mesh.gather_objects(counts.total() / sum(tensor.numel() for tensor in saved.values()))
    whole.mesh.close()
    return shares


@pytest.mark.parametrize("options", SAME[1:], ids=["1", "2", "3", "2 offload", "3 offload"])
def test_each_rank_reads_its_own_part(options: DeepSpeedOptions) -> None:
    shares = kept_ranks(_shares_read, 2, Case(options))[0]
    assert all(share < 0.6 for share in shares)
    assert 1 <= sum(shares) < 1.1


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp16"), (1, "bf16"), (2, "fp16"), (3, "bf16")])
def test_resume_in_half_precision(stage: int, precision: str) -> None:
    case = Case(DeepSpeedOptions(stage=stage), precision=precision)
    expected, found, (*_, difference) = kept_ranks(_interrupted, 2, case, case)[0]
    assert expected == found
    assert difference == 0


@pytest.mark.slow
def test_resume_from_nvme(tmp_path: Path) -> None:
    if not aio_compatible():
        pytest.skip("DeepSpeed's async_io operator needs libaio-dev")
    load_operator("AsyncIOBuilder")
    # One disk folder for each engine: both live in one process here.
    cases = [
        Case(
            DeepSpeedOptions(
                stage=3,
                offload_optimizer=OffloadOptimizer("nvme", str(tmp_path / name)),
                offload_param=OffloadParam("nvme", str(tmp_path / name), buffer_size=2_000_000),
            ),
            overrides=SWAPPED,
        )
        for name in ("one", "two")
    ]
    expected, found, (*_, difference) = kept_ranks(_interrupted, 2, *cases)[0]
    assert expected == found
    assert difference == 0


@pytest.mark.parametrize("stages", [(3, 1), (0, 3), (2, 0)])
def test_resume_under_another_stage(stages: tuple[int, int]) -> None:
    first, second = (Case(DeepSpeedOptions(stage=stage)) for stage in stages)
    expected, found, _ = kept_ranks(_interrupted, 2, first, second)[0]
    assert worst(expected, found) < TOLERANCE


def _saved(case: Case) -> dict[str, Any]:
    """The saved tensors as arrays, since tensors would be sent between processes as open files."""
    return on_ranks(case, lambda strategy, _: {name: tensor.numpy() for name, tensor in _whole(strategy)[0].items()})


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_saved_tensors_are_those_of_one_process(stage: int) -> None:
    case = Case(DeepSpeedOptions(stage=stage))
    saved = kept_ranks(_saved, 2, case)[0]
    _, model = plain(case)
    for name, parameter in model.named_parameters():
        weights = torch.from_numpy(saved[f"model.{name}"])
        torch.testing.assert_close(weights, parameter.detach(), rtol=1e-4, atol=1e-6)
        assert saved[f"optim.{name}.exp_avg"].shape == saved[f"optim.{name}.exp_avg_sq"].shape == parameter.shape
        assert saved[f"optim.{name}.step"].item() == case.steps


# -- placement, evaluation, generation ---------------------------------------------------------------------------


BLOCKS = {
    "optimizer": {"type": "AdamW", "params": {key: "auto" for key in ("lr", "betas", "eps", "weight_decay")}},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {key: "auto" for key in ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps")},
    },
}


@pytest.mark.parametrize("blocks", [["scheduler"], ["optimizer", "scheduler"]], ids=["scheduler", "both"])
@pytest.mark.parametrize("offload", ["none", "cpu"])
def test_blocks_of_deepspeed_keep_the_trajectory(tmp_path: Path, blocks: list[str], offload: str) -> None:
    """DeepSpeed's own scheduler and optimizer give the trajectory of the recipe's linear schedule and AdamW."""
    zero: dict[str, Any] = {"stage": 2, "offload_optimizer": {"device": offload}}
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": zero, **{name: BLOCKS[name] for name in blocks}}))
    case = Case(str(path))
    assert case.optimizer == ADAMW
    expected = plain(case)[0]
    found, resumed, _ = kept_ranks(_interrupted, 2, case, case)[0]
    assert worst(expected[3:], found) < TOLERANCE
    assert [line[2] for line in found] == pytest.approx([line[2] for line in expected[3:]])
    assert found == resumed
