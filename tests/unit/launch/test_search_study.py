"""Tests of the study in which a hyperparameter search records its trials: several workers, interrupted trials, seeds,
samplers and pruners, and storage in files or databases.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.command import ROOTS, refused, trireme_here
from helpers.recipes import TINY
from trireme.errors import UserError
from trireme.launch.error_report import RanksFailed
from trireme.launch.search.memory_kills import memory_kills
from trireme.launch.search.objective import Objective
from trireme.launch.search.read_space import read_space
from trireme.launch.search.results import _found, _further, best_trials, rows
from trireme.launch.search.samplers import random_trials, seeded
from trireme.launch.search.search_config import SearchConfig
from trireme.launch.search.shares import share_out
from trireme.launch.search.space import Space
from trireme.launch.search.space_function import call_space
from trireme.launch.search.storages import JOURNAL, storage_errors
from trireme.launch.search.study_command import StudyCommand
from trireme.launch.search.study_store import StudyStore, TrialState
from trireme.launch.search.trial_process import FAILED, INTERRUPTED, KILLED, MEMORY, REFUSED, ending_of
from trireme.launch.search.trial_starter import Started, TrialStarter
from trireme.launch.search.try_sampler import try_sampler

SPACE = {"x": {"low": -4.0, "high": 4.0}, "rate": {"low": 1e-5, "high": 1e-1, "log": True}}
TPE = {"_target_": "optuna.samplers.TPESampler"}
EVERY_SAMPLER = [
    TPE,
    {"_target_": "optuna.samplers.TPESampler", "multivariate": True, "group": True},
    {"_target_": "optuna.samplers.RandomSampler"},
    {"_target_": "optuna.samplers.CmaEsSampler"},
    {"_target_": "optuna.samplers.GPSampler"},
    {"_target_": "optuna.samplers.QMCSampler"},
    {"_target_": "optuna.samplers.NSGAIISampler"},
    {"_target_": "optuna.samplers.NSGAIIISampler"},
    {"_target_": "optuna.samplers.BruteForceSampler"},
    {"_target_": "optuna.samplers.PartialFixedSampler", "fixed_params": {"x": 1.0}, "base_sampler": TPE},
]


def space_of(given: dict[str, Any]) -> Space:
    space, flaws = read_space(given)
    assert not flaws
    return space


def opened(folder: Path, space: Space, modes: dict[str, str] | None = None, **options: Any) -> StudyStore:
    objective = Objective(modes or {"value": "min"})
    folder.mkdir(exist_ok=True)
    identity = {"space": space.as_json(), "objectives": dict(objective.modes)}
    config = SearchConfig(space={}, **options)
    return StudyStore(folder, folder.name, config, objective, identity, space.combinations)


def quadratic(values: dict[str, Any]) -> float:
    return (values["x"] - 1.5) ** 2 + (math.log10(values["rate"]) + 3) ** 2


def work(store: StudyStore, space: Space, function: Callable[[dict[str, Any]], float], most: int = 10**6) -> int:
    """Claim and finish trials until there are none left; returns how many."""
    done = 0
    while done < most and (claim := store.claim(space.suggest)):
        store.finish(claim, TrialState.COMPLETE, [function(claim.values)])
        done += 1
    return done


def seen(store: StudyStore) -> list[dict[str, Any]]:
    return [trial.params for trial in store.trials]


def test_sixty_trials_find_the_valley(tmp_path: Path) -> None:
    space = space_of(SPACE)
    store = opened(tmp_path / "study", space, trials=60, sampler=TPE)
    work(store, space, quadratic)
    best = store.study.best_trial
    assert len(store.trials) == 60 and best.value is not None and best.value < 0.3, best
    uniform = opened(tmp_path / "uniform", space, trials=60, sampler={"_target_": "optuna.samplers.RandomSampler"})
    work(uniform, space, quadratic)
    assert best.value < uniform.study.best_trial.value  # type: ignore[operator]


@pytest.mark.parametrize("sampler", EVERY_SAMPLER, ids=lambda one: one["_target_"].rpartition(".")[2])
def test_a_study_that_is_opened_again_goes_on_as_if_it_had_not_been(sampler: dict[str, Any], tmp_path: Path) -> None:
    given = {"x": [-2.0, 0.0, 1.0, 3.0], "rate": [1e-4, 1e-3, 1e-2]} if "Brute" in sampler["_target_"] else SPACE
    given = {"x": [1.0, 2.0], "rate": SPACE["rate"]} if "Partial" in sampler["_target_"] else given
    space = space_of(given)
    whole = opened(tmp_path / "whole", space, trials=11, sampler=sampler, seed=3)
    work(whole, space, quadratic)
    for count in (4, 4, 3):
        parts = opened(tmp_path / "parts", space, trials=11, sampler=sampler, seed=3)
        assert work(parts, space, quadratic, count) == count
    assert seen(parts) == seen(whole)
    assert len({str(point) for point in seen(whole)}) > 5, "each trial has draws of its own"
    other = opened(tmp_path / "other", space, trials=11, sampler=sampler, seed=4)
    work(other, space, quadratic)
    assert seen(other) != seen(whole)


def test_workers_that_ask_elsewhere_do_not_exceed_the_trials(tmp_path: Path) -> None:
    """A worker holds a place while it waits for values; a place that is released without a trial is free again."""
    space = space_of(SPACE)
    one, two = (opened(tmp_path / "study", space, trials=3) for _ in range(2))
    places = [one.place(), two.place(), one.place()]
    assert None not in places and one.place() is None and two.place() is None
    one.finish(one.new(space.suggest), TrialState.COMPLETE, [1.0])
    os.close(places[2])
    assert two.place() is None, "one has begun, and two are held"
    os.close(places[0])  # as if the worker's server had no further trial
    again = two.place()
    assert again is not None and one.place() is None
    for place in (again, places[1]):
        two.finish(two.new(space.suggest), TrialState.COMPLETE, [1.0])
        os.close(place)
    assert one.full and one.place() is None


def test_a_grid_ends_when_every_point_was_tried(tmp_path: Path) -> None:
    space = space_of({"x": [0.0, 1.0, 2.0], "rate": [1e-3, 1e-2]})
    store = opened(tmp_path / "grid", space, trials=100, sampler={"_target_": "optuna.samplers.BruteForceSampler"})
    assert work(store, space, quadratic) == 6
    assert len({str(point) for point in seen(store)}) == 6
    again = opened(tmp_path / "grid", space, trials=100, sampler={"_target_": "optuna.samplers.BruteForceSampler"})
    assert again.claim(space.suggest) is None


def test_a_finite_space_ends_when_every_combination_was_tried(tmp_path: Path) -> None:
    space = space_of({"x": [0.0, 1.0], "rate": [1e-3, 1e-2]})
    store = opened(tmp_path / "study", space, trials=200, sampler={"_target_": "optuna.samplers.RandomSampler"})
    assert 4 <= work(store, space, quadratic) < 200 and store.points == 4 and store.complete
    assert opened(tmp_path / "study", space, trials=200).claim(space.suggest) is None
    *_, tried, repeated = _further(store)
    assert tried == "all 4 combinations of the space were tried"
    assert f"{len(store.trials) - 4} trial" in repeated and "BruteForceSampler" in repeated


def test_a_table_tells_trials_that_run_from_those_that_were_left(tmp_path: Path) -> None:
    space = space_of(SPACE)
    store = opened(tmp_path / "study", space, trials=4)
    work(store, space, quadratic, most=2)
    left, runs = store.claim(space.suggest), store.claim(space.suggest)
    assert left is not None and runs is not None
    left.release()
    assert [row["end"] for row in rows(store)][2:] == ["interrupted", "running"]
    assert _further(store) == ["2 of 4 trials have ended; the same command goes on with the study"]
    assert _found(store, best_trials(store))[0].startswith("best so far: trial ")
    again = store.claim(space.suggest)
    assert again is not None and again.number == 2, "a look does not keep a worker from it"
    for claim in (again, runs):
        store.finish(claim, TrialState.COMPLETE, [9.0])
    assert store.complete and _further(store) == []
    assert _found(store, best_trials(store))[0].startswith("best: trial ")


def _die_with_a_claim(folder: Path) -> None:
    space = space_of(SPACE)
    store = opened(folder, space, trials=3)
    claim = store.claim(space.suggest)
    assert claim is not None
    store.report(claim, 5, 2.0)
    os._exit(9)


def test_a_trial_of_a_dead_worker_is_gone_on_with(tmp_path: Path) -> None:
    space, folder = space_of(SPACE), tmp_path / "study"
    worker = multiprocessing.get_context("fork").Process(target=_die_with_a_claim, args=(folder,))
    worker.start()
    worker.join(60)
    store = opened(folder, space, trials=3)
    held = store.claim(space.suggest)
    assert held is not None and (held.number, held.starts, held.stored) == (0, 1, {5: 2.0})
    assert held.values == seen(store)[0]
    other = opened(folder, space, trials=3)
    next_claim = other.claim(space.suggest)
    assert next_claim is not None and next_claim.number == 1, "a living worker keeps its trial"
    store.finish(held, TrialState.COMPLETE, [1.0])
    other.finish(next_claim, TrialState.PRUNED)
    assert work(store, space, quadratic) == 1
    assert [trial.state.name for trial in store.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]


def _work_apart(folder: Path, storage: str | None) -> None:
    space = space_of(SPACE)
    work(opened(folder, space, trials=12, storage=storage), space, quadratic)


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_workers_share_a_study(kind: str, tmp_path: Path) -> None:
    folder, storage = tmp_path / "study", None if kind == "journal" else f"sqlite:///{tmp_path}/study.db"
    opened(folder, space_of(SPACE), trials=12, storage=storage)
    workers = [
        multiprocessing.get_context("fork").Process(target=_work_apart, args=(folder, storage)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
    store = opened(folder, space_of(SPACE), trials=12, storage=storage)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert [trial.number for trial in store.trials] == list(range(12))
    assert {trial.state.name for trial in store.trials} == {"COMPLETE"}
    assert len({str(point) for point in seen(store)}) == 12


def test_half_a_line_of_a_killed_writer_is_cut_off(tmp_path: Path) -> None:
    space, folder = space_of(SPACE), tmp_path / "study"
    work(opened(folder, space, trials=2), space, quadratic)
    with (folder / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code":4,"worker_id":"dead')
    store = opened(folder, space, trials=4)
    assert work(store, space, quadratic) == 2
    assert len(opened(folder, space, trials=4).trials) == 4


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_trials_of_a_lost_study_are_not_begun_anew(kind: str, tmp_path: Path) -> None:
    folder, storage = tmp_path / "study", None if kind == "journal" else f"sqlite:///{tmp_path}/study.db"
    opened(folder, space_of(SPACE), storage=storage)
    run = folder / "trial_0000"
    run.mkdir()
    (run / "metrics.jsonl").touch()
    opened(folder, space_of(SPACE), storage=storage)
    (folder / JOURNAL if storage is None else tmp_path / "study.db").unlink()
    with pytest.raises(UserError, match="holds 1 trial of a study whose journal or database entry is gone"):
        opened(folder, space_of(SPACE), storage=storage)


def test_a_study_of_another_space_is_refused(tmp_path: Path) -> None:
    opened(tmp_path / "study", space_of(SPACE))
    with pytest.raises(UserError, match="changed: rate") as refused:
        opened(tmp_path / "study", space_of({**SPACE, "rate": {"low": 1e-3, "high": 1e-1, "log": True}}))
    assert "search.space" in str(refused.value) and "--fresh" in str(refused.value)
    with pytest.raises(UserError, match=r"search\.objectives"):
        opened(tmp_path / "study", space_of(SPACE), {"value": "max"})


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:////nowhere/at/all/study.db", ("cannot be used", "unable to open")),
        ("postgresql://u:secret@127.0.0.1:9/study", ("cannot be used", "Connection refused", ":***@")),
        ("mysql://u:secret@127.0.0.1:9/study", ("pip install pymysql",)),
        ("oracel://somewhere/study", ("cannot be used", "oracel")),
    ],
)
def test_storages_that_cannot_be_reached(url: str, words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        opened(tmp_path / "study", space_of(SPACE), storage=url)
    assert all(word in str(refused.value) for word in ("search.storage", *words)), str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL server."""
    server, folder = shutil.which("postgres"), tmp_path_factory.mktemp("postgres")
    initdb = shutil.which("initdb")
    if server is None or initdb is None:
        pytest.skip("no PostgreSQL on this machine")
    pytest.importorskip("psycopg2")
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        os.chown(folder, 65534, 65534)
        for parent in folder.parents[:3]:
            parent.chmod(parent.stat().st_mode | 0o011)
        as_user = {"user": 65534, "group": 65534}
    data = folder / "data"
    made = subprocess.run([initdb, "-A", "trust", "-U", "u", str(data)], capture_output=True, text=True, **as_user)
    if made.returncode:
        pytest.skip(f"initdb does not work here: {made.stderr[-200:]}")
    words = [server, "-D", str(data), "-k", str(folder), "-c", "listen_addresses="]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_user)
    try:
        yield f"postgresql://u@/postgres?host={folder}"
    finally:
        process.send_signal(signal.SIGINT)  # it does not wait for connections to end
        process.wait(20)


