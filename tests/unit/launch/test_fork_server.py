"""Tests of the fork server, from which ranks are forked after torch is imported: forked processes behave like newly
started ones, none outlives its command, and ranks are started as new processes where forking is impossible.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.command import tiny_command
from helpers.running import running, until
from trireme.launch.elastic import import_ahead
from trireme.launch.forked import DEVICES, Forked, ForkServer, forked

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or any(map(os.path.exists, DEVICES)), reason="ranks are forked on Linux without GPUs"
)
ENTRY = """
import json, os, random, sys, time
def main(arguments):
    if arguments[0] == "sleep":
        time.sleep(60)
    if arguments[0] == "fail":
        raise RuntimeError("as it was told")
    seen = {"arguments": arguments, "folder": os.getcwd(), "mine": os.environ.get("MINE"), "path": sys.path[0]}
    seen |= {"session": os.getsid(0), "pid": os.getpid(), "parent": os.getppid(), "torch": "torch" in sys.modules}
    seen |= {"random": random.random(), "home": os.environ.get("HOME"), "threads": len(os.listdir("/proc/self/task"))}
    print(json.dumps(seen))
    print("to errors", file=sys.stderr)
    return int(arguments[0])
"""


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    """Start a fork server for this file, as a command does."""
    before, ForkServer.current = ForkServer.current, None
    ForkServer.start()
    yield
    assert ForkServer.current is not None
    ForkServer.current.end()
    ForkServer.current = before


def start_entry(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None, forks: bool = False
) -> Forked:
    (folder / "entry.py").write_text(ENTRY)
    command = [sys.executable, "-u", "-m", "entry", *arguments]
    variables = dict(os.environ if environment is None else environment)
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err, open(os.devnull) as nothing:
        files = (nothing.fileno(), out.fileno(), err.fileno())
        process = forked(command, variables, files, str(folder), forks)
    assert process is not None
    return process


def seen(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out").read_text())


def test_imports_begin_before_the_check_if_several_ranks_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ForkServer, "current", None)
    for ranks in (None, 1):
        import_ahead(ranks)
        assert ForkServer.current is None
    import_ahead(2)
    server = ForkServer.current
    assert server is not None and psutil.pid_exists(server.process.pid)
    server.end()


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["zero2", "fsdp_full_shard"])
def test_the_check_changes_no_variable_that_forbids_forking(plan: str, tmp_path: Path) -> None:
    """The server starts before the recipe is checked, and the check imports DeepSpeed, which sets variables."""
    arguments = tiny_command(tmp_path, f"plan={plan}", "--nproc", "2", "trainer.max_steps=2")
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as command:
        names: set[str] = set()
        while command.poll() is None:
            for child in psutil.Process(command.pid).children() if command.poll() is None else ():
                with suppress(psutil.Error):
                    names.add(" ".join(child.cmdline())[:14])
            time.sleep(0.05)
    assert command.returncode == 0
    assert {"trireme rank 0", "trireme rank 1"} <= names


def test_a_refused_recipe_leaves_no_process(tmp_path: Path) -> None:
    arguments = tiny_command(tmp_path / "run", "plan=ddp", "--nproc", "2", "trainer.max_step=3")
    refused = subprocess.run(arguments, capture_output=True, text=True)
    assert refused.returncode == 2 and "trainer.max_steps" in refused.stderr
    assert not [
        each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(each.info["cmdline"] or [])
    ]
    assert not (tmp_path / "run").exists()


def test_a_forked_process_runs_like_a_started_one(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "HOME"}
    process = start_entry(tmp_path, "7", "a b", environment={**kept, "MINE": "yes"})
    assert process.wait(20) == 7
    found = seen(tmp_path)
    assert found["arguments"] == ["7", "a b"] and found["mine"] == "yes" and found["home"] is None
    assert found["folder"] == found["path"] == str(tmp_path)
    assert found["pid"] == found["session"] == process.pid and found["parent"] == os.getpid()
    assert found["torch"] and found["threads"] == 1
    assert (tmp_path / "err").read_text() == "to errors\n"


def test_a_forked_process_ends_like_a_started_one(tmp_path: Path) -> None:
    assert start_entry(tmp_path, "fail").wait(20) == 1
    assert "RuntimeError: as it was told" in (tmp_path / "err").read_text()
    process = start_entry(tmp_path, "sleep")
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM
    process.send_signal(signal.SIGTERM)  # the process has ended already


def test_two_forked_processes_draw_different_numbers(tmp_path: Path) -> None:
    draws = set()
    for _ in range(2):
        assert start_entry(tmp_path, "0").wait(20) == 0
        draws.add(seen(tmp_path)["random"])
    assert len(draws) == 2


def test_a_forked_process_is_named_by_its_command(tmp_path: Path) -> None:
    process = start_entry(tmp_path, "sleep", environment={**os.environ, "RANK": "3"})
    shown = " ".join(psutil.Process(process.pid).cmdline()).strip()
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    assert shown == "trireme rank 3: python -m entry sleep"


def test_a_process_that_starts_ranks_has_a_server_of_its_own_that_ends_with_it(tmp_path: Path) -> None:
    process = start_entry(tmp_path, "sleep", forks=True)
    (child,) = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 20)


@pytest.mark.parametrize("name", ["HF_HOME", "TRANSFORMERS_VERBOSITY", "PYTHONHASHSEED", "CUDA_VISIBLE_DEVICES"])
def test_what_is_read_at_import_must_be_the_same(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-u", "-m", "entry", "0"]
    assert forked(command, {**os.environ, name: "other"}, (0, 1, 2), str(tmp_path)) is None
    assert ForkServer.current is not None, "it serves others"


def test_a_process_that_cannot_be_forked_is_answered(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "entry", "0"]
    assert forked(command, os.environ, (0, 1, 2), str(tmp_path / "gone")) is None
    assert start_entry(tmp_path, "0").wait(20) == 0, "it serves others"


def test_other_commands_are_not_forked() -> None:
    for command in ([sys.executable, "entry.py"], ["numactl", "-N", "0", sys.executable, "-u", "-m", "entry"]):
        assert forked(command, os.environ, (0, 1, 2)) is None


@pytest.mark.slow
def test_without_a_server_ranks_are_started_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is killed in the middle of its imports."""
    arguments = tiny_command(tmp_path, "plan=ddp", "--nproc", "2", "trainer.max_steps=300")
    monkeypatch.setattr(ForkServer, "current", None)
    monkeypatch.setattr(ForkServer, "start", lambda imports=(): None)
    with running(arguments, tmp_path) as run:
        servers: list[psutil.Process] = []
        until(lambda: bool(servers.extend(_servers(run.process.pid)) or servers))
        servers[0].kill()
        run.wait_for_lines(2)
        assert [rank.environ()["RANK"] for rank in run.ranks] == ["0", "1"]
        run.send(signal.SIGTERM)
        assert run.end().returncode == 75


def _servers(pid: int) -> list[psutil.Process]:
    children = psutil.Process(pid).children()
    return [child for child in children if "trireme.launch.fork_server" in child.cmdline()]


def test_ranks_of_a_command_are_forked_and_end_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ForkServer, "current", None)
    monkeypatch.setattr(ForkServer, "start", lambda imports=(): None)
    with running(tiny_command(tmp_path, "plan=ddp", "--nproc", "2", "trainer.max_steps=3000"), tmp_path) as run:
        run.wait_for_lines(2)
        ranks, server = run.ranks, _servers(run.process.pid)[0]
        shown = [" ".join(rank.cmdline()).split(":")[0] for rank in ranks]
        assert shown == ["trireme rank 0", "trireme rank 1"]
        run.process.kill()
        until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in (*ranks, server)), 20)
