"""Train a tiny model with DeepSpeed ZeRO and, for comparison, the same steps with plain PyTorch in one process. Also
import and compile DeepSpeed once, before tests fork their ranks.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from helpers.micro_batches import loss_of, of_tokens, step_of
from torch import Tensor
from trireme.models.build_model import Vocabulary, build_on_meta, weight_source
from trireme.models.model_config import ModelConfig
from trireme.parallel.mesh import build_mesh
from trireme.parallel.micro_batch import StepBatch
from trireme.parallel.plan import Plan
from trireme.parallel.recipe_values import RecipeValues
from trireme.parallel.zero.deepspeed_json import deepspeed_config
from trireme.parallel.zero.library import import_deepspeed, installed
from trireme.parallel.zero.operators import load_operator, missing_tools
from trireme.parallel.zero.options import DeepSpeedOptions, OffloadOptimizer
from trireme.parallel.zero.zero_strategy import DeepSpeedStrategy
from trireme.trainer.optimizers import optimizer_factory
from trireme.trainer.tasks.causal_lm import CausalLM

NEEDS_OPERATORS = [
    pytest.mark.skipif(not installed(), reason="deepspeed is not installed"),
    pytest.mark.skipif(
        bool(missing_tools()), reason=f"no {' and '.join(missing_tools())} to compile DeepSpeed's operators"
    ),
]
"""Marks of tests that train with DeepSpeed."""
TOLERANCE = 1e-5
CPU = OffloadOptimizer("cpu")
SWAPPED = {"vocab_size": 8192, "hidden_size": 64}
"""Sizes of a model that DeepSpeed swaps: shards below 1 MiB stay in memory."""
SAMPLES, LENGTH, CLIP = 8, 12, 0.5
SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
    "gpt2": {
        "vocab_size": 128,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
    },
}
ADAMW = {
    "_target_": "trireme.trainer.optimizers.adamw",
    "lr": 2e-2,
    "betas": [0.9, 0.95],
    "eps": 1e-8,
    "weight_decay": 0.1,
}


@dataclass
class Case:
    """One training set-up."""

    deepspeed: DeepSpeedOptions | str = field(default_factory=DeepSpeedOptions)
    family: str = "llama"
    micro_batch_size: int = 1
    precision: str = "fp32"
    clip: float | None = CLIP
    recompute: str = "none"
    optimizer: dict[str, Any] = field(default_factory=lambda: dict(ADAMW))
    schedule: str = "linear"
    overrides: dict[str, Any] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)
    weights: str | None = None
    steps: int = 6


def load_deepspeed() -> None:
    """Import and compile DeepSpeed before ranks are forked, so that not every rank spends seconds on it."""
    import_deepspeed()
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  (every ZeRO optimizer asks for it)

    load_operator("ShareMemCommBuilder")
    load_operator("CPUAdamBuilder")


def model_config(case: Case) -> ModelConfig:
    sizes = {**SIZES[case.family], **case.overrides}
    return ModelConfig(case.family, {} if case.weights else sizes, case.weights, frozen=case.frozen)


def samples(step: int) -> list[dict[str, Tensor]]:
    """The global batch of a step; between almost none and all of a sample's tokens have labels."""
    generator = torch.Generator().manual_seed(1000 + step)
    batch = []
    for index in range(SAMPLES):
        tokens = torch.randint(0, 128, (LENGTH,), generator=generator)
        labels = tokens.clone()
        labels[: (index * 5 + step) % LENGTH] = -100
        batch.append({"input_ids": tokens, "labels": labels})
    return batch


