"""Tests of the CPU cores, the GPU and the communication backend that each rank gets."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from helpers.ranks import run_ranks
from trireme.parallel import device
from trireme.parallel.device import backend_of, bind_cores, by_numa_node, core_share
from trireme.parallel.mesh import build_mesh
from trireme.parallel.plan import Plan
from trireme.parallel.rendezvous import _why_not


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
    assert [core_share(cores, rank, ranks) for rank in range(ranks)] == shares


def test_cores_of_one_numa_node_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for node, cores in (("node0", "0-1,4-5"), ("node1", "2-3,6-7")):
        (tmp_path / node).mkdir()
        (tmp_path / node / "cpulist").write_text(f"{cores}\n")
    monkeypatch.setattr(device, "NUMA_NODES", tmp_path)
    assert by_numa_node(set(range(8))) == [0, 1, 4, 5, 2, 3, 6, 7]
    assert by_numa_node({1, 2, 5}) == [1, 5, 2]


def _bound(already: bool) -> tuple[list[int], set[int], set[int]]:
    mesh, rank = build_mesh(Plan("ddp", replicate="auto", data_parallel="ddp")), int(os.environ["RANK"])
    if already:  # as SLURM does
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    waits, seen = threading.Event(), []
    thread = threading.Thread(target=lambda: (waits.wait(10), seen.append(os.sched_getaffinity(0))))
    thread.start()  # started before the binding, which must move existing threads too
    cores = bind_cores(rank, mesh.gather_objects)
    waits.set()
    thread.join()
    mesh.close()
    return cores, os.sched_getaffinity(0), seen[0]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("already", [False, True])
def test_ranks_are_bound_to_cores_of_their_own(already: bool) -> None:
    first, second = run_ranks(_bound, 2, already)
    for cores, own, of_thread in (first, second):
        assert own == of_thread == set(cores)
    assert not set(first[0]) & set(second[0])


def test_backends() -> None:
    assert backend_of(torch.device("cpu")) == "gloo"
    assert backend_of(torch.device("cuda", 1)) == "cpu:gloo,cuda:nccl"


def test_no_two_ranks_have_the_same_gpu() -> None:
    assert not _why_not(["2 cuda:0 of a (GPU-1; visible: 0)", "2 cuda:0 of a (GPU-2; visible: 0)"])
    assert not _why_not(["2 ", "2 "])
    one, other = "3 cuda:0 of a (GPU-1; visible: 0)", "3 cuda:0 of b (GPU-2; visible: 0)"
    refusal = _why_not([one, other, one])
    assert refusal == "ranks 0 and 2 both have cuda:0 of a (GPU-1; visible: 0): each needs its own"
    assert _why_not(["2 ", "3 "]) == "ranks disagree: 2 on rank 0, 3 on rank 1"
