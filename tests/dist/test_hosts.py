"""Tests of torchrun on two hosts: losses equal those of one process, and the death of a host is noticed or survived."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from helpers.command import command, tiny_command
from helpers.hosts import Host, missing, two_hosts
from helpers.metrics import lines, training, worst_difference
from helpers.ranks import free_port
from helpers.recipes import tiny_recipe
from helpers.running import until
from trireme.trainer.build import train

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
TESTS = Path(__file__).parents[1]
STEPS = ("trainer.max_steps=12", "checkpoint.every=4", "plan=ddp")
SLOW = "+callbacks.slow={_target_: helpers.callbacks.Slow, seconds: 0.2}"
DIES_WITHIN = 60
"""Seconds after the death of a host within which the run must end."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as pair:
        yield pair


@contextmanager
def torchrun(
    host: Host, run_dir: Path, nodes: str, endpoint: str, *options: str, conf: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """One host's torchrun of one rank; whatever it has started is killed at the end."""
    own = tiny_command(run_dir, *STEPS, *[option for option in options if not option.startswith("--")])
    # The names of these hosts do not resolve, so torchrun must be told which of them keeps the store.
    keeps = int(endpoint.startswith(f"{host.address}:"))
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", nodes, "--nproc-per-node", "1",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "hosts", "--local-addr", host.address,
        "--rdzv-conf", ",".join([f"is_host={keeps}", *conf]),
        *[option for option in options if option.startswith("--")], "-m", "trireme.launch.train",
    ]  # fmt: skip
    process = subprocess.Popen(
        host.run([*launcher, *own[len(command("train")) :]]),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **host.environment, "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    try:
        yield process
    finally:
        kill(process)
        process.communicate()


def kill(process: subprocess.Popen[str]) -> None:
    """Stop everything on a host at once, as a power failure does."""
    try:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in tree:
        with suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)


def has_checkpoint(run_dir: Path, step: int) -> bool:
    return any((run_dir / "checkpoints").glob(f"step_{step:08d}/manifest.json"))


@pytest.mark.slow
def test_two_hosts_train_as_one(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    first, second = hosts
    endpoint = f"{first.address}:{free_port()}"
    with (
        torchrun(first, tmp_path / "two", "2", endpoint) as one,
        torchrun(second, tmp_path / "two", "2", endpoint) as other,
    ):
        outputs = [process.communicate(timeout=200)[0] for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0), "\n".join(outputs)
    assert "on 2 rank(s)" in (tmp_path / "two" / "log.txt").read_text()
    train(tiny_recipe(tmp_path / "one", *STEPS[:-1]))
    assert worst_difference(training(tmp_path / "one"), training(tmp_path / "two")) < 1e-5


@pytest.mark.long
def test_a_host_that_dies_ends_the_run(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    first, second = hosts
    endpoint = f"{first.address}:{free_port()}"
    with (
        torchrun(first, tmp_path, "2", endpoint, SLOW) as one,
        torchrun(second, tmp_path, "2", endpoint, SLOW) as other,
    ):
        until(lambda: has_checkpoint(tmp_path, 4))
        kill(other)
        then = time.monotonic()
        output = one.communicate(timeout=DIES_WITHIN)[0]
        assert time.monotonic() - then < DIES_WITHIN
    assert one.returncode not in (0, None), output
    assert has_checkpoint(tmp_path, 4)


@pytest.mark.long
def test_training_goes_on_without_a_dead_host(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """With restarts and a minimum of one host, the other host goes on alone and ends with the same result."""
    first, second = hosts
    endpoint = f"{first.address}:{free_port()}"
    options = (SLOW, "--max-restarts=2")
    conf = ("last_call_timeout=5", "keep_alive_interval=2", "keep_alive_max_attempt=2")
    with (
        torchrun(first, tmp_path / "hurt", "1:2", endpoint, *options, conf=conf) as one,
        torchrun(second, tmp_path / "hurt", "1:2", endpoint, *options, conf=conf) as other,
    ):
        until(lambda: has_checkpoint(tmp_path / "hurt", 4))
        kill(other)
        output = one.communicate(timeout=200)[0]
    assert one.returncode == 0, output
    assert "on 1 rank(s)" in (tmp_path / "hurt" / "log.txt").read_text()
    train(tiny_recipe(tmp_path / "one", *STEPS[:-1]))
    assert [line["step"] for line in lines(tmp_path / "hurt")] == [line["step"] for line in lines(tmp_path / "one")]
    assert worst_difference(training(tmp_path / "one"), training(tmp_path / "hurt")) < 1e-5
