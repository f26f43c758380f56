"""Tests of ``trireme convert-args`` on files that list all training arguments of a tool, most with their default
values, and on arguments that have an effect only together with another.

Arguments with default values are not reported as unconverted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trireme.launch.convert.convert_arguments import converted, converted_soundly


def _file(folder: Path, arguments: dict[str, Any]) -> Path:
    (folder / "arguments.json").write_text(json.dumps(arguments))
    return folder / "arguments.json"


@pytest.mark.parametrize(("report_to", "trackers"), [([], None), (["trackio"], ["trackio"]), ("wandb", ["wandb"])])
def test_a_dump_of_all_arguments(report_to: Any, trackers: Any, tmp_path: Path) -> None:
    from transformers import TrainingArguments

    arguments = json.loads(TrainingArguments(str(tmp_path), report_to=[], use_cpu=True).to_json_string())
    draft, _ = converted_soundly(_file(tmp_path, {**arguments, "report_to": report_to}))
    assert draft.left.keys() == {"use_cpu", "dataloader_pin_memory"}
    assert draft.choices.get("tracker") == trackers
    assert ("callbacks.trackio.project" in draft.values) == (trackers == ["trackio"])


def test_an_option_of_a_tracker_that_was_not_chosen(tmp_path: Path) -> None:
    draft, _ = converted_soundly(_file(tmp_path, {"project": "mine"}), "transformers")
    assert "report_to does not name" in draft.left["project"][1] and "callbacks.trackio.project" not in draft.values
    draft, _ = converted(_file(tmp_path, {"wandb_project": "mine"}), "axolotl")
    assert draft.choices["tracker"] == ["wandb"] and draft.values["callbacks.wandb.project"] == "mine"


def test_accumulation_without_a_micro_batch_is_listed(tmp_path: Path) -> None:
    inner = {"zero_stage": 2, "gradient_accumulation_steps": 4}
    given = {"distributed_type": "DEEPSPEED", "num_processes": 2, "deepspeed_config": inner}
    draft, tool = converted_soundly(_file(tmp_path, given))
    assert tool == "accelerate" and "trainer.global_batch_size" in draft.left["gradient_accumulation_steps"][1]
