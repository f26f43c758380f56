"""Run trireme's tests with optional third-party libraries, and write a Markdown page with the results.

Libraries whose dependencies conflict with those of trireme are each tested in a virtual environment of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.environments import counted, environment
from helpers.report import keep, kept, markdown

ROOT = Path(__file__).parents[2]


@dataclass
class Tested:
    """The result of a library's tests."""

    library: str
    result: str
    seconds: float


@dataclass(frozen=True)
class LibraryTests:
    """How the libraries of one kind are tested."""

    kind: str
    """Name of the kind, such as tracker."""
    page: Path
    about: str
    """Beginning of the page."""
    place: Path
    """Folder of the environments and results."""
    what: Mapping[str, str]
    """Library -> what is tested, in words."""
    needs: Mapping[str, Sequence[Sequence[str]]]
    """Library -> arguments of ``pip install``, one call after the other. Other libraries use trireme's environment."""
    files: Callable[[str], Sequence[Path]]
    """The files with a library's tests."""
    versions: Callable[[str], str]
    """Python code that prints a library's name and version."""

    def main(self, names: Sequence[str]) -> int:
        """Test the libraries that are named, or all; the page is written when there is a result of each."""
        if unknown := [name for name in names if name not in self.what]:
            print(f"no {self.kind} {', '.join(unknown)}; there are {', '.join(self.what)}")
            return 2
        file = self.place / "results.json"
        results = kept(file, Tested) if names else {}
        for name in names or self.what:
            results[name] = self._run(name)
            keep(file, results)
        if results.keys() == self.what.keys():
            titles = (self.kind, "library", "what is tested", "result", "seconds")
            rows = [
                (name, results[name].library, words, results[name].result, f"{results[name].seconds:.0f}")
                for name, words in self.what.items()
            ]
            self.page.write_text(f"{self.about}\n{markdown(titles, rows)}\n")
        return int(any("failed" in each.result or "passed" not in each.result for each in results.values()))

    def _run(self, name: str) -> Tested:
        own = name not in self.needs
        python = Path(sys.executable) if own else environment(self.place / name, self.needs[name])
        began = time.monotonic()
        tool = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, self.files(name))]
        done = subprocess.run(
            tool, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        if done.returncode:
            print(done.stdout[-6000:], done.stderr[-2000:])
        said = subprocess.run([str(python), "-c", self.versions(name)], capture_output=True, text=True).stdout.strip()
        found = Tested(said, counted(done.stdout), time.monotonic() - began)
        print(f"{name}: {found.result}", flush=True)
        return found
