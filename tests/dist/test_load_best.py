"""With ``checkpoint.load_best`` a run ends with the weights of its best checkpoint, and exports use these weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines
from helpers.recipes import tiny_recipe
from safetensors.torch import load_file
from trireme.trainer.build import train
from trireme.trainer.checkpoint.load.own_checkpoint import Checkpoint
from trireme.trainer.evaluate_only import evaluate

WORSE = (
    *("trainer.max_steps=8", "trainer.eval_every=2", "checkpoint.every=2", "checkpoint.keep_best=1"),
    *("checkpoint.keep_last=1", "checkpoint.load_best=true", "checkpoint.mode=max"),
)
"""With ``mode=max`` the largest loss counts as the best, so that the best checkpoint is an early one."""
EXPORT = ("+callbacks.export._target_=trireme.trainer.callbacks.export.Export",)


def _train(run_dir: Path, *overrides: str) -> None:
    result = train(tiny_recipe(run_dir, *WORSE, *overrides))
    (run_dir / f"result_{result.step}.json").write_text(json.dumps({"eval_loss": result.metrics["eval_loss"]}))


def _best(run_dir: Path) -> tuple[int, float]:
    losses = {line["step"]: line["eval_loss"] for line in lines(run_dir) if "eval_loss" in line}
    best = max(losses, key=lambda step: losses[step])
    assert best < max(losses)
    return best, losses[best]


def _weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    source = Checkpoint(run_dir / "checkpoints" / f"step_{step:08d}")
    tensors = {
        name: torch.empty(shape, dtype=dtype)
        for name, (shape, dtype) in source.shapes.items()
        if name.startswith("model.")
    }
    source.read(tensors, False)
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def test_later_exports_and_evaluations_use_the_best_weights(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    _train(run_dir, *EXPORT)
    best, loss = _best(run_dir)
    assert json.loads((run_dir / "result_8.json").read_text())["eval_loss"] == loss
    exported, kept = load_file(run_dir / "exported" / "model.safetensors"), _weights(run_dir, best)
    assert exported.keys() <= kept.keys()
    assert all(torch.equal(exported[name], kept[name]) for name in exported)
    found = evaluate(tiny_recipe(run_dir, *WORSE))
    assert found["step"] == best and found["eval_loss"] == pytest.approx(loss, rel=1e-6)


def test_a_longer_run_goes_on_from_the_last_step(tmp_path: Path) -> None:
    """Only the ended run takes the best weights; its checkpoints keep the weights of their own steps."""
    _train(tmp_path / "run")
    plain = tmp_path / "plain"
    shutil.copytree(tmp_path / "run", plain)
    for folder, load_best in ((tmp_path / "run", "true"), (plain, "false")):
        _train(folder, "trainer.max_steps=10", f"checkpoint.load_best={load_best}")
    one, two = ([line for line in lines(folder) if line["step"] > 8] for folder in (tmp_path / "run", plain))
    assert one == two and {line["step"] for line in one} == {9, 10}


def _train_and_evaluate_again(run_dir: Path, *overrides: str) -> None:
    from trireme.parallel.mesh import build_mesh
    from trireme.trainer.build import build
    from trireme.trainer.collective import on_main
    from trireme.trainer.run_folder import open_run_folder

    recipe = tiny_recipe(run_dir, *WORSE, *overrides)
    mesh = build_mesh(recipe.plan)
    on_main(mesh, lambda: open_run_folder(run_dir, fresh=False))
    trainer = build(recipe, mesh)
    trainer.fit()
    assert trainer.ended_with is not None
    with torch.no_grad():
        again = trainer.evaluate()["eval_loss"]
    for callback in trainer.callbacks.values():
        callback.close()
    if mesh.is_main:
        (run_dir / "again").write_text(str(again))
    mesh.close()


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(plan, marks=() if plan == "fsdp_full_shard" else pytest.mark.long)
        for plan in ("fsdp_full_shard", "zero3")
    ],
)
def test_all_ranks_end_with_the_best_weights(plan: str, tmp_path: Path) -> None:
    kept_ranks(_train_and_evaluate_again, 2, tmp_path / "run", f"plan={plan}")
    again = float((tmp_path / "run" / "again").read_text())
    first = [line["eval_loss"] for line in lines(tmp_path / "run") if "eval_loss" in line][:-1]
    assert len(first) == 4 and again == pytest.approx(max(first), rel=1e-5) and first[0] > first[-1]
