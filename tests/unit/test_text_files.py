"""Only a file whose first paragraph is about texts or tokens may use words such as ``input_ids``; other code must work
for any modality.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS = re.compile(r"causal|block_size|input_ids")
ABOUT_TEXTS = re.compile(r"\b(texts?|tokens?|next-token|tokenizers?|causal language model)\b", re.IGNORECASE)
"""Words in the first paragraph of a file that may use ``WORDS``."""
OTHERS = {
    "parallel/zero/json_keys.py": "DeepSpeed's key aio.block_size, in bytes",
    "parallel/zero/options.py": "the same key in a recipe",
}
FILES = [path for folder in ("trainer", "parallel", "launch") for path in sorted((ROOT / folder).rglob("*.py"))]
USING = [path.relative_to(ROOT).as_posix() for path in FILES if WORDS.search(path.read_text())]


@pytest.mark.parametrize("file", [file for file in USING if file not in OTHERS])
def test_files_with_the_words_are_about_texts(file: str) -> None:
    about = (ast.get_docstring(ast.parse((ROOT / file).read_text())) or "").partition("\n\n")[0]
    words = sorted(set(WORDS.findall((ROOT / file).read_text())))
    assert ABOUT_TEXTS.search(about), f"{file} uses {', '.join(words)}, and its first paragraph is: {about}"


def test_the_exceptions_are_still_needed() -> None:
    assert set(OTHERS) <= set(USING)
