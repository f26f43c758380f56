"""Tests of machines without a shared disk. Each machine keeps its own checkpoint shards, from which the run can be
resumed and evaluated under other plans.

Each machine is simulated by one or two ranks with a working folder of their own and a relative ``run.dir``.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from trireme.errors import UserError
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build, train
from trireme.trainer.checkpoint.load.own_checkpoint import Checkpoint
from trireme.trainer.checkpoint.load.read_tensors import read_tensors
from trireme.trainer.checkpoint.nodes.find_nodes import find_nodes
from trireme.trainer.evaluate_only import evaluate

COMMON = ["model=gpt2_tiny", "trainer.max_steps=4", "trainer.eval_at_end=false", "scheduler=cosine"]
STEP = Path("run/checkpoints/step_00000002")


def _settle(disks: Path, per_node: int) -> None:
    """Make this rank one of ``per_node`` on a machine whose disk is ``disks/N``."""
    node, local = divmod(int(os.environ["RANK"]), per_node)
    os.environ.update(LOCAL_RANK=str(local), GROUP_RANK=str(node), LOCAL_WORLD_SIZE=str(per_node))
    (disks / str(node)).mkdir(parents=True, exist_ok=True)
    os.chdir(disks / str(node))


def _train(disks: Path, per_node: int, *overrides: str) -> str | None:
    """Train on machines of ``per_node`` ranks; returns the refusal, or None."""
    _settle(disks, per_node)
    try:
        train(tiny_recipe(Path("run"), *COMMON, *overrides))
    except UserError as refusal:
        return str(refusal)
    return None


def _resume(disks: Path, named: str, *overrides: str) -> int:
    _settle(disks, 1)
    return train(tiny_recipe(Path("run"), *COMMON, *overrides), resume=named).step


def _load(disks: Path, per_node: int, plan: str) -> dict[str, np.ndarray]:
    """Resume under ``plan``; returns the tensors that this rank would write, with parts of ranks joined."""
    _settle(disks, per_node)
    recipe = tiny_recipe(Path("run"), *COMMON, f"plan={plan}")
    mesh = build_mesh(recipe.plan)
    nodes = find_nodes(Path("run"), mesh, None)
    trainer = build(recipe, mesh, "auto", nodes)
    assert nodes.count == mesh.world_size // per_node and trainer.state.step == 2
    tensors = {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).numpy().copy()
        for name, tensor in trainer.saving.tensors().items()
    }
    mesh.close()
    return tensors


def _evaluate(disks: Path, per_node: int, checkpoint: str | None) -> dict[str, Any] | str:
    _settle(disks, per_node)
    try:
        return evaluate(tiny_recipe(Path("run"), *COMMON, "plan=ddp"), checkpoint)
    except UserError as refusal:
        return str(refusal)


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The tensors of all ranks in one mapping."""
    return {name: tensor for part in parts for name, tensor in part.items()}


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _whole(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint whose files lie in one folder."""
    tensors = {
        name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in Checkpoint(folder.parent).shapes.items()
    }
    read_tensors(tensors, folder, distributed=False)
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two disks after two steps under FSDP, a rank on each."""
    disks = tmp_path_factory.mktemp("disks")
    assert run_ranks(_train, 2, disks, 1, "plan=fsdp_full_shard", "trainer.stop_at=2") == [None, None]
    return disks


@pytest.fixture(scope="module")
def joined(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One disk onto which the files of both were copied."""
    disk = tmp_path_factory.mktemp("joined")
    for node in ("0", "1"):
        shutil.copytree(saved / node / "run", disk / "run", dirs_exist_ok=True)
    return disk


def test_each_node_keeps_its_own_shards_and_all_else(saved: Path) -> None:
    first, second = saved / "0" / STEP, saved / "1" / STEP
    manifest = json.loads((first / "manifest.json").read_text())
    assert manifest == json.loads((second / "manifest.json").read_text())
    own, others = (_files(folder / "tensors") for folder in (first, second))
    assert own and others and not own & others
    assert manifest["nodes"] == {
        **{f"tensors/{name}": 0 for name in own},
        **{f"tensors/{name}": 1 for name in others},
    }
    rest = _files(first) - {f"tensors/{name}" for name in own}
    assert rest == _files(second) - {f"tensors/{name}" for name in others} and "state.json" in rest
    assert set(manifest["files"]) == rest - {"manifest.json"} | set(manifest["nodes"])
    assert (saved / "1" / "run" / "recipe.yaml").exists() and not list(saved.rglob(".probe*"))


@pytest.mark.parametrize(
    ("plan", "ranks", "per_node"),
    [
        ("tp", 2, 1),
        pytest.param("ddp", 2, 1, marks=pytest.mark.long),
        pytest.param("fsdp_hybrid_shard", 4, 2, marks=pytest.mark.long),
    ],
)
def test_any_plan_goes_on(plan: str, ranks: int, per_node: int, saved: Path, joined: Path, tmp_path: Path) -> None:
    """Loaded tensors are those that were saved, bit for bit; afterwards every disk holds them all."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    expected = _whole(joined / STEP / "tensors")
    tensors = _joined(run_ranks(_load, ranks, tmp_path, per_node, plan))
    assert tensors.keys() == expected.keys()
    assert all(np.array_equal(tensors[name], expected[name]) for name in expected)
    assert _files(tmp_path / "0" / STEP) == _files(tmp_path / "1" / STEP) == _files(joined / STEP)


def test_a_wiped_node_gets_the_files_that_another_node_has(saved: Path, joined: Path, tmp_path: Path) -> None:
    shutil.copytree(joined, tmp_path / "whole" / "1")
    expected = _whole(joined / STEP / "tensors")
    tensors = _joined(run_ranks(_load, 2, tmp_path / "whole", 1, "fsdp_full_shard"))
    assert all(np.array_equal(tensors[name], expected[name]) for name in expected)
    assert _files(tmp_path / "whole" / "0" / STEP) == _files(joined / STEP)

    shutil.copytree(saved / "0", tmp_path / "lost" / "0")
    messages = run_ranks(_train, 2, tmp_path / "lost", 1, "plan=fsdp_full_shard")
    assert all("no usable checkpoint" in message and "on every node" in message for message in messages)


def test_one_node_goes_on_from_the_files_of_both_and_refuses_half_of_them(
    saved: Path, joined: Path, tmp_path: Path
) -> None:
    half, both = tmp_path / "half", tmp_path / "both"
    shutil.copytree(saved / "0", half)
    shutil.copytree(joined, both)
    with pytest.raises(UserError, match=r"is missing \(node 1 wrote it"):
        train(tiny_recipe(half / "run", *COMMON), resume=str(half / STEP))
    train(tiny_recipe(both / "run", *COMMON), resume=str(both / STEP))
    assert (both / "run" / "checkpoints" / "step_00000004" / "manifest.json").exists()


def test_a_damaged_shard_gives_way_to_the_checkpoint_before(tmp_path: Path) -> None:
    """One node finds the damage, all nodes pass over the checkpoint, and the resumed run writes it again."""
    options = ["plan=ddp", "checkpoint.every=1", "checkpoint.keep_last=3"]
    assert run_ranks(_train, 2, tmp_path, 1, *options, "trainer.stop_at=2") == [None, None]
    before = {node: _shards(tmp_path / str(node) / STEP) for node in (0, 1)}
    victim = next((tmp_path / "1" / STEP / "tensors").iterdir())
    victim.write_bytes(victim.read_bytes()[:-8])
    assert run_ranks(_train, 2, tmp_path, 1, *options, "trainer.stop_at=2") == [None, None]
    after = {node: _shards(tmp_path / str(node) / STEP) for node in (0, 1)}
    together = [{**found[0], **found[1]} for found in (before, after)]
    assert together[0].keys() == together[1].keys()
    assert all(torch.equal(together[0][name], together[1][name]) for name in together[0])
    assert sorted(path.name for path in (tmp_path / "0/run/checkpoints").iterdir()) == sorted(
        path.name for path in (tmp_path / "1/run/checkpoints").iterdir()
    )


def _restart(disks: Path, named: str, *overrides: str) -> int:
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
    return _resume(disks, named, *overrides)


def test_a_restart_goes_on_from_the_parts_of_this_launch(saved: Path, joined: Path, tmp_path: Path) -> None:
    """No single disk holds all files of the checkpoint that the launch has written."""
    named = str(joined / STEP)
    options = ["plan=fsdp_full_shard", "checkpoint.every=1", "trainer.stop_at=3"]
    for start in (_resume, _restart):
        assert run_ranks(start, 2, tmp_path, named, *options) == [3, 3]
    assert "resuming from run/checkpoints/step_00000003 at step 3" in (tmp_path / "0/run/log.txt").read_text()


def test_parts_are_evaluated_together(saved: Path, joined: Path, tmp_path: Path) -> None:
    """Evaluates the run folder or a named checkpoint and completes every disk; a lost shard is refused."""
    whole = evaluate(tiny_recipe(joined / "run", *COMMON))
    shutil.copytree(saved, tmp_path / "run")
    shutil.copytree(saved / "0", tmp_path / "named" / "0")
    shutil.copytree(joined, tmp_path / "named" / "1")
    shutil.copytree(saved / "0", tmp_path / "lost" / "0")
    for disks, named in (("run", None), ("named", str(STEP))):
        results = run_ranks(_evaluate, 2, tmp_path / disks, 1, named)
        assert results[0] == results[1] and results[0]["step"] == 2
        assert results[0]["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-6)
        assert _files(tmp_path / disks / "0" / STEP) == _files(tmp_path / disks / "1" / STEP) == _files(joined / STEP)
    refusals = run_ranks(_evaluate, 2, tmp_path / "lost", 1, "run")
    assert all("--checkpoint" in refusal and "on every node" in refusal for refusal in refusals), refusals


def _shards(folder: Path) -> dict[str, torch.Tensor]:
    # Copies, since loaded tensors are views of the mapped file, which the test damages later.
    files = (load_file(file) for file in (folder / "tensors").iterdir())
    return {name: tensor.clone() for file in files for name, tensor in file.items()}


def _nodes(disks: Path, per_node: int, shared: bool | None, same: bool) -> tuple[int, ...] | str:
    _settle(disks, per_node)
    mesh = build_mesh(tiny_recipe(Path("run"), "plan=ddp").plan)
    try:
        return find_nodes(disks / "run" if same else Path("run"), mesh, shared).of_rank
    except UserError as refusal:
        return str(refusal)
    finally:
        mesh.close()  # the first rank holds the store, which the others may still need


def test_nodes_are_told_apart_by_the_disk_that_they_see(tmp_path: Path) -> None:
    assert run_ranks(_nodes, 4, tmp_path, 2, None, False) == [(0, 0, 1, 1)] * 4
    assert run_ranks(_nodes, 4, tmp_path, 2, None, True) == [(0, 0, 0, 0)] * 4
    assert run_ranks(_nodes, 2, tmp_path, 1, True, False) == [(0, 0)] * 2
    assert all("checkpoint.shared" in refusal for refusal in run_ranks(_nodes, 2, tmp_path, 1, False, True))
