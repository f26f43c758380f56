"""Tests of the search space of ``trireme search``: ranges, choices, conditions, first trials, and invalid spaces."""

from __future__ import annotations

import math
import random
from typing import Any

import optuna
import pytest
from trireme.launch.search.check_space import edges
from trireme.launch.search.read_space import read_space
from trireme.launch.search.search_config import SearchConfig
from trireme.launch.search.space import Space

LR = {"low": 1e-5, "high": 1e-2, "log": True}
SPACE = {
    "optimizer.lr": LR,
    "optimizer": ["adamw", "lion"],
    "trainer": {"max_grad_norm": [
        {"low": 1, "high": 2, "when": {"optimizer": "adamw"}},
        {"low": 3.0, "high": 4, "when": {"optimizer": ["lion"]}},
    ]},
    "scheduler.warmup_steps": {"low": 0, "high": 8, "step": 4, "when": {"optimizer": "lion"}},
    "optimizer.betas": [[0.9, 0.95], [0.9, 0.99]],
}  # fmt: skip


def space_of(given: dict[str, Any]) -> Space:
    space, flaws = read_space(given)
    assert not flaws
    return space


def test_values_keep_their_types_and_cases() -> None:
    space = space_of(SPACE)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = [space.suggest(study.ask()) for _ in range(60)]
    assert {point["optimizer"] for point in seen} == {"adamw", "lion"}
    for point in seen:
        lion = point["optimizer"] == "lion"
        assert 1e-5 <= point["optimizer.lr"] <= 1e-2
        assert ("scheduler.warmup_steps" in point) == lion
        assert point.get("scheduler.warmup_steps", 0) in (0, 4, 8)
        assert (3 <= point["trainer.max_grad_norm"] <= 4) if lion else (point["trainer.max_grad_norm"] in (1, 2))
        assert point["optimizer.betas"] in ([0.9, 0.95], [0.9, 0.99])
    below = sum(point["optimizer.lr"] < 10**-3.5 for point in seen)
    assert 15 < below < 45, "half of a logarithmic range lies below its middle"


def test_integers_become_numbers_where_the_recipe_has_a_number() -> None:
    space = space_of({"data.held_out": {"low": 0, "high": 1}, "trainer.max_steps": {"low": 1, "high": 3}})
    held_out, steps = space.typed({"data": {"held_out": 0.1}, "trainer": {"max_steps": 10}}).parameters
    assert (held_out.whole, steps.whole) == (False, True)
    asked = space_of({"data.held_out": {"low": 0, "high": 1, "type": "int"}})
    assert asked.typed({"data": {"held_out": 0.1}}).parameters[0].whole


def test_edges_reach_every_end_and_choice() -> None:
    points = list(edges(space_of(SPACE)))
    seen = {(key, str(value)) for point in points for key, value in point.items()}
    assert len(points) <= 5
    for key, values in {
        "optimizer.lr": (1e-5, 1e-2),
        "optimizer": ("adamw", "lion"),
        "trainer.max_grad_norm": (1, 2, 3.0, 4),
        "scheduler.warmup_steps": (0, 8),
        "optimizer.betas": ([0.9, 0.95], [0.9, 0.99]),
    }.items():
        assert {(key, str(value)) for value in values} <= seen
    assert all(("scheduler.warmup_steps" in point) == (point["optimizer"] == "lion") for point in points)