def test_a_study_in_postgresql(postgres: str, tmp_path: Path) -> None:
    from helpers.running import until

    def reachable() -> bool:
        try:
            opened(tmp_path / "study", space_of(SPACE), storage=postgres, trials=3)
        except UserError:
            return False
        return True

    until(reachable, 30)
    space = space_of(SPACE)
    store = opened(tmp_path / "study", space, storage=postgres, trials=3)
    assert work(store, space, quadratic) == 3
    assert len(opened(tmp_path / "study", space, storage=postgres, trials=3).trials) == 3


def test_seeds_reach_samplers_inside_of_samplers() -> None:
    component = {"_target_": "optuna.samplers.PartialFixedSampler", "fixed_params": {}, "base_sampler": dict(TPE)}
    one, two = (seeded(component, 7, number) for number in (1, 2))
    assert "seed" not in one and one["base_sampler"]["seed"] != two["base_sampler"]["seed"]
    assert seeded(component, 7, 1) == one and "seed" not in component["base_sampler"]
    qmc = {"_target_": "optuna.samplers.QMCSampler"}
    assert seeded(qmc, 7, 1) == seeded(qmc, 7, 2), "one sequence for all trials"


def test_objectives_are_taken_from_lines() -> None:
    lines = [{"step": 1, "loss": 3.0, "lr": 0.1}, {"step": 2, "eval_loss": 2.0}, {"step": 4, "eval_loss": 2.5}]
    assert Objective({"eval_loss": "min"}).of_lines(lines) == [2.5]
    assert Objective({"eval_loss": "min"}, "best").of_lines(lines) == [2.0]
    assert Objective({"eval_loss": "max", "loss": "min"}, "best").of_lines(lines) == [2.5, 3.0]
    with pytest.raises(KeyError, match="eval_accuracy"):
        Objective({"eval_accuracy": "max"}).of_lines(lines)
    both = Objective({"a": "min", "b": "max"}, function=lambda found: {"b": found["loss"], "a": found["step"]})
    assert both.of_lines(lines) == [4.0, 3.0]
    with pytest.raises(UserError, match="return a number for each of these, or a mapping by name: a, b"):
        Objective({"a": "min", "b": "max"}, function=lambda found: 1.0).of_lines(lines)


