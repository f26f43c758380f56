"""Tests of ``trireme search`` with real trials on one and two ranks: results, pruning, kills, continuing a search,
custom functions, several objectives, and refusals.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from helpers.command import command, refused, trireme, trireme_here
from helpers.metrics import lines
from helpers.recipes import TINY
from helpers.running import Running, run_to_end, running
from helpers.searches import RATES, ROOTS, rows_of, sample, search_arguments, searched
from trireme.errors import UserError
from trireme.launch.error_report import RanksFailed
from trireme.launch.forked import Forked, ForkServer
from trireme.launch.search import trial_starter
from trireme.launch.search.trial_starter import TrialStarter

PRUNER = (
    "search.pruner={_target_: optuna.pruners.MedianPruner, n_startup_trials: 2, n_warmup_steps: 0, interval_steps: 1}"
)
RANDOM = "search.sampler={_target_: optuna.samplers.RandomSampler}"
OWN_CODE = """
import os, signal, time
from pathlib import Path
import torch
from trireme.trainer.callbacks.callback import Callback

class Fault(Callback):
    '''What a trial does after some step, in its first start only.'''
    def __init__(self, what: str, step: int = 2, rank: int = 0, once: bool = True):
        self.what, self.step, self.rank, self.once = what, step, rank, once
    def on_step_end(self, trainer, state, control):
        mark = trainer.run_dir / "fault"
        if state.step != self.step or trainer.mesh.rank != self.rank or (self.once and mark.exists()):
            return
        mark.touch()
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        if self.what == "sleep":
            time.sleep(100)
        if self.what == "prune":
            control.prune = True
            return
        raise RuntimeError("boom")

def space(trial):
    rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
    return {"optimizer.lr": rate, "trainer.max_grad_norm": trial.suggest_categorical("clip", [0.5, 1.0])}

def wrong_space(trial):
    return {"optimizer.lrr": trial.suggest_float("rate", 1e-4, 1e-1)}

def gap(metrics):
    return metrics["eval_loss"] - metrics["loss"]

def two(metrics):
    return {"eval_loss": metrics["eval_loss"], "loss": metrics["loss"]}