def test_given_points_are_stored_by_their_case() -> None:
    space = space_of(SPACE)
    point = {"optimizer": "lion", "trainer.max_grad_norm": 3.5, "optimizer.betas": [0.9, 0.99]}
    assert space.stored(point) == {
        "optimizer": "lion",
        "trainer.max_grad_norm[optimizer=lion]": 3.5,
        "optimizer.betas": "[0.9, 0.99]",
    }
    flaws = list(space.flaws_of({"optimizer.lr": 1.0, "optimiser": "lion"}))
    assert "outside of the space" in flaws[0] and "did you mean optimizer?" in flaws[1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"a": {"low": 2, "high": 1}}, "space.a.low=2 is above high=1"),
        ({"a": {"low": 0, "high": 1, "log": True}}, "which log needs"),
        ({"a": {"low": 1, "high": 9, "log": True, "step": 2}}, "cannot be combined with log"),
        ({"a": {"low": 1, "high": 9, "step": 0}}, "space.a.step is 0"),
        ({"a": {"low": "1", "high": 2}}, "space.a.low is '1', not a number"),
        ({"a": {"low": 1, "hgih": 2}}, "did you mean high?"),
        ({"a": {"low": 1}}, "space.a has no high"),
        ({"a": {"min": 1, "max": 2}}, "space.a.min=1 is not known; write low"),
        ({"a": {"low": 1, "maximum": 2}}, "space.a.maximum=2 is not known; write high"),
        ({"a": {"values": [1, 2]}}, "write choices"),
        ({"a": {"lwo": 1, "hihg": 2}}, "did you mean low?"),
        ({"a": 3}, "single value"),
        ({"a": []}, "space.a has no choices"),
        ({"a": {"choices": 3}}, "not a list of values"),
        ({"a": [1, 1]}, "holds a choice twice"),
        ({"run.dir": ["a", "b"]}, "which cannot be searched"),
        ({"a": {"low": 0.5, "high": 2, "type": "int"}}, "space.a.type is int, but low=0.5 is not whole"),
        ({"a": {"low": 1, "high": 2, "when": {"b": 1}}}, "names b, which is not searched"),
        ({"a": {"low": 1, "high": 2, "when": {"b": 7}}, "b": [1, 2]}, "needs b=7, a value that b never has"),
        (
            {"a": [1], "b": {"choices": [1], "when": {"c": 0.5}}, "c": {"low": 0.1, "high": 1}},
            "hardly ever gives exactly",
        ),
        (
            {"b": [1, 2], "a": [{"choices": [1], "when": {"b": 1}}, {"choices": [2], "when": {"b": [1, 2]}}]},
            "space.a has two cases that may hold at once (b=1 and b=1|2)",
        ),
        ({"a": {"low": 1, "high": 2, "when": {"b": 1}}, "b": {"low": 1, "high": 2, "when": {"a": 1}}}, "on itself"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], words: str) -> None:
    _, flaws = read_space(given)
    assert len(flaws) >= 1 and any(words in flaw for flaw in flaws), flaws
    assert all(flaw.startswith("space.") and "; " in flaw for flaw in flaws)


def test_sound_keys_are_judged_beside_wrong_ones() -> None:
    """Values and conditions of a key are not judged if its own range is refused."""
    when = {"wrong": 1}
    given = {"wrong": {"low": 2, "high": 1}, "a": [1, 2], "b": {"choices": [1], "when": when}, "c": {"low": 1}}
    space, flaws = read_space({**given, "d": {"choices": [1], "when": {"nothing": 1}}})
    assert [flaw.partition(" ")[0] for flaw in flaws] == ["space.wrong.low=2", "space.c", "space.d.when"]
    assert space.keys == ("a",) and space.refused == {"wrong", "b", "c", "d"}
    assert list(space.flaws_of({"wrong": 7, "b": 7, "c": 7, "d": 7, "a": 1})) == []
    assert [flaw.partition(" ")[0] for flaw in space.flaws_of({"a": 3, "e": 1})] == ["a", "e"]


def test_cases_that_differ_in_one_key_do_not_overlap() -> None:
    cases = [{"choices": [1], "when": {"b": 1, "c": 1}}, {"choices": [2], "when": {"b": 1, "c": 2}}]
    assert read_space({"b": [1, 2], "c": [1, 2], "a": cases})[1] == []


def test_a_key_of_a_first_trial_fits_its_condition() -> None:
    space, _ = read_space({"b": [1, 2], "a": {"choices": [1, 2], "when": {"b": 1}}})
    assert list(space.flaws_of({"a": 1, "b": 2})) == ["a is searched only with b=1; leave it out, or give that too"]
    assert list(space.flaws_of({"a": 1})) == [], "b is drawn"


def test_first_trials_are_judged_beside_a_wrong_range() -> None:
    with pytest.raises(ValueError, match=r"space\.lr\.low=2 is above high=1(.|\n)*first\.0\.a holds 3"):
        SearchConfig(space={"lr": {"low": 2, "high": 1}, "a": [1, 2]}, first=[{"a": 3, "lr": 1}])


