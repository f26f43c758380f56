"""Tests of reading plain dictionaries into typed configuration objects. All mistakes in a dictionary are reported
together, with their keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from trireme.configs.components import Provided, check_component
from trireme.configs.validate import problem_of, read, read_parts, schema_defaults
from trireme.configs.values import check_value
from trireme.errors import Problem, refuse
from trireme.models.adapter_config import AdapterConfig
from trireme.models.model_config import ModelConfig
from trireme.parallel.plan import FSDPOptions, PipelineOptions
from trireme.trainer.checkpoint.checkpoint_config import CheckpointConfig
from trireme.trainer.component import Component
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.tokenizer import TokenizerConfig
from trireme.trainer.schedules import ScheduleConfig
from trireme.trainer.settings import TrainerConfig


@dataclass
class Inner:
    depth: int = 1
    rate: float = 0.5
    mode: Literal["fast", "slow"] = "fast"

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise ValueError(f"depth={self.depth} is wrong because it is negative; set it to 0 or more")


@dataclass
class Middle:
    needed: str
    inner: Inner = field(default_factory=Inner)
    sizes: list[int] = field(default_factory=list)
    free: dict[str, Any] = field(default_factory=dict)


@dataclass
class Root:
    middle: Middle
    part: Component
    other: Inner | None = None
    parts: dict[str, Component] = field(default_factory=dict)
    limit: int | None = None
    degree: int | Literal["auto"] = 1


class Thing:
    def __init__(
        self, given: object, size: int, path: str | None = None, betas: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        self.given, self.size, self.path, self.betas = given, size, path, betas


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register this module: in importlib mode, sys.modules lacks it under the name that its classes carry."""
    import sys
    import types

    module = types.ModuleType("test_things")
    module.Thing = Thing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "test_things", module)


def raw(**changes: Any) -> dict[str, Any]:
    return {"middle": {"needed": "x"}, "part": {"_target_": "test_things.Thing", "size": 3}} | changes


PROVIDED = {"part": Provided(positional=1), "parts.a": Provided(positional=1)}


def problems_of(data: dict[str, Any]) -> dict[str, Problem]:
    result, problems = read(data, Root, PROVIDED)
    assert result is None
    return {problem.field: problem for problem in problems}


def test_good_data_becomes_typed() -> None:
    root, problems = read(
        raw(other={"rate": 1}, degree="auto", middle={"needed": "x", "sizes": [1, 2]}), Root, PROVIDED
    )
    assert not problems
    assert root is not None and root.other is not None
    assert root.other == Inner(rate=1.0)
    assert isinstance(root.other.rate, float)
    assert root.middle.sizes == [1, 2]
    assert root.degree == "auto"


def test_unknown_keys_at_all_depths_are_reported_together_with_the_nearest() -> None:
    data = raw(middel={}, depht=3, other={"rat": 1}, middle={"needed": "x", "inner": {"dept": 2}, "zzz": 1})
    problems = problems_of(data)
    assert set(problems) == {"middel", "depht", "other.rat", "middle.inner.dept", "middle.zzz"}
    assert problems["middel"].fix == "did you mean middle?"
    assert problems["other.rat"].fix == "did you mean other.rate?"
    assert problems["middle.inner.dept"].fix == "did you mean middle.inner.depth?"
    assert problems["depht"].fix == "did you mean middle.inner.depth?"  # elsewhere in the schema
    assert problems["middle.zzz"].fix == "known here: needed, inner, sizes, free"


@pytest.mark.parametrize(
    ("path", "value", "expected", "fix"),
    [
        ("depth", "3", "an integer", "write it without quotes: 3"),
        ("depth", True, "an integer", "write an integer"),
        ("depth", 1.5, "an integer", "write an integer"),
        ("depth", 1000.0, "an integer", "write 1000"),
        ("rate", "much", "a number", "write a number"),
        ("rate", None, "a number", "write a number, or leave it out"),
        ("mode", "fsat", "'fast' or 'slow'", "did you mean fast?"),
        ("mode", "fastest of all", "'fast' or 'slow'", "did you mean fast?"),
        ("mode", "blue", "'fast' or 'slow'", "write 'fast' or 'slow'"),
        ("mode", 3, "'fast' or 'slow', got an integer", "write 'fast' or 'slow'"),
    ],
)
def test_wrong_types_say_what_was_expected(path: str, value: Any, expected: str, fix: str) -> None:
    problem = problems_of(raw(other={path: value}))[f"other.{path}"]
    assert f"expected {expected}" in problem.why
    assert problem.value == value
    assert problem.fix == fix
    assert "got a string" not in problem.why or path != "mode", "a string is expected there"


