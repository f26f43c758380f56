"""Architectures without a file of their own, by ``model.family=auto``: every plan against one process, resume, export.

``make families`` runs all of it and writes ``docs/families.md``; ``test_matrix.py`` runs a part. Configurations are
tiny (``tiny_config.py``), data is text of Python's standard library. Others are tried by name:

    python tests/families/report.py --types qwen3,mistral
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from families.tiny_config import tiny_config
from helpers.metrics import training, worst_difference
from helpers.ranks import run_ranks
from helpers.recipes import FEW_FILES, TINY
from helpers.zero import load_deepspeed
from trireme.configs.schema import read_recipe
from trireme.launch.compose import compose
from trireme.models.heads import HEADS
from trireme.trainer.build import train
from trireme.trainer.checkpoint.export.export_folder import export

TOLERANCE, STEPS, SAVED = 1e-4, 6, 3
PLANS = {"ddp": 2, "zero3": 2, "fsdp_full_shard": 2}
"""Plan -> its ranks."""
TYPES: dict[str, str] = {
    **dict.fromkeys(("qwen3", "mistral", "gemma3_text", "falcon", "bloom", "stablelm", "olmo2", "mamba"), "causal_lm"),
    **dict.fromkeys(("ctrl", "xglm", "gpt_bigcode", "qwen2", "gemma", "cohere", "olmo", "starcoder2"), "causal_lm"),
    **dict.fromkeys(("roberta", "deberta-v2", "electra", "fnet", "roberta-prelayernorm"), "masked_lm"),
    **dict.fromkeys(("data2vec-text", "albert", "distilbert", "xlm-roberta", "camembert"), "masked_lm"),
}
"""``model_type`` -> the task that it is tried with."""


@dataclass(frozen=True)
class Found:
    """What was seen of one architecture."""

    parameters: int
    differences: dict[str, float]
    """Plan -> largest relative difference of losses and gradient norms from one process."""
    resumed: bool
    """Whether a run that was stopped and resumed ended bit for bit like one that was not."""
    exported: bool
    """Whether plain transformers gives the same outputs from the exported folder."""


def recipe_file(model_type: str, folder: Path) -> Path:
    """The tiny recipe with this architecture and the task that it is tried with."""
    task = TYPES[model_type]
    tiny: dict[str, Any] = yaml.safe_load(TINY.read_text())
    tiny["defaults"] = [entry for entry in tiny["defaults"] if entry != {"/model": "persimmon_tiny"}]
    tiny["defaults"].insert(-1, {"override /task": task})
    tiny["model"] = {"family": "auto", "config": {"model_type": model_type, **tiny_config(model_type)}}
    if task == "masked_lm":
        tiny["data"]["tokenizer"] = {"kind": "wordpiece", "vocab_size": 512}
    file = folder / f"{model_type}.yaml"
    file.write_text("# The tiny recipe.\n" + yaml.safe_dump(tiny, sort_keys=False))
    return file


def run(file: str, run_dir: str, *overrides: str) -> None:
    """Train the recipe on the ranks that exist."""
    import os

    roots = f"data.source.roots=[{','.join(FEW_FILES)}]"
    composed = compose(file, [roots, f"run.dir={run_dir}", f"trainer.max_steps={STEPS}", *overrides])
    recipe, problems = read_recipe(composed.raw, lambda plan: int(os.environ.get("WORLD_SIZE", "1")))
    assert recipe is not None, [*composed.problems, *problems]
    train(recipe)


def look(model_type: str, folder: Path, plans: dict[str, int] = PLANS, further: bool = True) -> Found:
    """Train ``model_type`` under one process and every plan.

    Args:
        further: also resume and export.
    """
    file = str(recipe_file(model_type, folder))
    short = ["trainer.eval_at_end=false", "trainer.log_every=1"]
    one = folder / model_type
    run_ranks(run, 1, file, str(one), *short, timeout=300)
    assert len({line["loss"] for line in training(one)}) == STEPS, "no step changes the loss"
    differences = {}
    for plan, ranks in plans.items():
        if plan.startswith("zero"):
            load_deepspeed()
        other = folder / f"{model_type}-{plan}"
        run_ranks(run, ranks, file, str(other), f"plan={plan}", *short, "checkpoint.at_end=false", timeout=300)
        differences[plan] = worst_difference(training(one), training(other))
        shutil.rmtree(other)
    resumed = exported = False
    if further:
        resumed = _resumes(file, one, folder / f"{model_type}-again", short)
        exported = _exports(model_type, one, folder / f"{model_type}-out")
    return Found(_parameters(one), differences, resumed, exported)


def _resumes(file: str, one: Path, again: Path, short: list[str]) -> bool:
    run_ranks(run, 1, file, str(again), *short, f"trainer.stop_at={SAVED}", timeout=300)
    run_ranks(run, 1, file, str(again), *short, timeout=300)
    same = [line for line in training(again) if line["step"] > SAVED]
    lines = [line for line in training(one) if line["step"] > SAVED]
    return [(a["loss"], a["grad_norm"]) for a in same] == [(b["loss"], b["grad_norm"]) for b in lines]


def _exports(model_type: str, one: Path, out: Path) -> bool:
    """Whether plain transformers loads every trained tensor from the exported folder, and computes with it."""
    from transformers.models.auto import modeling_auto

    export(str(one), str(out))
    model = getattr(modeling_auto, HEADS[TYPES[model_type]].factory).from_pretrained(out, dtype=torch.float32).eval()
    loaded = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    saved = _saved(one)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(5, 25).view(2, 10)).logits
    return bool(logits.isfinite().all()) and all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


def _parameters(one: Path) -> int:
    return sum(tensor.numel() for tensor in _saved(one).values())


def _saved(one: Path) -> dict[str, torch.Tensor]:
    """Weights of the newest checkpoint by plain name."""
    from trireme.trainer.checkpoint.load.open_source import open_source

    source = open_source(sorted((one / "checkpoints").iterdir())[-1])
    shapes = {name: entry for name, entry in source.shapes.items() if name.startswith("model.")}
    tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    source.read(tensors)
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
