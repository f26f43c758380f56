"""Tests of training adapters on a quantised base model, and of quantisation-aware training: losses under several plans,
resume, checkpoints, and exports with and without quantisation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapted import filled, logits
from helpers.command import refused, trireme_here
from helpers.metrics import training, worst_difference
from helpers.quantised import by_bitsandbytes, from_folder
from helpers.recipes import TINY, tiny_recipe
from parity.matrix import TOLERANCE, differences
from parity.matrix import Case as Shared
from resume.matrix import Case, resumed
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trireme.errors import UserError
from trireme.models.low_rank import is_part
from trireme.models.quantization.gptq_numbers import GptqNumbers
from trireme.models.quantization.quantised_layer import quantised_layers
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build, train
from trireme.trainer.calibration import calibration_inputs
from trireme.trainer.checkpoint.export.export_folder import ExportOptions, export
from trireme.trainer.checkpoint.export.quantised_folder import QuantiseOptions
from trireme.trainer.checkpoint.layout import checkpoints_under
from trireme.trainer.checkpoint.load.own_checkpoint import Checkpoint

NF4 = ("quantization=nf4", "adapter=lora", "model.adapter.rank=4", "model.adapter.alpha=8.0")
SHORT = ("trainer.max_steps=4", "trainer.eval_at_end=false", "optimizer.lr=0.004")
EXACT = 1e-5


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantised")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pretrained Llama with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    train(tiny_recipe(folder / "run", "model=llama_tiny", "trainer.max_steps=2"))
    return export(str(folder / "run"), str(folder / "base"))


QUICK = {
    "fsdp_full_shard": [("llama_nf4", 1, "full"), ("gpt2_int8", 4, "uneven"), ("llama_awq", 1, "full")],
    "zero3": [("llama_nf4", 1, "full"), ("llama_gptq", 4, "uneven")],
    "pp_1f1b": [("llama_nf4", 4, "full")],
}
"""Plan -> its cases: family, accumulation, masks."""
LONG = {
    "ddp": [("llama_nf4", 4, "noise"), ("gpt2_int8", 1, "full"), ("llama_gptq", 1, "noise"), ("llama_awq", 4, "full")],
    "zero2": [("llama_nf4", 4, "uneven"), ("llama_gptq", 1, "full"), ("llama_awq", 4, "uneven")],
    "zero3": [("gpt2_int8", 4, "full"), ("llama_awq", 1, "noise")],
    "fsdp_full_shard": [("llama_gptq", 4, "uneven")],
    "pp_1f1b": [("gpt2_int8", 4, "full"), ("llama_gptq", 4, "full"), ("llama_awq", 4, "uneven")],
    "fsdp_hybrid_shard": [("llama_nf4", 1, "noise"), ("llama_gptq", 1, "full"), ("llama_awq", 4, "noise")],
}


def _cells(plan: str, cells: list[tuple[str, int, str]]) -> list[Shared]:
    return [Shared(plan, *cell) for cell in cells]


@pytest.mark.parametrize(
    "cases",
    [
        *(_cells(*entry) for entry in QUICK.items()),
        *(pytest.param(_cells(*entry), marks=pytest.mark.long) for entry in LONG.items()),
    ],
    ids=lambda cases: cases[0].plan,
)
def test_a_plan_equals_one_process(cases: list[Shared], folder: Path) -> None:
    found = differences(cases, folder, 6)
    assert found and max(found.values()) < EXACT, found


@pytest.mark.parametrize("plan", ["fsdp_full_shard", "zero2", "pp_1f1b"])
def test_quantisation_aware_training_equals_one_process(plan: str, folder: Path) -> None:
    pytest.importorskip("torchao")
    case = Shared(plan, "llama_qat", 4, "full")
    differences([case], folder, 6)
    one, many = training(folder / "single-llama_qat-full-6"), training(folder / f"{case.name}-6")
    assert worst_difference(one[:1], many[:1]) < EXACT
    # In later steps, two plans that differ in the last bit of a number may round it to different sides.
    assert worst_difference(one, many, ["loss"]) < 10 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan", ["fsdp_full_shard", *(pytest.param(plan, marks=pytest.mark.long) for plan in ("ddp", "zero3"))]
)
def test_a_run_goes_on_where_it_was_saved(plan: str, folder: Path) -> None:
    """A resume is exact: bit for bit under the same plan, and within the tolerance under another one."""
    others = {"ddp": "zero3", "zero3": "fsdp_full_shard"}
    cases = [Case(before, plan, variant="nf4") for before in (plan, others.get(plan)) if before]
    found = resumed(folder, plan, cases)
    assert len(found) == len(cases) and all(one.sound for one in found.values()), found


def _recipe(base: Path, run_dir: Path, *overrides: str) -> Any:
    return tiny_recipe(run_dir, "model=pretrained", f"model.weights={base}", *SHORT, *overrides)


def _live(base: Path, run_dir: Path, *overrides: str) -> Any:
    """The model of a run with the weights of its newest checkpoint."""
    recipe = _recipe(base, run_dir, *overrides)
    return build(recipe, build_mesh(recipe.plan), resume="auto").strategy.module.eval()


def test_a_checkpoint_holds_adapters_and_the_quantisation_of_the_base(base: Path, tmp_path: Path) -> None:
    train(_recipe(base, tmp_path, *NF4))
    (newest,) = checkpoints_under(tmp_path / "checkpoints")
    weights = {name for name in Checkpoint(newest).shapes if name.startswith("model.")}
    assert weights and all(is_part(name) for name in weights)
    said = json.loads((newest / "model" / "base.json").read_text())
    wanted = {"method": "nf4", "group_size": 64, "double": True, "other_dtype": "fp32"}
    assert said["quantization"] == wanted and len(said["digest"]) == 32
    log = (tmp_path / "log.txt").read_text()
    assert "the base is quantised (nf4): parameters take" in log and "numbers of 4." in log
    more = ("trainer.max_steps=6",)
    for other in (
        ("quantization=null", *NF4[1:]),
        (*NF4, "model.quantization.double=false"),
        ("quantization=int8", *NF4[1:]),
    ):
        with pytest.raises(UserError, match=r"model\.quantization") as error:
            train(_recipe(base, tmp_path / "other", *other, *more), resume=str(tmp_path))
        assert "quantization=nf4 model.quantization.group_size=64" in str(error.value)
    train(_recipe(base, tmp_path / "again", *NF4, *more), resume=str(tmp_path))
    assert training(tmp_path / "again")[-1]["step"] == 6


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        (
            ("quantization=nf4", "adapter=dora", "model.adapter.rank=4"),
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        ),
        (("quantization=int8", *NF4[1:]), {"load_in_8bit": True}),
    ],
    ids=["nf4_dora", "int8_lora"],
)
def test_exports_are_loaded_by_peft_and_merged(
    overrides: tuple[str, ...], options: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    """peft loads the adapters onto a base that transformers quantises; a merge makes one model without quantisation."""
    peft = pytest.importorskip("peft")
    train(_recipe(base, tmp_path / "run", *overrides))
    live = _live(base, tmp_path / "run", *overrides)
    wanted = logits(live)
    assert (logits(by_bitsandbytes(base, **options)) - wanted).abs().max() > 1e-3
    folder = export(str(tmp_path / "run"), str(tmp_path / "adapter"))
    loaded = peft.PeftModel.from_pretrained(by_bitsandbytes(base, **options), folder).train()
    torch.testing.assert_close(logits(loaded), wanted, rtol=1e-4, atol=1e-4)

    rounded = {path: layer.weight for path, layer in quantised_layers(live)}
    merged = export(str(tmp_path / "run"), str(tmp_path / "merged"), ExportOptions(merge=True, memory="64MiB"))
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())
    found = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(found), wanted, rtol=1e-4, atol=1e-5)
    whole = load_file(base / "model.safetensors")
    for name, tensor in load_file(merged / "model.safetensors").items():
        path = name.removesuffix(".weight")
        assert torch.equal(tensor, whole[name]) == (path not in rounded), name
    with pytest.raises(UserError, match="another base"):
        train(tiny_recipe(tmp_path / "x", "model=llama_tiny", "trainer.max_steps=2", "seed=9"))
        export(str(tmp_path / "x"), str(tmp_path / "other"))
        export(str(tmp_path / "run"), str(tmp_path / "no"), ExportOptions(merge=True, base=str(tmp_path / "other")))
    assert not (tmp_path / "no").exists()


def test_commands_work_from_a_quantised_run(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, roots = tmp_path / "run", "data.source.roots=[" + str(Path(json.__file__).parent) + "]"
    recipe = [str(TINY), roots, "model=pretrained", f"model.weights={base}", *NF4, *SHORT, f"run.dir={run}"]
    checked = trireme_here(capsys, "check", *recipe)
    assert checked.returncode == 0 and "in nf4" in checked.stdout, checked.stderr
    assert trireme_here(capsys, "train", *recipe).returncode == 0
    evaluated = trireme_here(capsys, "evaluate", *recipe, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    written = trireme_here(capsys, "generate", str(run), "--prompt", "def f(", "--max-new-tokens", "3")
    assert written.returncode == 0 and written.stdout.startswith("def f("), written.stderr
    alone = [word for word in recipe if "adapter" not in word]
    refused(trireme_here(capsys, "check", *alone), "model.quantization", "adapter=lora")
    refused(trireme_here(capsys, "check", *recipe, "plan=tp", "--nproc", "2"), "plan.tensor", "fsdp_full_shard")
    half = "model.quantization.other_dtype=bf16"
    refused(trireme_here(capsys, "check", *recipe, half), "model.quantization.other_dtype", "plan.precision=bf16")


@pytest.mark.parametrize("method", ["nf4", pytest.param("fp4", marks=pytest.mark.long), "int8"])
def test_quantised_exports_are_loaded_by_transformers(method: str, base: Path, tmp_path: Path) -> None:
    """Adapters are merged into the weights, which are then quantised; transformers and ``stored`` load the folder."""
    train(_recipe(base, tmp_path / "run", "adapter=lora", "model.adapter.rank=4"))
    merged = export(str(tmp_path / "run"), str(tmp_path / "merged"), ExportOptions(merge=True))
    options = ExportOptions(quantize=QuantiseOptions(method), max_shard_size="30KB")
    folder = export(str(tmp_path / "run"), str(tmp_path / "few"), options)
    assert len(list(folder.glob("*.safetensors"))) > 2 and (folder / "tokenizer.json").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".few")]
    like: dict[str, Any] = {"load_in_8bit": True}
    if method != "int8":
        like = {"load_in_4bit": True, "bnb_4bit_quant_type": method, "bnb_4bit_use_double_quant": True}
    wanted = logits(by_bitsandbytes(merged, **like))
    found, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(logits(found.train()), wanted)
    stored = filled(from_folder(folder, method="stored"))
    torch.testing.assert_close(logits(stored), wanted, rtol=1e-5, atol=1e-5)
    assert (logits(stored) - logits(AutoModelForCausalLM.from_pretrained(merged).eval())).abs().max() > 1e-4


def test_a_calibrated_export_is_nearer_than_a_rounded_one(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GPTQ on rows of the run's own data, by the command; then adapters are trained beside the folder."""
    run = tmp_path / "run"
    train(_recipe(base, run, "trainer.max_steps=12"))
    words = [str(run), str(tmp_path / "gptq"), "--quantize", "gptq", "--group-size", "16", "--rows", "24"]
    result = trireme_here(capsys, "export", *words)
    assert result.returncode == 0 and "quantization=stored" in result.stderr, result.stderr
    whole = export(str(run), str(tmp_path / "whole"))
    said = json.loads((tmp_path / "gptq" / "config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["bits"], said["group_size"]) == ("gptq", 4, 16)
    exact = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32).eval()
    (batch,) = calibration_inputs(_recipe(base, run, "trainer.micro_batch_size=8"), 8)
    tokens = batch["input_ids"]
    wanted = exact(input_ids=tokens).logits
    calibrated = filled(from_folder(tmp_path / "gptq", method="stored"))
    rounded, form = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32).eval(), GptqNumbers(4, 16)
    with torch.no_grad():
        for path, layer in quantised_layers(calibrated):
            weight = rounded.get_submodule(path).weight
            weight.copy_(form.unpack(form.pack(weight), *layer.sizes, torch.float32))
        distances = [(one(input_ids=tokens).logits - wanted).square().mean() for one in (calibrated, rounded)]
    assert distances[0] < 0.8 * distances[1], distances
    begun = "import "
    written = trireme_here(capsys, "generate", words[1], "--prompt", begun, "--max-new-tokens", "3")
    assert written.returncode == 0 and written.stdout.startswith(begun), written.stderr
    stored = ("quantization=stored", *NF4[1:], "model.adapter.modules_to_save=[lm_head]")
    train(_recipe(tmp_path / "gptq", tmp_path / "more", *stored, "trainer.max_steps=6"))
    merged = export(str(tmp_path / "more"), str(tmp_path / "merged"), ExportOptions(merge=True))
    live = _live(tmp_path / "gptq", tmp_path / "more", *stored, "trainer.max_steps=6")
    assert (logits(live) - logits(calibrated)).abs().max() > 1e-2
    again = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(again), logits(live), rtol=1e-4, atol=1e-5)


def test_the_callback_exports_quantised_weights(base: Path, tmp_path: Path) -> None:
    train(_recipe(base, tmp_path, *NF4, "callbacks=export", "callbacks.export.quantize=nf4"))
    values = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert values["quantization_config"]["load_in_4bit"] and (tmp_path / "exported" / "README.md").is_file()
    assert logits(filled(from_folder(tmp_path / "exported", method="stored"))).isfinite().all()


def test_wrong_options_of_an_export_are_refused(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(_recipe(base, tmp_path / "run"))
    out = [str(tmp_path / "run"), str(tmp_path / "out"), "--quantize"]
    refused(trireme_here(capsys, "export", *out, "nf4", "--group-size", "48"), "group-size", "64")
    refused(trireme_here(capsys, "export", *out, "nf4", "--bits", "3"), "bits", "gptq")
    with pytest.raises(UserError, match="trireme export"):
        export(*out[:2], ExportOptions(quantize=QuantiseOptions("gptq")))
    assert not (tmp_path / "out").exists()
