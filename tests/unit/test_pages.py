"""Generated documentation pages are up to date, and ``trireme keys`` describes every key."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command import refused, trireme_here
from trireme.configs.key_list import argument_docs, keys
from trireme.configs.schema import RecipeConfig
from trireme.configs.validate import schema_paths
from trireme.launch.pages import PAGES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_page_is_current(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run: make pages"


def test_every_key_has_a_type_and_a_meaning() -> None:
    found = keys()
    assert {key.path for key in found} >= set(schema_paths(RecipeConfig))
    assert not [key.path for key in found if not key.about or not key.type]
    lr = {key.target: key for key in keys("optimizer.lr")}
    assert set(lr) == {"adamw", "adamw_8bit", "adafactor", "lion", "sgd"}
    assert lr["adamw"].default == "3e-4" and lr["adamw"].type == "float"
    assert not [key for key in keys("collator") if key.path == "collator.pad_token_id"], "the engine gives it"


def test_keys_reads_well_in_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    shown = trireme_here(capsys, "keys")
    assert shown.returncode == 0
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    one = trireme_here(capsys, "keys", "trainer.max_steps").stdout.splitlines()
    assert one[0] == "trainer.max_steps: int | null = null"
    assert one[1].startswith("    Optimizer steps")
    for part in ("trainer.", "plan.prec", "data.source", "callbacks.push"):
        found = trireme_here(capsys, "keys", part).stdout.splitlines()
        assert found and all(line.startswith((part, " ")) for line in found)
    assert "plan=zero2" in " ".join(trireme_here(capsys, "keys", "plan").stdout.split())


@pytest.mark.parametrize(
    ("prefix", "fix"),
    [("learning_rate", "write optimizer.lr"), ("max_steps", "trainer.max_steps"), ("trainer.max_stepps", "max_steps")],
)
def test_keys_that_are_not_there(capsys: pytest.CaptureFixture[str], prefix: str, fix: str) -> None:
    refused(trireme_here(capsys, "keys", prefix), fix)


def test_markdown_is_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert trireme_here(capsys, "keys", "--markdown").stdout == PAGES["keys.md"]()


def test_arguments_are_read_from_docstrings() -> None:
    class Component:
        """Says.

        Args:
            first: one
                and more.
            second: two.

        Raises:
            ValueError: never.
        """

    assert argument_docs(Component) == {"first": "One and more.", "second": "Two."}
