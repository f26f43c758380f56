"""Tests that every error about a recipe (class ``Problem``) tells the user what to write in its place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trireme.configs.schema import RecipeConfig
from trireme.configs.validate import read
from trireme.configs.values import did_you_mean

ROOT = Path(__file__).parents[2]
FOLDERS = ("models", "parallel", "trainer", "configs", "launch")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def _without_fix(path: Path) -> Iterator[int]:
    """Lines that make a ``Problem`` without a fix, except ``Problem(field, each)``, where ``each`` has the fix."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "Problem":
            continue
        given = [*node.args[2:3], *(word.value for word in node.keywords if word.arg in ("fix", None))]
        spread = any(isinstance(each, ast.Starred) for each in node.args)
        whole = len(node.args) == 2 and isinstance(node.args[1], ast.Name)
        empty = [each for each in given if isinstance(each, ast.Constant) and not each.value]
        if not spread and not whole and (empty or not given):
            yield node.lineno


def test_every_problem_has_a_fix() -> None:
    found = [f"{path.relative_to(ROOT)}:{line}" for path in FILES for line in _without_fix(path)]
    assert not found


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("trainer", {"eval_every": 0, "max_steps": 0, "timeout_minutes": 0, "eval_samples": 0}),
        ("checkpoint", {"every": 0, "keep_last": 0, "keep_best": -1}),
        ("plan", {"shard": 0, "tensor": 0}),
        ("plan", {"pipelining": {"stages_per_rank": 0, "split": [0, 2]}}),
        ("plan", {"deepspeed": {"reduce_bucket_size": 0, "stage3_max_reuse_distance": -1}}),
        ("plan", {"fsdp": {"min_num_params": 0}}),
        ("launch", {"nodes": 0, "port": 3}),
    ],
)
def test_a_number_out_of_range_has_a_fix(part: str, values: dict[str, Any]) -> None:
    problems = [problem for problem in read({part: values}, RecipeConfig)[1] if problem.field.startswith(f"{part}.")]
    wrong = [inside for value in values.values() for inside in (value if isinstance(value, dict) else [value])]
    assert len(problems) >= len(wrong) and all(problem.fix for problem in problems), problems


def test_a_name_unlike_all_options_is_answered_with_the_first_ones() -> None:
    assert did_you_mean("nope", [f"model_{number}" for number in range(50)]).endswith("model_3, model_4, ...")