def test_kills_for_want_of_memory_are_counted(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 12\noom_kill 3\n")
    (tmp_path / "events").write_text("oom 1\noom_kill 2\noom_group_kill 7\n")
    assert memory_kills([tmp_path / "vmstat", tmp_path / "events", tmp_path / "none"]) == 5
    assert memory_kills() >= 0


def test_a_machine_is_shared_out() -> None:
    one, two = share_out([0, 1, 2, 3], ["0", "1", "2", "3"], 2, 2)
    assert (one.cores, two.cores) == ([0, 1], [2, 3])
    assert (one.variables, two.variables) == ({"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"})

    assert all(len(share.cores) == 1 and share.variables == {} for share in share_out([5, 6], [], 3, 1))
    assert share_out([0], ["0", "1"], 1, 2)[0].devices is None, "one trial at a time keeps what there is"
    with pytest.raises(UserError, match="needs 4 devices"):
        share_out([0, 1], ["0", "1"], 2, 2)


def test_endings_are_told_apart() -> None:
    killed = RanksFailed("rank 1 was ended by SIGKILL (often: the machine ran out of memory); the others were stopped")
    killed.signal = "SIGKILL"
    stack = "Traceback ...\ntorch.OutOfMemoryError: CUDA out of memory. Tried\n(rank 0 of 2; its output: x)"
    found = [
        ending_of(error)[0]
        for error in (UserError("no"), killed, RanksFailed(stack), MemoryError(), KeyboardInterrupt(), ValueError("x"))
    ]
    assert found == [REFUSED, KILLED, MEMORY, MEMORY, INTERRUPTED, FAILED]
    assert ending_of(RanksFailed(stack))[1] == "torch.OutOfMemoryError: CUDA out of memory. Tried"


def test_a_study_goes_on_in_a_folder_that_was_moved(tmp_path: Path) -> None:
    """The name of the folder is no part of the study; else its trials would run again over the old ones."""
    space = space_of(SPACE)
    assert work(opened(tmp_path / "one", space, trials=5), space, quadratic, most=2) == 2
    (tmp_path / "one").rename(tmp_path / "two")
    there = opened(tmp_path / "two", space, trials=5)
    assert len(there.trials) == 2 and work(there, space, quadratic) == 3
    with pytest.raises(UserError, match=r"search\.space"):
        opened(tmp_path / "two", space_of({"x": {"low": 0.0, "high": 1.0}}))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda metrics: metrics["nothing"], "raised KeyError: 'nothing'"),
        (lambda metrics: "bad", "returned 'bad'"),
        (lambda metrics: {"other": 1.0}, "returned {'other': 1.0}"),
        (lambda metrics: [1.0, 2.0], r"returned \[1.0, 2.0\]"),
        (lambda metrics: True, "returned True"),
        (lambda metrics: sys.exit(0), "raised SystemExit: 0"),
    ],
)
def test_a_function_of_the_users_that_fails_is_named(function: Callable[..., Any], words: str) -> None:
    objective = Objective({"value": "min"}, function=function)
    with pytest.raises(UserError, match=words):
        objective.of_lines([{"loss": 1.0}])


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda trial: sys.exit(3), "fails for trial 0: SystemExit: 3"),
        (lambda trial: [1], "does not return values by key"),
        (lambda trial: {"optimizer.lr": object()}, "returns an object of type object for optimizer.lr in trial 0"),
        (lambda trial: {"optimizer.betas": [0.9, math.nan]}, "returns nan for optimizer.betas"),
    ],
)
def test_a_space_that_is_a_function_gives_what_a_recipe_can_hold(function: Callable[..., Any], words: str) -> None:
    (trial,) = random_trials(1)
    with pytest.raises(UserError, match=words):
        call_space(function, trial)


