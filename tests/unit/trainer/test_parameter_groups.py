"""Tests of per-parameter learning rates and weight decays: rules in a recipe, custom functions, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command import ROOTS
from helpers.recipes import TINY
from trireme.configs.validate import read
from trireme.errors import UserError
from trireme.launch.cli import main
from trireme.trainer.optimizers import decay_groups, optimizer_factory
from trireme.trainer.parameter_groups import GroupRule, OwnOptions, ParameterGroups

ADAMW = {"_target_": "trireme.trainer.optimizers.adamw", "lr": 0.1}
NAMED = [
    ("embed.weight", torch.nn.Parameter(torch.ones(4, 2))),
    ("layers.0.weight", torch.nn.Parameter(torch.ones(2, 2))),
    ("layers.0.bias", torch.nn.Parameter(torch.ones(2))),
    ("layers.1.weight", torch.nn.Parameter(torch.ones(2, 2))),
    ("layers.1.bias", torch.nn.Parameter(torch.ones(2))),
]


def _options(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    names = {id(parameter): name for name, parameter in NAMED}
    return {
        names[id(one)]: {key: group[key] for key in group if key != "params"}
        for group in groups
        for one in group["params"]
    }


def test_the_first_rule_that_matches_counts() -> None:
    rules = [
        GroupRule(["*.bias", "embed.*"], lr_ratio=0.5),
        GroupRule(["layers.1.*"], lr=0.3, weight_decay=0.0),
    ]
    found = decay_groups(NAMED, None, OwnOptions(ParameterGroups(rules), ADAMW))
    assert _options(found) == {
        "embed.weight": {"lr": 0.05},
        "layers.0.weight": {},
        "layers.0.bias": {"lr": 0.05, "weight_decay": 0.0},
        "layers.1.weight": {"lr": 0.3, "weight_decay": 0.0},
        "layers.1.bias": {"lr": 0.05, "weight_decay": 0.0},
    }
    assert found[0]["params"] == [NAMED[1][1]]  # the plain group comes first, since its rate is logged


def test_rates_reach_the_optimizer_and_its_schedule() -> None:
    own = OwnOptions(ParameterGroups([GroupRule(["embed.*"], lr=0.3)]), ADAMW)
    optimizer = optimizer_factory(ADAMW, own=own)(NAMED)
    assert [(group["lr"], group["initial_lr"]) for group in optimizer.param_groups] == [
        (0.1, 0.1),
        (0.1, 0.1),
        (0.3, 0.3),
    ]


@pytest.mark.parametrize(
    ("raw", "field", "words"),
    [
        ({"rules": [{"names": ["*"]}]}, "rules.0.names", "have no options"),
        ({"rules": [{"names": [], "lr": 1.0}]}, "rules.0.names", "matches nothing"),
        ({"rules": [{"names": ["*"], "lr": -1.0}]}, "rules.0.lr", "finite and not negative"),
        ({"rules": [{"names": ["*"], "lr": 1.0, "lr_ratio": 2.0}]}, "rules.0.lr", "contradict"),
        ({"rules": [{"names": ["*"], "lr": 0.1, "betas": [0.9, 0.9]}]}, "rules.0.betas", "unknown key"),
        ({"rules": []}, "rules", "give no groups"),
    ],
)
def test_rules_that_say_nothing_are_refused(raw: dict[str, Any], field: str, words: str) -> None:
    _, problems = read(raw, ParameterGroups)
    assert [problem.field for problem in problems] == [field]
    assert words in problems[0].why


FUNCTIONS = """
class Flat:
    def __call__(self, name, shape):
        return {"lr_ratio": 0.5} if len(shape) == 1 else {}


def none():
    return lambda name, shape: None

def negative():
    return lambda name, shape: {"lr": -1.0}

def unknown():
    return lambda name, shape: {"warmup": 3}

def fails():
    return lambda name, shape: 1 / 0

def number():
    return 3

def both():
    return lambda name, shape: {"lr": 1.0, "lr_ratio": 2.0}
"""


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+parameter_groups.function._target_=ratesof.none"], "gives None for"),
        (["+parameter_groups.function._target_=ratesof.negative"], "gives lr = -1.0"),
        (["+parameter_groups.function._target_=ratesof.unknown"], "warmup"),
        (["+parameter_groups.function._target_=ratesof.fails"], "ZeroDivisionError"),
        (["+parameter_groups.function._target_=ratesof.number"], "cannot be called"),
        (["+parameter_groups.function._target_=ratesof.both"], "gives both lr and lr_ratio"),
        (["+parameter_groups.rules=[{names: [nowhere.*], lr: 0.1}]"], "matches no parameter that is trained"),
        (
            ["+parameter_groups.rules=[{names: ['*.layers.0.*'], lr: 0.1}]", "model.frozen=['model.layers.0.*']"],
            "matches no parameter that is trained",
        ),
    ],
    ids=lambda value: value[0].rpartition(".")[2] if isinstance(value, list) else "",
)
def test_check_and_train_refuse_them(
    overrides: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "ratesof.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    for command in ("check", "train"):
        code = main([command, str(TINY), ROOTS, f"run.dir={tmp_path / 'run'}", "trainer.max_steps=1", *overrides])
        message = capsys.readouterr().err
        assert code in (1, 2) and words in message and "parameter_groups" in message, message
        assert "Traceback" not in message
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_ratio_needs_a_rate() -> None:
    own = OwnOptions(ParameterGroups([GroupRule(["*"], lr_ratio=0.5)]), {"_target_": "torch.optim.Rprop"})
    with pytest.raises(UserError, match=r"is a multiple of optimizer\.lr"):
        own("embed.weight", (4, 2))
