"""Run the tests of search engines with their real libraries, in environments of their own, and write
docs/search-engines-tested.md.

    make search-engines
    python tests/search/environments.py ray       # some of them; results of the others are kept

An environment lies in ``build/search/NAME`` (``helpers/environments.py``).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.environments import counted, environment
from helpers.report import keep, kept, markdown

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLACE, PAGE = ROOT / "build" / "search", ROOT / "docs" / "search-engines-tested.md"
RESULTS = PLACE / "results.json"
NEEDS: dict[str, list[list[str]]] = {
    "ray": [["ray[tune]==2.60.0"]],
    "wandb": [["--no-deps", "sweeps==0.3.0", "jsonref==1.1.0"]],
    "sigopt": [["sigopt==8.8.3"], ["--no-deps", "libsigopt==1.0.0", "sigoptlite==0.1.2", "qmcpy==1.2"]],
    "hydra": [["--no-deps", "hydra-optuna-sweeper==1.3.0", "optuna==2.10.1"], ["cmaes<0.9", "sqlalchemy<2", "cliff<4"]],
}
"""Engine -> arguments of ``pip install``, one call after the other."""
LIBRARIES = {
    "ray": ["ray"],
    "wandb": ["wandb", "sweeps"],
    "sigopt": ["sigopt", "sigoptlite"],
    "hydra": ["hydra-optuna-sweeper"],
}
TESTED = {
    "ray": "random draws with ASHA, OptunaSearch, population based training with its exploit step, HyperBand's pauses, "
    "two ranks, a killed search that goes on",
    "wandb": "sweeps by the real client with a server on the loopback, for which W&B's library `sweeps` chooses: "
    "bayes, grid, random, hyperband",
    "sigopt": "searches with `sigoptlite`: random draws, Gaussian processes, failures, and one that is gone on with",
    "hydra": "`trireme train -m hydra/sweeper=optuna`: jobs are chosen by the metric of earlier ones",
}
ABOUT = """# Search engines, tested

Written by `make search-engines`: real searches over a tiny recipe, by the real libraries.
"""


@dataclass
class Tested:
    """What the tests of an engine gave."""

    library: str
    result: str
    seconds: float


def run(name: str) -> Tested:
    """Run the tests of an engine."""
    python = environment(PLACE / name, NEEDS[name])
    began = time.monotonic()
    tool = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / f"test_{name}.py")]
    done = subprocess.run(tool, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:])
    found = Tested(versions(python, name), counted(done.stdout), time.monotonic() - began)
    print(f"{name}: {found.result}", flush=True)
    return found


def versions(python: Path, name: str) -> str:
    """Names and versions of an engine's libraries."""
    about = (
        f"from importlib.metadata import version as v; print(', '.join(f'{{n}} {{v(n)}}' for n in {LIBRARIES[name]}))"
    )
    return subprocess.run([str(python), "-c", about], capture_output=True, text=True).stdout.strip()


def main(names: Sequence[str]) -> int:
    if unknown := [name for name in names if name not in NEEDS]:
        print(f"no engine {', '.join(unknown)}; there are {', '.join(NEEDS)}")
        return 2
    results = kept(RESULTS, Tested) if names else {}
    for name in names or NEEDS:
        results[name] = run(name)
        keep(RESULTS, results)
    if results.keys() == NEEDS.keys():
        rows = [
            (name, each.library, what, each.result, f"{each.seconds:.0f}")
            for name, what in TESTED.items()
            if (each := results[name])
        ]
        PAGE.write_text(f"{ABOUT}\n{markdown(('engine', 'library', 'what is tested', 'result', 'seconds'), rows)}\n")
    return int(any("failed" in each.result or "passed" not in each.result for each in results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
