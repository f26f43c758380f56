"""Tests of ``DataConfig``: impossible values are refused, shipped YAML files fit it, and its import loads little."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trireme
import yaml
from trireme.trainer.component import locate
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.mixed_source import MixedSource
from trireme.trainer.data.tokenizer import TokenizerConfig

FOLDER = Path(trireme.__file__).parent / "configs" / "data"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 1}, "block_size=1"),
        ({"held_out": 1.0}, "held_out=1.0"),
        ({"held_out": -0.1}, "held_out=-0.1"),
        ({"num_proc": 0}, "num_proc=0"),
        ({"shuffle_window": 0}, "shuffle_window=0"),
        ({"streaming": True}, "deduplicate=true is wrong with streaming=true"),
        ({"streaming": True, "deduplicate": False, "num_workers": 2}, "num_workers=2 is wrong with streaming=true"),
        ({"streaming": True, "deduplicate": False}, "tokenizer.sample_documents=null"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(source={}, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "source=None is required"),
        ({"source": {}, "sources": {"wiki": MixedSource({})}}, "sources is wrong beside source"),
        ({"sources": {}}, "names no source"),
        ({"sources": {"my wiki": MixedSource({})}}, "sources='my wiki' is wrong"),
    ],
)
def test_a_run_has_one_source_or_a_mixture(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_are_above_zero(weight: float) -> None:
    with pytest.raises(ValueError, match=r"weight=\S+ is not above 0"):
        MixedSource({}, weight)


def test_all_problems_come_together() -> None:
    with pytest.raises(ValueError, match=r"block_size=0[^\n]*\nheld_out=2"):
        DataConfig(source={}, block_size=0, held_out=2.0)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_yaml_fits_the_dataclasses(path: Path) -> None:
    text = path.read_text()
    values = yaml.safe_load(text)
    assert text.startswith("# ")
    mixed = values.get("sources", {})
    if "loader" in values:  # which has no source
        values["loader"] = {"_target_": "mine.Loader"}
    alone = [dict(values["source"])] if "source" in values else []
    for source in [dict(entry["source"]) for entry in mixed.values()] or alone:
        target = locate(source.pop("_target_"))
        # Every option stands in the file, where it can be seen and overridden.
        assert set(source) == {field.name for field in dataclasses.fields(target)}
        target(**{key: ["x"] if value == "???" else value for key, value in source.items()})
    if mixed:
        values["sources"] = {name: MixedSource(**entry) for name, entry in mixed.items()}
    DataConfig(**values | {"tokenizer": TokenizerConfig(**values.get("tokenizer", {}))})


def test_the_configuration_imports_nothing_heavy() -> None:
    code = (
        "import sys, trireme.trainer.data.data_config; "
        "sys.exit(bool({'torch', 'numpy', 'datasets', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
