"""Tests of scripts in ``benchmarks/``: they run on tiny models, keep to their limits of memory and time, and count the
bytes of collectives correctly.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from helpers.benchmarks import load
from helpers.ranks import run_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from trireme.parallel import traffic
from trireme.trainer.trackers.tensorboard import TensorBoard


def collectives() -> dict[str, float]:
    dist.init_process_group("gloo")
    whole, part, rank = torch.ones(1200), torch.ones(400), dist.get_rank()
    with traffic.Traffic() as seen:
        dist.all_reduce(whole)
        dist.reduce_scatter_single(part, whole)
        dist.all_gather_single(whole, part)
        dist.all_gather([torch.empty(400) for _ in range(3)], part)
        if rank < 2:
            dist.batch_isend_irecv([dist.P2POp(dist.isend if rank == 0 else dist.irecv, part, 1 - rank)])[0].wait()
        dist.all_reduce(torch.tensor([1, 2]))
        dist.all_reduce(torch.ones(()))
    return dict(seen.sent)


def through_dtensor() -> dict[str, float]:
    mesh = init_device_mesh("cpu", (2,))
    local = torch.ones(100, 4, requires_grad=True)
    with traffic.Traffic() as seen:
        gathered = DTensor.from_local(local, mesh, [Shard(0)], run_check=False).redistribute(placements=[Replicate()])
        (gathered.to_local(grad_placements=[Partial()]) ** 2).sum().backward()
    return dict(seen.sent)


def test_bytes_are_those_of_rings():
    first, second, third = run_ranks(collectives, 3)
    shared = {"all-reduce": 2 * 2 / 3 * 4800, "reduce-scatter": 2 / 3 * 4800, "all-gather": 2 * 2 / 3 * 4800}
    shared["bookkeeping"] = 4 / 3 * (16 + 4)
    assert second == third == pytest.approx(shared)
    assert first == pytest.approx({**shared, "send": 1600})


def test_collectives_of_dtensors_are_seen_forward_and_backward():
    size = 0.5 * 200 * 4 * 4
    assert run_ranks(through_dtensor, 2) == [{"all-gather": size, "reduce-scatter": size}] * 2


def test_an_unknown_operator_is_not_left_out():
    known = {
        schema.name.split("::")[1] for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("c10d::")
    }
    assert known <= set(traffic.KINDS) | {"gather_", "scatter_"}  # not used here; the counter would raise


def test_an_export_runs_under_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    export = load("export")
    monkeypatch.setattr(export, "HIDDEN", 256)
    (line,) = export.compare_with_cp(tmp_path, Namespace(gib=0.05, memory="64MiB", rounds=1, dtypes="bf16"))
    assert line["limit"] is not None and 0 < line["peak"] < 64 * 2**20
    assert line["seconds"] > 0 and line["cp"]["seconds"] > 0
    assert list(tmp_path.iterdir()) == []  # it cleans up


def test_saving_is_measured_in_turns(tmp_path: Path):
    saving = load("saving")
    size = {"hidden": 64, "layers": 2, "length": 32, "batch": 2}
    measured = saving.on_ranks("ddp", size, block=2, rounds=2, folder=str(tmp_path))
    # Of weights and both moments in fp32, each of the two ranks writes about half.
    whole = 3 * 4 * measured.parameters / 2**20
    assert len(measured.rounds) == 2 and 0.4 * whole < measured.state < 0.6 * whole
    for turn in measured.rounds:
        assert turn.stall > 0 and turn.synchronous > 0 and turn.steps >= 1
    cells, part = saving.row("ddp", measured)
    assert part == measured.rounds[1].stall / measured.rounds[1].synchronous and len(cells) == 11


@pytest.mark.long
def test_starts_are_timed(tmp_path: Path) -> None:
    for ours, theirs in load("startup").measure(tmp_path, 1, "").values():
        assert len(ours) == len(theirs) == 1
        assert all(one.waited > 0 and one.processor > 0 for one in (*ours, *theirs))


def test_the_tiny_model_of_the_overhead_trains():
    overhead = load("engine_overhead")
    ours, theirs = overhead.measure(overhead.TINY, 8, block=1, rounds=2)
    assert len(ours) == len(theirs) == 2 and min(*ours, *theirs) > 0


@pytest.mark.slow
def test_a_search_and_its_trials_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("search_overhead").measure(tmp_path / "study", Namespace(trials=2, steps=2, nproc=1))
    said = capsys.readouterr().out
    assert "2 trials in" in said and "trial 1:" in said


@pytest.mark.slow
def test_ranks_of_trainer_s_search_end_at_the_limit(tmp_path: Path) -> None:
    ended, _ = load("transformers_search").run(tmp_path, Namespace(trials=1, seconds=1))
    assert ended == "not ended within 1 s: killed"
    assert not [each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in (each.info["cmdline"] or [])]


def test_a_tracker_is_timed_while_it_writes(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    name, *numbers = load("trackers").measure(TensorBoard, tmp_path / "run", 200)
    assert name == "tensorboard"
    assert float(numbers[1]) > 0  # of the thread, which writes


def test_a_tracker_that_does_not_begin_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorBoard, "start", lambda self, run: 1 / 0)
    with pytest.raises(SystemExit, match="TensorBoard did not begin"):
        load("trackers").measure(TensorBoard, tmp_path / "run", 200)
