"""Write the examples of ``docs/extending.md`` as Python files with their recipes, for tests that run them. Modules that
an earlier test imported from such files can be removed from Python's ``sys.modules``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml
from helpers.recipes import TINY
from trireme.models import locate

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE))
PAIR = re.compile(r"```python\n(?P<code>.*?)```\n.*?```yaml\n(?P<recipe>.*?)```", re.DOTALL)


@contextmanager
def fresh_modules() -> Iterator[None]:
    """Context that forgets modules named ``mine``, since each test writes its own under that name."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
            del sys.modules[name]

    path, folders = list(sys.path), list(locate._own_folders)
    locate._own_folders.clear()
    forget()
    try:
        yield
    finally:
        sys.path[:], locate._own_folders[:] = path, folders
        forget()


class Example(NamedTuple):
    """One example: a Python file, and a recipe or a part of one."""

    code: str
    recipe: str

    @property
    def name(self) -> str:
        """Name of the file, without its suffix."""
        return Path(self.code.splitlines()[0]).stem

    @property
    def whole(self) -> bool:
        """Whether the recipe is complete, and not only a part of one."""
        return "defaults" in yaml.safe_load(self.recipe)

    def write(self, folder: Path) -> str:
        """Write both into ``folder``, a part of a recipe on top of the tiny one; returns the path of the recipe."""
        file = folder / self.code.splitlines()[0].removeprefix("# ").strip()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.code)
        recipe = folder / f"{self.name}.yaml"
        if self.whole:
            recipe.write_text(self.recipe)
            return str(recipe)
        tiny = yaml.safe_load(TINY.read_text())
        for name, part in yaml.safe_load(self.recipe).items():
            tiny[name] = part if "_target_" in part else tiny.get(name, {}) | part
        recipe.write_text(yaml.safe_dump(tiny, sort_keys=False))
        return str(recipe)


EXAMPLES = {
    example.name: example
    for section in SECTIONS.values()
    for example in (Example(*pair) for pair in PAIR.findall(section))
}
