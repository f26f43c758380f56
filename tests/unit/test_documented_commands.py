"""Tests that everything users are told to type exists: commands, options and recipe keys in the README and in help
texts, names of commands in docs and messages, and the pip extras that ``trireme doctor`` offers. The README must show
ten commands first, and thirty in all.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from trireme.configs.key_list import group_options, keys
from trireme.launch.commands.table import COMMANDS
from trireme.launch.describe_machine import OPTIONAL

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = [path for name in ("configs", "launch", "models", "parallel", "trainer") for path in (ROOT / name).rglob("*.py")]
LINE = re.compile(r"^(?:\$ )?(trireme [a-z-]+ .*?)(?:  +#.*| # .*)?$", re.MULTILINE)


def _shown() -> list[str]:
    """Lines of the README, and examples of the commands themselves."""
    examples = "\n".join(command.examples for command in COMMANDS.values())
    return LINE.findall((ROOT / "README.md").read_text()) + re.findall(
        r"^  (trireme [a-z-]+ .*?)(?:  +#.*)?$", examples, re.M
    )


@pytest.mark.parametrize("line", _shown())
def test_a_command_that_is_shown_is_understood(line: str) -> None:
    _, name, *words = shlex.split(line.partition(" > ")[0])
    options = COMMANDS[name].parser().parse_words(words)
    known = {key.path for key in keys()}
    for override in getattr(options, "overrides", []):
        key, _, value = override.partition("=")
        if key == "trainer.max_step":  # shown as a mistake
            continue
        assert key in known or key.startswith("callbacks."), line
        choices = group_options(key)
        assert not choices or value in choices, line


def test_the_readme_shows_ten_commands_first_under_five_headings() -> None:
    text = (ROOT / "README.md").read_text()
    use = text[text.index("## Use") : text.index("</details>")]
    first, more = use.split("<details>")
    assert len(LINE.findall(first)) == 10 and first.count("\n# ") == 5
    assert len(LINE.findall(use)) + more.count("\ntorchrun ") == 30


@pytest.mark.parametrize("path", [*PAGES, *CODE], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_are_named_exist(path: Path) -> None:
    named = re.findall(r"(?:`|see: |run: |\(see: )trireme ([a-z][a-z-]+)", path.read_text())
    assert not [name for name in named if name not in COMMANDS], path


def test_doctor_offers_what_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, fix in OPTIONAL.items():
        offered = re.search(r"trireme-train\[(\w+)\]", fix)
        assert offered and any(package.startswith(name) for package in extras[offered[1]]), name
