"""The user's own components are checked before a run, and errors name the key of the component that is at fault.

Components inside others, optimizers, and parts that cannot train are tested.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command import ROOTS
from helpers.metrics import training
from helpers.own_code import fresh_modules
from helpers.recipes import TINY
from trireme.launch.cli import main

PARTS = '''
import torch

from trireme.trainer.callbacks.callback import Callback
from trireme.trainer.data.collator import CausalLMCollator
from trireme.trainer.tasks.causal_lm import CausalLM


class Fine:
    def __init__(self, size: int = 2, inner=None) -> None:
        self.size = size


class Fails:
    def __init__(self, size: int = 3) -> None:
        raise RuntimeError("no such device")


class Odd:
    def __init__(self, size: int) -> None:
        raise ValueError(f"size={size} is odd; use 4")


class Noted(Callback):
    def __init__(self, inner=None, parts=()) -> None:
        self.inner, self.parts = inner, parts

    def on_train_end(self, trainer, state, control):
        trainer.metrics["sizes"] = [self.inner.size, *(each.size for each in self.parts)]
        (trainer.run_dir / "sizes").write_text(str(trainer.metrics["sizes"]))


class Task(CausalLM):
    def __init__(self, inner=None) -> None:
        super().__init__()


class Collator(CausalLMCollator):
    def __init__(self, micro_batch_size: int, facts, inner=None) -> None:
        super().__init__(micro_batch_size)


class Texts:
    def __init__(self, inner=None) -> None:
        pass

    def load(self, cache_dir):
        return ["a text"] * 100

    def fingerprint(self):
        return "one"


class Order:
    def __init__(self, size: int, inner=None) -> None:
        self.size = size

    def __call__(self, positions):
        return positions % self.size


class Flat:
    def __init__(self, max_steps: int, inner=None) -> None:
        pass

    def __call__(self, step):
        return 1.0


def adam(params, lr: float, inner=None) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=lr)


class Distance(torch.optim.Optimizer):
    """Keeps an estimate in its groups, and steps all of them at one rate, as Prodigy does."""

    def __init__(self, params, lr: float, weight_decay: float = 0.0, d: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "d": d})

    @torch.no_grad()
    def step(self, closure=None):
        if len({group["lr"] for group in self.param_groups} - {0.0}) > 1:
            raise RuntimeError("different lr values in different groups are not supported")
        for group in self.param_groups:
            group["d"] *= 1.25
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=group["lr"] * group["d"])


class Exits(Callback):
    def __init__(self) -> None:
        raise SystemExit(3)


def first_alone(params, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(params[0]["params"][:1], lr=lr)


class Negative(CausalLM):
    def count(self, targets):
        return -3


class NoTokens(CausalLMCollator):
    def micro_batch(self, samples):
        found = super().micro_batch(samples)
        del found.inputs["input_ids"]
        return found


class NoZero(torch.optim.SGD):
    def __init__(self, params, lr: float) -> None:
        super().__init__(params, lr=lr)

    def step(self, closure=None):
        if not self.param_groups[0]["lr"]:
            raise ValueError("lr is zero")
        return super().step()


class InTensors(torch.optim.SGD):
    def __init__(self, params, lr: float) -> None:
        super().__init__(params, lr=lr)

    def step(self, closure=None):
        self.param_groups[0]["d"] = torch.ones(1)
        return super().step()
'''

FAILS = "{_target_: parts.Fails}"


@pytest.fixture(autouse=True)
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    with fresh_modules():
        yield

    sys.modules.pop("parts", None)


def run(command: str, folder: Path, *overrides: str) -> int:
    own_source = any("parts.Texts" in override for override in overrides)
    roots = [] if own_source else [ROOTS]
    return main([command, str(TINY), *roots, f"run.dir={folder / 'run'}", "trainer.max_steps=2", *overrides])


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["+callbacks.x._target_=parts.Noted", f"+callbacks.x.inner={FAILS}"], "callbacks.x.inner"),
        (
            ["+callbacks.x._target_=parts.Noted", f"+callbacks.x.parts=[{{_target_: parts.Fine}},{FAILS}]"],
            "callbacks.x.parts.1",
        ),
        (
            ["+callbacks.x._target_=parts.Noted", f"+callbacks.x.inner={{_target_: parts.Fine, inner: {FAILS}}}"],
            "callbacks.x.inner.inner",
        ),
        (
            ["+callbacks.x._target_=parts.Noted", "+callbacks.x.inner={_target_: parts.Odd, size: 3}"],
            "callbacks.x.inner.size",
        ),
        (["task._target_=parts.Task", f"+task.inner={FAILS}"], "task.inner"),
        (["+collator._target_=parts.Collator", f"+collator.inner={FAILS}"], "collator.inner"),
        (["data.source._target_=parts.Texts", f"+data.source.inner={FAILS}"], "data.source.inner"),
        (["+data.order._target_=parts.Order", f"+data.order.inner={FAILS}"], "data.order.inner"),
        (
            ["scheduler=own", "+scheduler.factor._target_=parts.Flat", f"+scheduler.factor.inner={FAILS}"],
            "scheduler.factor.inner",
        ),
        (["optimizer._target_=parts.adam", "optimizer.lr=0.1", f"+optimizer.inner={FAILS}"], "optimizer.inner"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_check_and_train_name_the_nested_component(
    overrides: list[str], key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("check", "train"):
        assert run(command, tmp_path, *overrides) == 2
        message = capsys.readouterr().err
        assert f"{key}\n" in message and "Traceback" not in message, message
        assert ("no such device" in message) or ("is odd" in message and "fix: use 4" in message)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_own_parts_that_can_be_built_reach_their_owner(tmp_path: Path) -> None:
    overrides = [
        "+callbacks.x._target_=parts.Noted",
        "+callbacks.x.inner={_target_: parts.Fine, size: 5}",
        "+callbacks.x.parts=[{_target_: parts.Fine}]",
    ]
    assert run("check", tmp_path, *overrides) == 0
    assert run("train", tmp_path, *overrides) == 0
    assert (tmp_path / "run" / "sizes").read_text() == "[5, 2]"


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (
            ["optimizer._target_=parts.Distance", "optimizer.lr=0.01", "adapter=lora_plus"],
            "model.adapter.lr_ratio",
            "makes parameter groups that parts.Distance refuses",
        ),
        (
            ["optimizer._target_=parts.NoZero", "optimizer.lr=0.01", "scheduler=linear", "scheduler.warmup_ratio=0.5"],
            "scheduler",
            "begins at 0 times the learning rate, which parts.NoZero refuses",
        ),
        (["optimizer._target_=parts.InTensors", "optimizer.lr=0.01"], "optimizer._target_", "keeps a Tensor as 'd'"),
    ],
    ids=["groups", "schedule", "tensor"],
)
def test_an_optimizer_is_tried_as_the_run_uses_it(
    overrides: list[str], key: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("check", tmp_path, *overrides) == 2
    message = capsys.readouterr().err
    assert key in message and words in message, message


def test_what_an_optimizer_keeps_in_its_groups_is_resumed(tmp_path: Path) -> None:
    """An estimate that began anew would change every later step."""
    distance = ["optimizer._target_=parts.Distance", "optimizer.lr=0.01", "trainer.max_steps=4"]
    assert run("train", tmp_path / "one", *distance) == 0
    for stop in (2, 4):
        assert run("train", tmp_path / "two", *distance, f"trainer.stop_at={stop}") == 0
    one, two = (training(tmp_path / name / "run") for name in ("one", "two"))
    assert [line["loss"] for line in one] == [line["loss"] for line in two]
    assert [line["grad_norm"] for line in one] == [line["grad_norm"] for line in two]


@pytest.mark.parametrize(
    ("overrides", "words", "found_by"),
    [
        (["+callbacks.x._target_=parts.Exits"], "SystemExit: 3", ("check", "train")),
        (["optimizer._target_=parts.first_alone", "optimizer.lr=0.1"], "leaves out 1 of the 2", ("check", "train")),
        (["task._target_=parts.Negative"], "returns -3, and there are no fewer than 0 labels", ("train",)),
        (
            ["+collator._target_=parts.NoTokens"],
            "gives none of the model's inputs from micro_batch, but input_ids from __call__",
            ("train",),
        ),
    ],
    ids=["exits", "left_out", "negative", "no_tokens"],
)
def test_own_parts_that_cannot_train_are_refused(
    overrides: list[str], words: str, found_by: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in found_by:
        assert run(command, tmp_path, *overrides) == 2
        message = capsys.readouterr().err
        assert words in message and "Traceback" not in message, message
