"""Tests of a data source for language identification, which reads translated program messages (gettext catalogues)."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.catalogues import write_catalogue
from trireme.errors import UserError
from trireme.trainer.data.gettext_languages import GettextLanguages

GERMAN = {"yes": "ja", "open": "aufmachen", "day": "Tag", "name": "Name", "one": "eins"}
SWEDISH = {"yes": "ja", "open": "\u00f6ppna", "day": "dag", "name": "name"}


def _source(folder: Path, **options: int) -> GettextLanguages:
    for language, messages in (("de", GERMAN), ("sv", SWEDISH)):
        write_catalogue(folder / language / "LC_MESSAGES" / "x.mo", messages)
    return GettextLanguages(["de", "sv"], [str(folder)], shortest=2, **options)


def test_texts_of_several_languages_and_untranslated_ones_are_left_out(tmp_path: Path) -> None:
    rows = _source(tmp_path).rows("")
    found = {language: {row["text"] for row in rows if row["label"] == language} for language in ("de", "sv")}
    assert found == {"de": {"aufmachen", "Tag", "Name", "eins"}, "sv": {"\u00f6ppna", "dag"}}


def test_every_language_has_at_most_so_many_texts(tmp_path: Path) -> None:
    few, all_rows = _source(tmp_path, most=2), _source(tmp_path)
    labels = [row["label"] for row in few.rows("")]
    assert labels == ["de", "de", "sv", "sv"] and few.rows("") == _source(tmp_path, most=2).rows("")
    assert few.fingerprint() != all_rows.fingerprint() and few.content() != all_rows.content()


def test_one_language_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be two or more"):
        GettextLanguages(["de", "de"])
    _source(tmp_path)
    with pytest.raises(UserError, match="no catalogue of the language fr"):
        GettextLanguages(["de", "fr"], [str(tmp_path)]).look()
