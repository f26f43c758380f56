"""Imports run one way: launch -> trainer -> parallel -> models; configs may use any owner, of launch its dataclass."""

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
"""The typed root puts together the dataclasses of all owners; that of launch lies in a file which needs none of it."""
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    folder = path.relative_to(ROOT).parts[0]
    assert _imported_folders(path) <= MAY_IMPORT[folder] | {folder} | OWNERS.get(name, set())


def test_of_launch_configs_import_the_dataclass_only() -> None:
    nodes = [node for node in ast.walk(ast.parse((ROOT / "configs/schema.py").read_text()))]
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    assert [module for module in modules if module.startswith("launch")] == ["launch.launch_config"]
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
