"""The examples of ``docs/extending.md`` train as written. A mistake in a user's own component is reported with its key
in the recipe, such as ``task`` or ``callbacks.x``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command import ROOTS
from helpers.own_code import EXAMPLES, SECTIONS, Example, fresh_modules
from helpers.recipes import TINY
from trireme.configs.build_parts import check_values
from trireme.configs.contracts import check_callbacks, check_optimizer, check_task
from trireme.errors import Problem, UserError
from trireme.launch.cli import main
from trireme.launch.compose import compose
from trireme.models import locate as locate_module
from trireme.trainer.component import locate
from trireme.trainer.data.document_source import DocumentSource
from trireme.trainer.data.open_collator import collator_problems

NO_TEXT = ("sums", "words", "series", "parity")
"""Examples with a source of their own."""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    with fresh_modules():
        yield


def train(recipe: str, folder: Path, *overrides: str) -> int:
    return main(["train", recipe, f"run.dir={folder / 'run'}", "trainer.max_steps=2", *overrides])


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_the_page(name: str, tmp_path: Path) -> None:
    example = EXAMPLES[name]
    path = example.write(tmp_path)
    roots = [] if name in NO_TEXT else [ROOTS]
    assert main(["check", path, *roots]) == 0
    assert train(path, tmp_path, *roots) == 0
    assert "eval_loss" in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_attributes_that_the_page_lists_for_callbacks_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = re.findall(r"^\| (`(?:trainer|state|control)\..*?) \|", SECTIONS["Callback"], re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([\w.]+)`", row)]
    assert len(names) > 25
    lines = "\n        ".join(names)
    (tmp_path / "mine.py").write_text(
        "from trireme.trainer.callbacks.callback import Callback\n\n\nclass Looks(Callback):\n"
        f"    def on_step_end(self, trainer, state, control):\n        {lines}\n"
        "        assert dict(trainer.strategy.named_parameters())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert train(str(TINY), tmp_path, ROOTS, "+callbacks.x._target_=mine.Looks") == 0, capsys.readouterr().err


def test_the_page_of_callbacks_adds_one_while_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "callbacks.md").read_text()
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "callbacks.add" in code)
    (tmp_path / "guests.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    given = (ROOTS, "+callbacks.x._target_=guests.WatchTheStart", "+callbacks.x.steps=2", "trainer.max_steps=3")
    assert train(str(TINY), tmp_path, "trainer.log_every=1", *given) == 0, capsys.readouterr().err
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("losses at the start:"))
    assert line.count(".") >= 1


BROKEN = """# mine/broken.py
from dataclasses import replace
from pathlib import Path

import torch
from transformers import TrainerCallback

from trireme.parallel.micro_batch import StepBatch
from trireme.trainer.callbacks.callback import Callback
from trireme.trainer.data.collator import CausalLMCollator
from trireme.trainer.tasks.causal_lm import CausalLM
from trireme.trainer.tasks.task import Task


class Headless(Task):
    def loss(self, outputs, targets): ...
    def evaluate(self, outputs, targets): ...
    def metrics(self, sums): ...

class Lossless(Task):
    head = "causal_lm"
    def evaluate(self, outputs, targets): ...
    def metrics(self, sums): ...

class Duck:
    head = "causal_lm"
    def loss(self, outputs): ...
    def evaluate(self, outputs, targets): ...
    def metrics(self, sums): ...

class Shifting(CausalLM):
    def loss(self, outputs, batch):
        return outputs.logits[:, :-1].sum() + batch["labels"][:, 1:].sum()

class ShiftingInEvaluation(CausalLM):
    def evaluate(self, outputs, *, batch=None): ...

class FloatCount(CausalLM):
    def count(self, targets):
        return 1.0

class Theirs(TrainerCallback): ...
class Plain: ...

class Narrow(Callback):
    def on_evaluate(self, trainer, metrics): ...

class Misspelt(Callback):
    def on_step_ended(self, trainer, state, control): ...

class NoOptimizer:
    def __init__(self, params, lr): ...

def none(params, lr): ...

