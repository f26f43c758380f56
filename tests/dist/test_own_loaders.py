"""Tests of custom data loaders and sample orders: the same order on one rank and on two, exact resume, and clear
errors.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.kept_ranks import kept_ranks
from helpers.loaders import SIZE, WORDS, WithState
from helpers.metrics import lines, training, worst_difference
from helpers.recipes import recipe_of, tiny_recipe
from trireme.errors import UserError
from trireme.trainer.build import train
from trireme.trainer.data_report import report_data

RECIPE = f"""# Texts that a loader gives.
# trireme train loader.yaml
defaults: [/base, /model: persimmon_tiny, /data: loader, override /callbacks: minimal, _self_]
model: {{config: {{vocab_size: {WORDS}}}}}
data: {{block_size: 16, loader: {{_target_: helpers.loaders.ByPosition}}}}
trainer: {{epochs: 2, max_steps: null, global_batch_size: 4, micro_batch_size: 2, eval_every: 6, log_every: 1}}
seed: 3
"""
LOADERS = ("ByPosition", "InOrder", "WithState")


def _train(folder: Path, run: str, loader: str, *overrides: str) -> str:
    recipe = recipe_of(
        folder / "loader.yaml",
        folder / run,
        f"data.loader._target_=helpers.loaders.{loader}",
        "+callbacks.seen._target_=helpers.callbacks.SeenTokens",
        *overrides,
    )
    try:
        train(recipe)
    except UserError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loaders")
    (folder / "loader.yaml").write_text(RECIPE)
    assert kept_ranks(_train, 1, folder, "alone", "ByPosition") == [""]
    return folder


def _same(folder: Path, run: str) -> bool:
    one, other = training(folder / "alone"), training(folder / run)
    evaluated = [[line["eval_loss"] for line in lines(folder / name) if "eval_loss" in line] for name in ("alone", run)]
    assert len(one) == 12 and len(evaluated[0]) == 2  # two passes of 24 texts, 4 at a time
    assert [line["seen"] for line in one] == [line["seen"] for line in other]
    return worst_difference(one, other) < 2e-5 and evaluated[0] == pytest.approx(evaluated[1], rel=1e-5)


@pytest.mark.parametrize("loader", LOADERS)
def test_ranks_see_one_order(loader: str, folder: Path) -> None:
    assert kept_ranks(_train, 2, folder, loader, loader, "plan=ddp") == ["", ""]
    assert _same(folder, loader)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_resume_goes_on_in_the_middle_of_a_pass(loader: str, folder: Path) -> None:
    """Two ranks stop in the second pass; one rank resumes."""
    run = f"resumed-{loader}"
    assert kept_ranks(_train, 2, folder, run, loader, "plan=ddp", "trainer.stop_at=8") == ["", ""]
    assert kept_ranks(_train, 1, folder, run, loader) == [""]
    assert _same(folder, run)


def test_a_saved_state_avoids_reading_samples_again(folder: Path) -> None:
    WithState.reads = 0
    assert _train(folder, "state", "WithState", "trainer.stop_at=5") == ""
    assert WithState.reads == 20
    assert _train(folder, "state", "WithState") == ""
    assert WithState.reads == 2 * SIZE


def test_workers_read_by_position(folder: Path) -> None:
    assert _train(folder, "workers", "ByPosition", "data.num_workers=2") == ""
    assert _same(folder, "workers")
    assert "read in order" in _train(folder, "no-workers", "InOrder", "data.num_workers=2")


def test_loaders_that_break_the_contract_are_refused(folder: Path) -> None:
    said = kept_ranks(_train, 2, folder, "changing", "Changing", "plan=ddp")
    assert all("gives another input_ids when sample(" in each for each in said)
    assert "does not say how many samples" in _train(folder, "endless", "InOrder", "+data.loader.size=null")
    assert "gives 24 samples in pass 1, but its size is 20" in _train(
        folder, "short", "InOrder", "+data.loader.size=20"
    )


def test_the_data_report_shows_samples_of_the_loader(folder: Path) -> None:
    report = report_data(recipe_of(folder / "loader.yaml", folder / "none"), 2)
    assert [facts.sizes for facts in report.sets] == [{"samples": SIZE}, {"samples": 5}]
    assert all(facts.source.startswith("data.loader: ByPosition") for facts in report.sets)
    assert len(report.samples) == 2


def _ordered(run_dir: Path, order: str, *overrides: str) -> str:
    try:
        train(tiny_recipe(run_dir, f"+data.order._target_=helpers.loaders.{order}", "trainer.max_steps=3", *overrides))
    except UserError as error:
        return str(error)
    return ""


def test_a_custom_sample_order(tmp_path: Path) -> None:
    """Two ranks follow the order of one rank, which is not the usual order; indices out of range are refused."""
    assert kept_ranks(_ordered, 1, tmp_path / "alone", "Backwards", "data.shuffle=false") == [""]
    assert kept_ranks(_ordered, 2, tmp_path / "ranks", "Backwards", "plan=ddp", "data.shuffle=false") == ["", ""]
    one, other = training(tmp_path / "alone"), training(tmp_path / "ranks")
    assert worst_difference(one, other) < 2e-5
    train(tiny_recipe(tmp_path / "usual", "trainer.max_steps=3", "data.shuffle=false"))
    assert training(tmp_path / "usual")[0]["loss"] != one[0]["loss"]
    said = _ordered(tmp_path / "beyond", "Beyond")
    assert "gives indices from" in said and "samples, numbered from 0" in said
