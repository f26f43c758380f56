"""Tests of ``trireme evaluate``: live and averaged weights, checkpoints and exported models get the metrics of an
evaluation during training, also under several parallelism plans; what cannot be evaluated is refused.

The command writes nothing into the run folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command import ROOTS, refused, trireme, trireme_here
from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines
from helpers.recipes import TINY, tiny_recipe
from transformers import AutoModelForCausalLM
from trireme.errors import UserError
from trireme.launch.cli import main
from trireme.models.build_model import build_on_meta
from trireme.trainer.build import train
from trireme.trainer.checkpoint.export.export_folder import export
from trireme.trainer.checkpoint.layout import complete_checkpoints
from trireme.trainer.checkpoint.load.open_source import open_source
from trireme.trainer.checkpoint.load.weight_reader import checkpoint_weights
from trireme.trainer.data.text_values import vocabulary_of
from trireme.trainer.evaluate_only import evaluate

COMMON = ["model=gpt2_tiny", "trainer.max_steps=4", "trainer.micro_batch_size=2"]
AVERAGED = "ema.decay=0.5"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that averages its weights but evaluates the live ones."""
    folder = tmp_path_factory.mktemp("run")
    train(tiny_recipe(folder, *COMMON, f"+{AVERAGED}", "+ema.evaluate=false"))
    return folder


def _measured(run_dir: Path) -> dict[str, Any]:
    return [line for line in lines(run_dir) if "eval_loss" in line][-1]


def _evaluate(run_dir: Path, plan: str, **options: Any) -> dict[str, Any]:
    return evaluate(tiny_recipe(run_dir, *COMMON, f"plan={plan}"), **options)


@pytest.mark.parametrize(
    ("plan", "ranks"),
    [("single", 1), ("ddp", 2), ("zero1", 2), ("zero3", 2), ("fsdp_full_shard", 2), ("pp_1f1b", 2), ("tp", 2)],
)
def test_the_metrics_of_the_run(plan: str, ranks: int, run: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    results = kept_ranks(_evaluate, ranks, run, plan) if ranks > 1 else [_evaluate(run, plan)]
    for result in results:
        assert result.pop("weights") == str(run / "checkpoints" / "step_00000004")
        assert result == pytest.approx(_measured(run), rel=1e-6)
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


@pytest.mark.parametrize("plan", ["single", "zero3"])
def test_averaged_weights(plan: str, run: Path, tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path, *COMMON, f"+{AVERAGED}"))  # the same steps, evaluated with the average
    averaged = _measured(tmp_path)
    assert averaged["eval_loss"] != pytest.approx(_measured(run)["eval_loss"], rel=1e-4)
    ranks = 2 if plan == "zero3" else 1
    results = kept_ranks(_ema, ranks, run, plan) if ranks > 1 else [_ema(run, plan)]
    assert results[0]["eval_loss"] == pytest.approx(averaged["eval_loss"], rel=1e-6)


def _ema(run_dir: Path, plan: str) -> dict[str, Any]:
    return _evaluate(run_dir, plan, ema=True)


def test_a_checkpoint_and_exported_weights(run: Path, tmp_path: Path) -> None:
    expected = _measured(run)["eval_loss"]
    named = _evaluate(tmp_path / "elsewhere", "single", checkpoint=str(run))
    assert named["eval_loss"] == pytest.approx(expected, rel=1e-6)
    folder = export(str(run), str(tmp_path / "exported"))
    recipe = tiny_recipe(tmp_path / "elsewhere", *COMMON, f"model.weights={folder}", f"data.tokenizer.path={folder}")
    exported = evaluate(recipe)
    assert exported["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert exported["weights"] == str(folder) and "step" not in exported
    assert not (tmp_path / "elsewhere").exists()


def test_weights_of_a_checkpoint_are_those_of_the_exported_model(run: Path, tmp_path: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(export(str(run), str(tmp_path / "out")), dtype=torch.float32)
    recipe = tiny_recipe(run, *COMMON)
    model = build_on_meta(recipe.model, "causal_lm", vocabulary_of(_Tokenizer()))
    source = open_source(complete_checkpoints(run / "checkpoints")[0])
    expected = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    found = dict(checkpoint_weights(source, model)(set(expected)))
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    some = sorted(expected)[:3]
    assert sorted(name for name, _ in checkpoint_weights(source, model)(some)) == some


class _Tokenizer:
    bos_token_id = eos_token_id = pad_token_id = None

    def __len__(self) -> int:
        return 512


def test_refusals(run: Path, tmp_path: Path) -> None:
    def refusal(*overrides: str, **options: Any) -> str:
        with pytest.raises(UserError) as error:
            evaluate(tiny_recipe(tmp_path, *COMMON, *overrides), **options)
        return str(error.value)

    assert "no weights" in refusal() and "--checkpoint" in refusal()
    assert "not a complete checkpoint" in refusal(checkpoint=str(tmp_path))
    assert "data.held_out" in refusal("data.held_out=0", checkpoint=str(run))
    assert "does not fit the recipe" in refusal("model.config.n_embd=32", checkpoint=str(run))
    assert "tokenizer" in refusal("data.tokenizer.vocab_size=500", "model.config.vocab_size=512", checkpoint=str(run))
    train(tiny_recipe(tmp_path / "plain", *COMMON, "trainer.max_steps=1"))
    assert "no averaged weights" in refusal(checkpoint=str(tmp_path / "plain"), ema=True)
    next((tmp_path / "plain").rglob("*.safetensors")).write_bytes(b"x")
    assert "bytes instead of" in refusal(checkpoint=str(tmp_path / "plain"))


@pytest.mark.slow
def test_the_command(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = [str(TINY), ROOTS, *COMMON, f"run.dir={run}"]
    expected = _measured(run)
    # zero3 cannot train this recipe, since it averages weights, but it can evaluate it.
    ranks = trireme("evaluate", *recipe, f"+{AVERAGED}", "plan=zero3", "--nproc", "2", "--json")
    assert ranks.returncode == 0, ranks.stderr
    found = json.loads(ranks.stdout.splitlines()[-1])
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6) and found["step"] == 4
    assert main(["evaluate", *recipe]) == 0
    assert capfd.readouterr().out == (
        f"step 4  eval_loss {expected['eval_loss']:.4f}  eval_perplexity {expected['eval_perplexity']:.4f}  "
        f"eval_accuracy {expected['eval_accuracy']:.4f}\n"
    )
    refused(trireme_here(capfd, "evaluate", *recipe, "run.dir=nowhere"), "run.dir = 'nowhere'", "--checkpoint")
