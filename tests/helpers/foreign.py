"""Functions for tests that resume trireme from checkpoints of other libraries, such as transformers or DeepSpeed.

A test gets the model and the batches of ``tests/recipes/tiny.yaml`` here, trains them with the other library, resumes
its checkpoint with trireme, and compares all tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from helpers.joined_rows import joined_rows
from helpers.micro_batches import beside_tokens
from helpers.recipes import tiny_recipe
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from trireme.models.build_model import build_on_meta, weight_source
from trireme.parallel.mesh import build_mesh
from trireme.parallel.micro_batch import MicroBatch
from trireme.parallel.tensor_shards import full_tensor
from trireme.trainer.build import build, train
from trireme.trainer.data.open_corpus import open_corpus
from trireme.trainer.data.text_values import vocabulary_of
from trireme.trainer.tasks.causal_lm import CausalLM

Arrays = dict[str, np.ndarray]
STEPS, SAVED_AT = 6, 3
BATCH, MICRO, CLIP = 8, 2, 1.0
TIED = ["model=gpt2_tiny"]
"""Overrides for a model with a tied head and fused projections."""


def overrides(*more: str) -> list[str]:
    return [f"trainer.max_steps={STEPS}", "trainer.eval_samples=8", "trainer.eval_at_end=false", *more]


def prepared(run_dir: Path, *more: str) -> None:
    """Prepare the data once, before ranks use it."""
    recipe = tiny_recipe(run_dir, *overrides(*more))
    open_corpus(recipe.data, recipe.seed, recipe.trainer, CausalLM(), recipe.collator)


def model_and_recipe(run_dir: Path, *more: str) -> tuple[nn.Module, Any, Any]:
    """The model with the recipe's initial weights on the CPU, its corpus, and the recipe."""
    ranks = ["plan=ddp"] if dist.is_initialized() and dist.get_world_size() > 1 else []
    recipe = tiny_recipe(run_dir, *overrides(*more, *ranks))
    corpus = open_corpus(recipe.data, recipe.seed, recipe.trainer, CausalLM(), recipe.collator)
    model = build_on_meta(recipe.model, "causal_lm", vocabulary_of(corpus.tokenizer))
    source = weight_source(recipe.model, model, recipe.seed)
    tensors = dict(source({name for name, _ in (*model.named_parameters(), *model.named_buffers())}))
    model.to_empty(device="cpu")
    model.tie_weights()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            tensor.copy_(tensors[name])
    return model, corpus, recipe


def batches(corpus: Any, steps: int = STEPS, rank: int = 0, ranks: int = 1) -> Iterator[list[MicroBatch]]:
    """Micro-batches of each step for one data rank, from the first sample on."""
    for batch in corpus.train_batches({}, 0, steps, rank, ranks):
        yield batch.micro_batches


def rows(micro: MicroBatch) -> list[dict[str, Tensor]]:
    """Samples as ``transformers.Trainer`` takes them, with labels at the positions of their tokens."""
    columns = {**micro.inputs, "labels": beside_tokens(micro.targets["labels"])}
    return [{name: column[row] for name, column in columns.items()} for row in range(micro.rows)]


def mean_loss(model: nn.Module, micro: MicroBatch) -> Tensor:
    """The mean over a micro-batch; samples have equally many labels, so the mean of such means is the global mean."""
    return model(input_ids=micro.inputs["input_ids"], labels=beside_tokens(micro.targets["labels"])).loss


def over_ranks(value: float) -> float:
    """The mean of ``value`` over all ranks."""
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def resumed(run_dir: Path, folder: Path, *more: str) -> None:
    """Resume from ``folder`` and train to the end; for ``run_ranks``, or one process."""
    train(tiny_recipe(run_dir, *overrides(*more)), resume=str(folder))


def arrays(tensors: dict[str, Tensor]) -> Arrays:
    """Tensors as arrays, which can be sent between processes; fp32 represents every shorter type exactly."""
    return {name: tensor.detach().float().numpy().copy() for name, tensor in tensors.items()}


def loaded(run_dir: Path, folder: Path, *more: str) -> tuple[Arrays, dict[str, Any]]:
    """Full tensors of this rank and the trainer's state, right after loading ``folder``; for ``run_ranks``."""
    recipe = tiny_recipe(run_dir, *overrides(*more))
    mesh = build_mesh(recipe.plan)
    trainer = build(recipe, mesh, str(folder))
    held = trainer.saving.tensors()
    held = {name: full_tensor(t) if isinstance(t, DTensor) else t for name, t in held.items()}
    tensors = arrays(joined_rows(mesh, held) if recipe.plan.name.startswith("zero") else held)
    state = trainer.state.to_json()
    mesh.close()
    return tensors, state


def merged(results: list[tuple[Arrays, dict[str, Any]]]) -> Arrays:
    """The tensors of all ranks in one mapping."""
    return {name: array for held, _ in results for name, array in held.items()}


def assert_equal(one: Arrays, other: Arrays) -> None:
    """Assert that names and bits are the same."""
    assert one.keys() == other.keys()
    different = [name for name in one if not np.array_equal(one[name], other[name])]
    assert not different, different[:5]
