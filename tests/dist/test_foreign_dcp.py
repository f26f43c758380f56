"""Tests of resuming from a torch distributed checkpoint that an FSDP2 script wrote, under other parallelism plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from helpers.foreign import (
    BATCH,
    CLIP,
    SAVED_AT,
    TIED,
    Arrays,
    arrays,
    assert_equal,
    batches,
    loaded,
    mean_loss,
    merged,
    model_and_recipe,
    over_ranks,
    prepared,
    resumed,
)
from helpers.metrics import training
from helpers.ranks import run_ranks
from helpers.zero import load_deepspeed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from trireme.trainer.optimizers import optimizer_factory

LLAMA = ["model=llama_tiny"]


def _app(model: dict[str, Any], optimizer: dict[str, Any]) -> dict[str, Any]:
    """The layout of torch's tutorials."""
    return {"app": {"model": model, "optim": optimizer}, "train_state": {"step": SAVED_AT, "note": "not a tensor"}}


def _titan(model: dict[str, Any], optimizer: dict[str, Any]) -> dict[str, Any]:
    """The layout of torchtitan: the model at the root."""
    return {**model, "optimizer": optimizer, "lr_scheduler": {"last_epoch": SAVED_AT}}


def _compiled(model: dict[str, Any], optimizer: dict[str, Any]) -> dict[str, Any]:
    """Names with the prefixes that torch.compile and FSDP add."""
    state = {f"_orig_mod._fsdp_wrapped_module.{name}": value for name, value in optimizer["state"].items()}
    return {
        "model": {f"_orig_mod._fsdp_wrapped_module.{name}": value for name, value in model.items()},
        "optimizer": {"state": state},
    }


def _save(folder: Path, script: str, model: dict[str, Any], optimizer: dict[str, Any]) -> None:
    if script != "trainer":
        dcp.save(SCRIPTS[script](model, optimizer), checkpoint_id=str(folder))
        return
    # The layout that accelerate gives to FSDP saves of Trainer. It refuses FSDP without a GPU, so torch is called here.
    dcp.save({"model": model}, checkpoint_id=str(folder / "pytorch_model_fsdp_0"))
    dcp.save({"optimizer": optimizer}, checkpoint_id=str(folder / "optimizer_0"))
    state = {"global_step": SAVED_AT, "train_batch_size": BATCH // 2, "num_input_tokens_seen": 0}
    (folder / "trainer_state.json").write_text(json.dumps(state))


SCRIPTS = {"app": _app, "titan": _titan, "compiled": _compiled}


def _fsdp(folder: Path, script: str, *more: str) -> tuple[list[float], Arrays]:
    """Train with FSDP2 alone; saves at ``SAVED_AT``. Returns the losses after that, and the state at that step."""
    dist.init_process_group("gloo")
    mesh = torch.distributed.init_device_mesh("cpu", (dist.get_world_size(),))
    model, corpus, recipe = model_and_recipe(folder.parent / "unused", *more)
    fully_shard(model, mesh=mesh)
    optimizer = optimizer_factory(recipe.optimizer)(list(model.named_parameters()))
    losses, saved = [], {}
    for step, micros in enumerate(batches(corpus, rank=dist.get_rank(), ranks=dist.get_world_size()), start=1):
        total = 0.0
        for micro in micros:
            loss = mean_loss(model, micro) / len(micros)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(over_ranks(total))
        if step == SAVED_AT:
            options = StateDictOptions(flatten_optimizer_state_dict=script == "titan")
            _save(folder, script, *get_state_dict(model, optimizer, options=options))
            saved = _state(model, optimizer)
    dist.barrier()
    dist.destroy_process_group()
    return losses[SAVED_AT:], saved


def _state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Arrays:
    held = {f"model.{name}": p for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        held |= {f"optim.{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    return arrays({name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in held.items()})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "plan", "ranks", "more"),
    [
        ("app", "zero3", 2, TIED),
        pytest.param("titan", "tp", 2, LLAMA, marks=pytest.mark.long),
        pytest.param("compiled", "fsdp_hybrid_shard", 4, TIED, marks=pytest.mark.long),
        pytest.param("app", "pp_1f1b", 2, TIED, marks=pytest.mark.long),
        ("trainer", "single", 1, TIED),
    ],
    ids=["app_zero3", "titan_tp", "compiled_hybrid", "app_pp", "trainer_single"],
)
def test_a_folder_of_an_fsdp_script_goes_on_under_another_plan(
    script: str, plan: str, ranks: int, more: list[str], tmp_path: Path
) -> None:
    if plan.startswith("zero"):
        load_deepspeed()
    folder, run = tmp_path / f"step-{SAVED_AT}", tmp_path / "run"
    prepared(tmp_path / "unused", *more)
    losses, saved = run_ranks(_fsdp, 2, folder, script, *more)[0]
    arguments = [*more, f"plan={plan}", "trainer.micro_batch_size=1"]
    results = run_ranks(loaded, ranks, tmp_path / "look", folder, *arguments)
    assert_equal(merged(results), saved)
    assert (results[0][1]["step"], results[0][1]["samples"]) == (SAVED_AT, SAVED_AT * BATCH)
    run_ranks(resumed, ranks, run, folder, *arguments)
    assert [line["loss"] for line in training(run)] == pytest.approx(losses, rel=1e-5)
    assert f"{SAVED_AT * BATCH} are assumed" in (run / "log.txt").read_text()
