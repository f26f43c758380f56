"""Tests of run reports: measuring a step with the callback ``report`` does not change training, and the journal and the
report tell of resumes, rollbacks, and how a run ended (completed, left early, failed or killed).
"""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers.command import command, tiny_command
from helpers.metrics import lines
from helpers.recipes import TINY, tiny_recipe
from helpers.running import running, until
from helpers.several_runs import train_all_on_ranks
from helpers.zero import can_compile, load_deepspeed
from trireme.errors import UserError
from trireme.trainer.build import train
from trireme.trainer.journal import read_journal
from trireme.trainer.run_report.run_files import read_run

TESTS = Path(__file__).parents[1]
NEEDS_COMPILER = pytest.mark.skipif(not can_compile(), reason="DeepSpeed's operators need g++ and ninja")
REPORTED = "callbacks=[minimal,report]"
COMMON = ("trainer.max_steps=4", "trainer.eval_at_end=false", "checkpoint.at_end=false", "trainer.log_every=1")
CLOCK = ("samples_per_second", "step_seconds", "memory_mib", "mfu")


def _numbers(run_dir: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines(run_dir)]


def _measured(run_dir: Path) -> dict[str, Any]:
    (found,) = [line for line in read_journal(run_dir / "journal.jsonl") if line["event"] == "measured"]
    return found


def _state(run_dir: Path) -> str:
    return read_run(run_dir, running=False).state


@pytest.mark.parametrize(
    ("plan", "kinds"),
    [
        ("ddp", {"all-reduce"}),
        pytest.param("fsdp_full_shard", {"all-gather", "reduce-scatter"}, marks=pytest.mark.long),
        pytest.param("tp", {"all-reduce"}, marks=pytest.mark.long),
        ("pp_1f1b", {"send"}),
        pytest.param("zero3", {"all-gather", "reduce-scatter"}, marks=NEEDS_COMPILER),
    ],
)
def test_a_measured_step_changes_no_number(tmp_path: Path, plan: str, kinds: set[str]) -> None:
    if plan == "zero3":
        load_deepspeed()
    changes = [f"plan={plan}", "model=llama_tiny", *COMMON]
    jobs = [(TINY, tmp_path / "plain", changes), (TINY, tmp_path / "seen", [*changes, REPORTED])]
    for some in [[job] for job in jobs] if plan == "zero3" else [jobs]:  # a process has one DeepSpeed engine only
        train_all_on_ranks(2, some)
    assert _numbers(tmp_path / "seen") == _numbers(tmp_path / "plain")
    found = _measured(tmp_path / "seen")
    assert found["step"] == 2 and kinds <= {kind for kind, size in found["sent"].items() if size}
    assert found["uncounted"] == []
    planned, held = found["planned"], found["memory"]
    sent = sum(size for kind, size in found["sent"].items() if kind != "bookkeeping")
    share = 0.5 if plan == "pp_1f1b" else 1.0  # the plan is for a middle stage, which sends to both sides
    assert sent == pytest.approx(share * planned["sent"], rel=0.35)
    assert held["parameters"] == pytest.approx(planned["memory"]["parameters"], rel=0.3)
    assert held["optimizer"] == pytest.approx(planned["memory"]["optimizer"], rel=0.3)
    assert held["total"] > held["parameters"] + held["gradients"] + held["optimizer"] > 0
    _check_timeline(found["timeline"], plan)


def _check_timeline(timeline: list[dict[str, Any]], plan: str) -> None:
    if plan != "pp_1f1b":
        assert timeline == []
        return
    assert [row["rank"] for row in timeline] == [0, 1]
    for row in timeline:
        order = [(kind, micro) for kind, _, micro, _, _ in row["actions"]]
        assert sorted(order) == [(kind, micro) for kind in "BF" for micro in range(4)]
        times = [time for *_, began, ended in row["actions"] for time in (began, ended)]
        assert times == sorted(times) and times[0] >= 0
    first, second = (
        {(kind, micro): (began, ended) for kind, _, micro, began, ended in row["actions"]} for row in timeline
    )
    for micro in range(4):  # forward waits for the stage before, backward for the stage behind
        assert first["F", micro][1] <= second["F", micro][0] + 1e-3
        assert second["B", micro][1] <= first["B", micro][1] + 1e-3
    assert [kind for kind, *_ in timeline[0]["actions"]][:2] == ["F", "F"]  # 1F1B warms up its first stage


