"""Test experiment trackers with their real libraries, most in separate environments, and write docs/trackers-tested.md.

    make trackers
    python tests/trackers/environments.py aim comet      # only these trackers; the results of the others are kept

The environments are in ``build/trackers/NAME`` (``helpers/library_tests.py``). They are separate, since the pinned
dependencies of trackers conflict with those of trireme and of each other (aim: filelock, swanlab: protobuf, mlflow:
pyarrow ...).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.library_tests import ROOT, LibraryTests

NEEDS = {
    "comet": [["comet_ml==3.58.8"]],
    "neptune": [["neptune==1.14.0.post2"]],
    "clearml": [["clearml==2.1.12"]],
    "codecarbon": [["codecarbon==3.3.2"]],
    "dvclive": [["dvclive==3.49.1"]],
    "flyte": [["flytekit==1.16.31"]],
    "dagshub": [["dagshub==0.7.3"]],
    "azureml": [["azureml-mlflow==1.62.0.post6"]],
    "trackio": [["trackio==0.43.0"]],
    "swanlab": [["swanlab[dashboard]==0.10.3"]],
    "aim": [["aim==3.29.1"]],
    "mlflow": [["mlflow==3.17.2"]],
}
"""Packages of a tracker's environment. Those of tensorboard and wandb are in trireme's own."""
OWN = ("tensorboard", "wandb")
TESTED = {
    "tensorboard": "a run, resumed; its event reader",
    "wandb": "a run, offline and resumed; `wandb sync` to a local server. A run online, and a refused login",
    "mlflow": "a run with the SQLite store, resumed; its client. A run with `mlflow server`; a login, an outage",
    "comet": "a run, offline and resumed; its archives. A refused login",
    "neptune": "a run, offline and resumed; its queue. A missing and a wrong token",
    "clearml": "a run, offline and resumed; its session files. A refused login",
    "codecarbon": "a run, offline; its CSV, and the training lines",
    "dvclive": "a run, resumed; its own reader of metrics and parameters",
    "flyte": "a run in a local task; the deck. Outside of a task it is refused",
    "dagshub": "a run with a local server that speaks its protocol; a refused token",
    "azureml": "a run with a local server (TLS) that speaks its protocol; without a login it is refused",
    "trackio": "a run, resumed; its own storage. A server without a token is refused",
    "swanlab": "a run, local and resumed; its files. A run offline. Without a key it is refused",
    "aim": "a run, resumed; its own repository",
}
ABOUT = """# Trackers, tested

This page lists the tests of every tracker with its real library. `make trackers` runs the tests and writes this page.
In most tests a run of six steps stops after the third and resumes; then the tracker's records are read back, and every
line must be there once. Local servers stand in for some services that the tests cannot reach.
"""


def _tests(name: str) -> list[Path]:
    """The files with the tests of a tracker; those of three are part of `make test` too."""
    folder = ROOT / "tests" / "unit" / "trainer" / "trackers"
    files = [Path(__file__).parent / f"test_{name}.py", folder / f"test_{name}.py", folder / f"test_{name}_protocol.py"]
    in_a_run = [folder / "test_trackers_in_a_run.py"] if name in (*OWN, "mlflow") else []
    return [file for file in [*files, *in_a_run] if file.is_file()]


def _versions(name: str) -> str:
    code = f"from trireme.trainer.trackers.registry import tracker_class as c; n = c({name!r}).LIBRARY; "
    return code + "from trireme.trainer.trackers.tracker_library import library_version as v; print(n, v(n))"


TRACKERS = LibraryTests(
    kind="tracker",
    page=ROOT / "docs" / "trackers-tested.md",
    about=ABOUT,
    place=ROOT / "build" / "trackers",
    what=TESTED,
    needs=NEEDS,
    files=_tests,
    versions=_versions,
)

if __name__ == "__main__":
    sys.exit(TRACKERS.main(sys.argv[1:]))
