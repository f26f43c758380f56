"""Tests of DeepSpeed ZeRO on gloo ranks: losses, gradient norms, evaluations and generated tokens equal those of plain
PyTorch in one process. Half precision stays near fp32, an overflow in fp16 skips the step, and under stage 3 no rank
holds the whole model.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.kept_ranks import kept_ranks
from helpers.options import witnesses
from helpers.ranks import run_ranks
from helpers.zero import (
    CPU,
    NEEDS_OPERATORS,
    SWAPPED,
    TOLERANCE,
    Case,
    build,
    load_deepspeed,
    model_config,
    on_ranks,
    plain,
    plain_model,
    samples,
    share,
    train,
    worst,
)
from torch import Tensor
from trireme.models.build_model import Vocabulary, build_on_meta, weight_source
from trireme.parallel.zero.operators import aio_compatible, load_operator
from trireme.parallel.zero.options import DeepSpeedOptions, Fp16, OffloadOptimizer, OffloadParam
from trireme.trainer.optimizers import optimizer_factory
from trireme.trainer.tasks.causal_lm import CausalLM

pytestmark = NEEDS_OPERATORS


@pytest.fixture(scope="module", autouse=True)
def _deepspeed() -> None:
    load_deepspeed()


def _equals_plain(case: Case, ranks: int = 2, start: Callable[..., list] = kept_ranks) -> None:
    expected = plain(case)[0]
    found = start(on_ranks, ranks, case)
    assert worst(expected, found[0]) < TOLERANCE
    assert found[0] == found[-1]
    assert [line[2] for line in found[0]] == [line[2] for line in expected]
    assert max(norm for _, norm, *_ in expected) > 2 * (case.clip or 0)  # clipping is active


def test_operators_are_built_by_the_ninja_of_this_environment(tmp_path: Path) -> None:
    """Two versions of ninja would each rebuild what the other has built."""
    other = tmp_path / "ninja"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    command = [sys.executable, "-m", "trireme.parallel.zero.operators"]
    built = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr


@pytest.mark.parametrize("micro_batch_size", [4, 1])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stages_equal_one_process(stage: int, micro_batch_size: int) -> None:
    _equals_plain(Case(DeepSpeedOptions(stage=stage), micro_batch_size=micro_batch_size))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_to_cpu_equals_one_process(stage: int) -> None:
    param = OffloadParam("cpu") if stage == 3 else OffloadParam()
    _equals_plain(Case(DeepSpeedOptions(stage=stage, offload_optimizer=CPU, offload_param=param)))


def test_offload_to_nvme_equals_one_process(tmp_path: Path) -> None:
    if not aio_compatible():
        pytest.skip("DeepSpeed's async_io operator needs libaio-dev")
    load_operator("AsyncIOBuilder")
    options = DeepSpeedOptions(
        stage=3,
        offload_optimizer=OffloadOptimizer("nvme", str(tmp_path)),
        offload_param=OffloadParam("nvme", str(tmp_path), buffer_size=2_000_000),
    )
    _equals_plain(Case(options, overrides=SWAPPED))
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.swp")) > 2**20


@pytest.mark.parametrize(
    "case",
    [
        Case(DeepSpeedOptions(stage=3), family="gpt2"),
        Case(DeepSpeedOptions(stage=1), family="gpt2"),
        Case(DeepSpeedOptions(stage=3), frozen=["model.embed_tokens.*"]),
        Case(DeepSpeedOptions(stage=2), frozen=["model.embed_tokens.*"]),
        Case(DeepSpeedOptions(stage=2), clip=None),
        Case(DeepSpeedOptions(stage=2), optimizer={"_target_": "trireme.trainer.optimizers.sgd", "lr": 0.1}),
        Case(DeepSpeedOptions(stage=2, offload_optimizer=CPU, zero_force_ds_cpu_optimizer=False)),
        Case(DeepSpeedOptions(stage=1, overlap_comm=True, reduce_bucket_size=500, allgather_bucket_size=500)),
    ],
    ids=["tied3", "tied1", "frozen3", "frozen2", "no clipping", "sgd", "torch on cpu", "buckets"],
)
def test_variants_equal_one_process(case: Case) -> None:
    _equals_plain(case)


def test_recomputation_equals_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    (recomputed,) = witnesses(monkeypatch, "plan.recompute=full")
    _equals_plain(Case(DeepSpeedOptions(stage=3)), start=run_ranks)
    assert not recomputed.value
    _equals_plain(Case(DeepSpeedOptions(stage=3), recompute="full"), start=run_ranks)
    assert recomputed.value


def _programs_of_a_step(case: Case) -> Counter[str]:
    """The programs that a training step starts, with their counts."""
    started: Counter[str] = Counter()
    strategy = build(case)
    strategy.attach_optimizer(optimizer_factory(case.optimizer))
    train(strategy, case, last=1)
    sys.addaudithook(lambda event, args: started.update([str(args[0])]) if event == "subprocess.Popen" else None)
    train(strategy, case, first=1, last=2)
    strategy.mesh.close()
    return started


def test_a_step_starts_no_programs() -> None:
    """By itself, DeepSpeed starts ``numactl`` at every gradient to ask for the cores of the machine."""
    assert run_ranks(_programs_of_a_step, 2, Case(DeepSpeedOptions(stage=3)))[0] == Counter()


def test_shards_of_uneven_length_and_one_rank() -> None:
    _equals_plain(Case(DeepSpeedOptions(stage=3), overrides={"vocab_size": 129, "intermediate_size": 49}))
    _equals_plain(Case(DeepSpeedOptions(stage=3), micro_batch_size=4), ranks=1)


@pytest.mark.parametrize("stage", [2, 3])
def test_pretrained_weights(tmp_path: Path, stage: int) -> None:
    """Weights come from files, in the order of the files, and differ from those that the seed gives."""
    _, trained = plain(Case())
    trained.save_pretrained(tmp_path)  # type: ignore[operator]
    case = Case(DeepSpeedOptions(stage=stage), weights=str(tmp_path))
    _equals_plain(case)
    assert plain(case)[0][0] != plain(Case())[0][0]


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp16"), (1, "bf16"), (2, "fp16"), (3, "fp16"), (3, "bf16")])
def test_half_precision_stays_near_fp32(stage: int, precision: str) -> None:
    """If the optimizer's weights came from rounded ones, or the loss scale were forgotten, norms would be far off."""
    case = Case(DeepSpeedOptions(stage=stage), precision=precision)
    found = kept_ranks(on_ranks, 2, case)[0]
    assert worst(plain(case)[0], found) < 0.03
    assert not any(skipped for *_, skipped in found)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_overflow_skips_a_step_and_lowers_the_scale(stage: int) -> None:
    case = Case(
        DeepSpeedOptions(stage=stage, fp16=Fp16(initial_scale_power=24, hysteresis=1)), precision="fp16", steps=12
    )
    lines, scales = run_ranks(on_ranks, 2, case, lambda strategy, lines: (lines, strategy.scalars()["loss_scale"]))[0]
    skipped = [bool(line[3]) for line in lines]
    assert skipped[0] and not skipped[-1]
    assert scales["value"] == 2.0 ** (24 - sum(skipped))
    assert all(norm == float("inf") for (_, norm, _, skip) in lines if skip)


