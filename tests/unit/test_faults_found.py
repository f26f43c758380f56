"""Every test that ``docs/faults-found.md`` names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    line
    for line in (ROOT / "docs" / "faults-found.md").read_text().splitlines()
    if line.startswith("|") and not line.startswith(("| fault |", "| --- "))
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:60])
def test_the_test_of_a_fault_exists(row: str) -> None:
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))]
    assert len(cells) == 5
    file = None
    for name in re.split(r",\s*", cells[4]):
        found = re.match(r"(tests/[\w/]+\.py)?(?:::(\w+))?", name)
        assert found is not None
        file = ROOT / found[1] if found[1] else file
        assert file is not None and file.is_file(), name
        assert not found[2] or f"def {found[2]}(" in file.read_text(), name
