"""Tests of ``trireme convert-args`` with unusual or invalid values in another tool's training arguments: it writes a
valid recipe, lists the argument as not taken over, or refuses it by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.command import refused, trireme_here
from helpers.recipes import STDLIB
from trireme.configs.names_of_other_tools import find, tools
from trireme.configs.schema import read_recipe
from trireme.errors import Problem, UserError
from trireme.launch.compose import compose
from trireme.launch.convert.argument_rules import RULES
from trireme.launch.convert.convert_arguments import ON, converted, converted_soundly

NAMES = sorted(
    {name.name for tool in tools() if tool.name in ("transformers", "axolotl") for name in tool.names if name.ours}
    | RULES.keys()
)
NAMES = [name for name in NAMES if "*" not in name]
ODD: list[Any] = [0, -1, 1.5, 3, True, "x", "1e400", "0.5", 10**30, [1], {"a": 1}, ["${x}"], -0.5, "no"]
OFF = (None, False, "", [], {}, "no")
TOOLS = ("transformers", "axolotl")


def written(folder: Path, arguments: dict[str, Any], name: str = "arguments.json") -> Path:
    (folder / name).write_text(json.dumps(arguments))
    return folder / name


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_every_value_is_taken_over_or_listed(value: Any, tool: Any, tmp_path: Path) -> None:
    """All arguments have the same odd value at once, apart from those whose rules refuse it."""
    usual, _ = converted(written(tmp_path, {"run_name": "x"}), tool)
    given, unsaid = {}, []
    for name in NAMES:
        try:
            draft, _ = converted(written(tmp_path, {name: value}), tool)
        except UserError as error:
            (problem,) = error.problems
            assert isinstance(problem, Problem) and problem.field.startswith(name) and problem.fix
            continue
        moved = any(name in names for names in draft.written_by.values()) or draft.choices != usual.choices
        off = value in OFF or (name in RULES and value in (0, -1) and name not in ("logging_steps", "save_steps"))
        if not (moved or off or {name, f"{name}.a"} & draft.left.keys() or _needless(name, value)):
            unsaid.append(name)
        given[name] = value
    assert not unsaid
    draft, _ = _sound(tmp_path, given, tool)
    _no_problem(tmp_path, draft)


def _needless(name: str, value: Any) -> bool:
    """Whether the value changes nothing, since it is the default."""
    return name in ("peft_use_dora", "fsdp", "report_to", "chat_template") or (name in RULES and value is True)


def _sound(folder: Path, given: dict[str, Any], tool: Any) -> Any:
    """The draft of all arguments, without those that are refused together with others."""
    while True:
        try:
            return converted_soundly(written(folder, given), tool)
        except UserError as error:
            names = {name for name in given for problem in error.problems if _field(problem).startswith(name)}
            assert names, error
            given = {name: value for name, value in given.items() if name not in names}


def _field(problem: Any) -> str:
    return problem.field if isinstance(problem, Problem) else ""


def _no_problem(folder: Path, draft: Any) -> None:
    """Assert that the check finds no problem in a key that was written."""
    file = folder / "recipe.yaml"
    file.write_text(draft.text("arguments", ""))
    composed = compose(str(file))
    keys = {key for key in draft.values if not key.startswith(("model.weights", "data.source.path"))}
    found = [*composed.problems, *read_recipe(composed.raw, lambda plan: 1)[1]]
    assert not [problem for problem in found for key in keys if f"{problem.field}.".startswith(f"{key}.")]


def test_switches_that_are_on_elsewhere_are_known() -> None:
    assert all(find(name) for name in ON)
    draft, _ = converted_soundly_of({"dataloader_pin_memory": False, "ddp_find_unused_parameters": False})
    assert list(draft.left) == ["dataloader_pin_memory"]


def converted_soundly_of(given: dict[str, Any]) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return converted_soundly(written(Path(folder), given))


@pytest.mark.parametrize(
    ("given", "values", "left"),
    [
        (
            {"per_device_train_batch_size": 0, "gradient_accumulation_steps": -2},
            {"trainer.micro_batch_size": None, "trainer.global_batch_size": None},
            {"per_device_train_batch_size", "gradient_accumulation_steps"},
        ),
        ({"max_steps": 1.5}, {"trainer.max_steps": None}, {"max_steps"}),
        ({"logging_steps": 0}, {"trainer.log_every": None}, {"logging_steps"}),
        ({"bf16": True, "fp16": True}, {"plan.precision": None}, {"bf16", "fp16"}),
        ({"bf16": True, "fp16": False}, {"plan.precision": "bf16"}, set()),
        ({"adam_beta2": 1.5}, {"optimizer.betas": None}, {"adam_beta2"}),
        ({"dataloader_num_workers": -1}, {"data.num_workers": None}, {"dataloader_num_workers"}),
        ({"output_dir": "${x}"}, {"run.dir": None}, {"output_dir"}),
        ({"eval_strategy": "steps", "logging_steps": 7}, {"trainer.eval_every": 7, "trainer.log_every": 7}, set()),
    ],
)
def test_values_that_another_tool_would_refuse(given: dict[str, Any], values: Any, left: Any, tmp_path: Path) -> None:
    draft, _ = converted_soundly(written(tmp_path, given))
    assert {key: draft.values.get(key) for key in values} == values and set(draft.left) == left


def test_zero_switches_off_what_it_does_elsewhere(tmp_path: Path) -> None:
    draft, _ = converted_soundly(written(tmp_path, {"max_grad_norm": 0, "save_total_limit": 0}))
    assert draft.values["trainer.max_grad_norm"] is None and draft.values["checkpoint.keep_last"] is None
    assert not draft.left


CHATS = {"path": f"{STDLIB}/chats.jsonl", "type": "chat_template"}


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ({"datasets": [CHATS]}, "data.chat.too_long", "drop"),
        ({"datasets": [CHATS], "excess_length_strategy": "raise"}, "data.chat.too_long", "refuse"),
        ({"datasets": [CHATS], "packing": True, "excess_length_strategy": "truncate"}, "data.chat.too_long", "cut"),
        ({"sample_packing": True, "excess_length_strategy": "truncate"}, "data.overflow", "cut"),
    ],
)
def test_what_is_done_with_long_samples(given: dict[str, Any], key: str, value: str, tmp_path: Path) -> None:
    draft, _ = converted_soundly(written(tmp_path, {"base_model": "x", **given}))
    assert draft.values[key] == value and not draft.left
    assert ({"data.overflow", "data.chat.too_long"} & draft.values.keys()) == {key}


@pytest.mark.parametrize("packed", [True, False])
def test_documents_cannot_end_a_run_by_their_length(packed: bool, tmp_path: Path) -> None:
    given = {"base_model": "x", "sample_packing": packed, "excess_length_strategy": "raise"}
    draft, _ = converted_soundly(written(tmp_path, given))
    assert list(draft.left) == ["excess_length_strategy"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '{"learning_rate": 1, "learning_rate": 2}'),
        ("a.json", '{"x": {"learning_rate": 1, "learning_rate": 2}}'),
        ("a.yaml", "learning_rate: 1\nseed: 3\nlearning_rate: 2\n"),
    ],
)
def test_a_key_that_stands_twice_is_named(
    name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    refused(trireme_here(capsys, "convert-args", str(tmp_path / name)), "learning_rate", "is given twice", "keep one")


def test_the_command_lists_what_the_check_would_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({"weight_decay": -0.1}))
    made = trireme_here(capsys, "convert-args", str(file), str(tmp_path / "r.yaml"))
    assert made.returncode == 0 and "not taken over: weight_decay" in made.stdout
