"""Tests of log output: which ranks print to the terminal, with which prefix, what the log files and JSON lines contain,
what ``trireme logs`` shows, and that progress bars can be switched off.
"""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.command import command, tiny_command, trireme_here
from helpers.recipes import tiny_recipe
from helpers.running import run_to_end
from trireme.trainer.build import train
from trireme.trainer.json_log import JsonLines

TESTS = Path(__file__).parents[1]
SPEAKS = "+callbacks.speaks={_target_: helpers.callbacks.Speaks}"


def started(run_dir: Path, *overrides: str) -> str:
    """The terminal output of two ranks under torchrun, which lets every rank write to the terminal."""
    own = tiny_command(run_dir, "trainer.max_steps=1", "plan=ddp", "trainer.eval_at_end=false", SPEAKS, *overrides)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = run_to_end(
        [*launcher, "-m", "trireme.launch.train", *own[len(command("train")) :]],
        run_dir,
        {"PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def spoken(said: str) -> list[str]:
    return sorted(line for line in said.splitlines() if re.search(r"(info|warning) of \d$", line))


@pytest.mark.slow
def test_rank_0_speaks_and_others_warn_with_their_rank(tmp_path: Path) -> None:
    assert spoken(started(tmp_path)) == ["[rank 1] warning of 1", "info of 0", "warning of 0"]
    assert "info of 1" in (tmp_path / "logs" / "rank1.log").read_text(), "files keep what the terminal does not show"
    assert "info of 0" in (tmp_path / "log.txt").read_text()


@pytest.mark.long
def test_when_several_speak_every_line_carries_its_rank(tmp_path: Path) -> None:
    said = spoken(started(tmp_path, "run.log_level=warning", "run.log_level_replica=info"))
    assert said == ["[rank 0] warning of 0", "[rank 1] info of 1", "[rank 1] warning of 1"]
    assert "info of 0" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_the_own_launcher_leaves_a_log_of_each_rank_and_no_empty_files(tmp_path: Path, capsys) -> None:
    run_dir = tmp_path / "run"
    two = tiny_command(run_dir, "trainer.max_steps=1", "plan=ddp", "trainer.eval_at_end=false", SPEAKS, "--nproc", "2")
    ended = run_to_end(two, run_dir, {"PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"})
    assert ended.returncode == 0, ended.stderr
    assert "info of 1" in trireme_here(capsys, "logs", str(run_dir), "--rank", "1").stdout
    empty = [path for path in (run_dir / "logs").rglob("*") if path.is_dir() or not path.stat().st_size]
    assert [path for path in empty if path.is_file()] == []
    assert [path for path in empty if not any(path.iterdir())] == []


def test_logs_of_a_rank_are_shown_with_its_last_errors(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "logs" / "20260101-000000" / "attempt_0" / "1"
    folder.mkdir(parents=True)
    (tmp_path / "logs" / "rank1.log").write_text("logged\n")
    (folder / "stdout.log").touch()
    (folder / "stderr.log").write_text("boom\n")
    said = trireme_here(capsys, "logs", str(tmp_path), "--rank", "1").stdout
    assert "rank1.log <==\nlogged" in said and "stderr.log <==\nboom" in said and "stdout.log" not in said


def test_the_log_holds_what_callbacks_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = "+callbacks.sample={_target_: trireme.trainer.callbacks.sample.Sample, prompts: [import]}"
    train(tiny_recipe(tmp_path, "trainer.max_steps=2", sample))
    said = (tmp_path / "log.txt").read_text()
    assert re.search(r"step 1/2  loss \d\.\d{4}  lr .*\n.*step 2/2  loss", said)
    assert re.search(r"step 2/2  eval_loss \d\.\d{4}  eval_perplexity", said)
    assert "sample at step 2: import" in said
    assert "eval_loss" not in capsys.readouterr().err, "the terminal has the progress callback"


@pytest.mark.parametrize(
    ("level", "libraries"), [("info", "WARNING"), ("error", "ERROR"), ("critical", "CRITICAL"), ("debug", "DEBUG")]
)
def test_libraries_follow_the_log_level(level: str, libraries: str, tmp_path: Path) -> None:
    from transformers.utils.logging import get_verbosity, set_verbosity_warning

    try:
        train(tiny_recipe(tmp_path, "trainer.max_steps=1", "trainer.eval_at_end=false", f"run.log_level={level}"))
        assert logging.getLevelName(get_verbosity()) == libraries
        for name in ("transformers", "datasets", "accelerate", "DeepSpeed"):
            assert logging.getLevelName(logging.getLogger(name).level) == libraries, name
        logging.getLogger("transformers").critical("after the run")
        assert "after the run" not in (tmp_path / "log.txt").read_text(), "the file is let go of at the end"
    finally:
        set_verbosity_warning()


def test_a_folder_that_holds_no_run_is_answered_with_those_that_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a current folder without ``runs``
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "log.txt").touch()
    answer = trireme_here(capsys, "logs", str(tmp_path / "tinny"))
    assert answer.returncode == 2 and f"such as {tmp_path / 'tiny'}" in answer.stderr
    answer = trireme_here(capsys, "logs", str(tmp_path / "other" / "a"))
    assert "there is no such folder" in answer.stderr and "which a run names when it ends" in answer.stderr


def test_lines_of_json_hold_all_that_a_person_would_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callbacks = ["callbacks=[default]", "+callbacks.warns={_target_: helpers.callbacks.Warns}"]
    train(tiny_recipe(tmp_path, "run.log_format=json", "trainer.max_steps=2", *callbacks))
    output, errors = capsys.readouterr()
    assert not output
    lines = [json.loads(line) for line in errors.splitlines()]
    assert all(line.keys() >= {"time", "level", "logger", "rank", "message"} for line in lines)
    assert all(line["time"].endswith("+00:00") and line["rank"] == 0 for line in lines)
    metrics = [line["metrics"] for line in lines if "metrics" in line]
    assert [one["step"] for one in metrics if "loss" in one] == [1, 2]
    assert [one["eval_loss"] for one in metrics if "eval_loss" in one]
    assert any(line["level"] == "warning" and "that is unwise" in line["message"] for line in lines)
    assert "  loss " in (tmp_path / "log.txt").read_text(), "files keep their form"


def test_numbers_that_json_lacks_become_texts() -> None:
    record = logging.makeLogRecord({"msg": "step 1", "metrics": {"loss": float("nan"), "step": 1, "plan": Path("a")}})
    assert json.loads(JsonLines(3).format(record))["metrics"] == {"loss": "nan", "step": 1, "plan": "a"}


def test_warnings_are_kept_in_the_log_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = warnings.showwarning
    train(tiny_recipe(tmp_path, "trainer.max_steps=1", "+callbacks.warns={_target_: helpers.callbacks.Warns}"))
    assert "UserWarning: that is unwise" in capsys.readouterr().err
    assert "py.warnings" in (tmp_path / "log.txt").read_text()
    assert warnings.showwarning is shown


def test_bars_can_be_switched_off(tmp_path: Path) -> None:
    """No bar is drawn even on a terminal; a pseudo-terminal stands for one."""
    own = tiny_command(tmp_path / "run", "trainer.max_steps=2", "callbacks=[default]", "run.progress=false")
    main, other = pty.openpty()
    with open(main, "rb", closefd=False) as said:
        process = subprocess.Popen(own, stdout=other, stderr=other, env={**os.environ, "TERM": "xterm"})
        os.close(other)
        text = _all_of(said.fileno())
    os.close(main)
    assert process.wait() == 0
    last = text[text.rindex("first step begins") :]
    assert "step 2/2" in last and "\x1b[2K" not in last, last


def _all_of(terminal: int) -> str:
    """Everything that is written to a pseudo-terminal until its writer ends."""
    found = b""
    with suppress(OSError):  # Linux raises EIO at the end
        while part := os.read(terminal, 65536):
            found += part
    return found.decode()
