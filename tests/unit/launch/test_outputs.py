"""Commands create the parent folders of their output, and refuse an unwritable output before they do any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command import ROOTS, refused, trireme_here
from helpers.recipes import TINY, tiny_recipe
from trireme.trainer.build import train

FILES = {
    "report": (["report", "{run}", "--out", "{out}"], "--out", "page.html"),
    "data": (["data", str(TINY), ROOTS, "--samples=0", "--html", "{out}"], "--html", "page.html"),
    "predict": (["predict", str(TINY), ROOTS, "run.dir={run}", "--limit=2", "--out", "{out}"], "--out", "found.jsonl"),
    "convert-args": (["convert-args", "{arguments}", "{out}"], "OUT", "recipe.yaml"),
}
COMMANDS = {**FILES, "export": (["export", "{run}", "{out}"], "OUT", "exported")}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("outputs")
    train(tiny_recipe(root / "run", "trainer.max_steps=1"))
    (root / "arguments.json").write_text(json.dumps({"learning_rate": 0.1}))
    return {"run": root / "run", "arguments": root / "arguments.json"}


def _words(command: str, places: dict[str, Path], out: object) -> list[str]:
    return [word.format(**places, out=out) for word in COMMANDS[command][0]]


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_folders_are_made(
    command: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a" / "b" / COMMANDS[command][2]
    made = trireme_here(capsys, *_words(command, places, out))
    assert made.returncode == 0 and out.exists(), made.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["below a file", "kernel", "too long", "empty", "line break", "no home"])
def test_what_cannot_be_written_is_refused_first(
    kind: str, command: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    _, field, name = COMMANDS[command]
    out, why = {
        "below a file": (tmp_path / "file" / "a" / name, f"cannot be written: {tmp_path}/file is a file, not a folder"),
        "kernel": (f"/proc/trireme/{name}", "it lies in a file system of the kernel"),
        "too long": (tmp_path / ("n" * 300 + name), "is too long for a file system"),
        "empty": ("", "is empty"),
        "line break": (tmp_path / f"a\n{name}", "holds a character that cannot be shown"),
        "no home": (f"~nobody_of_this_name/{name}", "begins with ~ and a name that nobody has here"),
    }[kind]
    refused(trireme_here(capsys, *_words(command, places, out)), field, why)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("command", FILES)
@pytest.mark.parametrize("kind", ["folder", "slash", "device", "link"])
def test_a_file_is_wanted(
    kind: str, command: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, field, name = COMMANDS[command]
    (tmp_path / f"folder_{name}").mkdir()
    (tmp_path / f"link_{name}").symlink_to("nowhere")
    out, why = {
        "folder": (tmp_path / f"folder_{name}", "is a folder"),
        "slash": (f"{tmp_path}/new/", "is a folder"),
        "device": ("/dev/null", "is not a plain file"),
        "link": (tmp_path / f"link_{name}", "is not a plain file"),
    }[kind]
    refused(trireme_here(capsys, *_words(command, places, out)), field, why)
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("kind", ["full", "file"])
def test_a_new_folder_is_wanted(
    kind: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    why = {"full": "exists and is not empty", "file": "is a file, not a folder"}[kind]
    refused(trireme_here(capsys, *_words("export", places, tmp_path / kind)), "OUT", why)
