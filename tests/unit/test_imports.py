"""Imports go in one direction only: launch -> trainer -> parallel -> models, without cycles. ``configs`` may import all
four, but only two dataclasses from ``launch``. Also tested: few files share a name, every module has a docstring, and
pyproject.toml lists all packages.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "models": set(),
    "parallel": {"models"},
    "trainer": {"models", "parallel"},
    "configs": {"models", "parallel", "trainer"},
    "launch": {"models", "parallel", "trainer", "configs"},
}
OWNERS = {"configs/schema.py": {"launch"}}
"""The root of the schema joins the dataclasses of all folders, so it also imports two dataclasses of ``launch``."""
SHARED_NAMES = {"tensorboard.py"}
"""File names that occur in two folders on purpose."""
FILES = [path for folder in MAY_IMPORT for path in sorted((ROOT / folder).rglob("*.py"))]


def _imported_folders(path: Path) -> set[str]:
    """Top-level folders of ours that a file imports when it runs (imports for type checkers only do not count)."""
    tree = ast.parse(path.read_text())
    only_types = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    skipped = {child for node in only_types for child in ast.walk(node)}
    depth = len(path.relative_to(ROOT).parts)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in skipped and node.level == depth:
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            found |= {name for name in names if name in MAY_IMPORT}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(name.split(".")[0] == "trireme" for name in names), f"{path}: use relative imports"
    return found


def _imported_files(path: Path, root: Path) -> set[str]:
    """Files of ours that a file imports when it runs, deferred imports included (for type checkers only: not)."""
    tree = ast.parse(path.read_text())
    only_types = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    skipped = {child for node in only_types for child in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node in skipped or not node.level:
            continue
        base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        inner = [base / f"{alias.name}.py" for alias in node.names]
        modules = [file for file in inner if file.is_file()] or [base.with_suffix(".py"), base / "__init__.py"]
        found |= {file.relative_to(root).as_posix() for file in modules if file.is_file()}
    return found


def _cycle(graph: dict[str, set[str]]) -> list[str]:
    """Files that import each other in a ring; empty if there are none."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        ring = next((ring for other in sorted(graph.get(name, ())) if (ring := visit(other, [*way, name]))), [])
        done.add(name)
        return ring

    return next((ring for name in sorted(graph) if (ring := visit(name, []))), [])


def test_no_two_files_import_each_other() -> None:
    files = [*FILES, ROOT / "__init__.py", ROOT / "errors.py", ROOT / "version.py"]
    graph = {path.relative_to(ROOT).as_posix(): _imported_files(path, ROOT) for path in files}
    assert _cycle(graph) == []
    assert [name for name, imports in graph.items() if "__init__.py" in imports] == []  # the root imports launch


def test_a_deferred_import_makes_a_cycle(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("from .two import b\n")
    (tmp_path / "two.py").write_text("def b():\n    from . import one\n")
    graph = {name: _imported_files(tmp_path / name, tmp_path) for name in ("one.py", "two.py")}
    assert _cycle(graph) == ["one.py", "two.py", "one.py"]


def test_no_two_files_share_a_name() -> None:
    """A file's name says what is in it. The few shared names mean the same in two folders, and a file of
    launch/commands has the name of its command."""
    names = [path.name for path in FILES if path.name != "__init__.py" and path.parent.name != "commands"]
    assert {name for name in names if names.count(name) > 1} <= SHARED_NAMES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    folder = path.relative_to(ROOT).parts[0]
    assert _imported_folders(path) <= MAY_IMPORT[folder] | {folder} | OWNERS.get(name, set())


def test_configs_import_only_dataclasses_of_launch() -> None:
    nodes = [node for node in ast.walk(ast.parse((ROOT / "configs/schema.py").read_text()))]
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    dataclasses = ["launch.launch_config", "launch.search.search_config"]
    assert [module for module in modules if module.startswith("launch")] == dataclasses
    assert _imported_folders(ROOT / "launch" / "launch_config.py") == {"trainer"}


def test_the_parser_sees_back_edges(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "models" / "families" / "back.py"
    file.parent.mkdir(parents=True)
    file.write_text("if True:\n    from ...trainer import loop\n")
    assert _imported_folders(file) == {"trainer"}
    file.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ...trainer import loop\n")
    assert _imported_folders(file) == set()


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path) for path in FILES if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_packages_are_all_listed() -> None:
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in FILES}
    folders |= {path.parent for top in ("configs", "recipes") for path in (ROOT / top).rglob("*.yaml")}
    wanted = {".".join(("trireme", *folder.relative_to(ROOT).parts)) for folder in folders} | {"trireme"}
    assert listed == wanted | {"trireme.recipes"}