"""


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrialStarter]:
    """A starter of trials with a fork server of its own, as a command has."""
    before, ForkServer.current = ForkServer.current, None
    folder = tmp_path_factory.mktemp("own")
    (folder / "faults_of_trials.py").write_text(OWN_CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        started = TrialStarter(sample(), 1)
        yield started
        started.close()
    ForkServer.current = before


def fault(what: str, **options: Any) -> str:
    inside = ", ".join(f"{key}: {value}" for key, value in options.items())
    return f"+callbacks.fault={{_target_: faults_of_trials.Fault, what: {what}{', ' if inside else ''}{inside}}}"


def ends(folder: Path) -> list[str]:
    return [row["end"] for row in rows_of(folder)]


def test_a_search_finds_a_better_rate_and_writes_its_recipe(
    starter: TrialStarter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    space = "search.space={optimizer.lr:{low:1e-5,high:1e-1,log:true},optimizer:[adamw,sgd]}"
    searched(starter, folder, space, "search.trials=6", "search.pruner=null", "search.first=[{optimizer.lr: 0.02}]")
    rows, shown = rows_of(folder), capsys.readouterr().out
    assert [row["trial"] for row in rows] == [0, 1, 2, 3, 4, 5] and {row["end"] for row in rows} == {"done"}
    assert rows[0]["own"] and rows[0]["values"] == {"optimizer.lr": 1e-3, "optimizer": "adamw"}
    assert rows[1]["values"]["optimizer.lr"] == 0.02
    best = min(rows, key=lambda row: row["eval_loss"])
    assert best["eval_loss"] < rows[0]["eval_loss"], "0.02 learns more in four steps than 0.001"
    recipe = yaml.safe_load((folder / "best.yaml").read_text())
    assert recipe["optimizer"]["lr"] == best["values"]["optimizer.lr"] and recipe["search"] is None
    assert recipe["run"]["dir"] == str(folder / "best") and recipe["run"]["trial"] is None
    assert f"best: trial {best['trial']} with eval_loss {best['eval_loss']:.4f}" in shown
    assert "the recipe's own values (trial 0) give" in shown and "what mattered: " in shown
    for name in ("history", "slice", "parallel_coordinate", "importance"):
        text = (folder / "plots" / f"{name}.svg").read_text()
        assert text.rstrip().endswith("</svg>") and "<image" not in text and 'href="http' not in text
    trial = yaml.safe_load((folder / "trial_0003" / "recipe.yaml").read_text())
    assert (trial["run"]["group"], trial["run"]["trial"]) == ("study", 3)
    assert [line["step"] for line in lines(folder / "trial_0003") if "loss" in line] == [1, 2, 3, 4]


def test_trials_are_forked_children_of_the_search(starter: TrialStarter, tmp_path: Path) -> None:
    assert ForkServer.current is not None, "a server that cannot fork has ended"
    request = {**sample(), "run_dir": str(tmp_path / "run"), "cores": sorted(os.sched_getaffinity(0)), "env": {}}
    started = starter.start({**request, "overrides": [*sample()["overrides"], f"run.dir={tmp_path / 'run'}"]})
    assert isinstance(started.process, Forked) and psutil.Process(started.process.pid).ppid() == os.getpid()
    starter.kill(started)
    assert starter.ending(started) == ("killed", "its process was ended by SIGKILL")


def test_without_a_server_a_trial_is_started_in_the_usual_way(
    starter: TrialStarter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_starter, "forked", lambda *given: None)
    request = {**sample(), "run_dir": str(tmp_path / "run"), "cores": sorted(os.sched_getaffinity(0)), "env": {}}
    request["overrides"] = [*sample()["overrides"], f"run.dir={tmp_path / 'run'}", "trainer.max_steps=1", "seed=x"]
    started = starter.start(request)
    assert isinstance(started.process, subprocess.Popen) and starter.wait(started, 100)
    kind, text = starter.ending(started)
    assert kind == "refused" and "seed" in text
    assert "UserError" in (tmp_path / "run" / "logs" / "trial.out").read_text()


@pytest.mark.slow
def test_a_seed_makes_a_study_repeat(starter: TrialStarter, tmp_path: Path) -> None:
    for name in ("one", "two"):
        searched(starter, tmp_path / name, RATES, "search.trials=4", RANDOM, PRUNER, "search.own_first=false")
    kept = ("eval_loss", "values", "end", "reason", "steps")
    one, two = ([{key: row[key] for key in kept} for row in rows_of(tmp_path / name)] for name in ("one", "two"))
    assert one == two


def prune_together(starter: TrialStarter, folder: Path, plan: str, trials: int, *more: str) -> list[dict[str, Any]]:
    """Run a study on two ranks; asserts that a pruned trial ended on both ranks at the step of the verdict."""
    given = (f"plan={plan}", f"search.trials={trials}", RATES, RANDOM, PRUNER, "search.own_first=false", *more)
    searched(starter, folder, *given, "trainer.micro_batch_size=1", nproc=2)
    rows = rows_of(folder)
    assert len(rows) == trials and {row["end"] for row in rows} == {"done", "pruned"}
    for row in rows:
        run = folder / row["folder"]
        steps = [line["step"] for line in lines(run) if "loss" in line]
        assert steps == list(range(1, row["steps"] + 1)), "no step after the decision"
        assert (row["steps"] == 4) == (row["end"] == "done")
        assert (run / "checkpoints" / f"step_{row['steps']:08d}").exists() or row["end"] == "pruned"
        said = (run / "log.txt").read_text()
        assert (f"pruned at step {row['steps']} of 4" in said) == (row["end"] == "pruned")
    return rows


@pytest.mark.slow
def test_two_ranks_are_pruned_together(starter: TrialStarter, tmp_path: Path) -> None:
    prune_together(starter, tmp_path / "study", "ddp", 6)


@pytest.mark.long
@pytest.mark.parametrize("plan", ["ddp", "zero3", "fsdp_full_shard", "tp", "pp_1f1b"])
def test_a_dozen_trials_under_each_plan(plan: str, starter: TrialStarter, tmp_path: Path) -> None:
    rows = prune_together(starter, tmp_path / "study", plan, 12)
    assert sum(row["end"] == "pruned" for row in rows) >= 3


@pytest.mark.slow
def test_ends_are_told_apart(starter: TrialStarter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe of each trial makes it end in another way; the study goes on."""
    monkeypatch.setattr(trial_starter, "GRACE_SECONDS", 1.0)  # the sleeper does not heed a signal
    cases = {
        "memory": (fault("memory"), ["out of memory"] * 2),
        "failed": (fault("error", once=False), ["failed"] * 2),
        "time": (fault("sleep"), ["timed out"] * 2),
        "pruned": (fault("prune"), ["pruned"] * 2),
    }
    for name, (callback, wanted) in cases.items():
        limit = "search.trial_time='0:05'" if name == "time" else "search.trial_time=null"
        with pytest.raises(RanksFailed, match="no trial has ended with a value"):
            searched(starter, tmp_path / name, RATES, "search.trials=2", RANDOM, callback, limit)
        assert ends(tmp_path / name) == wanted
    reason = rows_of(tmp_path / "memory")[0]["reason"]
    assert "CUDA out of memory" in reason


