"""Measure the overhead of a hyperparameter search: the time to check the recipe and search space, the time in which no
trial runs, and the time that a trial's process spends on anything but steps, evaluations and saves.

    python benchmarks/search_overhead.py [--trials 10] [--steps 40] [--nproc 1]

The script searches the tiny recipe; every trial is a process of its own. It prints the seconds for checking the recipe
and the search space. It also prints the time in which no trial runs, as a share of the time of all trials. For the
first and the last trial it prints the seconds of the process, and those of its steps, evaluations and saves.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

RECIPE = Path(__file__).parents[1] / "tests" / "recipes" / "tiny.yaml"
ROOTS = ",".join(str(Path(sysconfig.get_paths()["stdlib"]) / name) for name in ("json", "email"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--nproc", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRIREME_CACHE"] = f"{folder}/cache"
        measure(Path(folder) / "study", options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    from trireme.launch.search.check_search import prepare
    from trireme.launch.search.engines.engine import build_engine
    from trireme.launch.search.run_search import Search
    from trireme.launch.search.start_search import begun
    from trireme.launch.search.trial_starter import TrialStarter

    plan = "ddp" if options.nproc > 1 else "single"
    given = [f"data.source.roots=[{ROOTS}]", "search=optuna", f"search.trials={options.trials}", f"run.dir={folder}"]
    given += [f"trainer.max_steps={options.steps}", "trainer.eval_every=10", f"plan={plan}", "search.pruner=null"]
    given += ["search.space={optimizer.lr:{low:1e-5,high:1e-2,log:true}}"]
    began = time.monotonic()
    prepared = prepare(str(RECIPE), given, (), options.nproc)
    checked = time.monotonic()
    store = begun(prepared, fresh=False)
    starter = TrialStarter(prepared.sample, 1)
    search = Search(prepared, store, build_engine(prepared.search.engine), 1, starter)
    spans: list[tuple[float, float]] = []
    start = search.starter.start

    def timed(request: dict) -> object:
        spans.append((time.monotonic(), 0.0))
        return start(request)

    judged = search._judged

    def ended(*given: object) -> object:
        spans[-1] = (spans[-1][0], time.monotonic())
        return judged(*given)  # type: ignore[arg-type]

    search.starter.start, search._judged = timed, ended  # type: ignore[method-assign, assignment]
    with contextlib.redirect_stderr(sys.stdout):
        search.run()
    starter.close()
    whole = spans[-1][1] - spans[0][0]
    trials = sum(end - start for start, end in spans)
    print(f"checks of recipe and space {checked - began:.1f} s")
    print(
        f"{len(spans)} trials in {whole:.1f} s; the search's own share {100 * (whole - trials) / trials:.2f} % of them"
    )
    for number in (0, len(spans) - 1):
        inside = json.loads((folder / f"trial_{number:04d}" / "summary.json").read_text())["seconds"]
        outside = spans[number][1] - spans[number][0]
        print(f"trial {number}: {outside:.2f} s, of which steps, evaluations and saves {inside:.2f} s")


if __name__ == "__main__":
    main()
