"""Tests of hyperparameter search engines (optuna, Ray, W&B, SigOpt, custom): unsupported options, translated search
spaces, and the order in which trials are run.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trireme.launch.search.engines import engine as engines
from trireme.launch.search.engines.sigopt_lite import described as of_sigopt
from trireme.launch.search.engines.stepped_ranges import fitted, steps
from trireme.launch.search.engines.wandb_sweep import described as of_wandb
from trireme.launch.search.objective import Objective
from trireme.launch.search.read_space import read_space
from trireme.launch.search.search_config import OPTUNA, SearchConfig
from trireme.launch.search.space import Parameter
from trireme.launch.search.study_store import StudyStore, TrialState

PLACE = "trireme.launch.search.engines"
RAY, WANDB, SIGOPT = f"{PLACE}.ray_tune.RayTune", f"{PLACE}.wandb_sweep.WandbSweep", f"{PLACE}.sigopt_lite.SigOpt"
SPACE = {
    "optimizer.lr": {"low": 1e-5, "high": 1e-2, "log": True},
    "data.held_out": {"low": 0.1, "high": 0.5},
    "trainer.warm": {"low": 10, "high": 30, "step": 10},
    "trainer.size": {"low": 1, "high": 64, "log": True},
    "trainer.count": {"low": 2, "high": 5},
    "optimizer.betas": [[0.9, 0.95], [0.9, 0.99]],
    "optimizer": ["adamw", "lion"],
}
RATE = {"optimizer.lr": SPACE["optimizer.lr"]}


def parameters() -> dict[str, Parameter]:
    space, flaws = read_space(SPACE)
    assert not flaws
    return {each.name: each for each in space.parameters}


@pytest.fixture
def all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "is_installed", lambda module: True)


def said(target: str, **options: Any) -> str:
    """The refusal of a search configuration with this engine; empty if it is accepted."""
    arguments = options.pop("arguments", {})
    try:
        SearchConfig(**{"space": RATE, **options}, engine={"_target_": target, **arguments})
    except ValueError as error:
        return str(error)
    return ""


TWO = {"eval_loss": "min", "grad_norm": "max"}
CONDITIONAL = {"optimizer": ["adamw", "lion"], "optimizer.lr": {**RATE["optimizer.lr"], "when": {"optimizer": "lion"}}}
LACKS = {
    "conditions": ((RAY, WANDB, SIGOPT), {"space": CONDITIONAL}, "space.optimizer.lr.when is conditional"),
    "function": ((RAY, WANDB, SIGOPT), {"space": "my.space"}, "is a function of optuna's trials"),
    "objectives": ((RAY, WANDB, SIGOPT), {"objectives": TWO}, "eval_loss, grad_norm) are more than"),
    "workers": ((RAY, SIGOPT), {"workers": 2}, "workers=2 is wrong because"),
    "jobs": ((SIGOPT,), {"jobs": 2}, "jobs=2 is more than SigOpt can have at once; use 1"),
    "sampler": ((RAY, WANDB, SIGOPT), {"sampler": {"_target_": "x"}}, "sampler is a key of optuna"),
    "pruner of Ray": ((RAY,), {"pruner": {"_target_": "x"}}, "use search.engine.scheduler"),
    "pruner of SigOpt": ((SIGOPT,), {"pruner": {"_target_": "x"}}, "SigOpt prunes nothing"),
    "first of W&B": ((WANDB,), {"first": [{"optimizer.lr": 1e-3}]}, "W&B's server chooses every trial"),
    "function of metrics": ((WANDB,), {"function": "my.gap"}, "W&B, which compares the metrics that runs report"),
    "grid": ((WANDB,), {"arguments": {"method": "grid"}}, "space.optimizer.lr has too many values for a grid"),
    "hyperband": ((WANDB,), {"arguments": {"early_terminate": {"type": "median"}}}, "must have the type hyperband"),
    "whole logarithm": ((SIGOPT,), {"space": {"a.b": {"low": 1, "high": 8, "log": True}}}, "space.a.b .log is for"),
    "one choice": ((SIGOPT,), {"space": {"a.b": [1]}}, "space.a.b has one choice"),
    "no engine": (("collections.OrderedDict",), {}, "engine is not a class of"),
}


@pytest.mark.parametrize("case", LACKS)
def test_what_an_engine_lacks_is_refused_by_name(case: str, all_installed: None) -> None:
    targets, options, words = LACKS[case]
    for target in targets:
        assert words in said(target, **options), target
    assert said(f"{PLACE}.optuna_engine.Optuna", **{**options, "arguments": {}}) == ""


def test_a_plain_search_is_accepted_with_every_engine(all_installed: None) -> None:
    assert {target: said(target) for target in (RAY, WANDB, SIGOPT)} == {RAY: "", WANDB: "", SIGOPT: ""}


@pytest.mark.parametrize(("target", "module", "command"), [
    (RAY, "ray", "pip install 'trireme-train[ray]'"),
    (WANDB, "wandb", "pip install 'trireme-train[wandb]'"),
    (SIGOPT, "sigopt", "pip install --no-deps sigoptlite"),
])  # fmt: skip
def test_a_missing_package_is_named(target: str, module: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "is_installed", lambda module: False)
    assert f"needs {module}" in said(target) and command in said(target)


def test_a_space_is_translated_for_wandb_sweeps() -> None:
    wanted = {
        "optimizer.lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
        "data.held_out": {"distribution": "uniform", "min": 0.1, "max": 0.5},
        "trainer.warm": {"values": [10, 20, 30]},
        "trainer.size": {"distribution": "q_log_uniform_values", "q": 1, "min": 1, "max": 64},
        "trainer.count": {"distribution": "int_uniform", "min": 2, "max": 5},
        "optimizer.betas": {"values": ["[0.9, 0.95]", "[0.9, 0.99]"]},
        "optimizer": {"values": ["adamw", "lion"]},
    }
    assert {name: of_wandb(each, "bayes") for name, each in parameters().items()} == wanted
    assert of_wandb(parameters()["trainer.count"], "grid") == {"values": [2, 3, 4, 5]}


def test_a_space_is_translated_for_sigopt() -> None:
    found = {name: of_sigopt(each) for name, each in parameters().items() if name != "trainer.size"}
    for name, each in found.items():
        assert each.pop("name") == name
    assert found == {
        "optimizer.lr": {"type": "double", "bounds": {"min": 1e-5, "max": 1e-2}, "transformation": "log"},
        "data.held_out": {"type": "double", "bounds": {"min": 0.1, "max": 0.5}},
        "trainer.warm": {"type": "int", "grid": [10, 20, 30]},
        "trainer.count": {"type": "int", "bounds": {"min": 2, "max": 5}},
        "optimizer.betas": {"type": "categorical", "categorical_values": ['"[0.9, 0.95]"', '"[0.9, 0.99]"']},
        "optimizer": {"type": "categorical", "categorical_values": ['"adamw"', '"lion"']},
    }


def test_values_of_an_engine_are_fitted_to_the_space() -> None:
    by_name = parameters()
    assert steps(by_name["trainer.warm"]) == [10, 20, 30]
    assert fitted(by_name["trainer.warm"], 23.0) == 20
    assert fitted(by_name["optimizer.lr"], 0.5) == 1e-2, "population based training leaves the range"
    assert fitted(by_name["trainer.size"], 7.6) == 8 and isinstance(fitted(by_name["trainer.size"], 7.6), int)
    assert fitted(by_name["optimizer"], "lion") == "lion"


class Listed(engines.Engine):
    """Suggests three learning rates, one after the other."""

    def suggest(self) -> dict[str, Any] | None:
        number = len(self.store.trials)
        return {"optimizer.lr": (1e-3, 1e-4, 1e-5)[number]} if number < 3 else None


def opened(engine: engines.Engine, folder: Path, **options: Any) -> StudyStore:
    """A study over the learning rate, with an engine that has been opened for it."""
    space, _ = read_space(RATE)
    objective, search = Objective({"eval_loss": "min"}), SearchConfig(space=RATE, **options)
    folder.mkdir(exist_ok=True)
    store = StudyStore(folder, "study", search, objective, {"space": space.as_json(), "objectives": {}})
    prepared: Any = SimpleNamespace(space=space, objective=objective, search=search, folder=folder)
    engine.open(prepared, store, 1)
    return store


def test_optuna_chooses_and_prunes(tmp_path: Path) -> None:
    engine = engines.build_engine({"_target_": OPTUNA})
    pruner = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 1, "n_warmup_steps": 0}
    store = opened(engine, tmp_path / "study", trials=3, pruner=pruner)
    engine.begin_with(store, [], {"optimizer.lr": 1e-3})
    verdicts = []
    while (claim := engine.claim()) is not None:
        verdicts.append(engine.verdict(claim, 2, 1.0 + claim.number).reason)
        store.finish(claim, TrialState.COMPLETE, [1.0])
        engine.ended(claim, [1.0])
    assert verdicts == ["", "eval_loss 2 at step 2", "eval_loss 3 at step 2"] and store.full
    assert store.trials[0].params == {"optimizer.lr": 1e-3}


def test_an_engine_of_the_users_own_takes_queued_and_left_trials_first(tmp_path: Path) -> None:
    engine = Listed()
    store = opened(engine, tmp_path / "study", trials=9)
    engine.begin_with(store, [{"optimizer.lr": 2e-3}], None)
    first, second = engine.claim(), engine.claim()
    assert first is not None and second is not None
    assert (first.values, second.values) == ({"optimizer.lr": 2e-3}, {"optimizer.lr": 1e-4})
    second.release()  # as if its worker had died, or its trial were paused
    again = engine.claim()
    assert again is not None and (again.number, again.values) == (1, second.values)
    last = engine.claim()
    assert last is not None and last.values == {"optimizer.lr": 1e-5} and engine.claim() is None
    assert not store.full, "the engine has ended before its time"
