"""A part of the table of architectures without a file of their own; ``make families`` tries all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from families.matrix import TOLERANCE, look
from trireme.models.model_config import ModelConfig


@pytest.mark.parametrize(("model_type", "plans"), [("qwen3", {"fsdp_full_shard": 2}), ("roberta", {"ddp": 2})])
def test_an_architecture_without_a_file(model_type: str, plans: dict[str, int], tmp_path: Path) -> None:
    found = look(model_type, tmp_path, plans)
    assert found.resumed and found.exported and found.parameters > 10_000
    assert max(found.differences.values()) < TOLERANCE


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "family=auto needs it"),
        ({"model_type": "qwen33"}, "did you mean qwen3?"),
        ({"model_type": "mra"}, "attention silently gives zeros"),
        ({"model_type": "cpmant"}, "is not causal"),
    ],
)
def test_an_architecture_that_is_not_there_or_not_right(config: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        ModelConfig("auto", dict(config))
