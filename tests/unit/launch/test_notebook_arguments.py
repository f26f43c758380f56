"""``trireme.train``, the function for notebooks, takes overrides in several forms, and refuses arguments of a wrong
type or value by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trireme
from trireme.errors import UserError
from trireme.launch.notebook import as_overrides


@pytest.mark.parametrize("given", [None, (), {}, [], "seed=1", ["seed=1"], ("seed=1",), {"seed": 1}, iter(["seed=1"])])
def test_overrides_in_every_valid_form(given: Any) -> None:
    assert as_overrides(given) in ([], ["seed=1"])


@pytest.mark.parametrize("given", [3, b"seed=1", [1], {1: 2}, [None], object(), 1.5, [["seed=1"]]])
def test_overrides_of_wrong_types_are_refused(given: Any) -> None:
    with pytest.raises(UserError, match="overrides"):
        as_overrides(given)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"recipe": None}, "RECIPE"),
        ({"recipe": 3}, "RECIPE"),
        ({"recipe": "nope", "overrides": None}, "RECIPE"),
        ({"recipe": Path("nope.yaml")}, "RECIPE"),
        ({"recipe": "pretrain/persimmon_stdlib", "nproc": "two"}, "nproc"),
        ({"recipe": "pretrain/persimmon_stdlib", "nproc": True}, "nproc"),
        ({"recipe": "pretrain/persimmon_stdlib", "nproc": 0}, "nproc"),
        ({"recipe": "pretrain/persimmon_stdlib", "resume": None}, "resume"),
        ({"recipe": "pretrain/persimmon_stdlib", "recipe_dirs": "mine"}, "recipe_dirs"),
        ({"recipe": "pretrain/persimmon_stdlib", "overrides": {"nothing": 1}}, "nothing"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        trireme.train(**arguments)
    assert field in str(caught.value)
