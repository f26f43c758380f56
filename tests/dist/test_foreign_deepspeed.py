"""Training resumes from checkpoints that DeepSpeed wrote, and DeepSpeed loads the files that trireme writes for it
beside its own checkpoints.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from helpers.command import refused, tiny_command, trireme_here
from helpers.disk import small_disk
from helpers.foreign import (
    BATCH,
    CLIP,
    MICRO,
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
    overrides,
    prepared,
    resumed,
)
from helpers.metrics import lines, training
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from helpers.zero import load_deepspeed
from trireme.errors import UserError
from trireme.parallel.zero.full_tensors import EngineState
from trireme.trainer.build import train
from trireme.trainer.checkpoint.layout import verify
from trireme.trainer.optimizers import optimizer_factory

FROZEN = "model.frozen=[transformer.h.0.mlp.c_fc.weight]"


def _deepspeed(folder: Path, stage: int, dtype: str, *more: str) -> tuple[list[float], Arrays]:
    """Train with DeepSpeed alone; saves at ``SAVED_AT``. Returns the losses after that, and the state at that step."""
    import deepspeed

    dist.init_process_group("gloo")
    model, corpus, recipe = model_and_recipe(folder / "unused", *more)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    config: dict[str, Any] = {
        "train_batch_size": BATCH,
        "train_micro_batch_size_per_gpu": MICRO,
        "gradient_clipping": CLIP,
        "zero_optimization": {"stage": stage},
    } | ({} if dtype == "fp32" else {dtype: {"enabled": True}})
    with contextlib.redirect_stdout(io.StringIO()):
        engine = deepspeed.initialize(
            model=model,
            optimizer=optimizer_factory(recipe.optimizer)(trained),
            config=config,
            dist_init_required=False,
        )[0]
    losses, saved = [], {}
    for step, micros in enumerate(batches(corpus, rank=dist.get_rank(), ranks=dist.get_world_size()), start=1):
        total = 0.0
        for micro in micros:
            loss = mean_loss(engine, micro)
            engine.backward(loss)
            engine.step()
            total += loss.item() / len(micros)
        losses.append(over_ranks(total))
        if step == SAVED_AT:
            engine.save_checkpoint(str(folder), client_state={"epoch": 0})
            if stage > 0:
                access, held = EngineState(engine), {}  # through DeepSpeed's public access functions
                for name, parameter in trained:
                    held[f"model.{name}"] = access.weight(parameter)
                    held |= {f"optim.{name}.{key}": value for key, value in access.state(parameter)}
                saved = arrays(held)
    dist.barrier()
    dist.destroy_process_group()
    return losses[SAVED_AT:], saved


def _write(folder: Path, stage: int, dtype: str, *more: str) -> tuple[list[float], Arrays]:
    load_deepspeed()
    prepared(folder / "unused", *more)
    return run_ranks(_deepspeed, 2, folder, stage, dtype, *more)[0]


@pytest.mark.parametrize(
    ("stage", "dtype", "plan", "ranks", "more"),
    [
        pytest.param(0, "fp32", "single", 1, TIED, marks=pytest.mark.long),
        (1, "fp32", "fsdp_full_shard", 2, [*TIED, FROZEN]),
        pytest.param(2, "fp32", "tp", 2, TIED, marks=pytest.mark.long),
        (3, "fp32", "pp_1f1b", 2, TIED),
        pytest.param(3, "fp32", "zero2", 2, [*TIED, FROZEN], marks=pytest.mark.long),
    ],
    ids=["stage0", "stage1", "stage2", "stage3", "stage3_frozen"],
)
def test_a_deepspeed_folder_goes_on_under_another_plan(
    stage: int, dtype: str, plan: str, ranks: int, more: list[str], tmp_path: Path
) -> None:
    folder, run = tmp_path / "deepspeed", tmp_path / "run"
    losses, saved = _write(folder, stage, dtype, *more)
    arguments = [*more, f"plan={plan}"]
    results = run_ranks(loaded, ranks, tmp_path / "look", folder, *arguments)
    held = merged(results)
    assert results[0][1]["step"] == SAVED_AT and results[0][1]["samples"] == SAVED_AT * BATCH
    assert saved or stage == 0
    assert_equal({name: held[name] for name in saved}, saved)
    assert any(name.endswith(".exp_avg") for name in held)
    run_ranks(resumed, ranks, run, folder, *arguments)
    gone_on = training(run)
    assert [line["step"] for line in gone_on] == [4, 5, 6]
    assert [line["loss"] for line in gone_on] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [
        (2, "fp16"),
        (3, "bf16"),
        *(pytest.param(*case, marks=pytest.mark.long) for case in ((1, "bf16"), (1, "fp16"), (2, "bf16"), (3, "fp16"))),
    ],
)
def test_fp32_masters_of_half_precision_come_back(stage: int, dtype: str, tmp_path: Path) -> None:
    _, saved = _write(tmp_path / "deepspeed", stage, dtype, *TIED)
    held, state = loaded(tmp_path / "run", tmp_path / "deepspeed", *TIED, f"plan.precision={dtype}")
    assert saved
    assert_equal({name: held[name] for name in saved}, saved)
    assert state["step"] == SAVED_AT


def test_the_same_command_does_not_begin_again_without_a_word(tmp_path: Path) -> None:
    folder, run = tmp_path / "deepspeed", tmp_path / "run"
    _write(folder, 1, "fp32", *TIED)
    resumed(run, folder, *TIED, "trainer.stop_at=5")
    with pytest.raises(UserError, match=r"the run has gone on since.*step_00000005"):
        resumed(run, folder, *TIED)
    train(tiny_recipe(run, *overrides(*TIED)))
    assert [line["step"] for line in training(run)] == [4, 5, 6]


def test_another_optimizer_another_model_and_missing_files_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "deepspeed"
    _write(folder, 2, "fp32", *TIED)
    with pytest.raises(UserError, match=r"kept exp_avg/exp_avg_sq.*keeps momentum_buffer"):
        resumed(tmp_path / "run", folder, *TIED, "optimizer=sgd", "optimizer.lr=0.1")
    with pytest.raises(UserError, match=r"is not in the checkpoint"):
        resumed(tmp_path / "run", folder)
    next((folder / f"global_step{SAVED_AT}").glob("*rank_1*optim_states.pt")).unlink()
    with pytest.raises(UserError, match=r"holds 1 .*optim_states\.pt of 2 ranks"):
        resumed(tmp_path / "run", folder, *TIED)


# -- the other way: trireme writes DeepSpeed's own files ---------------------------------------------------------


def _converted(folder: Path) -> Arrays:
    """The fp32 weights of a folder, as DeepSpeed's own tool gives them."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()):
        return arrays(dict(get_fp32_state_dict_from_zero_checkpoint(str(folder))))


