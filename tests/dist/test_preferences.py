"""Test training on preferences (DPO, KTO and, with packed rows only, IPO): under each parallelism plan the losses are
those of one process with the same rows, packed or not; a resumed run goes on bit for bit; and a tuned model can be
exported and generates text.

The log-probabilities of the reference model are computed once and reused after a resume.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines, training, worst_difference
from helpers.preferences import JUDGED, PAIRS, written
from helpers.recipes import TINY, recipe_of
from helpers.zero import load_deepspeed
from parity.matrix import LAYOUTS
from trireme.errors import UserError
from trireme.launch.cli import main
from trireme.trainer.build import train
from trireme.trainer.evaluate_only import evaluate
from trireme.trainer.predict_only import predict

TOLERANCE = 1e-4
BASE = ["data=preferences", "data.block_size=64", "data.tokenizer.vocab_size=300", "data.held_out=0.2"]
STEPS = [
    "trainer.max_steps=4",
    "trainer.eval_every=2",
    "trainer.log_every=1",
    "checkpoint.at_end=true",
    "optimizer.lr=1e-2",
]
LORA = ["adapter=lora", "model.adapter.rank=4"]
KEYS = ("loss", "grad_norm", "logps/chosen", "logps/rejected")
SHORT = {"dpo": ["ddp", "pp_1f1b"], "kto": ["fsdp_full_shard", "pp_1f1b"], "off": ["pp_1f1b"]}
"""Task -> plans that are tested every time; the other plans are long tests."""
PLANS: dict[str, tuple[int, list[str]]] = {
    "ddp": (2, []),
    "zero1": (2, []),
    "zero2": (2, []),
    "zero3": (2, []),
    "fsdp_full_shard": (2, []),
    "fsdp_hybrid_shard": (4, []),
    "tp": (2, []),
    "pp_1f1b": (2, []),
    "3d": (4, ["plan.pipeline=2", "plan.tensor=2"]),
}


def options(folder: Path, task: str, *more: str) -> list[str]:
    rows = folder / f"{task}.jsonl"
    if not rows.is_file():
        written(JUDGED if task == "kto" else PAIRS, rows)
    cache = f"data.cache_dir={folder / 'cache'}"
    return [*BASE, *STEPS, f"data.source.paths=[{rows}]", f"task={task}", cache, *more]


def run(run_dir: Path, overrides: list[str], **arguments: Any) -> None:
    train(recipe_of(TINY, run_dir, *overrides), **arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preferences")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Path]:
    """Runs on one process, by name; ``off`` trains adapters and switches them off to get its reference."""
    runs = {}
    for name, task, more in (("dpo", "dpo", ["task.sft=0.1"]), ("kto", "kto", []), ("off", "dpo", [*LORA])):
        off = ["task.reference=adapter_off"] if name == "off" else []
        runs[name] = folder / name
        run(runs[name], options(folder, task, *more, *off))
    return runs


MORE = {"dpo": ["task.sft=0.1"], "kto": [], "off": [*LORA, "task.reference=adapter_off"]}


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        pytest.param(name, plan, marks=[] if plan in SHORT[name] else [pytest.mark.long])
        for name in MORE
        for plan in PLANS
    ],
)
def test_a_plan_gives_the_trajectory_of_one_process(
    folder: Path, alone: dict[str, Path], tmp_path: Path, name: str, plan: str
) -> None:
    ranks, more = PLANS[plan]
    if plan.startswith("zero"):
        load_deepspeed()
    given = options(folder, "kto" if name == "kto" else "dpo", *MORE[name], f"plan={plan}", *more)
    own = [f"data.cache_dir={tmp_path / 'cache'}"]  # so that the reference is computed under this plan
    kept_ranks(run, ranks, tmp_path / "run", [*given, *own])
    one, many = training(alone[name]), training(tmp_path / "run")
    assert len(one) == len(many) == 4 and len({line["loss"] for line in one}) == 4
    assert worst_difference(one, many, ("loss", "grad_norm")) < TOLERANCE
    for a, b in zip(lines(alone[name]), lines(tmp_path / "run"), strict=True):
        assert [b[key] for key in b if "/" in key] == pytest.approx(
            [a[key] for key in a if "/" in key], rel=1e-3, abs=1e-4
        )


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_micro_batches_change_nothing(folder: Path, alone: dict[str, Path], tmp_path: Path, name: str) -> None:
    run(tmp_path, options(folder, name, *MORE[name], "trainer.micro_batch_size=8"))
    assert worst_difference(training(alone[name]), training(tmp_path)) < TOLERANCE
    both = [[line for line in lines(one) if "eval_loss" in line] for one in (alone[name], tmp_path)]
    assert worst_difference(*both, ("eval_loss", "eval_margin")) < TOLERANCE


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_chunked_losses_change_nothing(folder: Path, alone: dict[str, Path], tmp_path: Path, name: str) -> None:
    run(tmp_path, options(folder, name, *MORE[name], "model.loss=chunked"))
    assert worst_difference(training(alone[name]), training(tmp_path)) < TOLERANCE


def test_adapters_off_and_the_first_weights_are_one_reference(
    folder: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    run(tmp_path, options(folder, "dpo", *LORA))
    assert worst_difference(training(alone["off"]), training(tmp_path), KEYS) < TOLERANCE
    evaluated = [[line for line in lines(one) if "eval_loss" in line] for one in (alone["off"], tmp_path)]
    assert worst_difference(*evaluated, ("eval_loss", "eval_margin")) < TOLERANCE


PACKED = ("dpo", "ipo", "kto")
"""Tasks whose rows are packed."""


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        pytest.param(name, plan, marks=[] if (name, plan) == ("dpo", "pp_1f1b") else [pytest.mark.long])
        for name in PACKED
        for plan in ("ddp", "zero3", "fsdp_full_shard", "tp", "pp_1f1b", "3d")
    ],
)
def test_a_packed_run_with_noise_is_the_same_under_a_plan(folder: Path, tmp_path: Path, name: str, plan: str) -> None:
    noise = ["data.packing=bins", "model.neftune_alpha=5", "model.config.hidden_dropout=0.1"]
    given = options(folder, name, *noise)
    given += ["trainer.global_batch_size=4", "trainer.micro_batch_size=1"]
    if plan.startswith("zero"):
        load_deepspeed()
    if not (folder / f"packed-{name}").exists():
        run(folder / f"packed-{name}", given)
    kept_ranks(run, LAYOUTS[plan].ranks, tmp_path, [*given, f"plan={plan}"])
    assert worst_difference(training(folder / f"packed-{name}"), training(tmp_path)) < TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("reference", ["start", "adapter_off"])
def test_a_quantised_base_is_its_own_reference(
    folder: Path, alone: dict[str, Path], tmp_path: Path, reference: str
) -> None:
    assert main(["export", str(alone["dpo"]), str(tmp_path / "base")]) == 0
    base = ["model.family=null", f"model.weights={tmp_path / 'base'}", "model.config={}", "quantization=nf4"]
    given = options(folder, "dpo", *base, *LORA, f"task.reference={reference}")
    run(tmp_path / "one", given)
    kept_ranks(run, 2, tmp_path / "two", [*given, "plan=fsdp_full_shard"])
    one = training(tmp_path / "one")
    assert one[0]["loss"] == pytest.approx(np.log(2), abs=1e-6) and one[-1]["loss"] < 0.69
    assert worst_difference(one, training(tmp_path / "two")) < TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("plan", ["tp", "zero3", "pp_1f1b"])
def test_chunked_losses_change_nothing_under_a_plan(
    folder: Path, alone: dict[str, Path], tmp_path: Path, plan: str
) -> None:
    load_deepspeed()
    kept_ranks(run, 2, tmp_path, options(folder, "dpo", *MORE["dpo"], "model.loss=chunked", f"plan={plan}"))
    assert worst_difference(training(alone["dpo"]), training(tmp_path)) < TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("plan", ["zero3", "fsdp_full_shard", "pp_1f1b"])
@pytest.mark.parametrize("name", ["dpo", "lora"])
def test_a_resume_places_the_first_weights_again_under_a_plan(
    folder: Path, tmp_path: Path, plan: str, name: str
) -> None:
    load_deepspeed()
    given = options(folder, "dpo", *(LORA if name == "lora" else MORE["dpo"]), f"plan={plan}")
    given.append(f"data.cache_dir={tmp_path / 'cache'}")
    kept_ranks(run, 2, tmp_path / "whole", given)
    kept_ranks(run, 2, tmp_path / "parts", [*given, "trainer.stop_at=2"])
    for path in (tmp_path / "cache/references").glob("*.npy"):
        path.unlink()
    kept_ranks(run, 2, tmp_path / "parts", given)
    assert len(references(tmp_path / "cache")) == 2
    one, two = training(tmp_path / "whole"), training(tmp_path / "parts")
    assert [line["loss"] for line in one] == [line["loss"] for line in two]


@pytest.mark.parametrize("task", [pytest.param("dpo", marks=pytest.mark.long), "kto"])
def test_sources_of_preferences_are_mixed(folder: Path, tmp_path: Path, task: str) -> None:
    kind = "trireme.trainer.data.row_files.RowFiles"
    paths = [written(PAIRS[:20], folder / "a.jsonl"), written(PAIRS[20:], folder / "b.jsonl")]
    sources = [
        f"{name}: {{source: {{_target_: {kind}, paths: [{path}], nested: text}}}}"
        for name, path in zip("ab", paths, strict=True)
    ]
    given = [
        *BASE,
        *STEPS,
        f"task={task}",
        "data.packing=bins",
        "~data.source",
        f"data.sources={{{', '.join(sources)}}}",
    ]
    run(tmp_path, [*given, f"data.cache_dir={tmp_path / 'cache'}", "trainer.max_steps=2"])
    last, evaluated = training(tmp_path)[-1], lines(tmp_path)[-1]
    assert {"loss/a", "loss/b", "rewards/chosen"} <= last.keys() and {
        "eval_margin/a",
        "eval_margin/b",
    } <= evaluated.keys()
    assert len(references(tmp_path / "cache")) == 4
    if task == "kto":
        assert evaluated["eval_kl"] == evaluated["eval_kl/a"] == evaluated["eval_kl/b"]


def references(cache: Path) -> dict[str, float]:
    return {path.name: path.stat().st_mtime_ns for path in (cache / "references").glob("*.npy")}


def test_a_resume_goes_on_bit_for_bit_and_finds_or_makes_its_reference(
    folder: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    given = [*options(folder, "dpo", *MORE["dpo"]), f"data.cache_dir={tmp_path / 'cache'}"]
    run(tmp_path / "run", [*given, "trainer.stop_at=2"])
    made = references(tmp_path / "cache")
    assert len(made) == 2  # one for the train rows, one for the held-out rows
    run(tmp_path / "run", given)
    assert references(tmp_path / "cache") == made
    whole, parts = training(alone["dpo"]), training(tmp_path / "run")
    assert [line["loss"] for line in parts] == [line["loss"] for line in whole]
    saved = json.loads((tmp_path / "run/checkpoints/step_00000004/model/reference.json").read_text())
    assert len(saved["digest"]) == 32

    for path in (tmp_path / "cache/references").glob("*.npy"):
        path.unlink()
    found = evaluate(recipe_of(TINY, tmp_path / "run", *given))
    assert list(references(tmp_path / "cache")) != [] and found["step"] == 4
    last = [line for line in lines(tmp_path / "run") if "eval_loss" in line][-1]
    assert {name: found[name] for name in ("eval_loss", "eval_margin")} == {
        name: last[name] for name in ("eval_loss", "eval_margin")
    }
    predict(recipe_of(TINY, tmp_path / "run", *given), str(tmp_path / "out.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    margins = [row["reward_chosen"] - row["reward_rejected"] for row in rows]
    assert np.mean(margins) == pytest.approx(last["eval_margin"], rel=1e-5)
    assert {row["prefers"] for row in rows} <= {"chosen", "rejected"} and "Say" in rows[0]["chosen"]


def test_other_first_weights_are_another_reference(folder: Path, tmp_path: Path) -> None:
    given = [*options(folder, "dpo"), f"data.cache_dir={tmp_path / 'cache'}", "trainer.max_steps=1"]
    run(tmp_path / "one", given)
    run(tmp_path / "other", [*given, "seed=8"])
    assert len(references(tmp_path / "cache")) == 4
    run(tmp_path / "rounded", [*given, "plan.precision=bf16"])
    assert len(references(tmp_path / "cache")) == 6
    for path in (tmp_path / "cache/references").glob("*.npy"):
        path.unlink()
    changed = [*given, "trainer.max_steps=2", "seed=9"]
    with pytest.raises(UserError, match="other weights than the run began with"):
        run(tmp_path / "one", changed, resume=str(tmp_path / "one"))


def test_fully_trained_modules_cannot_be_switched_off(folder: Path, alone: dict[str, Path], tmp_path: Path) -> None:
    assert main(["export", str(alone["dpo"]), str(tmp_path / "base")]) == 0
    base = ["model.family=null", f"model.weights={tmp_path / 'base'}", "model.config={}", "trainer.max_steps=1"]
    whole = "model.adapter.modules_to_save=[embed_tokens]"
    run(tmp_path / "run", options(folder, "dpo", *base, *LORA, whole))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "adapter")]) == 0
    adapter = ["adapter=continued", f"model.adapter.path={tmp_path / 'adapter'}"]
    continued = options(folder, "dpo", *base, *adapter)
    with pytest.raises(UserError, match=r"task.reference.*\n.*embed_tokens"):
        run(tmp_path / "off", [*continued, "task.reference=adapter_off"])


def test_a_tuned_model_is_exported_and_writes(
    alone: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(alone["dpo"]), str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out/reference.json").exists()
    options = ["--chat", "--prompt", "Say 3.", "--temperature", "0", "--max-new-tokens", "5"]
    assert main(["generate", str(tmp_path / "out"), *options]) == 0
    assert "im_start" not in capsys.readouterr().out
