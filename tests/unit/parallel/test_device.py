"""Which cores and backends belong to a rank."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from helpers.ranks import run_ranks
from trireme.parallel import device
from trireme.parallel.device import backend_of, bind_cores, by_numa_node, share


@pytest.mark.parametrize(
    ("cores", "ranks", "shares"),
    [
        ([0, 1, 2, 3], 2, [[0, 1], [2, 3]]),
        ([0, 2, 4], 2, [[0], [2]]),
        ([0, 1], 1, [[0, 1]]),
        ([5, 7], 4, [[5], [7], [5], [7]]),
    ],
)
def test_every_rank_has_as_many_cores(cores: list[int], ranks: int, shares: list[list[int]]) -> None:
    assert [share(cores, rank, ranks) for rank in range(ranks)] == shares


def test_cores_of_one_numa_node_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for node, cores in (("node0", "0-1,4-5"), ("node1", "2-3,6-7")):
        (tmp_path / node).mkdir()
        (tmp_path / node / "cpulist").write_text(f"{cores}\n")
    monkeypatch.setattr(device, "NUMA_NODES", tmp_path)
    assert by_numa_node(set(range(8))) == [0, 1, 4, 5, 2, 3, 6, 7]
    assert by_numa_node({1, 2, 5}) == [1, 5, 2]


def _bound() -> tuple[list[int], set[int], set[int]]:
    waits, seen = threading.Event(), []
    thread = threading.Thread(target=lambda: (waits.wait(10), seen.append(os.sched_getaffinity(0))))
    thread.start()  # before: threads that exist are moved too
    cores = bind_cores()
    waits.set()
    thread.join()
    return cores, os.sched_getaffinity(0), seen[0]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_ranks_are_bound_to_cores_of_their_own() -> None:
    first, second = run_ranks(_bound, 2)
    for cores, own, of_thread in (first, second):
        assert own == of_thread == set(cores)
    assert not set(first[0]) & set(second[0])


def test_backends() -> None:
    assert backend_of(torch.device("cpu")) == "gloo"
    assert backend_of(torch.device("cuda", 1)) == "cpu:gloo,cuda:nccl"