class NoRate(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            del group["lr"]

class NoneLoss(CausalLM):
    def loss(self, outputs, targets): ...

class FloatLoss(CausalLM):
    def loss(self, outputs, targets):
        return 1.0

class VectorLoss(CausalLM):
    def loss(self, outputs, targets):
        return outputs.logits.sum(-1)

class RaisingLoss(CausalLM):
    def loss(self, outputs, targets):
        return targets["nothing"]

class ListSums(CausalLM):
    def evaluate(self, outputs, targets):
        return [1]

class NoLossMetric(CausalLM):
    def metrics(self, sums):
        return {"other": 1.0}

class OtherHead(CausalLM):
    head = "nope"

class BadStart(Callback):
    def __init__(self):
        raise RuntimeError("not today")

class Leaves(Callback):
    def on_step_end(self, trainer, state, control):
        raise SystemExit(0)

class TwoNumbers(Callback):
    def on_step_end(self, trainer, state, control):
        trainer.extra_metrics["two"] = torch.ones(2)

class NoJson(Callback):
    def state_dict(self):
        return {"a": object()}

def no_callback():
    return 0

def number() -> int:
    Path(__file__).with_name("called").touch()
    return 0

def annotated(below: float = 1.0) -> Callback:
    return Callback()

class NeedsClosure(torch.optim.SGD):
    def step(self, closure):
        return closure()

class Forgets(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].setdefault("history", []).append(parameter.grad)

class Global(torch.optim.SGD):
    def step(self, closure=None):
        self.state["all"]["steps"] = 1

class Unusual(torch.optim.SGD):
    def step(self, closure=None):
        if self.param_groups[0]["lr"] > 1:
            raise ValueError("too fast")

class CutLoss(CausalLM):
    def loss(self, outputs, targets):
        return super().loss(outputs, targets).detach()

class Raises(Callback):
    def on_step_end(self, trainer, state, control):
        {}["gone"]

class RaisesSaving(Callback):
    def state_dict(self):
        {}["gone"]

class SetsStep(Callback):
    def on_step_end(self, trainer, state, control):
        state.step = 0

class SetsSamples(Callback):
    def on_log(self, trainer, state, control, metrics):
        trainer.state.samples += 1

class SetsOwn(Callback):
    def on_train_begin(self, trainer, state, control):
        state.best_loss = 0

class SetsTheirs(Callback):
    def on_step_end(self, trainer, state, control):
        control.should_training_stop = True

class ReplacesState(Callback):
    def on_step_begin(self, trainer, state, control):
        trainer.state = None

class NoFlag(Callback):
    def on_step_end(self, trainer, state, control):
        control.save = "yes"

class NumberKeys(Callback):
    def state_dict(self):
        return {"counts": {1: 2}}

class ListState(Callback):
    def state_dict(self):
        return [1]

class Yields(Callback):
    def on_step_end(self, trainer, state, control):
        yield 1

class Awaits(Callback):
    async def on_step_end(self, trainer, state, control): ...

class HalfLoss(CausalLM):
    def loss(self, outputs, targets):
        return super().loss(outputs, targets).bfloat16()

class ConstantLoss(CausalLM):
    def loss(self, outputs, targets):
        return super().loss(outputs, targets).detach().requires_grad_()

class UnknownTokens(CausalLMCollator):
    def __call__(self, samples):
        micro_batches = super().__call__(samples)
        for micro in micro_batches:
            micro.inputs["input_ids"].fill_(99999)
        return micro_batches

class UnknownLabels(CausalLMCollator):
    def __call__(self, samples):
        micro_batches = super().__call__(samples)
        for micro in micro_batches:
            micro.targets["labels"].fill_(99999)
        return micro_batches

class SavesEarly(Callback):
    def on_step_end(self, trainer, state, control):
        state.best_metric, state.best_step = 1.0, state.step
        trainer.save()

class RaisesStepping(torch.optim.SGD):
    steps = 0
    def step(self, closure=None):
        self.steps += 1
        if self.steps > 2:  # the check makes two
            {}["gone"]

class RaisingCollator(CausalLMCollator):
    def __call__(self, samples):
        {}["gone"]

class DictCollator(CausalLMCollator):
    def __call__(self, samples):
        return [{**micro.inputs, **micro.targets} for micro in super().__call__(samples)]

class DictOfAnEvaluation(CausalLMCollator):
    def micro_batch(self, samples):
        micro = super().micro_batch(samples)
        return {**micro.inputs, **micro.targets}

class OneMicroBatch(CausalLMCollator):
    def __call__(self, samples):
        return self.micro_batch(samples)

class StepCollator(CausalLMCollator):
    def __call__(self, samples):
        micros = super().__call__(samples)
        return StepBatch(micros, 1, 1, [sample["index"] for sample in samples])

class Unshifted(CausalLMCollator):
    def __call__(self, samples):
        return [self._unshifted(micro) for micro in super().__call__(samples)]
    def _unshifted(self, micro):
        return replace(micro, targets={"labels": micro.inputs["input_ids"].clone()})

class UnshiftedAndMasked(Unshifted):
    def _unshifted(self, micro):
        labels = super()._unshifted(micro).targets["labels"]
        labels[:, :10] = -100
        return replace(micro, targets={"labels": labels})

class UnshiftedEvaluation(CausalLMCollator):
    def micro_batch(self, samples):
        micro = super().micro_batch(samples)
        return replace(micro, targets={"labels": micro.inputs["input_ids"].clone()})

class FewRows(CausalLMCollator):
    def __call__(self, samples):
        return super().__call__(samples)[1:]

class NoPositions(CausalLMCollator):
    def __call__(self, samples):
        return [replace(micro, samples=micro.samples[:1]) for micro in super().__call__(samples)]

class OneRow(CausalLMCollator):
    def __call__(self, samples):
        micros = super().__call__(samples)
        return [replace(micro, targets={"labels": micro.targets["labels"], "w": torch.ones(1)}) for micro in micros]

class ShortIntegers(CausalLMCollator):
    def __call__(self, samples):
        micros = super().__call__(samples)
        return [replace(micro, inputs={"input_ids": micro.inputs["input_ids"].int()}) for micro in micros]

class NoMicroBatch:
    def __init__(self, micro_batch_size): ...
    def __call__(self, samples): ...

class RaisingSource:
    def fingerprint(self):
        return "1"
    def load(self, cache_dir):
        {}["gone"]
"""


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("part", "name", "words"),
    [
        ("task", "Headless", "which head"),
        ("task", "Lossless", "it has no loss"),
        ("task", "Duck", "write def loss(self, outputs, targets)"),
        ("task", "Shifting", "has loss(outputs, batch); a run calls it with targets, whose labels are shifted already"),
        ("task", "Shifting", 'write def loss(self, outputs, targets), and use targets["labels"] without shifting'),
        ("task", "ShiftingInEvaluation", "write def evaluate(self, outputs, targets)"),
        ("callbacks", "Theirs", "a callback of transformers' Trainer"),
        ("callbacks", "Plain", "is not a callback"),
        ("callbacks", "Narrow", "write def on_evaluate(self, trainer, state, control, metrics)"),
        ("callbacks", "Misspelt", "did you mean on_step_end?"),
        (
            "callbacks",
            "Yields",
            "on_step_end that is a generator (it yields), so that its body would never run",
        ),
        ("callbacks", "Awaits", "write def on_step_end(self, trainer, state, control) without yield, async or await"),
        ("optimizer", "NoOptimizer", "no torch.optim.Optimizer"),
        ("callbacks", "number", "is a function that returns int, not a callback"),
        ("task", "number", "is a function that returns int, not a task"),
        ("optimizer", "number", "is a function that returns int, not an optimizer"),
    ],
)
def test_mistakes_that_a_class_shows_without_a_call(broken: Path, part: str, name: str, words: str) -> None:
    node = {"_target_": f"mine.broken.{name}"}
    problems = {
        "task": lambda: check_task(node),
        "callbacks": lambda: check_callbacks({"x": node}),
        "optimizer": lambda: check_optimizer(node),
    }[part]()
    assert words in "\n".join(map(str, problems))
    assert all(problem.fix for problem in problems)
    assert not (broken / "mine" / "called").exists()


@pytest.mark.parametrize(
    "target", ["os.system", "shutil.rmtree", "builtins.exec", "torch.save", "trireme.launch.cli.main"]
)
def test_functions_that_make_no_component_are_not_called(target: str) -> None:
    node = {"_target_": target}
    found = [*check_task(node), *check_callbacks({"x": node}), *collator_problems(node), *_source_problems(node)]
    assert [problem.field for problem in found] == [
        f"{key}._target_" for key in ("task", "callbacks.x", "collator", "data.source")
    ]
    assert target == "torch.save" or check_optimizer(node)


def test_functions_that_make_components_are_called(broken: Path) -> None:
    assert not check_callbacks(
        {"x": {"_target_": "mine.broken.annotated"}, "y": {"_target_": "mine.broken.no_callback"}}
    )
    assert not check_optimizer({"_target_": "trireme.trainer.optimizers.adamw"})


def test_a_class_of_python_is_not_called_as_a_source(tmp_path: Path) -> None:
    node = {"_target_": "subprocess.Popen", "args": ["touch", str(tmp_path / "called")]}
    assert "is a class of a library, but no source" in _source_problems(node)[0].why
    assert not (tmp_path / "called").exists()


def _source_problems(node: dict[str, object]) -> list[Problem]:
    with pytest.raises(UserError) as caught:
        DocumentSource(node)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("name", "rate", "field", "words"),
    [
        ("NeedsClosure", 0.1, "optimizer._target_", "fails in step(): TypeError"),
        ("Forgets", 0.1, "optimizer._target_", "keeps a list as state 'history'"),
        ("Global", 0.1, "optimizer._target_", "which belongs to no parameter"),
        ("Unusual", 2.0, "optimizer.lr", "fails in step(): ValueError: too fast"),
    ],
)
def test_an_optimizer_that_fails_is_blamed_itself(broken: Path, name: str, rate: float, field: str, words: str) -> None:
    (problem,) = check_values({"_target_": f"mine.broken.{name}", "lr": rate})
    assert problem.field == field and words in problem.why


def test_an_optimizer_whose_state_is_a_list_is_refused_before_training() -> None:
    (problem,) = check_values({"_target_": "torch.optim.LBFGS", "lr": 0.1})
    assert problem.field == "optimizer._target_" and "per-parameter options" in problem.why


def test_our_own_keep_their_contracts() -> None:
    import inspect
    from importlib import import_module
    from pkgutil import iter_modules

    from trireme.trainer import callbacks
    from trireme.trainer.callbacks.callback import Callback

    for module in iter_modules(callbacks.__path__, "trireme.trainer.callbacks."):
        for name, cls in vars(import_module(module.name)).items():
            if inspect.isclass(cls) and issubclass(cls, Callback):
                assert not check_callbacks({"x": {"_target_": f"{module.name}.{name}"}})
    assert not check_task({"_target_": "trireme.trainer.tasks.causal_lm.CausalLM"})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task._target_=mine.broken.NoneLoss", "NoneLoss.loss returns None"),
        ("task._target_=mine.broken.FloatLoss", "FloatLoss.loss returns a float"),
        ("task._target_=mine.broken.VectorLoss", "VectorLoss.loss returns a tensor of shape (2, 32)"),
        ("task._target_=mine.broken.CutLoss", "not one that a backward pass can start from"),
        ("+callbacks.x._target_=mine.broken.NoJson", "callbacks.x\n  its state_dict cannot be written as JSON"),
        ("+callbacks.x._target_=mine.broken.TwoNumbers", "trainer.extra_metrics['two']\n  a metric is one number"),
        ("+callbacks.x._target_=mine.broken.no_callback", "which is not a callback"),
        (
            "+callbacks.x._target_=mine.broken.SetsStep",
            "callbacks.x\n  mine.broken.SetsStep sets state.step in on_step_end (",
        ),
        ("+callbacks.x._target_=mine.broken.SetsSamples", "SetsSamples sets state.samples in on_log ("),
        ("+callbacks.x._target_=mine.broken.SetsOwn", "keep values of your own on the callback"),
        ("+callbacks.x._target_=mine.broken.ReplacesState", "ReplacesState replaces trainer.state or trainer.control"),
        ("+callbacks.x._target_=mine.broken.NoFlag", "sets control.save to 'yes' in on_step_end"),
        ("+callbacks.x._target_=mine.broken.NumberKeys", "not a dict whose keys are texts"),
        ("+callbacks.x._target_=mine.broken.ListState", "its state_dict gives [1], not a dict"),
        ("task._target_=mine.broken.HalfLoss", "HalfLoss.loss returns a tensor of shape () and type bfloat16"),
        ("+collator._target_=mine.broken.UnknownTokens", "gives the token 99999, but the model has"),
        ("+collator._target_=mine.broken.UnknownLabels", "gives the label 99999, but the model has"),
        ("+callbacks.x._target_=mine.broken.SetsTheirs", "fix: write control.stop = True"),
        ("task._target_=mine.broken.ListSums", "ListSums.evaluate returns a list"),
        ("task._target_=mine.broken.NoLossMetric", "NoLossMetric.metrics returns a dict of other: a float"),
        ("task._target_=mine.broken.OtherHead", "write one of causal_lm"),
        ("task._target_=mine.broken.Shifting", "a run calls it with targets, whose labels are shifted already"),
        ("task._target_=mine.broken.FloatCount", "FloatCount.count returns a float, not a whole number"),
        ("+collator._target_=mine.broken.DictCollator", "gives dict from __call__, not a MicroBatch"),
        ("+collator._target_=mine.broken.DictOfAnEvaluation", "gives dict from micro_batch, not a MicroBatch"),
        ("+collator._target_=mine.broken.OneMicroBatch", "gives MicroBatch when it is called, not a list of"),
        ("+collator._target_=mine.broken.StepCollator", "gives StepBatch when it is called, not a list of MicroBatch"),
        ("+collator._target_=mine.broken.Unshifted", "gives labels from __call__ at the positions of their own"),
        (
            "+collator._target_=mine.broken.UnshiftedAndMasked",
            "gives labels from __call__ at the positions of their own",
        ),
        ("+collator._target_=mine.broken.UnshiftedEvaluation", "labels from micro_batch at the positions of their own"),
        ("+collator._target_=mine.broken.FewRows", "rows for 8 samples"),
        ("+collator._target_=mine.broken.NoPositions", "gives samples that are not 2 positions from __call__"),
        ("+collator._target_=mine.broken.OneRow", "gives w of shape (1,) from __call__, not 2 rows"),
        (
            "+collator._target_=mine.broken.ShortIntegers",
            "gives input_ids of torch.int32 from __call__, not torch.int64",
        ),
        ("+collator._target_=mine.broken.NoMicroBatch", "NoMicroBatch'\n  has no method micro_batch"),
        (
            "+callbacks.x._target_=mine.broken.BadStart",
            "callbacks.x\n  mine.broken.BadStart cannot be built: RuntimeError: not today",
        ),
        ("optimizer._target_=mine.broken.none", "gives a NoneType, not a torch.optim.Optimizer"),
        ("optimizer._target_=mine.broken.NoRate", "has no learning rate"),
    ],
)
def test_a_contract_that_is_broken_while_it_runs(
    broken: Path, override: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["optimizer.lr=0.1"] if override.startswith("optimizer") else []
    assert train(str(TINY), broken, ROOTS, override, *more) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message


def test_a_first_step_without_gradient_is_told(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(str(TINY), broken, ROOTS, "task._target_=mine.broken.ConstantLoss") in (0, 2)
    assert "the gradient of the first step is zero" in capsys.readouterr().err


def test_callbacks_may_track_a_best_metric_and_save(broken: Path) -> None:
    assert train(str(TINY), broken, ROOTS, "+callbacks.x._target_=mine.broken.SavesEarly") == 0


@pytest.mark.parametrize(
    ("key", "name", "words"),
    [
        ("task", "RaisingLoss", "KeyError: 'nothing' in loss"),
        ("callbacks.x", "Raises", "KeyError: 'gone' in on_step_end"),
        ("callbacks.x", "Leaves", "SystemExit: 0 in on_step_end"),
        ("callbacks.x", "RaisesSaving", "KeyError: 'gone' in state_dict"),
        ("optimizer", "RaisesStepping", "KeyError: 'gone' in step"),
        ("collator", "RaisingCollator", "KeyError: 'gone' in __call__"),
        ("data.source", "RaisingSource", "KeyError: 'gone' in load"),
    ],
)
def test_a_crash_of_own_code_names_it_and_may_be_tried_again(
    broken: Path, key: str, name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, which ``--max-restarts`` starts again: it may have been the network."""
    roots = [] if key == "data.source" else [ROOTS]
    more = ["optimizer.lr=0.1", "trainer.max_steps=3"] if key == "optimizer" else []
    plus = "+" if key in ("callbacks.x", "collator") else ""
    assert train(str(TINY), broken, *roots, f"{plus}{key}._target_=mine.broken.{name}", *more) == 1
    message = capsys.readouterr().err
    assert f"{key}\n  mine.broken.{name} raises {words} ({broken / 'mine' / 'broken.py'}, line " in message
    assert "Traceback" not in message
    assert "Traceback" in (broken / "run" / "log.txt").read_text()


OWN = """# mine/own.py
import numpy as np
import torch

from trireme.models.loss import next_token_labels
from trireme.parallel.micro_batch import MicroBatch
from trireme.trainer.data.base_collator import Collator, draws, positions
from trireme.trainer.tasks.causal_lm import CausalLM


class ByPosition(CausalLM):
    collator = "mine.own.Masking"

    def count(self, targets):
        return int((targets["labels"] != -100).sum()) + 0 * len(targets["nested"]["list"])

    def evaluate(self, outputs, targets):
        counted = targets["labels"] != -100
        right = (outputs.logits.argmax(-1) == targets["labels"]) & counted
        return {**super().evaluate(outputs, targets), "right": right.sum(0), "counted": counted.sum(0)}

    def metrics(self, sums):
        assert sums["right"].dtype == torch.float64 and sums["right"].shape == (32,)
        assert sums["right"].sum() == sums["correct"] and sums["counted"].sum() == sums["labels"]
        return {**super().metrics(sums), "last": float(sums["right"][-2] / sums["counted"][-2].clamp(min=1))}


class Masking(Collator):
    def __init__(self, micro_batch_size, seed):
        self.micro_batch_size, self.seed = micro_batch_size, seed

    def micro_batch(self, samples):
        places = positions(samples)
        tokens = torch.as_tensor(np.stack([sample["input_ids"] for sample in samples]).astype("int64"))
        masks = [draws(self.seed, int(place), "mask").random(tokens.shape[1]) < 0.5 for place in places]
        labels = tokens.masked_fill(torch.as_tensor(np.stack(masks)), -100)
        targets = {"labels": next_token_labels(labels), "nested": {"list": [places.float()]}}
        return MicroBatch({"input_ids": tokens}, targets, places, tokens.numel())
"""


def test_a_task_with_a_collator_and_sums_of_its_own(tmp_path: Path) -> None:
    """The collator has the base class, takes some of the engine's values and draws at random; sums have shapes."""
    path = Example(OWN, "task:\n  _target_: mine.own.ByPosition\n").write(tmp_path)
    assert main(["check", path, ROOTS]) == 0
    assert train(path, tmp_path, ROOTS) == 0
    assert '"eval_last"' in (tmp_path / "run" / "metrics.jsonl").read_text()
    named = Example(OWN, "collator:\n  _target_: mine.own.Masking\n").write(tmp_path)
    assert main(["check", named, ROOTS]) == 0


def test_the_traceback_is_shown_with_debug(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(str(TINY), broken, ROOTS, "+callbacks.x._target_=mine.broken.Raises", "--debug") == 1
    assert "in on_step_end\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("RaisingCollator", 1, "raises KeyError: 'gone' in __call__"),
        ("DictCollator", 2, "gives dict from __call__, not a MicroBatch"),
    ],
)
def test_data_workers_hand_messages_on(
    broken: Path, name: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    collator = f"+collator._target_=mine.broken.{name}"
    assert train(str(TINY), broken, ROOTS, collator, "data.num_workers=1") == code
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message


@pytest.mark.parametrize("place", ["clone", "packaged"])
def test_own_code_in_the_current_folder_counts_for_every_recipe(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_here.py").write_text("class Mine: ...\n")
    monkeypatch.chdir(tmp_path)
    if place == "clone":
        monkeypatch.setattr(
            "trireme.launch.given_recipe.PACKAGE", tmp_path
        )  # the recipe lies inside the clone of trireme
        (tmp_path / "mine.yaml").write_text("defaults: [/base, /model: llama_tiny, /data: python_stdlib]\n")
    compose("mine.yaml" if place == "clone" else "pretrain/persimmon_stdlib")
    assert locate("own_here.Mine").__name__ == "Mine"
    own = {str(tmp_path)}
    assert set(locate_module._own_folders) == own  # and not the folder of a packaged recipe
