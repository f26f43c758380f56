"""Tests that output folders are checked without creating them, and that errors say why a folder cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.disk import small_disk
from trireme.errors import UserError
from trireme.trainer.folders import check_new_folder, folder_problem, name_problem
from trireme.trainer.settings import RunConfig


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("a\nb", "line break"),
        ("a\0b", "cannot be shown"),
        ("a\x1bb", "cannot be shown"),
        ("x" * 256, "too long"),
        ("ä" * 130, "too long"),
        ("x/" * 2100, "too long"),
        ("\udcff", "cannot be shown"),
    ],
)
def test_names_that_no_folder_can_have(name: str, word: str) -> None:
    assert word in name_problem(name)
    with pytest.raises(ValueError, match="dir="):
        RunConfig(dir=name)


def test_usual_names_are_accepted(tmp_path: Path) -> None:
    for name in ("runs/x", "größe und länge", str(tmp_path / "a" / "b"), "x" * 255):
        assert name_problem(name) == "" and folder_problem(tmp_path / name) == ""
    assert not list(tmp_path.iterdir())
    assert RunConfig(dir="~/runs").dir == str(Path.home() / "runs")


def test_a_file_in_the_way_and_a_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "is a file" in folder_problem(tmp_path / "file")
    assert "is a file" in folder_problem(tmp_path / "file" / "below" / "it")
    assert "cannot be written" in folder_problem(tmp_path / "link" / "run")


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 200 * 1024) as disk:
        assert folder_problem(disk / "run") == ""
        (disk / "filler").write_bytes(b"x" * 160 * 1024)
        assert "no space is left" in folder_problem(disk / "run")


def test_a_place_for_a_new_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    for file in (tmp_path / "full" / "file", tmp_path / "file"):
        file.write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for free in (tmp_path / "empty", tmp_path / "new", tmp_path / "new" / "below"):
        check_new_folder(free, "OUT")
    for taken, why in {
        "full": "exists and is not empty",
        "file": "is a file, not a folder",
        "link": "is a file, not a folder",
        "file/below": "cannot be written",
    }.items():
        with pytest.raises(UserError, match=f"OUT = .*\\n  {why}(.|\\n)*fix: name a new folder"):
            check_new_folder(tmp_path / taken, "OUT")
    assert (tmp_path / "full" / "file").read_text() == "mine"
