"""Tests of the check of a pretrained tokenizer by its files alone: its size, missing files or packages, and damage."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from trireme.errors import Problem, UserError
from trireme.trainer.data.check_tokenizer import check_tokenizer, unloadable
from trireme.trainer.data.tokenizer import TokenizerConfig, load_or_train, load_tokenizer


def _refused(path: Path) -> Problem:
    """The problem that the check finds; asserts that loading refuses the folder with the same problem."""
    (problem,), size = check_tokenizer(str(path))
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(path))
    assert size is None and caught.value.problems == (problem,)
    return problem


def test_the_size_is_that_of_the_loaded_tokenizer(tmp_path: Path, documents: list[str]) -> None:
    tokenizer = load_or_train(TokenizerConfig(vocab_size=400), lambda: documents, "x", str(tmp_path))
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(tmp_path / "saved")
    assert check_tokenizer(str(tmp_path / "saved")) == ([], 402)
    assert len(load_tokenizer(str(tmp_path / "saved" / "tokenizer.json"))) == 402


def test_folders_without_a_tokenizer(tmp_path: Path) -> None:
    assert "has no tokenizer.json" in _refused(tmp_path).why
    assert "no folder or file of this name" in _refused(tmp_path / "nothing").why


@pytest.mark.parametrize(("name", "package"), [("tokenizer.model", "sentencepiece"), ("vocab.tiktoken", "tiktoken")])
def test_packages_that_are_not_installed_are_named(
    tmp_path: Path, name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / name).write_bytes(b"x")
    (problem,), _ = check_tokenizer(str(tmp_path))
    assert package in problem.why and problem.fix.startswith(f"pip install {package}")


def test_a_damaged_tokenizer_is_one_message(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"model": 3}'):
        (tmp_path / "tokenizer.json").write_text(text)
        (problem,), _ = check_tokenizer(str(tmp_path))
        assert "cannot be read" in problem.why
    with pytest.raises(UserError, match="no tokenizer can be loaded"):
        load_tokenizer(str(tmp_path))


def test_a_class_whose_package_is_missing() -> None:
    error = ImportError("\nGPTSw3Tokenizer requires the SentencePiece library but it was not found.\nSee ...")
    problem = unloadable(error, "data.tokenizer.path", "x")
    assert "requires the SentencePiece library" in problem.why and problem.fix.startswith("pip install sentencepiece")
