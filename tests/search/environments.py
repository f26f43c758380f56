"""Test hyperparameter search engines with their real libraries in separate environments, and write
``docs/search-engines-tested.md``.

    make search-engines
    python tests/search/environments.py ray       # only this engine; the results of the others are kept

The environments are in ``build/search/NAME`` (``helpers/library_tests.py``).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.library_tests import ROOT, LibraryTests

NEEDS: dict[str, list[list[str]]] = {
    "ray": [["ray[tune]==2.60.0"]],
    "wandb": [["--no-deps", "sweeps==0.3.0", "jsonref==1.1.0"]],
    "sigopt": [["sigopt==8.8.3"], ["--no-deps", "libsigopt==1.0.0", "sigoptlite==0.1.2", "qmcpy==1.2"]],
    "hydra": [
        ["--no-deps", "hydra-optuna-sweeper==1.3.0", "optuna==2.10.1"],
        ["cmaes<0.9", "sqlalchemy<2", "alembic<1.13", "cliff<4"],
    ],
}
LIBRARIES = {
    "ray": ["ray"],
    "wandb": ["wandb", "sweeps"],
    "sigopt": ["sigopt", "sigoptlite"],
    "hydra": ["hydra-optuna-sweeper"],
}
TESTED = {
    "ray": "random draws with ASHA, OptunaSearch, population based training with its exploit step, HyperBand's pauses, "
    "two ranks, a killed search that continues",
    "wandb": "sweeps by the real client with a local server, which chooses trials by W&B's library `sweeps`: "
    "bayes, grid, random, hyperband",
    "sigopt": "searches with `sigoptlite`: random draws, Gaussian processes, failures, and a search that continues "
    "after an interruption",
    "hydra": "`trireme train -m hydra/sweeper=optuna`: jobs are chosen by the metric of earlier ones",
}
ABOUT = """# Search engines, tested

This page lists the tests of hyperparameter searches over a tiny recipe with the real libraries of Ray Tune, W&B sweeps,
SigOpt and Hydra's Optuna sweeper. Searches by Optuna itself are tested by `make test` and `make test-slow`.
`make search-engines` runs the tests and writes this page.
"""


def _versions(name: str) -> str:
    return (
        f"from importlib.metadata import version as v; print(', '.join(f'{{n}} {{v(n)}}' for n in {LIBRARIES[name]}))"
    )


ENGINES = LibraryTests(
    kind="engine",
    page=ROOT / "docs" / "search-engines-tested.md",
    about=ABOUT,
    place=ROOT / "build" / "search",
    what=TESTED,
    needs=NEEDS,
    files=lambda name: [Path(__file__).parent / f"test_{name}.py"],
    versions=_versions,
)

if __name__ == "__main__":
    sys.exit(ENGINES.main(sys.argv[1:]))
