"""Recipes that include the same file twice, or each other in a circle, are refused with the names of the files."""

from __future__ import annotations

from pathlib import Path

import pytest
from trireme.errors import Problem, UserError
from trireme.launch.compose import compose
from trireme.launch.find_recipes import find_recipe

FILES = {
    "whole": ["/base", "/model: gpt2_tiny", "/data: python_stdlib"],
    "child": ["whole"],
    "sister": ["whole"],
    "ancestor_again": ["child", "whole"],
    "base_again": ["/base", "child"],
    "two_children": ["child", "sister"],
    "shipped_again": ["/base", "/pretrain/persimmon_stdlib@_global_"],
    "first": ["second"],
    "second": ["first"],
}


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    for name, defaults in FILES.items():
        entries = "".join(f"  - {entry}\n" for entry in [*defaults, "_self_"])
        (tmp_path / f"{name}.yaml").write_text(f"defaults:\n{entries}seed: 5\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "why", "fix"),
    [
        ("ancestor_again", "include whole.yaml twice, in ancestor_again.yaml and child.yaml",
         "leave whole out of the defaults of ancestor_again.yaml"),
        ("base_again", "include base.yaml twice, in base_again.yaml and whole.yaml",
         "leave base out of the defaults of base_again.yaml"),
        ("shipped_again", "include base.yaml twice, in shipped_again.yaml and persimmon_stdlib.yaml",
         "leave base out of the defaults of shipped_again.yaml"),
        ("two_children", "include whole.yaml twice, in child.yaml and sister.yaml",
         "keep only values in sister.yaml, or build it on child.yaml"),
        ("first", "make recipes build on each other without end: first.yaml -> second.yaml -> first.yaml",
         "take first out of the defaults of second.yaml"),
    ],
)  # fmt: skip
def test_the_files_are_named(recipes: Path, name: str, why: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(str(recipes / f"{name}.yaml"), ["optimizer=nope"])
    unknown, repeated = caught.value.problems
    assert isinstance(unknown, Problem) and unknown.field == "optimizer"
    assert isinstance(repeated, Problem)
    assert (repeated.field, repeated.why, repeated.fix) == ("defaults", why, fix)


def test_recipes_that_build_on_others_once_compose(recipes: Path) -> None:
    assert compose(str(recipes / "child.yaml")).raw["seed"] == 5


def test_a_folder_inside_of_a_run_is_told_apart(recipes: Path) -> None:
    (recipes / "run" / "checkpoints").mkdir(parents=True)
    (recipes / "run" / "recipe.yaml").write_text("defaults: [/base]\n")
    with pytest.raises(UserError, match=f"name the run: {recipes / 'run'}"):
        find_recipe(str(recipes / "run" / "checkpoints"))