def share(step: int, rank: int, ranks: int, micro: int) -> StepBatch:
    """One rank's part of the global batch, in micro-batches."""
    mine = samples(step)[rank * SAMPLES // ranks : (rank + 1) * SAMPLES // ranks]
    parts = [mine[start : start + micro] for start in range(0, len(mine), micro)]
    return step_of(
        [of_tokens(**{key: torch.stack([sample[key] for sample in part]) for key in part[0]}) for part in parts]
    )


def rate(step: int, steps: int, warmup: int = 2) -> float:
    """The learning rate of transformers' linear schedule."""
    return step / warmup if step < warmup else (steps - step) / (steps - warmup)


def values(case: Case) -> RecipeValues:
    return RecipeValues(
        SAMPLES, case.micro_batch_size, case.clip, case.steps, case.optimizer, case.schedule, 2, 0.0, 32
    )


def build(case: Case) -> DeepSpeedStrategy:
    """Build the strategy with placed weights, on the existing ranks."""
    plan = Plan(
        shard="auto",
        data_parallel="deepspeed",
        precision=case.precision,  # type: ignore[arg-type]
        recompute=case.recompute,  # type: ignore[arg-type]
        deepspeed=case.deepspeed,
    )
    mesh = build_mesh(plan)
    config, problems = deepspeed_config(plan, values(case), mesh.data_size)
    assert not problems, problems
    model = model_config(case)
    built = build_on_meta(model, "causal_lm", Vocabulary(128))
    strategy = DeepSpeedStrategy(plan, mesh, model.spec, config)
    strategy.place(built, weight_source(model, built, seed=3))
    return strategy


def train(strategy: DeepSpeedStrategy, case: Case, first: int = 0, last: int | None = None) -> list[tuple[float, ...]]:
    """Train; returns (loss, gradient norm, learning rate, skipped) of each step."""
    lines = []
    strategy.set_training(True)
    for step in range(first, case.steps if last is None else last):
        batch = share(step, strategy.mesh.data_rank, strategy.mesh.data_size, case.micro_batch_size)
        loss = strategy.forward_backward(batch, loss_of(CausalLM()))
        result = strategy.optimizer_step(case.clip, rate(step, case.steps))
        lines.append((strategy.global_loss(loss), float(result.grad_norm), result.lr, float(result.skipped)))
    return lines


def on_ranks(case: Case, then: Callable[[DeepSpeedStrategy, list], Any] | None = None) -> Any:
    """Build and train, then call ``then`` and return its result; for ``run_ranks``."""
    strategy = build(case)
    strategy.attach_optimizer(optimizer_factory(case.optimizer))
    lines = train(strategy, case)
    result = then(strategy, lines) if then else lines
    strategy.mesh.close()
    return result


def plain_model(case: Case) -> torch.nn.Module:
    """A model with the same weights on one process, without any engine."""
    model = model_config(case)
    built = build_on_meta(model, "causal_lm", Vocabulary(128))
    source = weight_source(model, built, seed=3)
    tensors = dict(source({name for name, _ in (*built.named_parameters(), *built.named_buffers())}))
    built.to_empty(device="cpu")
    built.tie_weights()
    with torch.no_grad():
        for name, tensor in (*built.named_parameters(), *built.named_buffers()):
            tensor.copy_(tensors[name])
    return built


def plain(case: Case) -> tuple[list[tuple[float, ...]], torch.nn.Module]:
    """Train the same steps with plain PyTorch, each global batch at once."""
    model = plain_model(case)
    model.train()
    optimizer = optimizer_factory(case.optimizer)([(n, p) for n, p in model.named_parameters() if p.requires_grad])
    lines = []
    for step in range(case.steps):
        batch = share(step, 0, 1, SAMPLES)
        micro = batch.micro_batches[0]
        loss = CausalLM().loss(model(input_ids=micro.inputs["input_ids"]), micro.targets) / batch.labels
        loss.backward()
        # torch adds squares up in fp32 on the CPU, which is off by 7e-5 for half a million elements.
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients]).norm()
        if case.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(model.parameters(), case.clip, norm.float())
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate(step, case.steps)
        optimizer.step()
        optimizer.zero_grad()
        lines.append((loss.item(), norm.item(), optimizer.param_groups[0]["lr"], 0.0))
    return lines, model


def worst(one: list[tuple[float, ...]], other: list[tuple[float, ...]]) -> float:
    """Largest relative difference of loss and gradient norm."""
    assert len(one) == len(other) > 0
    return max(abs(a - b) / abs(a) for x, y in zip(one, other, strict=True) for a, b in zip(x[:2], y[:2], strict=True))


def can_compile() -> bool:
    """Whether DeepSpeed can build its CPU operators here."""
    return shutil.which("g++") is not None and shutil.which("ninja") is not None
