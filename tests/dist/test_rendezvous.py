"""Tests of how ranks join a process group: a failure ends soon with one message, and ranks can join several groups."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from helpers.command import command, tiny_command
from helpers.ranks import free_port, run_ranks
from helpers.recipes import tiny_recipe
from helpers.running import Running, running
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import train
from trireme.trainer.predict_only import predict

PATIENCE = 6
"""Seconds; ``trainer.join_minutes`` below."""
START = 180
"""Seconds that processes may take to start on a busy machine; ranks wait for each other for ten minutes by default."""


def rank(
    folder: Path, rank: int, world_size: int, port: int, patience: float = PATIENCE, **environment: str
) -> AbstractContextManager[Running]:
    """Start one rank by environment variables, as a launcher or a person does."""
    told = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    own = tiny_command(folder, "plan=ddp", "trainer.global_batch_size=12", f"trainer.join_minutes={patience / 60}")
    return running(
        [sys.executable, "-m", "trireme.launch.train", *own[len(command("train")) :], "trainer.micro_batch_size=1"],
        folder,
        {**{key: str(value) for key, value in told.items()}, **environment},
    )


def ended(run: Running, *words: str) -> None:
    result = run.end(timeout=START + 2 * PATIENCE)
    said = result.stdout + result.stderr
    assert result.returncode == 2, said
    assert "Traceback" not in said and all(word in said for word in words), said


@pytest.mark.slow
def test_a_port_in_use_a_master_that_is_not_there_and_ranks_that_do_not_come(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        in_use, began = taken.getsockname()[1], time.monotonic()
        with (
            rank(tmp_path / "a", 0, 2, in_use) as busy,
            rank(tmp_path / "b", 1, 2, free_port()) as nobody,
            rank(tmp_path / "c", 0, 2, free_port()) as alone,
        ):
            ended(busy, "MASTER_PORT", "is in use", str(in_use))
            ended(nobody, "MASTER_ADDR", "does not answer", "127.0.0.1")
            ended(alone, "WORLD_SIZE", "not all 2 ranks joined", "6 s")
        assert time.monotonic() - began < START + 2 * PATIENCE


@pytest.mark.slow
def test_ranks_that_were_told_different_numbers(tmp_path: Path) -> None:
    port = free_port()
    with rank(tmp_path, 0, 2, port, START) as first, rank(tmp_path, 1, 3, port, START) as second:
        ended(first, "WORLD_SIZE", "ranks disagree: 2 on rank 0, 3 on rank 1")
        ended(second, "WORLD_SIZE", "ranks disagree: 2 on rank 0, 3 on rank 1")


def test_a_launcher_that_sets_half_of_the_variables(tmp_path: Path) -> None:
    with rank(tmp_path, 0, 2, free_port(), MASTER_ADDR="") as half:
        ended(half, "MASTER_ADDR", "is not set")


def _join_again(late: int) -> list[list[int]]:
    """Join three groups one after the other; rank ``late`` pauses after each, so the others join the next one first."""
    recipe = tiny_recipe(Path("unused"), "plan=ddp", "trainer.micro_batch_size=2")
    found = []
    for _ in range(3):
        mesh = build_mesh(recipe.plan, 0.3, 0.3)
        found.append(mesh.gather_objects(mesh.rank))
        mesh.close()
        if mesh.rank == late:
            time.sleep(0.5)
    return found


def test_ranks_that_join_again_do_not_meet_the_last_group() -> None:
    for late in (0, 1):
        assert run_ranks(_join_again, 2, late, timeout=40) == 2 * [3 * [[0, 1]]]


def _train_and_predict(folder: Path, plan: str) -> tuple[int, float]:
    recipe = tiny_recipe(folder / "run", f"plan={plan}", "trainer.micro_batch_size=2", "trainer.max_steps=2")
    step = train(recipe).step
    if os.environ["RANK"] == "0":
        time.sleep(0.5)  # like a script that looks at the result first
    return step, predict(recipe, str(folder / "out.jsonl"), limit=3)["eval_loss"]


@pytest.mark.parametrize("plan", ["ddp", "zero3", "fsdp_full_shard"])
def test_predictions_after_training_in_the_same_ranks(tmp_path: Path, plan: str) -> None:
    (step, loss), other = run_ranks(_train_and_predict, 2, tmp_path, plan)
    assert step == 2 and other == (step, loss)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
