"""Tests of adapter folders in peft's format: they are merged into their base, and recipes and commands load them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapted import logits, small_bases
from helpers.command import refused, trireme_here
from helpers.recipes import TINY, tiny_recipe
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM
from trireme.errors import UserError
from trireme.launch.generate_text import generate
from trireme.trainer.build import train
from trireme.trainer.checkpoint.export.export_folder import ExportOptions, export
from trireme.trainer.checkpoint.export.quantised_folder import QuantiseOptions

LORA = ("adapter=lora", "model.adapter.rank=4", "model.adapter.alpha=8.0")
SHORT = ("trainer.max_steps=4", "trainer.eval_at_end=false", "optimizer.lr=0.004")
MERGE = ExportOptions(merge=True)
CARD = "README.md"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_bases(tmp_path_factory.mktemp("bases"))


def _train(base: Path, run_dir: Path, *overrides: str) -> str:
    train(tiny_recipe(run_dir, "model=pretrained", f"model.weights={base}", *SHORT, *overrides))
    return str(run_dir)


def _same(first: Path, second: Path) -> bool:
    """Whether two folders hold the same model, bit for bit, with the same configuration and tokenizer."""
    names = {file.name for file in first.iterdir()} - {CARD, "model.safetensors", "config.json"}
    one, other = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    config, also = (json.loads((folder / "config.json").read_text()) for folder in (first, second))
    return (
        names == {file.name for file in second.iterdir()} - {CARD, "model.safetensors", "config.json"}
        and all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
        and config == also
        and one.keys() == other.keys()
        and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    )


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("llama", LORA), ("gpt2", ("adapter=dora", "model.adapter.rank=4", "model.adapter.modules_to_save=[wte]"))],
    ids=["lora", "dora_tied"],
)
def test_an_exported_folder_is_merged_as_its_run_is(
    family: str, overrides: tuple[str, ...], bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trireme.models.merge_adapters.TILE", 700)
    run = _train(bases[family], tmp_path / "run", *overrides)
    folder, wanted = export(run, str(tmp_path / "adapter")), export(run, str(tmp_path / "wanted"), MERGE)
    small = ExportOptions(merge=True, memory="64MiB")
    assert _same(export(str(folder), str(tmp_path / "merged"), small), wanted)
    texts = [generate(path, "def f(", max_new_tokens=8, temperature=0) for path in (run, str(folder), str(wanted))]
    assert len(set(texts)) == 1 and texts[0].startswith("def f(")
    assert generate(str(bases[family]), "def f(", max_new_tokens=8, temperature=0) != texts[0]


def test_an_adapter_of_a_quantised_base_is_merged(bases: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    few = export(str(bases["llama"].parent / "run" / "llama"), str(tmp_path / "few"), _nf4())
    run = _train(few, tmp_path / "run", *LORA, "quantization=stored")
    folder, wanted = export(run, str(tmp_path / "adapter")), export(run, str(tmp_path / "wanted"), MERGE)
    assert _same(export(str(folder), str(tmp_path / "merged"), MERGE), wanted)


def _nf4() -> ExportOptions:
    return ExportOptions(quantize=QuantiseOptions("nf4"))


def _peft_model(base: Path, out: Path, tokens: int | None = None, **config: Any) -> Any:
    """A model of peft whose adapter, of random numbers, is saved to ``out``."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if tokens is not None:
        model.resize_token_embeddings(tokens)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", **config))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
    adapted.save_pretrained(out)
    return adapted.eval()


@pytest.mark.parametrize("grown", [False, True], ids=["as_it_is", "more_tokens"])
def test_a_folder_that_peft_wrote_generates_and_is_merged(grown: bool, bases: dict[str, Path], tmp_path: Path) -> None:
    """The folder has no tokenizer, so the base's is used; a base that has moved is named by ``--base``."""
    base = tmp_path / "base"
    shutil.copytree(bases["llama"], base)
    size = json.loads((base / "config.json").read_text())["vocab_size"]
    more = {"modules_to_save": ["embed_tokens", "lm_head"]} if grown else {"task_type": "CAUSAL_LM", "use_rslora": True}
    adapted = _peft_model(base, tmp_path / "adapter", size + 3 if grown else None, **more)
    wanted = logits(adapted)
    text = generate(str(tmp_path / "adapter"), "def f(", max_new_tokens=6, temperature=0)
    shutil.move(base, tmp_path / "moved")
    for act in (
        lambda: generate(str(tmp_path / "adapter"), "def f("),
        lambda: export(str(tmp_path / "adapter"), str(tmp_path / "out"), MERGE),
    ):
        with pytest.raises(UserError, match=r"(?s)is an adapter of .*base, which is not here.*--base FOLDER"):
            act()
    at = str(tmp_path / "moved")
    merged = export(str(tmp_path / "adapter"), str(tmp_path / "out"), ExportOptions(merge=True, base=at))
    found, report = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()) and found.config.vocab_size == size + 3 * grown
    torch.testing.assert_close(logits(found.eval()), wanted, rtol=1e-4, atol=1e-5)
    assert (merged / "tokenizer.json").read_bytes() == (tmp_path / "moved" / "tokenizer.json").read_bytes()
    assert generate(str(tmp_path / "adapter"), "def f(", max_new_tokens=6, temperature=0, base=at) == text
    assert generate(str(merged), "def f(", max_new_tokens=6, temperature=0) == text


