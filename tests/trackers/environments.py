"""Run each tracker's test with its real library, in an environment of its own, and write docs/trackers-tested.md.

    make trackers
    python tests/trackers/environments.py aim comet      # some of them; results of the others are kept

An environment lies in ``build/trackers/NAME`` (``helpers/environments.py``), since pins of trackers collide with
trireme's and with each other's (aim: filelock, swanlab: protobuf, mlflow: pyarrow ...).
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
PLACE, PAGE = ROOT / "build" / "trackers", ROOT / "docs" / "trackers-tested.md"
RESULTS = PLACE / "results.json"
NEEDS = {
    "comet": ["comet_ml==3.58.8"],
    "neptune": ["neptune==1.14.0.post2"],
    "clearml": ["clearml==2.1.12"],
    "codecarbon": ["codecarbon==3.3.2"],
    "dvclive": ["dvclive==3.49.1"],
    "flyte": ["flytekit==1.16.31"],
    "dagshub": ["dagshub==0.7.3"],
    "azureml": ["azureml-mlflow==1.62.0.post6"],
    "trackio": ["trackio==0.43.0"],
    "swanlab": ["swanlab[dashboard]==0.10.3"],
    "aim": ["aim==3.29.1"],
    "mlflow": ["mlflow==3.17.2"],
}
"""Tracker -> packages of its environment. Those of tensorboard and wandb are in trireme's own."""
OWN = ("tensorboard", "wandb")
TESTED = {
    "tensorboard": "a run, resumed; its event reader",
    "wandb": "a run, offline and resumed; `wandb sync` to a server on the loopback. A run online, and a refused login",
    "mlflow": "a run with the SQLite store, resumed; its client. A run with `mlflow server`; a login, an outage",
    "comet": "a run, offline and resumed; its archives. A refused login",
    "neptune": "a run, offline and resumed; its queue. A missing and a wrong token",
    "clearml": "a run, offline and resumed; its session files. A refused login",
    "codecarbon": "a run, offline; its CSV, and the training lines",
    "dvclive": "a run, resumed; its own reader of metrics and parameters",
    "flyte": "a run in a local task; the deck. Outside of a task it is refused",
    "dagshub": "a run with a server on the loopback that speaks its protocol; a refused token",
    "azureml": "a run with a server on the loopback (TLS) that speaks its protocol; without a login it is refused",
    "trackio": "a run, resumed; its own storage. A server without a token is refused",
    "swanlab": "a run, local and resumed; its files. A run offline. Without a key it is refused",
    "aim": "a run, resumed; its own repository",
}
ABOUT = """# Trackers, tested

Written by `make trackers`: every tracker runs with its real library, and what it has written is read back. Runs are of
six steps, stopped after three and resumed; each line must be there once. Services that cannot be reached are spoken to
on the loopback.
"""
TITLES = ("tracker", "library", "what is tested", "result", "seconds")


def tests(name: str) -> list[str]:
    """The files with the tests of a tracker; those of three are part of `make test` too."""
    folder = ROOT / "tests" / "unit" / "trainer" / "trackers"
    files = [HERE / f"test_{name}.py", folder / f"test_{name}.py", folder / f"test_{name}_protocol.py"]
    in_a_run = [folder / "test_trackers_in_a_run.py"] if name in (*OWN, "mlflow") else []
    return [str(file) for file in [*files, *in_a_run] if file.is_file()]


@dataclass
class Tested:
    """What the tests of a tracker gave."""

    library: str
    result: str
    seconds: float


def run(name: str) -> Tested:
    """Run the tests of a tracker."""
    python = Path(sys.executable) if name in OWN else environment(PLACE / name, [NEEDS[name]])
    began = time.monotonic()
    tool = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests(name)]
    done = subprocess.run(tool, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:])
    found = Tested(library(python, name), counted(done.stdout), time.monotonic() - began)
    print(f"{name}: {found.result}", flush=True)
    return found


def library(python: Path, name: str) -> str:
    """Name and version of a tracker's library."""
    about = f"from trireme.trainer.trackers.registry import tracker_class as c; n = c({name!r}).LIBRARY; "
    about += "from trireme.trainer.trackers.tracker_library import library_version as v; print(n, v(n))"
    return subprocess.run([str(python), "-c", about], capture_output=True, text=True).stdout.strip()


def main(names: Sequence[str]) -> int:
    if unknown := [name for name in names if name not in TESTED]:
        print(f"no tracker {', '.join(unknown)}; there are {', '.join(TESTED)}")
        return 2
    results = kept(RESULTS, Tested) if names else {}
    for name in names or TESTED:
        results[name] = run(name)
        keep(RESULTS, results)
    if results.keys() == TESTED.keys():
        rows = [
            (name, each.library, what, each.result, f"{each.seconds:.0f}")
            for name, what in TESTED.items()
            if (each := results[name])
        ]
        PAGE.write_text(f"{ABOUT}\n{markdown(TITLES, rows)}\n")
    return int(any("failed" in each.result or "passed" not in each.result for each in results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