@pytest.mark.parametrize(
    ("value", "why"), [(1e30, "is too large"), (float("inf"), "is infinite"), (float("nan"), "is not a number")]
)
def test_numbers_that_cannot_be_used_say_why(value: float, why: str) -> None:
    assert problems_of(raw(other={"rate": value}))["other.rate"].why.startswith(why)


def test_wrong_items_of_lists_and_wrong_containers() -> None:
    problems = problems_of(raw(middle={"needed": "x", "sizes": [1, "b"], "inner": 3}, limit=[1]))
    assert set(problems) == {"middle.sizes.1", "middle.inner", "limit"}
    assert "an integer or null" in problems["limit"].why


def test_a_list_whose_items_were_set_one_by_one_is_shown_whole() -> None:
    """Hydra makes a mapping of ``+middle.sizes.0=3`` where there is no list yet."""
    for sizes in ({"0": 3, "1": {"a": 0.5}}, {"1": {"a": 0.5}, "0": 3}):
        problem = problems_of(raw(middle={"needed": "x", "sizes": sizes}))["middle.sizes"]
        assert problem.fix == "write the whole list: [3, {a: 0.5}]"
    assert "whole" not in problems_of(raw(middle={"needed": "x", "sizes": {"7": 3}}))["middle.sizes"].fix


def test_missing_values() -> None:
    problems = problems_of({"middle": {"needed": "???", "free": {"a": {"b": "???"}}}})
    assert set(problems) == {"middle.needed", "middle.free.a.b", "part"}
    assert "is required" in problems["middle.needed"].why


def test_post_init_errors_become_problems_of_their_field() -> None:
    problem = problems_of(raw(middle={"needed": "x", "inner": {"depth": -2}}, limit="a"))["middle.inner.depth"]
    assert (problem.why, problem.fix, problem.value) == ("is wrong because it is negative", "set it to 0 or more", -2)


def test_component_arguments_are_checked_against_the_signature() -> None:
    problems = problems_of(
        raw(part={"_target_": "test_things.Thing", "siez": 1, "path": 3, "given": 1, "betas": [1, 2, 3]})
    )
    assert set(problems) == {"part.siez", "part.size", "part.path", "part.given", "part.betas"}
    assert problems["part.siez"].fix == "did you mean part.size?"
    assert "is required" in problems["part.size"].why
    assert "set by trireme" in problems["part.given"].why


def test_lists_are_taken_for_tuples() -> None:
    assert not read(raw(part={"_target_": "test_things.Thing", "size": 1, "betas": [0.9, 1]}), Root, PROVIDED)[1]


@pytest.mark.parametrize(
    ("target", "fix"),
    [
        ("test_things.Thign", "did you mean test_things.Thing?"),
        ("trireme.trainer.callbacks.flwo.Flow", "did you mean trireme.trainer.callbacks.flow?"),
        ("no_such_package_at_all.Thing", "install no_such_package_at_all, or put its folder on PYTHONPATH"),
        ("Thing", "write it in full: package.module.Name"),
    ],
)
def test_targets_that_do_not_exist(target: str, fix: str) -> None:
    problem = problems_of(raw(parts={"a": {"_target_": target}}))["parts.a._target_"]
    assert "cannot be imported" in problem.why
    assert problem.fix == fix


def test_components_are_found_inside_arguments() -> None:
    nested = {"_target_": "test_things.Thing", "size": {"_target_": "test_things.Nothing"}}
    problems = problems_of(raw(parts={"a": nested, "b": None, "c": {"size": 1}}))
    assert set(problems) == {"parts.a.size._target_", "parts.b", "parts.c._target_"}
    assert problems["parts.b"].fix == "to leave it out write ~parts.b"


def test_parts_without_problems_of_value_stay_usable() -> None:
    parts, problems = read_parts(raw(other={"depht": 1}, middle={"needed": 3}), Root, PROVIDED)
    assert {problem.field for problem in problems} == {"other.depht", "middle.needed"}
    assert parts["other"] == Inner()
    assert "middle" not in parts


