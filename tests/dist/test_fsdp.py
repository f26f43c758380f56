"""Tests of FSDP2: its options do not change the losses, each rank holds only its shard, and frozen parameters,
generation, bf16 and fp16 work.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.command import ROOTS, trireme_here
from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines, training, worst_difference
from helpers.micro_batches import loss_of
from helpers.options import witnesses
from helpers.ranks import run_ranks
from helpers.recipes import TINY, tiny_recipe
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from trireme.parallel.clip import local
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build, train

STEPS = ["trainer.max_steps=5", "trainer.global_batch_size=16", "checkpoint.at_end=false"]


def _train(run_dir: Path, *overrides: str) -> None:
    train(tiny_recipe(run_dir, *STEPS, *overrides))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2 on one process: its tied head is the harder case."""
    folder = tmp_path_factory.mktemp("one")
    _train(folder, "model=gpt2_tiny", "trainer.micro_batch_size=16")
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ["plan.recompute=full"],
        ["plan.recompute=selective"],
        ["plan.fsdp.forward_prefetch=1", "plan.fsdp.backward_prefetch=2"],
        ["plan.fsdp.reduce_every_micro_batch=false"],
        ["plan.fsdp.reduce_every_micro_batch=false", "plan.fsdp.reshard_after_forward=false", "+ema.decay=0.9"],
    ],
    ids=lambda options: ",".join(options),
)
def test_options_do_not_change_the_trajectory(
    one: Path, tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heeded = witnesses(monkeypatch, *options)
    run_ranks(_train, 2, tmp_path, "model=gpt2_tiny", "plan=fsdp_full_shard", *options)
    assert all(calls.value for calls in heeded)
    assert worst_difference(training(one), training(tmp_path)) < 1e-5
    if not any("ema" in option for option in options):
        assert lines(one)[-1]["eval_loss"] == pytest.approx(lines(tmp_path)[-1]["eval_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("plan.fsdp.min_num_params=20000", ["mlp"]),  # 33,088; the rest of a block has 16,896
        ("plan.fsdp.transformer_layer_cls_to_wrap=[GPT2MLP,GPT2Attention]", ["attn", "mlp"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrapped_does_not_change_the_trajectory(
    one: Path, tmp_path: Path, option: str, parts: list[str]
) -> None:
    overrides = ("model=gpt2_tiny", "plan=fsdp_full_shard", option)
    expected = {"", *(f"transformer.h.{block}.{part}" for block in range(4) for part in parts)}
    for found in kept_ranks(_describe, 2, tmp_path / "look", *overrides):
        assert set(found["wrapped"]) == expected
    kept_ranks(_train, 2, tmp_path / "two", *overrides)
    assert worst_difference(training(one), training(tmp_path / "two")) < 1e-5
    assert lines(one)[-1]["eval_loss"] == pytest.approx(lines(tmp_path / "two")[-1]["eval_loss"], rel=1e-5)


def _describe(run_dir: Path, *overrides: str) -> dict[str, object]:
    recipe = tiny_recipe(run_dir, *STEPS, *overrides)
    trainer = build(recipe, build_mesh(recipe.plan))
    strategy = trainer.strategy
    for batch in trainer.corpus.train_batches({}, 0, 1, trainer.mesh.data_rank, trainer.mesh.data_size):
        strategy.forward_backward(batch, loss_of(trainer.task))
        strategy.optimizer_step(1.0, 1.0)
    named = dict(strategy.named_parameters())
    weight = list(named.values())[-1]
    moments = strategy.optimizer.state[weight]["exp_avg"]
    return {
        "names": sorted(named),
        "wrapped": [name for name, module in strategy.module.named_modules() if isinstance(module, FSDPModule)],
        "elements": sum(local(parameter).numel() for parameter in named.values()),
        "all": sum(parameter.numel() for parameter in named.values()),
        "sharded": all(isinstance(parameter, DTensor) for parameter in named.values()),
        "moments": local(moments).shape == local(weight).shape,
        "frozen": {name for name, parameter in named.items() if not parameter.requires_grad},
        "trained": {name.split(".exp_avg")[0] for name in strategy.saved_tensors() if name.endswith("exp_avg")},
    }


def test_a_rank_holds_its_shard_under_plain_names(tmp_path: Path) -> None:
    for found in kept_ranks(_describe, 2, tmp_path, "model=llama_tiny", "plan=fsdp_full_shard"):
        assert found["sharded"] and found["moments"]
        assert found["elements"] == found["all"] / 2
        assert "model.layers.0.self_attn.q_proj.weight" in found["names"]
        assert {"", "model.embed_tokens", "lm_head", "model.layers.3"} <= set(found["wrapped"])


def test_hybrid_shards_hold_half_on_four_ranks(tmp_path: Path) -> None:
    for found in kept_ranks(_describe, 4, tmp_path, "model=llama_tiny", "plan=fsdp_hybrid_shard"):
        assert found["elements"] == found["all"] / 2


def test_frozen_parameters_stay_and_have_no_state(tmp_path: Path) -> None:
    frozen = ["model.frozen=[model.embed_tokens.*,model.layers.0.*]"]
    for found in kept_ranks(_describe, 2, tmp_path / "look", "plan=fsdp_full_shard", *frozen):
        assert len(found["frozen"]) > 4
        assert found["trained"] == {f"optim.{name}" for name in set(found["names"]) - found["frozen"]}
    _train(tmp_path / "one", *frozen)
    kept_ranks(_train, 2, tmp_path / "two", "plan=fsdp_full_shard", *frozen)
    assert worst_difference(training(tmp_path / "one"), training(tmp_path / "two")) < 1e-5


@pytest.mark.parametrize("pattern", ["model.layer.*", "*"])
def test_freezing_nothing_or_everything_is_refused(
    tmp_path: Path, pattern: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = trireme_here(capsys, "train", str(TINY), ROOTS, f"run.dir={tmp_path}", f"model.frozen=['{pattern}']")
    assert result.returncode == 2 and result.stderr.startswith("model.frozen")


def _sample(run_dir: Path, *overrides: str) -> list[list[int]]:
    recipe = tiny_recipe(run_dir, *overrides)
    strategy = build(recipe, build_mesh(recipe.plan)).strategy
    strategy.set_training(False)
    return strategy.generate(
        inputs=torch.tensor([[1, 2, 3]]), max_new_tokens=6, do_sample=False, pad_token_id=0
    ).tolist()


@pytest.mark.parametrize("plan", ["fsdp_full_shard", "fsdp_shard_grad_op"])
def test_generation_with_all_ranks_in_step(tmp_path: Path, plan: str) -> None:
    expected = _sample(tmp_path)
    assert kept_ranks(_sample, 2, tmp_path, f"plan={plan}") == [expected, expected]


def test_bf16_follows_fp32(tmp_path: Path, one: Path) -> None:
    kept_ranks(_train, 2, tmp_path, "model=gpt2_tiny", "plan=fsdp_full_shard", "plan.precision=bf16")
    assert 1e-6 < worst_difference(training(one), training(tmp_path), ["loss"]) < 1e-2


def test_fp16_skips_an_overflow_on_all_ranks(tmp_path: Path) -> None:
    assert kept_ranks(_overflow, 2, tmp_path) == [(True, 2.0**139, True)] * 2


def _overflow(run_dir: Path) -> tuple[bool, float, bool]:
    recipe = tiny_recipe(run_dir, "plan=fsdp_full_shard", "plan.precision=fp16")
    trainer = build(recipe, build_mesh(recipe.plan))
    strategy = trainer.strategy
    strategy.scale.value = 2.0**140
    before = {name: local(tensor).clone() for name, tensor in strategy.saved_tensors().items()}
    batch = next(iter(trainer.corpus.train_batches({}, 0, 1, trainer.mesh.data_rank, 2)))
    strategy.forward_backward(batch, loss_of(trainer.task))
    skipped = strategy.optimizer_step(1.0, 1.0).skipped
    same = all(torch.equal(local(tensor), before[name]) for name, tensor in strategy.saved_tensors().items())
    return skipped, strategy.scale.value, same
