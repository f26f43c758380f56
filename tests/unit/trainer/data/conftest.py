"""Fixtures for data tests: real documents from Python's standard library, and batch settings."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.settings import TrainerConfig

FILES = "trireme.trainer.data.sources.Files"


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """About 190 distinct texts of 30 to 2000 characters."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = "".join((folder / name).read_text() for name in ("argparse.py", "dataclasses.py"))
    parts = dict.fromkeys(part.strip() for part in text.split("\n\n    def "))
    return [part[:2000] for part in parts if len(part) > 30]


@pytest.fixture
def corpus_file(tmp_path: Path, documents: list[str]) -> Path:
    import json

    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.fixture
def data_config(tmp_path: Path, corpus_file: Path) -> Callable[..., DataConfig]:
    def make(**options: Any) -> DataConfig:
        from trireme.trainer.data.tokenizer import TokenizerConfig

        values: dict[str, Any] = {
            "source": {"_target_": FILES, "paths": [str(corpus_file)]},
            "block_size": 32,
            "tokenizer": TokenizerConfig(vocab_size=400, sample_documents=100),
            "held_out": 0.1,
            "cache_dir": str(tmp_path / "cache"),
        }
        return DataConfig(**values | options)

    return make


@pytest.fixture
def settings() -> TrainerConfig:
    return TrainerConfig(max_steps=10, global_batch_size=8, micro_batch_size=2, eval_samples=7)
