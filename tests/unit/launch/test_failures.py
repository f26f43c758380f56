"""Tests of failing ranks: the error that caused the others is shown, with its traceback or message, and error files and
logs are written whole and in the right place.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

import pytest
from helpers.disk import small_disk
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from trireme.errors import Problem, UserError
from trireme.launch.error_report import USER_ERROR, LeftEarly, RanksFailed
from trireme.launch.failures import first_failure, raise_failure, record, run_rank
from trireme.launch.rank_logs import RankLogs
from trireme.launch.train import main


@pytest.fixture
def failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make the failure of a rank, with the error file that the rank would have left."""

    def make(rank: int, exitcode: int, error: Exception | None = None, later: int = 0) -> ProcessFailure:
        path = tmp_path / f"{rank}.json"
        if error is not None:
            monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
            try:
                raise error
            except Exception as raised:
                record(raised)
        made = ProcessFailure(rank, 100 + rank, exitcode, str(path))
        made.timestamp += later
        return made

    return make


def shown(failures: dict[int, ProcessFailure]) -> str:
    with pytest.raises((UserError, RanksFailed)) as caught:
        raise_failure(failures, len(failures), lambda rank: f"log{rank}" if rank else "")
    return str(caught.value)


def test_a_misspelt_option_is_a_user_error_of_a_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The launcher shows the error once, instead of a usage text from every rank."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))):
        monkeypatch.setenv(name, value)
    assert main(["pretrain/persimmon_stdlib", "--npoc", "2"]) == USER_ERROR
    assert "did you mean --nproc?" in (tmp_path / "error.json").read_text()
    assert "usage" not in capsys.readouterr().err


LOST = RuntimeError("Connection closed by peer")


def test_the_earliest_exception_counts(failure) -> None:
    failures = {1: failure(1, 1, ValueError("first")), 0: failure(0, 1, LOST), 2: failure(2, -15)}
    message = shown(failures)
    assert message.startswith("Traceback")
    assert message.endswith("ValueError: first\n(rank 1 of 3; its output: log1)")


def test_a_user_error_comes_before_its_consequences(failure) -> None:
    problem = Problem("data", "is odd", "even it out", 3)
    failures = {0: failure(0, 1, LOST), 1: failure(1, 2, UserError(problem, "plain words"))}
    with pytest.raises(UserError) as caught:
        raise_failure(failures, 2, lambda rank: "")
    assert caught.value.problems == (problem, "plain words")


@pytest.mark.parametrize(
    ("exitcode", "words"),
    [(-9, "rank 1 was ended by SIGKILL"), (-11, "rank 1 was ended by SIGSEGV"), (7, "rank 1 ended with exit code 7")],
)
def test_a_rank_that_ended_silently_is_the_cause(exitcode: int, words: str, failure) -> None:
    assert shown({0: failure(0, 1, LOST), 1: failure(1, exitcode), 2: failure(2, -15)}).startswith(words)


def test_ranks_that_left_early_and_saved_are_no_failure(failure) -> None:
    with pytest.raises(LeftEarly):
        raise_failure({0: failure(0, -15), 1: failure(1, 75)}, 2, lambda rank: "")


def test_kills_by_the_launcher_and_lost_connections_are_not_the_cause(failure) -> None:
    failures = {
        0: failure(0, -6),
        1: failure(1, 1, ValueError("first")),
        2: failure(2, -9, later=30),
        3: failure(3, -15),
    }
    assert first_failure(failures)[0] == 1


def test_a_rank_without_a_launcher_to_tell_prints_by_itself(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)

    def refuse() -> None:
        raise UserError(Problem("seed", "is odd"))

    assert run_rank(refuse) == 2
    assert capsys.readouterr().err == "seed\n  is odd\n"
    assert run_rank(lambda: 1 / 0) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert run_rank(lambda: None) == 0


def test_holding_a_user_error_back_does_not_make_it_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's agent shows the earliest error by the times in the error files. A user error that is held back keeps its
    own time, since its peers lose their connections meanwhile."""
    file = tmp_path / "error.json"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setattr("trireme.launch.failures.GRACE_SECONDS", 1.5)

    def refuse() -> None:
        raise UserError(Problem("seed", "is odd"))

    assert run_rank(refuse) == 2
    assert ProcessFailure(1, 101, 2, str(file)).timestamp <= time.time() - 1.5


def test_a_full_disk_leaves_no_torn_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """torch's launcher crashes when it reads an incomplete error file."""
    with small_disk(tmp_path, 8 * 1024):
        with contextlib.suppress(OSError):
            (tmp_path / "filler").write_bytes(bytes(100_000))
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
        record(UserError(Problem("run.dir", "is full", "free space")))
        assert not (tmp_path / "error.json").exists()
        assert "is full" in capsys.readouterr().err


def test_error_files_lie_on_another_disk_than_the_run(tmp_path: Path) -> None:
    """Each rank and attempt has an error file of its own."""
    (tmp_path / "errors").mkdir()
    logs = RankLogs(tmp_path / "logs", tmp_path / "errors")
    seen: set[str] = set()
    for attempt in ("0", "1"):
        envs = {rank: environment_of(rank, attempt) for rank in range(2)}
        files = logs.reify(envs)
        assert [env["TORCHELASTIC_ERROR_FILE"] for env in envs.values()] == list(files.error_files.values())
        assert all(path.startswith(str(tmp_path / "errors")) for path in files.error_files.values())
        assert files.stderrs == {0: "", 1: f"{tmp_path}/logs/run/attempt_{attempt}/1/stderr.log"}
        seen |= set(files.error_files.values())
    assert len(seen) == 4


def test_on_the_second_of_machines_all_ranks_write_into_files_by_their_own_number(tmp_path: Path) -> None:
    files = RankLogs(tmp_path, tmp_path).reify({0: environment_of(2, "0"), 1: environment_of(3, "0")})
    assert files.stdouts == {local: f"{tmp_path}/run/attempt_0/{rank}/stdout.log" for local, rank in ((0, 2), (1, 3))}


def environment_of(rank: int, attempt: str) -> dict[str, str]:
    return {"TORCHELASTIC_RUN_ID": "run", "TORCHELASTIC_RESTART_COUNT": attempt, "RANK": str(rank)}


def test_logs_that_cannot_be_written_are_a_user_error(tmp_path: Path) -> None:
    """The run folder can become read-only, or its disk full, after it was looked at."""
    logs = RankLogs(tmp_path / "run" / "logs", tmp_path)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").touch()
    envs = {0: environment_of(0, "0")}
    with pytest.raises(UserError, match=r"(?s)run\.dir.*cannot be written"):
        logs.reify(envs)
    with pytest.raises(UserError, match=r"(?s)run\.dir.*cannot be written"):
        RankLogs(tmp_path / "run" / "logs", tmp_path)
