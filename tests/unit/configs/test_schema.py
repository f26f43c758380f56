"""Tests of checks that involve several sections of a recipe, such as the batch size and the number of ranks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from trireme.configs.schema import RecipeConfig, check, read_recipe
from trireme.errors import Problem

RECIPE: dict[str, Any] = {
    "run": {"dir": "runs/x"},
    "model": {
        "family": "llama",
        "config": {
            "vocab_size": 300,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
        },
    },
    "task": {"_target_": "trireme.trainer.tasks.causal_lm.CausalLM"},
    "data": {
        "source": {"_target_": "trireme.trainer.data.sources.PythonSources"},
        "block_size": 32,
        "tokenizer": {"vocab_size": 300},
    },
    "plan": {"name": "ddp", "replicate": "auto"},
    "trainer": {"max_steps": 10, "global_batch_size": 8, "micro_batch_size": 4},
    "optimizer": {"_target_": "trireme.trainer.optimizers.adamw", "lr": 1e-3},
    "scheduler": {"name": "constant"},
    "checkpoint": {},
}


def examine(world_size: int = 1, **changes: Any) -> tuple[RecipeConfig | None, dict[str, Problem]]:
    raw = copy.deepcopy(RECIPE)
    for path, value in changes.items():
        node, *rest = path.split("__")
        place = raw[node]
        for part in rest[:-1]:
            place = place[part]
        place[rest[-1]] = value
    recipe, problems = read_recipe(raw, lambda plan: world_size)
    return recipe, {problem.field: problem for problem in problems}


def test_a_good_recipe_is_typed() -> None:
    recipe, problems = examine(2)
    assert not problems
    assert recipe is not None
    assert recipe.trainer.global_batch_size == 8
    assert check(recipe, 2) == []
    assert [problem.field for problem in check(recipe, 3)] == ["trainer.global_batch_size"]


def test_batch_arithmetic_names_sizes_that_fit() -> None:
    _, problems = examine(3, trainer__global_batch_size=42)
    problem = problems["trainer.global_batch_size"]
    assert problem.value == 42
    assert "4 x 3 = 12" in problem.why
    assert problem.fix == "set trainer.global_batch_size to 36 or 48, or trainer.micro_batch_size to 2 or 7"


def test_a_batch_smaller_than_the_ranks() -> None:
    _, problems = examine(4, trainer__global_batch_size=2)
    assert problems["trainer.global_batch_size"].fix == "set trainer.global_batch_size to 16"


def test_plan_must_fit_the_processes() -> None:
    _, problems = examine(3, plan__replicate=2)
    assert "got 3 processes" in problems["plan"].why


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"trainer__stop_at": 11}, "trainer.stop_at"),
        ({"scheduler__name": "linear", "scheduler__warmup_steps": 11}, "scheduler.warmup_steps"),
        ({"data__held_out": 0.0, "trainer__eval_every": 2}, "trainer.eval_every"),
        ({"data__tokenizer": {"vocab_size": 301}}, "data.tokenizer.vocab_size"),
        ({"data__block_size": 65}, "data.block_size"),
        (
            {
                "trainer__max_steps": None,
                "trainer__epochs": 1.0,
                "data__streaming": True,
                "data__deduplicate": False,
                "data__tokenizer": {"vocab_size": 300, "sample_documents": 5},
            },
            "trainer.max_steps",
        ),
        ({"optimizer__params": []}, "optimizer.params"),
        ({"model__family": "lama"}, "model.family"),
        ({"model__config__hidden_sizes": 2}, "model.config.hidden_sizes"),
    ],
)
def test_contradictions(changes: dict[str, Any], field: str) -> None:
    recipe, problems = examine(1, **changes)
    assert recipe is None
    assert list(problems) == [field]


def test_cross_checks_speak_up_beside_unknown_keys_and_wrong_types() -> None:
    _, problems = examine(
        3, trainer__stop_at=99, data__blok_size=1, model__config__vocab_siz=3, scheduler__warmup_ratio="x"
    )
    # stop_at is judged only beside a valid scheduler; the batch is always judged.
    assert set(problems) == {
        "data.blok_size",
        "scheduler.warmup_ratio",
        "trainer.global_batch_size",
        "model.config.vocab_siz",
    }
