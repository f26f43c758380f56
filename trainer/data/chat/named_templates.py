"""The chat templates that a recipe can choose by name (``data.chat.template=llama3``), and the tokens that each needs.

Their texts lie in the folder ``templates``, one file each; ``tokens.yaml`` beside them names their tokens. They follow
templates that are published with models. This file imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("templates")
USUAL = "chatml"
"""The template of a tokenizer that has none."""


@dataclass(frozen=True)
class NamedTemplate:
    """A chat template with its tokens."""

    name: str
    text: str
    tokens: tuple[str, ...]
    """Control tokens that the text holds."""
    bos: str | None
    """The token that the text calls ``bos_token``; None if it does not use one."""
    eos: str | None
    """The token that the text calls ``eos_token``; None if it does not use one."""


@cache
def template_names() -> tuple[str, ...]:
    """Names of all templates, in alphabetical order."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.jinja")))


@cache
def _tokens() -> dict[str, dict[str, Any]]:
    import yaml

    return yaml.safe_load((FOLDER / "tokens.yaml").read_text(encoding="utf-8"))


@cache
def named_template(name: str) -> NamedTemplate:
    """The template of a name in ``template_names``."""
    text, needed = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), _tokens()[name]
    return NamedTemplate(name, text.removesuffix("\n"), tuple(needed["tokens"]), needed.get("bos"), needed.get("eos"))


def named_among(template: str | Mapping[str, str]) -> Iterator[NamedTemplate]:
    """The named templates that are equal to a tokenizer's template, or to one of several."""
    texts = [template] if isinstance(template, str) else list(template.values())
    for name in template_names():
        if (named := named_template(name)).text in texts:
            yield named