def test_the_journal_tells_stops_failures_and_resumes(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    leave = "+callbacks.leave={_target_: helpers.callbacks.Leave, step: 3}"
    train(tiny_recipe(run_dir, REPORTED, leave, "checkpoint.at_end=true"))
    assert _state(run_dir) == "left"
    samples = json.loads((run_dir / "shown_samples.json").read_text())
    assert samples["step"] == 1 and len(samples["samples"]) == 3
    pieces = samples["samples"][0]["views"]["input_ids"]["pieces"]
    assert {piece["role"] for piece in pieces} <= {"learnt", "ignored"} and any(
        len(piece["text"]) > 20 for piece in pieces
    )
    fails = "+callbacks.fails={_target_: helpers.callbacks.Fails, step: 5}"
    with pytest.raises(UserError, match="the mast breaks"):
        train(tiny_recipe(run_dir, REPORTED, fails))
    assert _state(run_dir) == "failed"
    train(tiny_recipe(run_dir, REPORTED))
    events = read_journal(run_dir / "journal.jsonl")
    told = [(line["event"], line["step"]) for line in events if line["event"] in ("started", "ended")]
    assert told == [("started", 0), ("ended", 3), ("started", 3), ("ended", 4), ("started", 3), ("ended", 10)]
    ends = [line for line in events if line["event"] == "ended"]
    assert [line["how"] for line in ends] == ["left", "failed", "done"] and ends[0]["reason"] == "it is time"
    assert "the mast breaks" in ends[1]["reason"] and _state(run_dir) == "done"
    page = (run_dir / "report.html").read_text()
    assert "the mast breaks" in page and "it is time" in page and '"refresh":null' in page


@pytest.mark.parametrize("callbacks", ["callbacks=[minimal]", REPORTED])
def test_a_run_that_left_says_so_with_and_without_the_callback(tmp_path: Path, callbacks: str) -> None:
    leave = "+callbacks.leave={_target_: helpers.callbacks.Leave, step: 3}"
    train(tiny_recipe(tmp_path / "run", callbacks, leave))
    assert _state(tmp_path / "run") == "left"
    train(tiny_recipe(tmp_path / "run", callbacks))
    assert _state(tmp_path / "run") == "done"
    told = [line["event"] for line in read_journal(tmp_path / "run" / "journal.jsonl")]
    assert [event for event in told if event in ("started", "ended")] == ["started", "ended"] * 2


def test_the_journal_tells_rollbacks(tmp_path: Path) -> None:
    guard = (
        "callbacks=[minimal,report,nonfinite]",
        "callbacks.nonfinite.action=rollback",
        "callbacks.nonfinite.every=1",
    )
    poison = "+callbacks.poison={_target_: helpers.callbacks.Poison, rank: 0, samples: [24]}"
    train(tiny_recipe(tmp_path / "run", *guard, poison, "checkpoint.every=2", "trainer.eval_at_end=false"))
    events = [
        line
        for line in read_journal(tmp_path / "run" / "journal.jsonl")
        if line["event"] in ("back", "ended", "started")
    ]
    assert [line["event"] for line in events] == ["started", "back", "ended"]
    assert events[1]["left"] > events[1]["step"] == 2 and events[2]["how"] == "done"


@pytest.mark.slow
def test_a_killed_run_is_told_and_watched(tmp_path: Path) -> None:
    """A killed run is reported as such; after a new start, ``--watch`` follows it until it ends."""
    run_dir = tmp_path / "run"
    slow = "+callbacks.slow={_target_: helpers.callbacks.Slow, seconds: 0.2}"
    arguments = tiny_command(run_dir, REPORTED, slow, "trainer.log_every=1", "checkpoint.every=2")
    environment = {"PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"}
    with running(arguments, run_dir, environment) as run:
        run.wait_for_lines(4)
        assert read_run(run_dir).state == "running"
        run.send(signal.SIGKILL)
        run.end()
    assert read_run(run_dir).state == "killed"
    with running(arguments, run_dir, environment) as run:
        until(lambda: read_run(run_dir).state == "running")
        with running(command("report", str(run_dir), "--watch", "--every", "0.5"), run_dir) as watch:
            assert run.end().returncode == 0
            ended = watch.end(timeout=60)
    assert ended.returncode == 0 and "Ctrl-C" in ended.stdout
    page = (run_dir / "report.html").read_text()
    assert "ended without a message" in page and '"refresh":null' in page
    assert re.search(r'class="chip done"', page)