def test_defaults_show_every_field() -> None:
    defaults = schema_defaults(Root)
    assert defaults["middle"] == {
        "needed": "???",
        "inner": {"depth": 1, "rate": 0.5, "mode": "fast"},
        "sizes": [],
        "free": {},
    }
    assert (defaults["part"], defaults["other"], defaults["parts"]) == ("???", None, {})


@dataclass
class Strict:
    """A dataclass that names all of its own flaws at once."""

    low: int = 1
    high: int = 9
    names: list[str] = field(default_factory=list)
    sizes: list[int] | None = None
    either: list[str] | str = "x"
    free: int | None = None

    def __post_init__(self) -> None:
        refuse(self._flaws())

    def _flaws(self) -> Iterator[str]:
        if self.low < 0:
            yield f"low={self.low} must not be negative; use 0"
        if self.high > 10:
            yield f"high={self.high} must be at most 10"
        if self.low > self.high:
            yield f"low={self.low} is above high={self.high}"


def test_all_flaws_of_one_dataclass_are_told_beside_wrong_types() -> None:
    _, problems = read({"low": -1, "high": 11, "free": "x"}, Strict)
    assert {problem.field for problem in problems} == {"low", "high", "free"}
    _, problems = read({"low": "x", "high": 11}, Strict)  # the comparison of low and high is left out
    assert {problem.field for problem in problems} == {"low", "high"}
    _, problems = read({"low": "x", "high": 0}, Strict)
    assert [problem.field for problem in problems] == ["low"]


@pytest.mark.parametrize(
    "cls", [TrainerConfig, ScheduleConfig, CheckpointConfig, TokenizerConfig, DataConfig, FSDPOptions, PipelineOptions]
)
def test_owners_collect_their_flaws(cls: type) -> None:
    wrong: dict[type, dict[str, Any]] = {
        TrainerConfig: {"max_steps": 0, "eval_every": -1, "max_time": "soon", "max_grad_norm": -1.0},
        ScheduleConfig: {"name": "linear", "power": 2.0, "warmup_ratio": 3.0, "warmup_steps": -2},
        CheckpointConfig: {"every": 0, "keep_last": -1, "keep_best": -1},
        TokenizerConfig: {"vocab_size": 1, "sample_documents": 0},
        DataConfig: {"source": {"_target_": "test_things.Thing"}, "block_size": 1, "held_out": 3.0},
        FSDPOptions: {"forward_prefetch": -1, "min_num_params": 0},
        PipelineOptions: {"stages_per_rank": 0, "split": [0]},
    }
    with pytest.raises(ValueError) as caught:
        cls(**wrong[cls])
    for name in wrong[cls].keys() - {"name", "source"}:
        assert name in str(caught.value)
    assert len(str(caught.value).splitlines()) >= 2


def test_a_single_value_serves_where_a_list_of_one_does() -> None:
    result, _ = read({"names": "a.txt", "sizes": 3, "either": "y"}, Strict)
    assert result is not None
    assert (result.names, result.sizes, result.either) == (["a.txt"], [3], "y")
    for wrong in ({"names": 3}, {"sizes": "x"}, {"names": {"a": 1}}):
        _, problems = read(wrong, Strict)
        assert problems[0].fix


def listing(paths: list[str], sizes: tuple[int, int] = (1, 2), text: str = "") -> None: ...


def test_a_single_value_serves_as_a_list_of_one_for_components(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    sys.modules["test_things"].listing = listing  # type: ignore[attr-defined]
    node = {"_target_": "test_things.listing", "paths": "a.txt", "text": "b"}
    assert not check_component(node, "part")
    assert node["paths"] == ["a.txt"]
    assert node["text"] == "b"
    assert [problem.field for problem in check_component({**node, "sizes": 3}, "part")] == ["part.sizes"]


@pytest.mark.parametrize("value", [None, True, 3, 1.5, "x", [], ["x"], {"a": 1}])
@pytest.mark.parametrize("hint", [int, float, str, bool, list[str], dict[str, int], int | None, Literal["a", "b"]])
def test_every_wrong_type_comes_with_a_fix(value: Any, hint: Any) -> None:
    assert all(problem.fix for problem in check_value(value, hint, "key")[1])


def test_a_part_is_shown_by_the_word_that_its_message_has() -> None:
    part = ModelConfig("llama", {}, adapter=AdapterConfig())
    problem = problem_of("adapter=lora is of no use; leave it out", "model", vars(part))
    assert str(problem) == "model.adapter = 'lora'\n  is of no use\n  fix: leave it out"