@pytest.mark.parametrize("plan", [pytest.param("zero1", marks=pytest.mark.long), "zero3"])
def test_deepspeed_reads_what_is_written_beside_a_checkpoint(plan: str, tmp_path: Path) -> None:
    load_deepspeed()
    arguments = [*TIED, f"plan={plan}", "checkpoint.deepspeed=true"]
    prepared(tmp_path / "run", *arguments)
    run_ranks(_train, 2, tmp_path / "run", "trainer.stop_at=2", *arguments)
    run_ranks(_train, 2, tmp_path / "run", "trainer.stop_at=3", *arguments)  # the engine counts from its own start
    checkpoint = tmp_path / "run/checkpoints/step_00000003"
    native = checkpoint / "deepspeed"
    assert verify(checkpoint) is None
    assert (native / "latest").read_text() == "global_step3" and (native / "zero_to_fp32.py").is_file()
    own, _ = loaded(tmp_path / "own", checkpoint, *TIED)
    weights = {name.removeprefix("model."): tensor for name, tensor in own.items() if name.startswith("model.")}
    converted = _converted(native)
    assert_equal({name: converted[name] for name in weights}, weights)
    held, state = loaded(tmp_path / "look", native, *TIED)
    assert_equal(held, own)
    assert (state["step"], state["samples"]) == (3, 3 * BATCH)
    victim = next(native.rglob("*optim_states.pt"))
    victim.write_bytes(victim.read_bytes()[:-1])
    assert "bytes instead" in str(verify(checkpoint))


def _train(run_dir: Path, *more: str) -> None:
    train(tiny_recipe(run_dir, *overrides(*more)))


def _refused(run_dir: Path, *more: str) -> str:
    with pytest.raises(UserError) as refusal:
        _train(run_dir, *more)
    return str(refusal.value)


@pytest.mark.long
@pytest.mark.parametrize("plan", ["zero2", "zero3"])
def test_a_disk_that_fills_with_deepspeeds_files(plan: str, tmp_path: Path) -> None:
    """DeepSpeed's part of the second checkpoint fills the disk: no rank hangs, the first one stays, the run goes on."""
    load_deepspeed()
    arguments = [*TIED, f"plan={plan}", "checkpoint.deepspeed=true", "checkpoint.every=2", "trainer.max_steps=4"]
    prepared(tmp_path / "whole", *arguments)
    run_ranks(_train, 2, tmp_path / "whole", *arguments)
    files = [path for path in (tmp_path / "whole/checkpoints/step_00000002").rglob("*") if path.is_file()]
    native = sum(path.stat().st_size for path in files if "deepspeed" in path.parts)
    room = 2 * sum(path.stat().st_size for path in files) - native // 2
    with small_disk(tmp_path / "disk", room) as disk:
        said = run_ranks(_refused, 2, disk / "run", *arguments)
        assert all("could not be written" in text for text in said), said
        assert "DeepSpeed's files" in (disk / "run" / "log.txt").read_text()
        assert [path.name for path in (disk / "run" / "checkpoints").iterdir()] == ["step_00000002"]
        shutil.copytree(disk / "run", tmp_path / "run")
    run_ranks(_train, 2, tmp_path / "run", *arguments)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_other_plans_refuse_deepspeeds_files_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = trireme_here(capsys, *tiny_command(tmp_path, "plan=ddp", "--nproc", "2", "checkpoint.deepspeed=true")[3:])
    refused(result, "checkpoint.deepspeed", "plan ddp")
