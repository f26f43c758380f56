"""Make the sections of a run report about recipes: full recipes, differences between runs, versions, machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from .markup import Html, details, section, table, text
from .run_files import RunFiles

NOT_COMPARED = ("run.dir", "run.trial")
"""Keys that differ between any two runs."""
MOST_DIFFERENCES = 200
SIDE_BY_SIDE, MOST_COLUMNS = 6, 24
"""Runs that stand in columns beside each other, with keys in rows; more runs stand in rows, with so many keys."""
LONGEST = 160
"""Characters of a value that are shown in the table of differences."""


def differences(runs: Sequence[RunFiles]) -> str:
    """Keys of the recipes whose values differ between the runs of the page."""
    every = [dict(flat(run.recipe)) for run in runs if run.recipe]
    if len(every) < 2:
        return ""
    names = [run.name for run in runs if run.recipe]
    keys = list(dict.fromkeys(key for one in every for key in one))
    rows = []
    for key in keys:
        values = [_shown(one[key]) if key in one else None for one in every]
        if key not in NOT_COMPARED and len(set(values)) > 1:
            missing = Html('<span class="dim">not there</span>')
            rows.append((key, *(missing if value is None else value[:LONGEST] for value in values)))
    if len(names) > SIDE_BY_SIDE:
        rows = rows[:MOST_COLUMNS]
        keys, rows = ["run", *(row[0] for row in rows)], list(zip(names, *(row[1:] for row in rows), strict=True))
        listed = table(keys, rows, range(len(keys)), "differences between recipes") if len(keys) > 1 else ""
        return section("differences", "What differs", [listed], "Keys whose values are not the same in all recipes.")
    if not rows:
        return section("differences", "What differs", ["<p>The recipes are the same.</p>"])
    listed = table(("key", *names), rows[:MOST_DIFFERENCES], range(len(names) + 1), "differences between recipes")
    left = len(rows) - MOST_DIFFERENCES
    note = f'<p class="dim">and {left} more</p>' if left > 0 else ""
    return section("differences", "What differs", [listed, note], "Keys whose values are not the same in all recipes.")


def flat(recipe: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a recipe; lists and empty mappings are values."""
    if isinstance(recipe, dict) and recipe:
        for key, value in recipe.items():
            yield from flat(value, f"{name}.{key}" if name else str(key))
    elif name:
        yield name, recipe


def recipe(run: RunFiles) -> str:
    """The whole recipe, folded up."""
    if not run.recipe:
        return ""
    dumped = yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True, width=100)
    again = f'<p class="dim">Train it again: <code>trireme train {text(run.folder / "recipe.yaml")}</code></p>'
    return section("recipe", "Recipe", [again, details("the resolved recipe", f"<pre>{text(dumped)}</pre>")])


def machine(run: RunFiles) -> str:
    """Versions and machine of the last start; those of earlier starts where they differ."""
    started = run.noted("started")
    if not started:
        return ""
    rows = []
    for kind in ("machine", "versions"):
        last = started[-1].get(kind)
        for name, value in last.items() if isinstance(last, dict) else ():
            before = {str(one[kind].get(name)) for one in started[:-1] if isinstance(one.get(kind), dict)} - {
                str(value)
            }
            rows.append((name, value, f"before: {', '.join(sorted(before))}" if before else ""))
    listed = table(("", "", ""), rows, (0, 1, 2), "versions and machine")
    return section("machine", "Machine and versions", [details("of the last start", listed, opened=len(rows) < 8)])


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