# -- state -------------------------------------------------------------------------------------------------------


def _place_one_by_one(case: Case) -> tuple[int, int, int]:
    """Numbers of elements: most that this rank holds unsharded while it loads weights, in its shards, in the model."""
    strategy = build(case)
    most = 0
    config = model_config(case)
    model = build_on_meta(config, "causal_lm", Vocabulary(128))
    total = sum(p.numel() for p in model.parameters())
    inner = weight_source(config, model, seed=3)

    def watched(names: Any) -> Iterator[tuple[str, Tensor]]:
        nonlocal most
        for name, tensor in inner(names):
            most = max(most, sum(p.numel() for p in model.parameters() if not p.is_meta))
            yield name, tensor

    strategy.place(model, watched)
    shards = sum(p.ds_tensor.numel() for p in model.parameters())  # type: ignore[attr-defined]
    strategy.mesh.close()
    return most, shards, total


def test_no_rank_holds_the_whole_model() -> None:
    most, shards, total = kept_ranks(_place_one_by_one, 2, Case(DeepSpeedOptions(stage=3)))[0]
    assert most == 0
    assert total / 2 <= shards < 0.51 * total


def _evaluate_and_generate(case: Case, trained: bool) -> tuple[dict[str, float], list[list[int]]]:
    strategy = build(case)
    if trained:
        strategy.attach_optimizer(optimizer_factory(case.optimizer))
        train(strategy, case)
    strategy.set_training(False)
    mesh = strategy.mesh
    sums = strategy.evaluate(
        share(0, mesh.data_rank, mesh.data_size, 1).micro_batches,
        lambda outputs, micro: CausalLM().evaluate(outputs, micro.targets),
    )
    prompt = samples(0)[mesh.rank]["input_ids"][None]
    # The ranks end at different lengths: the one that has finished must go on serving its shards.
    tokens = strategy.generate(input_ids=prompt, max_new_tokens=3 + 4 * mesh.rank, do_sample=False, pad_token_id=0)
    mesh.close()
    return sums, tokens.tolist()


@pytest.mark.parametrize("trained", [False, True], ids=["inference", "trained"])
@pytest.mark.parametrize("stage", [2, 3])
def test_evaluation_and_generation(stage: int, trained: bool) -> None:
    case = Case(DeepSpeedOptions(stage=stage))
    results = kept_ranks(_evaluate_and_generate, 2, case, trained)
    model = plain(case)[1] if trained else plain_model(case)
    model.eval()
    whole = share(0, 0, 1, 8).micro_batches[0]
    with torch.no_grad():
        expected = CausalLM().evaluate(model(**whole.inputs), whole.targets)
    for rank, (sums, tokens) in enumerate(results):
        assert sums == pytest.approx({name: float(value) for name, value in expected.items()}, rel=TOLERANCE)
        prompt = samples(0)[rank]["input_ids"][None]
        plainly = model.generate(input_ids=prompt, max_new_tokens=3 + 4 * rank, do_sample=False, pad_token_id=0)  # type: ignore[operator]
        assert tokens == plainly.tolist()


# -- a user's own file -------------------------------------------------------------------------------------------
