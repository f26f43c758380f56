"""Dropout and NEFTune act in training only: evaluations are free of them, and nothing of them is left in the model
afterwards, though its saved configuration keeps the dropout rates.
"""

from __future__ import annotations

import json
from pathlib import Path

from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines, training
from helpers.recipes import tiny_recipe
from trireme.models.attach_noise import KeyedModule
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build
from trireme.trainer.checkpoint.layout import step_folder
from trireme.trainer.run_folder import open_run_folder

NOISE = ["model.neftune_alpha=5", "model.config.hidden_dropout=0.1"]
SHORT = ["trainer.max_steps=2", "trainer.eval_every=1", "trainer.log_every=1"]


def _cleaned(run_dir: Path) -> bool:
    recipe = tiny_recipe(run_dir, *NOISE, *SHORT)
    mesh = build_mesh(recipe.plan)
    open_run_folder(run_dir, fresh=False)
    trainer = build(recipe, mesh, "never")
    noisy = [module for module in trainer.strategy.module.modules() if isinstance(module, KeyedModule)]
    trainer.fit()
    left = [module for module in trainer.strategy.module.modules() if isinstance(module, KeyedModule)]
    hooks = [hook for module in trainer.strategy.module.modules() for hook in module._forward_hooks.values()]
    return bool(noisy) and not left and not hooks


def _losses(run_dir: Path, *options: str) -> None:
    recipe = tiny_recipe(run_dir, *SHORT, *options)
    mesh = build_mesh(recipe.plan)
    open_run_folder(run_dir, fresh=False)
    build(recipe, mesh, "never").fit()


def test_nothing_is_left_after_training(tmp_path: Path) -> None:
    assert kept_ranks(_cleaned, 1, tmp_path / "run") == [True]
    config = json.loads((step_folder(tmp_path / "run" / "checkpoints", 2) / "model" / "config.json").read_text())
    assert config["hidden_dropout"] == 0.1


def test_evaluations_are_without_noise(tmp_path: Path) -> None:
    """With a learning rate of zero the weights stay the same: evaluations agree, training losses differ by noise."""
    still = "optimizer.lr=0"
    kept_ranks(_losses, 1, tmp_path / "quiet", still)
    kept_ranks(_losses, 1, tmp_path / "noisy", still, *NOISE)
    evaluated = [
        [line["eval_loss"] for line in lines(tmp_path / name) if "eval_loss" in line] for name in ("quiet", "noisy")
    ]
    assert evaluated[0] and evaluated[0] == evaluated[1]
    quiet, noisy = ([line["loss"] for line in training(tmp_path / name)] for name in ("quiet", "noisy"))
    assert all(abs(one - other) > 1e-3 for one, other in zip(quiet, noisy, strict=True))