@pytest.mark.parametrize("given", [{"low": 1, "hgih": 2}, {"low": 1, "max": 2}, {"values": [1, 2]}])
def test_a_misspelt_key_is_one_problem(given: dict[str, Any]) -> None:
    assert len(read_space({"a": given})[1]) == 1


def test_nested_keys_are_not_taken_for_a_range() -> None:
    assert space_of({"a": {"min": {"low": 1, "high": 2}, "weight": [1, 2]}}).keys == ("a.min", "a.weight")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"a": [1, 2, 3], "b": {"low": 0, "high": 8, "step": 4}}, 9),
        ({"a": {"low": 0.1, "high": 0.3, "step": 0.1}}, 3),
        ({"a": {"low": 1, "high": 4, "log": True}}, 4),
        ({"a": {"low": 0.0, "high": 1.0}}, None),
        ({"a": ["x", "y"], "b": {"low": 1, "high": 3, "when": {"a": "x"}}}, 4),
        ({"a": ["x", "y"], "b": [
            {"low": 1, "high": 3, "when": {"a": "x"}}, {"choices": [7], "when": {"a": "y"}}
        ], "c": [1, 2]}, 8),
        ({"a": {"low": 1, "high": 10**9}}, None),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:BruteForceSampler is experimental")
def test_combinations_are_counted(given: dict[str, Any], wanted: int | None) -> None:
    space = space_of(given)
    assert space.combinations == wanted
    if wanted:
        study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(seed=0))
        study.optimize(lambda trial: float(len(space.suggest(trial))), n_trials=50)
        assert len(study.trials) == wanted, "as many as optuna finds"


class _Drawing:
    """Stands for a trial of optuna; takes the lowest value or the first choice."""

    number = 0

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        return choices[0]

    def suggest_int(self, name: str, low: int, high: int, step: int = 1, log: bool = False) -> int:
        return low

    def suggest_float(self, name: str, low: float, high: float, step: float | None = None, log: bool = False) -> float:
        return low


ODD = [0, 1, -1, 0.5, 1e-5, 1e308, 10**400, math.inf, -math.inf, math.nan, True, None, "", "a", [], [1, 2], [[1], [2]],
       {}, {"a": 1}, {"low": 1, "high": 2}, [None], 1e22]  # fmt: skip
NAMES = ["optimizer.lr", "optimizer", "seed", "a", "plan", "run.dir", "", " ", "a.b.c", 3, None, True]
WORDS = ["low", "high", "log", "step", "type", "choices", "when", "hgih", "min", "values"]


def _odd_domain(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.random()
    if kind < 0.25:
        return chance.choice(ODD)
    if kind < 0.65:
        deeper = depth < 2 and chance.random() < 0.2
        words = chance.sample(WORDS, chance.randint(0, 4))
        return {word: _odd_domain(chance, depth + 1) if deeper else chance.choice(ODD) for word in words}
    if kind < 0.75:
        return [_odd_domain(chance, depth + 1) for _ in range(chance.randint(0, 3))]
    numbers = {name: chance.choice(ODD) for name in ("low", "high", "step")}
    when = {"when": {chance.choice(NAMES): chance.choice(ODD)}} if chance.random() < 0.3 else {}
    domain = {**numbers, "log": chance.choice([True, False, None]), "type": chance.choice(["int", "float", None, 3])}
    return {name: value for name, value in domain.items() if chance.random() < 0.7} | when


@pytest.mark.parametrize("first", range(0, 1000, 100))
def test_random_spaces_are_sound_or_refused(first: int) -> None:
    for seed in range(first, first + 100):
        chance = random.Random(seed)
        given: Any = {chance.choice(NAMES): _odd_domain(chance) for _ in range(chance.randint(0, 3))}
        space, flaws = read_space(given)
        assert all(flaw.startswith("space.") and "; " in flaw for flaw in flaws), flaws
        assert space.combinations is None or space.combinations >= 1, given
        assert all(parameter.holds(parameter.extremes()[0]) for parameter in space.parameters), given
        assert set(space.suggest(_Drawing())) <= set(space.keys), given  # type: ignore[arg-type]
        list(space.flaws_of({chance.choice(NAMES): chance.choice(ODD)}))  # type: ignore[dict-item]
        space.as_json(), space.typed({"optimizer": {"lr": 0.1}})
