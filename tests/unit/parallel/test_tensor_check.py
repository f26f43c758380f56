"""Tensor parallelism that cannot work is refused before launch, and the error gives values that would work."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from trireme.models.family import families
from trireme.models.model_config import ModelConfig, hf_config
from trireme.parallel.check_tensor_parallel import check_sequence, check_tensor
from trireme.parallel.recipe_values import RecipeValues


def _problems(family: str, tensor: int, **config: Any) -> list:
    return check_tensor(families()[family], hf_config(ModelConfig(family, config)), tensor)


def test_what_divides_is_accepted() -> None:
    assert _problems("llama", 4, num_attention_heads=8, num_key_value_heads=4, vocab_size=257) == []
    assert _problems("llama", 1, num_attention_heads=7, hidden_size=70) == []
    assert _problems("recurrent_gemma", 2, num_key_value_heads=1) == []


def test_heads_and_inner_sizes_are_refused_together_with_a_fix() -> None:
    sizes = {"hidden_size": 96, "num_attention_heads": 12, "num_key_value_heads": 6, "intermediate_size": 192}
    problems = _problems("llama", 5, **sizes)
    assert [problem.why.split("=")[0] for problem in problems] == [
        "num_attention_heads",
        "intermediate_size",
        "num_key_value_heads",
    ]
    assert all(problem.field == "plan.tensor" and problem.fix == "use one of 1, 2, 3, 6" for problem in problems)


@pytest.mark.parametrize(
    ("family", "tensor", "config", "word"),
    [
        ("llama", 4, {"num_attention_heads": 8, "num_key_value_heads": 2}, "num_key_value_heads=2"),
        ("gpt2", 2, {"n_head": 3, "n_embd": 48}, "n_head=3"),
        ("opt", 2, {"ffn_dim": 25}, "ffn_dim=25"),
        ("codegen", 8, {"n_head": 16}, "in groups of 4"),
        ("recurrent_gemma", 2, {"intermediate_size": 30}, "intermediate_size=30"),
    ],
)
def test_each_family_names_its_own_fields(family: str, tensor: int, config: dict[str, Any], word: str) -> None:
    (problem,) = _problems(family, tensor, **config)
    assert word in problem.why


def test_sequences_must_divide() -> None:
    values = RecipeValues(8, 8, None, 1, {}, "constant", 0, 0.0, 8, length=63, length_key="data.block_size")
    (problem,) = check_sequence(families()["llama"], 2, values)
    assert problem.field == "plan.sequence_parallel" and "data.block_size=62" in problem.fix
    assert check_sequence(families()["llama"], 3, values) == []
    assert check_sequence(families()["llama"], 2, dataclasses.replace(values, length=None)) == []


def test_a_family_without_a_plan_names_those_that_have_one() -> None:
    llama = families()["llama"]
    family = dataclasses.replace(llama, stacks=(dataclasses.replace(llama.stacks[0], tensor=None),))
    (problem,) = check_tensor(family, None, 2)
    assert "gpt_neox" in problem.fix and problem.value == 2


def test_checking_does_not_import_torch() -> None:
    code = "import sys, trireme.parallel.check_tensor_parallel; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
