"""Tests of Perceiver AR from end to end: training, export, loading by transformers, generation, and evaluation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.command import trireme_here
from helpers.exported import aligned
from helpers.metrics import lines
from helpers.recipes import tiny_recipe
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build, train
from trireme.trainer.checkpoint.export.export_folder import export
from trireme.trainer.evaluate_only import evaluate

WRITES = ("+generation.max_new_tokens=20", "+generation.samples=4", "trainer.eval_samples=8")
READS = """
import sys
import trireme.models.perceiver_ar
from transformers import AutoTokenizer, pipeline

writer = pipeline("text-generation", model=sys.argv[1])
print(writer("def f(", num_latents=2, max_new_tokens=4, do_sample=False)[0]["generated_text"])
"""
"""A script that generates text from the export, with transformers' ``pipeline`` and one import of trireme."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("perceiver") / "run"
    train(tiny_recipe(folder, "model=perceiver_ar_tiny", "trainer.max_steps=3", "trainer.eval_every=3", *WRITES))
    return folder


def test_an_export_gives_the_logits_of_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM

    recipe = tiny_recipe(run, "model=perceiver_ar_tiny", "trainer.max_steps=3", *WRITES)
    live = build(recipe, build_mesh(recipe.plan), resume="auto")
    shown = trireme_here(capsys, "export", str(run), str(tmp_path / "out"))
    assert "import trireme.models.perceiver_ar; AutoModelForCausalLM.from_pretrained" in shown.stderr, shown.stderr
    loaded = aligned(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)).eval()
    tokens = torch.arange(48).reshape(2, 24)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=tokens).logits, live.strategy.module.eval()(input_ids=tokens).logits)
    text = trireme_here(capsys, "generate", str(tmp_path / "out"), "--prompt", "def f(", "--max-new-tokens", "4")
    assert text.returncode == 0 and text.stdout.startswith("def f("), text.stderr


def test_a_pipeline_of_transformers_writes_after_one_import(run: Path, tmp_path: Path) -> None:
    export(str(run), str(tmp_path / "out"))
    found = subprocess.run(
        [sys.executable, "-c", READS, str(tmp_path / "out")], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0 and found.stdout.startswith("def f("), found.stderr


def test_evaluations_write_texts_and_count_the_labels_of_latents(run: Path) -> None:
    (line,) = [line for line in lines(run) if "eval_loss" in line]
    assert line["eval_exact_match"] >= 0
    trained = next(line for line in lines(run) if "loss" in line)
    assert trained["tokens"] < 8 * 32  # prefixes are drawn


def test_the_length_of_the_prefix_changes_the_loss(run: Path) -> None:
    found = {}
    for prefix in (0, 8, 16):
        options = ("model=perceiver_ar_tiny", "collator=latents", f"collator.eval_prefix={prefix}")
        found[prefix] = evaluate(tiny_recipe(run, *options, "trainer.max_steps=3"))
    assert len({one["eval_loss"] for one in found.values()}) == 3, json.dumps(found)
