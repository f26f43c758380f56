"""Tests that data sources refuse unknown encodings and invalid delimiters, and that the error names the argument."""

from __future__ import annotations

import pytest
from trireme.trainer.data.captioned_folder import CaptionedFolder
from trireme.trainer.data.row_files import RowFiles
from trireme.trainer.data.sources import Files


@pytest.mark.parametrize("encoding", ["3", "utf-9", "hex"])
def test_an_encoding_that_python_does_not_know(encoding: str) -> None:
    for source in (Files, CaptionedFolder):
        with pytest.raises(ValueError, match=f"encoding={encoding} is not an encoding.*; write one such as"):
            source("folder", encoding=encoding)  # type: ignore[arg-type]


@pytest.mark.parametrize("delimiter", ["some_words", "", "\n"])
def test_a_delimiter_that_is_no_single_character(delimiter: str) -> None:
    for source in (Files, RowFiles):
        with pytest.raises(ValueError, match=r"delimiter=.* is not a single character; write one such as"):
            source("rows.csv", delimiter=delimiter)  # type: ignore[arg-type]


@pytest.mark.parametrize("delimiter", ["\\t", "tab", "\t"])
def test_a_tab_has_several_spellings(delimiter: str) -> None:
    assert (
        Files("rows.csv", delimiter=delimiter).delimiter == RowFiles("rows.csv", delimiter=delimiter).delimiter == "\t"
    )  # type: ignore[arg-type]