@pytest.mark.parametrize(
    ("component", "field", "words"),
    [
        ({"_target_": "optuna.samplers.BruteForceSampler"}, "search.sampler", "step must be given"),
        ({"_target_": "optuna.pruners.MedianPruner"}, "search.sampler._target_", "gives no sampler"),
        ({"_target_": "os.getcwd"}, "search.sampler._target_", "of type str"),
        ({"_target_": "optuna.samplers.GridSampler", "search_space": {"y": [1]}}, "search.sampler", "x, is not found"),
    ],
)
def test_a_wrong_sampler_is_refused_before_the_first_trial(component: dict[str, Any], field: str, words: str) -> None:
    (problem,) = try_sampler(SearchConfig(sampler=component), 1, space_of({"x": {"low": 0.0, "high": 1.0}}))
    assert problem.field == field and problem.fix and words in problem.why


@pytest.mark.parametrize(
    ("component", "field", "words"),
    [
        ({"_target_": "optuna.samplers.TPESampler"}, "search.pruner._target_", "gives no pruner"),
        ({"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": -1}, "search.pruner", "cannot be negative"),
        ({"_target_": "optuna.pruners.PercentilePruner", "percentile": 500}, "search.pruner", "between 0 and 100"),
    ],
)
def test_a_wrong_pruner_is_refused_before_the_first_trial(component: dict[str, Any], field: str, words: str) -> None:
    (problem,) = try_sampler(SearchConfig(pruner=component), 1, space_of({"x": {"low": 0.0, "high": 1.0}}))
    assert problem.field == field and problem.fix and words in problem.why


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("name", ["TPESampler", "RandomSampler", "NSGAIISampler", "QMCSampler", "BruteForceSampler"])
def test_sound_samplers_and_pruners_pass(name: str, objectives: int) -> None:
    sampler, pruner = {"_target_": f"optuna.samplers.{name}"}, {"_target_": "optuna.pruners.MedianPruner"}
    space = space_of({"x": {"low": 0.0, "high": 1.0, "step": 0.5}})
    assert try_sampler(SearchConfig(sampler=sampler, pruner=pruner), objectives, space) == []


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+pysqlite:///:memory:?x=1"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="in memory"):
        SearchConfig(space=SPACE, storage=url)
    SearchConfig(space=SPACE, storage="sqlite:///study.db")