def test_wrong_bases_and_options_are_refused(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _peft_model(bases["llama"], tmp_path / "adapter")
    adapter, out = str(tmp_path / "adapter"), str(tmp_path / "out")
    refused(trireme_here(capsys, "export", adapter, out), "CHECKPOINT", "as peft reads them already", "--merge")
    gptq = trireme_here(capsys, "export", adapter, out, "--quantize", "gptq")
    refused(gptq, "--calibrate", "does not name", "--calibrate RECIPE")
    merge = ("export", adapter, out, "--merge")
    refused(trireme_here(capsys, *merge, "--ema"), "--ema", "no averaged weights")
    refused(trireme_here(capsys, *merge, "--base", adapter), "--base", "is an adapter itself", "--merge")
    refused(trireme_here(capsys, *merge, "--base", "/no/such"), "--base", "/no/such")
    other = trireme_here(capsys, *merge, "--base", str(bases["gpt2"]))
    refused(other, "CHECKPOINT", "has no place in GPT2LMHeadModel")
    run = str(bases["llama"].parent / "run" / "llama")
    for whole in (str(bases["llama"]), run):
        made = trireme_here(capsys, "generate", whole, "--prompt", "x", "--base", adapter)
        refused(made, "--base", "MODEL is a whole model", "leave it out")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    refused(trireme_here(capsys, "generate", adapter, "--prompt", "x"), "CHECKPOINT", "names no base", "--base FOLDER")
    assert not (tmp_path / "out").exists()


def test_a_recipe_names_the_folder_to_evaluate_and_predict(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter folder given as the recipe or the checkpoint is refused; the message says how to name it instead."""
    run = _train(bases["llama"], tmp_path / "run", *LORA)
    adapter = str(export(run, str(tmp_path / "adapter")))
    roots = f"data.source.roots=[{Path(json.__file__).parent}]"
    way = ("model=pretrained", f"model.weights={bases['llama']}", f"+model.merged_adapters.mine.path={adapter}")
    recipe = (str(TINY), roots)
    for command in ("evaluate", "predict"):
        refused(trireme_here(capsys, command, adapter), "RECIPE", "is a folder of an adapter", *way)
        given = trireme_here(capsys, command, *recipe, *way[:2], "--checkpoint", adapter)
        refused(given, "--checkpoint", "is an adapter as peft writes it", "leave --checkpoint out", way[2])
    resumed = trireme_here(capsys, "train", *recipe, *way[:2], f"run.dir={tmp_path / 'more'}", "--resume", adapter)
    refused(resumed, "--resume", "is an adapter as peft writes it", "adapter=continued model.adapter.path=")

    def loss(*overrides: str) -> float:
        made = trireme_here(capsys, "evaluate", *recipe, *overrides, "--json")
        assert made.returncode == 0, made.stderr
        return json.loads(made.stdout.splitlines()[-1])["eval_loss"]

    wanted = loss(*way[:2], *LORA, f"run.dir={run}")
    none = f"run.dir={tmp_path / 'none'}"
    assert loss(*way, none) == pytest.approx(wanted, abs=1e-6)
    beside = ("adapter=continued", f"model.adapter.path={adapter}")
    assert loss(*way[:2], *beside, none) == pytest.approx(wanted, abs=1e-6)
    assert loss(*way[:2], none) > wanted


def test_a_merge_takes_the_classifier_head_of_the_folder(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, pad_token_id=0)).save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=5)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules="all-linear"))
    adapted.save_pretrained(tmp_path / "adapter")
    merged = export(str(tmp_path / "adapter"), str(tmp_path / "out"), MERGE)
    found = AutoModelForSequenceClassification.from_pretrained(merged)
    tokens = torch.arange(1, 25).reshape(2, 12)
    assert found.config.num_labels == 5
    torch.testing.assert_close(found.eval()(tokens).logits, adapted.eval()(tokens).logits, rtol=1e-4, atol=1e-5)
