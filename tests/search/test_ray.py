"""Tests of searches with the real Ray Tune: search algorithms, schedulers, PBT, several ranks, and a killed search."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers.command import command
from helpers.metrics import lines
from helpers.running import run_to_end, running
from helpers.searches import MIXED, RATES, ROOTS, rows_of, sample, search_arguments, searched
from trireme.launch.search.trial_starter import TrialStarter

SCHEDULER = "search.engine.scheduler={_target_: ray.tune.schedulers."
HALVING = f"{SCHEDULER}ASHAScheduler, stop_last_trials: false, grace_period: 1, reduction_factor: 2}}"
NONE = "search.engine.scheduler=null"


@pytest.fixture(scope="module")
def starter() -> Iterator[TrialStarter]:
    started = TrialStarter(sample(), 1)
    yield started
    started.close()


def steps_of(run: Path) -> list[int]:
    return [line["step"] for line in lines(run) if "loss" in line]


def test_random_draws_and_successive_halving(starter: TrialStarter, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    searched(starter, folder, "search=ray", MIXED, HALVING, "search.trials=6", "search.jobs=2")
    rows = rows_of(folder)
    assert len(rows) == 6 and {row["end"] for row in rows} == {"done", "pruned"}
    own = next(row for row in rows if row["own"])
    assert own in rows[:2] and own["values"]["optimizer.lr"] == 1e-3  # two trials begin at once
    assert {row["values"]["trainer.max_grad_norm"] for row in rows} <= {0.5, 1.0, 1.5}
    for row in rows:
        assert steps_of(folder / row["folder"]) == list(range(1, row["steps"] + 1)), "no step after the verdict"
        assert row["end"] == "done" or row["reason"].endswith("by ASHAScheduler")
    best = min((row for row in rows if row["end"] == "done"), key=lambda row: row["eval_loss"])
    assert yaml.safe_load((folder / "best.yaml").read_text())["optimizer"]["lr"] == best["values"]["optimizer.lr"]


def test_optuna_inside_of_ray_repeats(starter: TrialStarter, tmp_path: Path) -> None:
    searcher = "search.engine.searcher={_target_: ray.tune.search.optuna.OptunaSearch}"
    given = ("search=ray", RATES, searcher, NONE, "search.trials=3", "search.first=[{optimizer.lr: 0.02}]")
    for name in ("one", "two"):
        searched(starter, tmp_path / name, *given)
    one, two = ([row["values"] for row in rows_of(tmp_path / name)] for name in ("one", "two"))
    assert one == two and one[:2] == [{"optimizer.lr": 1e-3}, {"optimizer.lr": 0.02}]


@pytest.mark.parametrize("synch", [False, True])
def test_population_based_training(synch: bool, starter: TrialStarter, tmp_path: Path) -> None:
    """The worse of two trials goes on from the checkpoint of the better one, with other values of the range."""
    folder = tmp_path / "study"
    options = f"time_attr: step, perturbation_interval: 2, quantile_fraction: 0.5, synch: {str(synch).lower()}"
    given = ["search=ray", RATES, f"{SCHEDULER}PopulationBasedTraining, {options}}}", "search.trials=2"]
    given += ["search.own_first=false", "search.first=[{optimizer.lr: 1e-5}, {optimizer.lr: 2e-2}]"]
    steps = 6 if synch else 24  # trials that do not wait for each other must be long enough to overlap
    searched(starter, folder, *given, "search.jobs=2", f"trainer.max_steps={steps}")
    rows = rows_of(folder)
    clones = [row for row in rows if "start" in row]
    assert clones, "a trial has gone on from another one's checkpoint"
    for row in clones:
        donor, step = row["start"].split("/")[1], int(row["start"].rpartition("_")[2])
        assert donor != row["folder"] and 1e-5 <= row["values"]["optimizer.lr"] <= 1e-1
        assert steps_of(folder / row["folder"])[0] == step + 1
        assert f"resuming from {folder / row['start']}" in (folder / row["folder"] / "log.txt").read_text()
    assert "done" in {row["end"] for row in rows} and not {"failed", "running"} & {row["end"] for row in rows}


def test_hyperband_pauses(starter: TrialStarter, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    scheduler = f"{SCHEDULER}HyperBandScheduler, max_t: 4, reduction_factor: 2}}"
    searched(starter, folder, "search=ray", RATES, scheduler, "search.trials=4", "search.jobs=2")
    rows = rows_of(folder)
    ends = {row["end"] for row in rows}
    assert len(rows) == 4 and ends <= {"done", "pruned"} and "done" in ends
    for row in rows:
        assert steps_of(folder / row["folder"]) == list(range(1, row["steps"] + 1)), "a paused trial repeats no step"


def test_two_ranks(starter: TrialStarter, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    given = ("search=ray", RATES, HALVING, "search.trials=4", "plan=ddp", "trainer.micro_batch_size=1")
    searched(starter, folder, *given, nproc=2)
    assert {row["end"] for row in rows_of(folder)} <= {"done", "pruned"} and len(rows_of(folder)) == 4


def test_a_killed_search_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    given = [RATES, NONE, "search.trials=3", "trainer.max_steps=12"]
    words = [word if word != "search=optuna" else "search=ray" for word in command(*search_arguments(folder, *given))]
    with running(words, folder / "trial_0001") as run:
        run.wait_for_lines(6)
        run.send(signal.SIGKILL)
        run.end()
    last = run_to_end(words, folder)
    assert last.returncode == 0, last.stderr
    rows = rows_of(folder)
    assert [row["trial"] for row in rows] == [0, 1, 2] and {row["end"] for row in rows} == {"done"}
    assert "resuming from" in (folder / "trial_0001" / "log.txt").read_text()
    assert len({str(row["values"]) for row in rows}) == 3, "no draw is repeated"
    assert ROOTS in (folder / "search.json").read_text()
