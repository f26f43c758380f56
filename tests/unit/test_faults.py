"""Tests of the fault-injection benchmark ``benchmarks/faults.py``: drawing faults, damaging files, and counting."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    return module


fault_kinds = load("fault_kinds")
faults = load("faults")
KINDS = list(fault_kinds.FAULTS)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """A folder with the files of three checkpoints."""
    for step in (4, 8, 12):
        folder = tmp_path / "checkpoints" / f"step_{step:08d}"
        (folder / "tensors").mkdir(parents=True)
        (folder / "tensors" / "weights").write_bytes(bytes(range(200)))
        (folder / "manifest.json").write_text(json.dumps({"step": step}))
    return tmp_path / "checkpoints"


def test_every_kind_is_drawn_and_a_seed_repeats_its_trial() -> None:
    drawn = [faults.draw(seed, KINDS) for seed in range(100)]
    assert {trial[0] for trial in drawn[: len(KINDS)]} == set(KINDS)
    assert {len(trial) for trial in drawn} == {1, 2, 3}
    assert drawn == [faults.draw(seed, KINDS) for seed in range(100)]


@pytest.mark.parametrize("seed", range(5))
def test_every_fault_damages_a_checkpoint(checkpoints: Path, seed: int) -> None:
    newest, chance = fault_kinds.undamaged(checkpoints)[0], random.Random(seed)
    assert newest.name == "step_00000012"

    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in newest.rglob("*") if path.is_file()}

    whole = contents()
    fault_kinds.flip_bytes(newest, chance)
    flipped = contents()
    assert flipped != whole and {k: len(v) for k, v in flipped.items()} == {k: len(v) for k, v in whole.items()}
    fault_kinds.truncate_file(newest, chance)
    assert sum(map(len, contents().values())) < sum(map(len, flipped.values()))
    before = len(contents())
    fault_kinds.delete_file(newest, chance)
    assert len(contents()) == before - 1
    fault_kinds.remove_checkpoint(newest, chance)
    assert fault_kinds.undamaged(checkpoints)[0].name == "step_00000008"


def test_loading_or_hiding_damage_is_noticed(checkpoints: Path) -> None:
    bad, good = checkpoints / "step_00000012", checkpoints / "step_00000008"
    (bad / fault_kinds.MARK).touch()
    marked = set(faults.marked(checkpoints.parent))
    assert marked == {bad} and fault_kinds.undamaged(checkpoints)[0] == good
    assert "was loaded" in faults.loaded_damage(str(bad), marked, "")
    assert "without a word" in faults.loaded_damage(str(good), marked, f"resuming from {good} at step 8")
    assert not faults.loaded_damage(str(good), marked, f"checkpoint {bad} is damaged; it is not used")
    assert not faults.loaded_damage("", marked, "killed before it looked")
    (bad / "manifest.json").unlink()
    assert "without a word" in faults.loaded_damage(str(good), marked, "")


def test_the_table_counts_strikes_trials_and_losses() -> None:
    one = faults.Trial(0, ["kill all", "flip bytes"], [True, False], [-9, 0], steps_again=3, seconds=30.0)
    two = faults.Trial(1, ["kill all"], [True], [-9, 0], steps_again=5, seconds=40.0)
    lost = faults.Trial(2, ["flip bytes"], [True], [-9, 1], steps_again=0, seconds=20.0, lost="weights differ")
    assert faults.rows([one, two, lost], KINDS, 10.0) == [
        ["kill all", "2", "2", "2", "4.0", "25.0"],
        ["flip bytes", "1", "2", "1", "1.5", "15.0"],
        ["all", "3", "3", "2", "2.7", "20.0"],
    ]


def test_an_interrupted_campaign_goes_on(tmp_path: Path) -> None:
    kept = faults.Trial(3, ["kill all"], [True], [-9, 0], ["killed", "done"], 3, 30.0)
    (tmp_path / "faults.json").write_text(json.dumps([vars(kept), {**vars(kept), "seed": 99}]))
    assert faults.earlier(tmp_path / "faults.json", range(10)) == [kept]
    assert faults.earlier(tmp_path / "none.json", range(10)) == []
