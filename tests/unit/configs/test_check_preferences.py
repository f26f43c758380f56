"""Tests of ``trireme check`` on recipes for DPO, IPO and KTO: recipes that it accepts, its warning about a reference
model of random weights, and recipes that it refuses.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command import refused, trireme_here
from helpers.preferences import JUDGED, PAIRS, written
from helpers.recipes import TINY


def check(capsys: pytest.CaptureFixture[str], folder: Path, *overrides: str, rows: str = "pairs"):
    path = folder / f"{rows}.jsonl"
    written(JUDGED if rows == "judged" else PAIRS, path)
    data = ["data=preferences", f"data.source.paths=[{path}]", f"run.dir={folder / 'run'}"]
    return trireme_here(capsys, "check", str(TINY), *data, *overrides)


def test_recipes_are_accepted_and_random_references_are_warned_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for overrides, rows in (
        (["task=dpo"], "pairs"),
        (["task=ipo", "data.chat=null"], "pairs"),
        (["task=kto"], "judged"),
        (["task=kto", "data.packing=bins"], "pairs"),
        (["task=dpo", "adapter=lora", "task.reference=adapter_off"], "pairs"),
    ):
        found = check(capsys, tmp_path, *overrides, rows=rows)
        assert found.returncode == 0, found.stderr
        assert "compared with a model of random weights" in found.stdout + found.stderr


@pytest.mark.parametrize(
    ("overrides", "rows", "words"),
    [
        (["task=dpo"], "judged", ("data.source", "no column chosen", "data.columns.chosen=COLUMN")),
        (["task=causal_lm"], "pairs", ("data.source", "none of the columns of a chat")),
        (
            ["task=dpo", "task.reference=adapter_off"],
            "pairs",
            ("task.reference", "model.adapter is null", "adapter=lora"),
        ),
        (
            ["task=dpo", "adapter=lora", "model.adapter.modules_to_save=[lm_head]", "task.reference=adapter_off"],
            "pairs",
            ("task.reference", "fully trained modules"),
        ),
        (["task=dpo", "task.reference=none"], "pairs", ("task.reference", "adapter_off")),
        (["task=dpo", "task.beta=0"], "pairs", ("task.beta", "above 0")),
        (["task=dpo", "task.label_smoothing=0.5"], "pairs", ("label_smoothing", "below 0.5")),
        (["task=kto", "task.desirable_weight=-1"], "judged", ("desirable_weight", "not be below 0")),
        (
            ["task=kto", "trainer.global_batch_size=1", "trainer.micro_batch_size=1"],
            "judged",
            ("trainer.global_batch_size", "estimates a mean"),
        ),
        (["task=dpo", "+generation={samples: 4}"], "pairs", ("generation", "has two")),
        (["task=dpo", "task.rpo_alpha=1"], "pairs", ("task.sft",)),
        (["task=orpo"], "pairs", ("task", "orpo", "task.sft=1")),
    ],
)
def test_what_cannot_work_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, overrides: list[str], rows: str, words: tuple[str, ...]
) -> None:
    refused(check(capsys, tmp_path, *overrides, rows=rows), *words)