def test_values_that_do_not_fit_are_refused_one_by_one(starter: TrialStarter, tmp_path: Path) -> None:
    space = "search.space={trainer.micro_batch_size:[2,3]}"
    searched(starter, tmp_path / "study", space, "search.trials=4", RANDOM, "search.own_first=false")
    found = {row["values"]["trainer.micro_batch_size"]: row["end"] for row in rows_of(tmp_path / "study")}
    assert found == {2: "done", 3: "refused"}


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2])
def test_a_killed_rank_goes_on_from_its_checkpoint(nproc: int, starter: TrialStarter, tmp_path: Path) -> None:
    plan = "plan=ddp" if nproc == 2 else "plan=single"
    given = (RATES, "search.trials=2", RANDOM, plan)
    searched(starter, tmp_path / "killed", *given, fault("kill", step=3, rank=nproc - 1), nproc=nproc)
    searched(starter, tmp_path / "whole", *given, nproc=nproc)
    killed, whole = rows_of(tmp_path / "killed"), rows_of(tmp_path / "whole")
    assert [row["eval_loss"] for row in killed] == [row["eval_loss"] for row in whole]
    assert "resuming from" in (tmp_path / "killed" / "trial_0000" / "log.txt").read_text()


def test_functions_of_the_users_own(starter: TrialStarter, tmp_path: Path) -> None:
    given = ("search.space=faults_of_trials.space", "search.function=faults_of_trials.gap", "search.trials=2")
    searched(starter, tmp_path / "study", *given, "search.objectives={gap: min}")
    rows = rows_of(tmp_path / "study")
    assert [set(row["values"]) for row in rows] == [{"optimizer.lr", "trainer.max_grad_norm"}] * 2
    for row in rows:
        last: dict[str, Any] = {}
        for line in lines(tmp_path / "study" / row["folder"]):
            last |= line
        assert row["gap"] == last["eval_loss"] - last["loss"]
    with pytest.raises(UserError, match=r"did you mean optimizer\.lr\?$"):
        searched(starter, tmp_path / "wrong", "search.space=faults_of_trials.wrong_space")