def test_a_database_that_fails_later_is_one_problem(tmp_path: Path) -> None:
    store = opened(tmp_path / "study", space_of(SPACE), storage=f"sqlite:///{tmp_path}/study.db")
    (tmp_path / "study.db").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match=r"search\.storage.*\n.*has failed"), storage_errors("sqlite:///study.db"):
        work(store, space_of(SPACE), quadratic, most=1)


def test_a_trial_that_ends_at_a_signal_goes_on(tmp_path: Path) -> None:
    """A signal may come before the trial can note how it ends."""
    starter = object.__new__(TrialStarter)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = Started(tmp_path / "none.json", process)
    starter.tell(started, signal.SIGINT)
    process.wait()
    process.returncode = 1  # Python's own answer to the signal, where it has no handler yet
    assert starter.ending(started)[0] == INTERRUPTED


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"{", b"[1]", b"recipe: [", b'{"recipe": 3}'])
@pytest.mark.parametrize("name", ["search.json", "recipe.yaml", JOURNAL])
def test_a_damaged_file_of_a_study_is_named(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space, study = "search.space={optimizer.lr:{low:1e-5,high:1e-2}}", tmp_path / "study"
    command = StudyCommand(str(TINY), ["search=optuna", space], [], None)
    study.mkdir()
    command.write(study)
    (study / "claims").mkdir()
    (study / name).write_bytes(content)
    done = trireme_here(capsys, "search", str(study), ROOTS, "--table")
    assert "Traceback" not in done.stderr
    if name == "recipe.yaml" and content.startswith(b'{"recipe"'):
        refused(done, "holds a study of another recipe")
    elif name != JOURNAL:  # of a journal, half a line is cut off
        refused(done, name, "damaged", "fix:")


def test_a_model_beside_a_damaged_recipe_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "checkpoints").mkdir()
    done = trireme_here(capsys, "generate", str(tmp_path), "--prompt", "a")
    assert done.returncode == 2 and "Traceback" not in done.stderr
