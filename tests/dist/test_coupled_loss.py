"""Tests of the contrastive loss: it takes its negatives from the whole global batch, under DDP, FSDP and ZeRO plans and
with any micro-batch size. Also tested: repeatable dropout, and how the temperature is computed from the logits.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.kept_ranks import kept_ranks
from helpers.zero import ADAMW, load_deepspeed
from trireme.models.build_model import build_on_meta, weight_source
from trireme.models.facts import Facts
from trireme.models.model_config import ModelConfig
from trireme.parallel.choose_strategy import build_strategy
from trireme.parallel.mesh import build_mesh
from trireme.parallel.micro_batch import MicroBatch, StepBatch
from trireme.parallel.plan import Plan
from trireme.parallel.recipe_values import RecipeValues
from trireme.parallel.zero.options import DeepSpeedOptions
from trireme.trainer.optimizers import optimizer_factory
from trireme.trainer.tasks.contrastive import Contrastive
from trireme.trainer.tasks.contrastive_loss import scale_of, scale_sums

SLOW = {**ADAMW, "lr": 1e-3}
PAIRS, STEPS, CLIP, TOLERANCE = 16, 5, 0.5, 1e-4
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
MODEL = {
    "projection_dim": 16,
    "vision_config": {"model_type": "vit", "image_size": 16, "patch_size": 8, **SIZES},
    "text_config": {"model_type": "bert", "vocab_size": 64, "max_position_embeddings": 16, **SIZES},
}
SINGLE = Plan()
PLANS = {
    "ddp": (Plan(replicate="auto"), 2),
    "fsdp_full_shard": (Plan(data_parallel="fsdp", shard="auto"), 2),
    "fsdp_no_shard": (Plan(data_parallel="fsdp", replicate="auto"), 2),
    "fsdp_hybrid_shard": (Plan(data_parallel="fsdp", replicate=2, shard=2), 4),
    "zero1": (Plan(data_parallel="deepspeed", shard="auto", deepspeed=DeepSpeedOptions(stage=1)), 2),
    "zero2": (Plan(data_parallel="deepspeed", shard="auto", deepspeed=DeepSpeedOptions(stage=2)), 2),
    "zero3": (Plan(data_parallel="deepspeed", shard="auto", deepspeed=DeepSpeedOptions(stage=3)), 2),
}


def share(step: int, rank: int, ranks: int, micro: int) -> StepBatch:
    """One data rank's pairs of a step; two of the step's pairs are marked as unpaired."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(PAIRS, 3, 16, 16, generator=generator)
    texts = torch.randint(5, 64, (PAIRS, 8), generator=generator)
    paired = torch.ones(PAIRS, dtype=torch.bool)
    paired[step : step + 2] = False
    micros = []
    for first in range(rank * PAIRS // ranks, (rank + 1) * PAIRS // ranks, micro):
        rows = slice(first, first + micro)
        inputs = {"pixel_values": images[rows], "input_ids": texts[rows], "attention_mask": torch.ones(micro, 8)}
        micros.append(MicroBatch(inputs, {"paired": paired[rows]}, torch.arange(first, first + micro), micro))
    return StepBatch(micros, sum(int(one.targets["paired"].sum()) for one in micros), PAIRS // ranks, [])


def lines(plan: Plan, micro: int, dropout: float = 0.0) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step."""
    mesh = build_mesh(plan)
    config = copy.deepcopy(MODEL)
    for part in ("vision_config", "text_config"):
        config[part]["hidden_dropout_prob"] = dropout
    model = ModelConfig("vision_text_dual_encoder", config)
    built = build_on_meta(model, "features", Facts())
    values = RecipeValues(PAIRS, micro, CLIP, STEPS, SLOW, "constant", 0, 0.0, 32)
    strategy = build_strategy(plan, mesh, model.spec, values)
    strategy.place(built, weight_source(model, copy.deepcopy(built), seed=3))
    strategy.attach_optimizer(optimizer_factory(SLOW))
    strategy.set_training(True)
    found = []
    for step in range(STEPS):
        torch.manual_seed(step)
        loss = strategy.forward_backward_coupled(share(step, mesh.data_rank, mesh.data_size, micro), Contrastive())
        result = strategy.optimizer_step(CLIP, 1.0)
        found.append((strategy.global_loss(loss), float(result.grad_norm)))
    mesh.close()
    return found


def plain_lines() -> list[tuple[float, float]]:
    """The same steps by plain autograd on the global batch: (loss, gradient norm) of each step."""
    model = ModelConfig("vision_text_dual_encoder", copy.deepcopy(MODEL))
    built = build_on_meta(model, "features", Facts())
    tensors = dict(weight_source(model, built, 3)({n for n, _ in (*built.named_parameters(), *built.named_buffers())}))
    built.to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in (*built.named_parameters(), *built.named_buffers()):
            tensor.copy_(tensors[name])
    built.train()
    optimizer = optimizer_factory(SLOW)(list(built.named_parameters()))
    found = []
    for step in range(STEPS):
        micro = share(step, 0, 1, PAIRS).micro_batches[0]
        outputs, paired = built(**micro.inputs), micro.targets["paired"]
        logits = outputs.logits_per_image[paired][:, paired]
        own = torch.arange(len(logits))
        loss = (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(built.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        found.append((loss.item(), float(norm)))
    return found


def worst(one: list[Any], other: list[Any]) -> float:
    assert len(one) == len(other) == STEPS
    return max(abs(a - b) / abs(a) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@pytest.fixture(scope="module")
def reference() -> list[tuple[float, float]]:
    return plain_lines()


@pytest.mark.parametrize("micro", [16, 4, 1])
def test_micro_batches_do_not_change_the_negatives(micro: int, reference: list[Any]) -> None:
    assert worst(reference, lines(SINGLE, micro)) < TOLERANCE


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_has_the_negatives_of_the_global_batch(name: str, reference: list[Any]) -> None:
    plan, ranks = PLANS[name]
    if name.startswith("zero"):
        load_deepspeed()
    for found in kept_ranks(lines, ranks, plan, 2):
        assert worst(reference, found) < TOLERANCE


def test_both_passes_draw_the_same_noise() -> None:
    """With dropout, the gradient must belong to the reported loss, so both forward passes use the same masks."""
    assert lines(SINGLE, 4, dropout=0.3) == lines(SINGLE, 4, dropout=0.3)
    assert worst(lines(SINGLE, 16, dropout=0.3), lines(SINGLE, 16, dropout=0.0)) > 0.01


@pytest.mark.parametrize("bias", [0.0, -10.0])
@pytest.mark.parametrize("micro", [1, 2, 8])
def test_the_temperature_is_exact_also_of_single_pairs(micro: int, bias: float) -> None:
    """The first pair is orthogonal, as noise makes one now and then. The quotient of its logit and product consists of
    rounding errors, and with single pairs a bias cannot be told from a scale."""
    torch.manual_seed(0)
    one, other = (torch.nn.functional.normalize(torch.randn(8, 64), dim=1) for _ in range(2))
    other[0] -= (other[0] @ one[0]) * one[0]
    leaf = torch.tensor(20.0, requires_grad=True)
    one, other = one.requires_grad_(), other.requires_grad_()
    parts = []
    for first in range(0, 8, micro):
        rows = slice(first, first + micro)
        logits = (other[rows] * leaf @ one[rows].T).T + bias
        parts.append(scale_sums(logits, one[rows], other[rows]))
    scale = scale_of(torch.cat(parts))
    assert float(scale.detach()) == pytest.approx(20.0, rel=1e-5)
    by_leaf, by_one, by_other = torch.autograd.grad(scale, [leaf, one, other])
    assert float(by_leaf) == pytest.approx(1.0, rel=1e-5)
    assert max(float(by_one.abs().max()), float(by_other.abs().max())) < 1e-3