def test_several_objectives_make_a_front(starter: TrialStarter, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    objectives = "search.objectives={eval_loss: min, grad_norm: max}"
    searched(starter, folder, RATES, "search.trials=5", objectives)
    rows = rows_of(folder)
    points = [(row["eval_loss"], -row["grad_norm"]) for row in rows]
    wanted = {
        row["folder"] for row, one in zip(rows, points, strict=True)
        if not any(other != one and other[0] <= one[0] and other[1] <= one[1] for other in points)
    }  # fmt: skip
    assert {file.stem for file in (folder / "front").glob("*.yaml")} == wanted
    assert (folder / "plots" / "pareto_front.svg").exists() and not (folder / "best.yaml").exists()


def trials_running(run: Running) -> list[psutil.Process]:
    """Training processes of a search that runs as a command."""
    found = []
    for child in psutil.Process(run.process.pid).children(recursive=True):
        try:
            if any("trial_process" in word for word in child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    run.seen.update(found)
    return found


@pytest.mark.slow
def test_a_killed_search_goes_on(tmp_path: Path) -> None:
    """The parent is killed within a trial, then interrupted within another; nothing is lost or counted twice."""
    folder = tmp_path / "study"
    words = command(*search_arguments(folder, RATES, "search.trials=4", RANDOM, "trainer.max_steps=12"))
    for number, (trial, how) in enumerate((("trial_0000", signal.SIGKILL), ("trial_0002", signal.SIGTERM))):
        with running(words, folder / trial) as run:
            run.wait_for_lines(6)
            assert trials_running(run)
            run.send(how)
            ended = run.end()
        assert ended.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 75), ended.stderr
        assert number == 0 or "the next worker or search continues it" in ended.stderr
    last = run_to_end(words, folder)
    assert last.returncode == 0, last.stderr
    killed = rows_of(folder)
    assert [row["trial"] for row in killed] == [0, 1, 2, 3] and set(ends(folder)) == {"done"}
    assert "resuming from" in (folder / "trial_0000" / "log.txt").read_text()
    best = trireme(*search_arguments(folder, RATES, "search.trials=4", RANDOM, "trainer.max_steps=12"), "--best")
    assert best.returncode == 0, best.stderr
    wanted = min(row["eval_loss"] for row in killed)
    assert [line for line in lines(folder / "best") if "eval_loss" in line][-1]["eval_loss"] == wanted


def test_a_notebook_searches(starter: TrialStarter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trireme.launch.search import start_search

    monkeypatch.setattr(start_search, "TrialStarter", lambda *given: starter)
    monkeypatch.setattr(starter, "close", lambda: None)
    overrides = {
        "search": "optuna", "search.trials": 3, "run.dir": str(tmp_path / "study"), "trainer.max_steps": 3,
        "data.source.roots": ROOTS.partition("=[")[2].rstrip("]").split(","),
    }  # fmt: skip
    found = trireme_search(str(TINY), overrides, space={"optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True}})
    assert list(found.trials["trial"]) == [0, 1, 2]
    best = found.trials.sort_values("eval_loss").iloc[0]
    assert found.best_values["optimizer.lr"] == best["optimizer.lr"]
    assert found.best.step == 3 and set(found.plots) >= {"history", "slice"}
    assert "<svg" in found._repr_html_() and "<table" in found._repr_html_()


def trireme_search(*given: Any, **options: Any) -> Any:
    import trireme as package

    return package.search(*given, **options)


BAD = {
    "unknown key": ("search.space={optimizer.lrr:{low:1,high:2}}", ("search.space.optimizer.lrr", "did you mean")),
    "unknown part": ("search.space={trainer.max_grad_norn:{low:1.0,high:2.0}}", ("max_grad_norn", "max_grad_norm")),
    "unknown option": ("search.space={optimizer:[adamw,lionn]}", ("search.space.optimizer", "lion")),
    "wrong type": ("search.space={trainer.global_batch_size:{low:8.5,high:16.5}}", ("global_batch_size", "an integer")),
    "refused value": ("search.space={optimizer.lr:{low:-1.0,high:1.0}}", ("search.space.optimizer.lr",)),
    "low above high": ("search.space={optimizer.lr:{low:1,high:0.1}}", ("search.space.optimizer.lr.low", "exchange")),
    "empty": ("search.trials=3", ("search.space", "is empty")),
    "metric": (f"{RATES} search.objectives={{eval_bleu:max}}", ("search.objectives", "eval_bleu", "eval_loss")),
    "metric of evaluations": (f"{RATES} search.objectives={{accuracy:max}}", ("did you mean eval_accuracy?",)),
    "direction": (f"{RATES} search.objectives={{eval_loss:maximize}}", ("expected 'min' or 'max'\n", "mean max?")),
    "too large": ("search.space={optimizer.lr:{low:1e-5,high:1e30}}", ("search.space.optimizer.lr", "is too large")),
    "other names": (
        "search.space={optimizer.lr:{min:1e-5,max:1e-2}}",
        ("search.space.optimizer.lr.min = 1e-05", "write low", "search.space.optimizer.lr.max = 0.01", "write high"),
    ),
    "not quoted": ("search.space=optimizer.lr:low:1", ("search.space", "quote it for the shell")),
    "no evaluation": (f"{RATES} data.held_out=0", ("checkpoint.metric", "held-out")),
    "function": ("search.space=nowhere.at_all", ("search.space", "cannot be imported")),
    "sampler": (f"{RATES} search.sampler._target_=optuna.samplers.TPESamplr", ("search.sampler", "TPESampler")),
    "argument": (f"{RATES} search.sampler={{_target_:optuna.samplers.TPESampler,sed:1}}", ("search.sampler.sed",)),
    "storage": (f"{RATES} search.storage=sqlite:////nowhere/x.db", ("search.storage", "unable to open")),
    "number": (f"{RATES} search.trials=0", ("search.trials", "use 1 or more")),
    "twice": (f"{RATES} optimizer.lr=1e-3", ("optimizer.lr", "is searched, and also given")),
    "all at once": (
        "search.space={optimizer.lr:{low:1,high:0},optimizer.nosuch:{low:1,high:2}} search.objectives={eval_bleu:max}",
        ("3 problems", "search.space.optimizer.lr.low", "search.space.optimizer.nosuch = 1\n", "search.objectives"),
    ),
    "function and key": (
        "search.space={optimizer.nosuch:{low:1,high:2}} search.function=nowhere.at_all",
        ("2 problems", "search.function", "search.space.optimizer.nosuch"),
    ),
    "first without keys": (f"{RATES} search.first=[3]", ("search.first.0 = 3\n  expected a mapping", "{key: value}")),
    "JSON": (
        'search.space={"optimizer.lr":{"low":1e-5,"high":1e-2}}',
        ("search.space = ", "quotation marks", "'search.space={optimizer.lr:{low:1e-5,high:1e-2}}'"),
    ),
    "text": (
        "search.space='{\"optimizer.lr\":3}'",
        ("search.space = ", "is a text, and a mapping of ranges is needed"),
    ),
    "wrong function": ("search.space=optuna.Trial", ("search.space = ", "fails for trial 0: TypeError")),
    "no such engine": (f"{RATES} search=optun search.nope=3", ("2 problems", "search=optuna?", "search.nope = 3")),
    "key of no choice": (
        "search.space={optimizer:[adamw,lion],optimizer.lrr:{low:1,high:2}} search.nope=1",
        ("2 problems", "search.nope", "search.space.optimizer.lrr = 1\n"),
    ),
    "first": (f"{RATES} search.first=[{{optimizer.lr:7}}]", ("search.first", "outside of the space")),
}


ONE = ("JSON", "text", "wrong function", "first without keys")
"""Cases whose error consists of a single message."""


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_before_the_first_trial(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, words = BAD[case]
    result = trireme_here(capsys, *search_arguments(tmp_path / "study", *given.split(" ")))
    refused(result, *words)
    assert case not in ONE or len(result.stderr.splitlines()) == 3, result.stderr
    assert not list(tmp_path.glob("study/trial_*"))


def test_a_recipe_without_a_search_and_a_study_of_another(
    starter: TrialStarter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(trireme_here(capsys, "search", str(TINY), ROOTS), "search=optuna")
    refused(trireme_here(capsys, "search", str(tmp_path / "nope")), "neither a recipe nor a folder of this name")
    (tmp_path / "empty").mkdir()
    refused(trireme_here(capsys, "search", str(tmp_path / "empty")), "not that of a study (search.json is not in it)")
    folder = tmp_path / "study"
    searched(starter, folder, RATES, "search.trials=1")
    again = search_arguments(folder, RATES, "search.trials=1")
    refused(trireme_here(capsys, "search", str(tmp_path / "studdy")), f"did you mean {folder}?")
    refused(trireme_here(capsys, "search", str(folder / "trial_0000")), "its folder is that of a run, not of a study")
    refused(trireme_here(capsys, *again, "trainer.max_steps=5"), "another recipe (changed: trainer.max_steps)")
    refused(trireme_here(capsys, *again, "seed=3"), "another recipe (changed: seed)")
    other = search_arguments(folder, "search.space={optimizer.lr:{low:1e-3,high:1e-1,log:true}}")
    refused(trireme_here(capsys, *other), "search.space", "changed: optimizer.lr")
    refused(trireme_here(capsys, *search_arguments(tmp_path / "none", RATES), "--best"), "no trial with a value yet")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    refused(trireme_here(capsys, *search_arguments(tmp_path / "run", RATES)), "run.dir", "holds a run")


def test_without_optuna_its_package_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: (name != "optuna" and found(name, *rest)) or None
    )
    refused(trireme_here(capsys, "search", str(TINY)), "needs optuna", "pip install 'trireme-train[optuna]'")


def run_under_kills(folder: Path, chance: random.Random, kills: Counter[str], most: int) -> None:
    """Run a study under SIGKILLs at random moments, of the search, a trial's process or a rank. The same command is
    started again until the study is done.

    Args:
        kills: number of kills by kind of process; at ``most`` kills in total there are no more.
    """
    given = (RATES, "search.trials=6", RANDOM, PRUNER, "plan=ddp", "trainer.max_steps=16", "search.retries=20")
    words = command(*search_arguments(folder, *given), "--nproc", "2")
    finished: dict[int, float] = {}
    code: int | None = None
    while code != 0:
        with running(words, folder) as run:
            killed_search = False
            while run.process.poll() is None and kills.total() < most and not killed_search:
                time.sleep(chance.uniform(1, 8))
                search = psutil.Process(run.process.pid)
                found: dict[str, list[psutil.Process]] = {"search": [search], "trial": [], "rank": []}
                for child in trials_running(run):
                    with suppress(psutil.Error):
                        found["trial" if child.ppid() == search.pid else "rank"].append(child)
                kind = chance.choice([name for name, processes in found.items() if processes])
                if run.process.poll() is None:
                    with suppress(psutil.NoSuchProcess):
                        chance.choice(found[kind]).kill()
                        kills[kind] += 1
                        killed_search = kind == "search"
            code = run.end(timeout=400).returncode
        assert code in (0, -signal.SIGKILL), "only the kill of the search itself ends it"
        if (folder / "trials.jsonl").exists():
            for row in rows_of(folder):
                if row["end"] == "done":
                    assert finished.setdefault(row["trial"], row["eval_loss"]) == row["eval_loss"], "a result changed"
    assert [row["trial"] for row in rows_of(folder)] == list(range(6)) and set(ends(folder)) <= {"done", "pruned"}


@pytest.mark.long
def test_twenty_random_kills(tmp_path: Path) -> None:
    chance, kills, studies = random.Random(0), Counter[str](), 0
    while kills.total() < 20:
        run_under_kills(tmp_path / f"study_{studies}", chance, kills, 20)
        studies += 1
    assert all(kills[kind] >= 3 for kind in ("search", "trial", "rank")), kills
