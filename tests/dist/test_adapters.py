"""Tests of runs that train LoRA or DoRA adapters: checkpoints, exports to peft, merging, further training of exported
adapters, learning rates, results on two ranks, memory, and refused recipes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapted import logits, small_bases
from helpers.command import refused, trireme_here
from helpers.kept_ranks import kept_ranks
from helpers.metrics import training, worst_difference
from helpers.recipes import TINY, tiny_recipe
from helpers.zero import load_deepspeed
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from trireme.errors import UserError
from trireme.models.low_rank import is_part
from trireme.models.peft_folder import WEIGHTS
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build, train
from trireme.trainer.checkpoint.export.export_folder import ExportOptions, export
from trireme.trainer.checkpoint.layout import checkpoints_under
from trireme.trainer.checkpoint.load.own_checkpoint import Checkpoint

LORA = ("adapter=lora", "model.adapter.rank=4", "model.adapter.alpha=8.0")
SHORT = ("trainer.max_steps=4", "trainer.eval_at_end=false", "optimizer.lr=0.004")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return small_bases(tmp_path_factory.mktemp("bases"))


def _recipe(base: Path, run_dir: Path, *overrides: str) -> Any:
    return tiny_recipe(run_dir, "model=pretrained", f"model.weights={base}", *overrides)


def _train(base: Path, run_dir: Path, *overrides: str, resume: str = "auto") -> None:
    train(_recipe(base, run_dir, *SHORT, *overrides), resume=resume)


def _live(base: Path, run_dir: Path, *overrides: str) -> torch.nn.Module:
    """The model of a run with the weights of its newest checkpoint."""
    recipe = _recipe(base, run_dir, *SHORT, *overrides)
    return build(recipe, build_mesh(recipe.plan), resume="auto").strategy.module.eval()


def test_a_checkpoint_holds_what_is_trained_and_the_identity_of_the_base(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    _train(bases["llama"], tmp_path, *LORA, "model.adapter.modules_to_save=[lm_head]")
    (newest,) = checkpoints_under(tmp_path / "checkpoints")
    names = set(Checkpoint(newest).shapes)
    weights = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    assert {name for name in weights if not is_part(name)} == {"lm_head.weight"}
    assert {name.rpartition(".")[0].removeprefix("optim.") for name in names if name.startswith("optim.")} == weights
    said = json.loads((newest / "model" / "base.json").read_text())
    assert said["weights"] == str(bases["llama"]) and len(said["digest"]) == 32
    assert training(tmp_path)[-1]["loss"] < training(tmp_path)[0]["loss"]


def test_another_base_is_refused_and_the_same_one_is_known_anywhere(bases: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases["llama"], base)
    _train(base, tmp_path / "run", *LORA, "trainer.stop_at=2")
    weights = load_file(base / "model.safetensors")
    moved = tmp_path / "moved"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(moved, max_shard_size="60KB")
    shutil.copyfile(base / "tokenizer.json", moved / "tokenizer.json")
    shutil.copyfile(base / "tokenizer_config.json", moved / "tokenizer_config.json")
    assert len(list(moved.glob("*.safetensors"))) > 1
    _train(moved, tmp_path / "again", *LORA, resume=str(tmp_path / "run"))
    name = "model.layers.2.mlp.up_proj.weight"
    weights[name][3, 5] += 1e-3
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="another base"):
        _train(base, tmp_path / "run", *LORA)
    for options in (ExportOptions(merge=True), ExportOptions(), ExportOptions(base=str(base))):
        with pytest.raises(UserError, match=r"(?s)another base .*restore that base.*--base FOLDER"):
            export(str(tmp_path / "run"), str(tmp_path / "out"), options)
    assert not (tmp_path / "out").exists()
    adapter = export(str(tmp_path / "run"), str(tmp_path / "adapter"), ExportOptions(base=str(moved)))
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(moved)
    folder = export(str(tmp_path / "run"), str(tmp_path / "out"), ExportOptions(merge=True, base=str(moved)))
    assert (folder / "model.safetensors").is_file() and not (folder / "base.json").exists()


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", LORA),
        ("llama", ("adapter=dora", "model.adapter.rank=4", "model.adapter.modules_to_save=[embed_tokens]")),
        ("gpt2", ("adapter=rslora", "model.adapter.rank=4", "model.adapter.rank_pattern={c_fc: 2}")),
        ("gpt2", ("adapter=dora", "model.adapter.rank=4", "model.adapter.modules_to_save=[wte]")),
        ("llama", (*LORA, "model.adapter.modules_to_save=[lm_head]", "model.frozen=['model.layers.0.*', 'lm_head.*']")),
    ],
    ids=["lora", "dora_embedding", "rslora_conv1d", "dora_tied", "partly_frozen"],
)
def test_exports_are_loaded_by_peft_and_merged(
    family: str, overrides: tuple[str, ...], bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = pytest.importorskip("peft")
    _train(bases[family], tmp_path / "run", *overrides)
    wanted = logits(_live(bases[family], tmp_path / "run", *overrides))
    base = AutoModelForCausalLM.from_pretrained(bases[family], dtype=torch.float32)
    assert (logits(base.eval()) - wanted).abs().max() > 1e-3
    folder = export(str(tmp_path / "run"), str(tmp_path / "adapter"))
    assert not (folder / "config.json").exists() and (folder / "tokenizer.json").is_file()
    loaded = peft.PeftModel.from_pretrained(base, folder).eval()
    torch.testing.assert_close(logits(loaded), wanted, rtol=1e-5, atol=1e-6)

    merged = export(str(tmp_path / "run"), str(tmp_path / "merged"), ExportOptions(merge=True, memory="64MiB"))
    found, report = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    torch.testing.assert_close(logits(found.eval()), wanted, rtol=1e-4, atol=1e-5)
    if family == "gpt2":  # tied: the merged head is the merged embedding
        assert found.lm_head.weight is found.transformer.wte.weight
    by_peft = loaded.merge_and_unload().state_dict()
    for name, tensor in load_file(merged / "model.safetensors").items():
        torch.testing.assert_close(tensor, by_peft[name], rtol=1e-5, atol=1e-6, msg=name)

    monkeypatch.setattr("trireme.trainer.checkpoint.load.block_reader.BLOCK_BYTES", 3_000)
    again = export(str(tmp_path / "run"), str(tmp_path / "again"), ExportOptions(merge=True, max_shard_size="50KB"))
    small = {name: tensor for file in again.glob("*.safetensors") for name, tensor in load_file(file).items()}
    whole = load_file(merged / "model.safetensors")
    assert small.keys() == whole.keys() and all(torch.equal(small[name], whole[name]) for name in whole)


def test_a_merge_in_blocks_is_bit_for_bit_one_in_one_piece(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export reads and merges tile by tile; the result equals a merge of whole tensors in memory."""
    from trireme.models import merge_adapters
    from trireme.models.merge_adapters import delta_of, merged_tensor
    from trireme.trainer.checkpoint.export.adapted_model import adapted_by

    monkeypatch.setattr(merge_adapters, "TILE", 700)
    _train(bases["llama"], tmp_path / "run", *LORA)
    merged = load_file(
        export(str(tmp_path / "run"), str(tmp_path / "merged"), ExportOptions(merge=True)) / "model.safetensors"
    )
    source = Checkpoint(checkpoints_under(tmp_path / "run" / "checkpoints")[0])
    adapted, base = adapted_by(source), load_file(bases["llama"] / "model.safetensors")

    def part(name: str) -> torch.Tensor:
        found = torch.empty(source.shapes[f"model.{name}"][0])
        source.read({f"model.{name}": found})
        return found

    for name, tensor in base.items():
        path = name.removesuffix(".weight")
        if path in adapted.plan.ranks:
            layer = adapted.model.get_submodule(path)
            tensor = merged_tensor(tensor, delta_of(path, adapted.plan, part, layer))
        assert torch.equal(merged[name], tensor), name


def test_commands_work_from_an_adapter_run(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, roots = tmp_path / "run", "data.source.roots=[" + str(Path(json.__file__).parent) + "]"
    recipe = [str(TINY), roots, "model=pretrained", f"model.weights={bases['llama']}", *LORA, *SHORT, f"run.dir={run}"]
    assert trireme_here(capsys, "train", *recipe).returncode == 0
    evaluated = trireme_here(capsys, "evaluate", *recipe, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    base = trireme_here(capsys, "evaluate", *recipe[:4], f"run.dir={tmp_path / 'none'}", "--json")
    losses = [json.loads(result.stdout.splitlines()[-1])["eval_loss"] for result in (evaluated, base)]
    assert losses[0] < losses[1]
    written = trireme_here(capsys, "generate", str(run), "--prompt", "def f(", "--max-new-tokens", "3")
    assert written.returncode == 0 and written.stdout.startswith("def f("), written.stderr
    exported = trireme_here(capsys, "export", str(run), str(tmp_path / "adapter"))
    assert "PeftModel" in exported.stderr and exported.returncode == 0
    assert trireme_here(capsys, "export", str(run), str(tmp_path / "whole"), "--merge").returncode == 0
    for option in ("--memory=1GiB", "--max-shard-size=1GB", "--config=x"):
        made = trireme_here(capsys, "export", str(run), str(tmp_path / "idle"), option)
        refused(made, option.partition("=")[0], "adapters alone are written", "add --merge")
    for option in ("--merge", "--base=x"):
        whole = bases["llama"].parent / "run" / "llama"
        made = trireme_here(capsys, "export", str(whole), str(tmp_path / "idle"), option)
        refused(made, option.partition("=")[0], "holds a whole model", "leave it out")
    assert (tmp_path / "whole" / "config.json").is_file()
    refused(trireme_here(capsys, "check", str(TINY), f"model.weights={tmp_path / 'adapter'}"), "model.adapter.path")
    targets = "model.adapter.targets=[query]"
    refused(trireme_here(capsys, "check", *recipe, targets), "model.adapter.targets", "matches no layer", "q_proj")


def test_training_goes_on_from_an_exported_adapter(bases: dict[str, Path], tmp_path: Path) -> None:
    _train(bases["llama"], tmp_path / "run", *LORA)
    folder = export(str(tmp_path / "run"), str(tmp_path / "adapter"))
    more = ("adapter=continued", f"model.adapter.path={folder}")
    recipe = _recipe(bases["llama"], tmp_path / "more", *SHORT, *more)
    begun = build(recipe, build_mesh(recipe.plan)).strategy.module.eval()
    wanted = logits(_live(bases["llama"], tmp_path / "run", *LORA))
    torch.testing.assert_close(logits(begun), wanted, rtol=1e-6, atol=1e-6)
    _train(bases["llama"], tmp_path / "more", *more)
    assert training(tmp_path / "more")[0]["loss"] < training(tmp_path / "run")[0]["loss"]  # on the same batch


def test_a_peft_export_is_refused_if_adapters_are_merged_into_the_base(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder would name the base without the merged adapters, and so give other outputs; ``--merge`` is right."""
    _train(bases["llama"], tmp_path / "run", *LORA)
    folder = export(str(tmp_path / "run"), str(tmp_path / "first"))
    more = (*LORA, f"+model.merged_adapters.style.path={folder}")
    _train(bases["llama"], tmp_path / "beside", *more)
    with pytest.raises(UserError, match="without the merged ones") as refusal:
        export(str(tmp_path / "beside"), str(tmp_path / "out"))
    assert "(style)" in str(refusal.value) and "--merge" in str(refusal.value)
    assert not (tmp_path / "out").exists()
    merged = export(str(tmp_path / "beside"), str(tmp_path / "out"), ExportOptions(merge=True))
    found = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    wanted = logits(_live(bases["llama"], tmp_path / "beside", *more))
    torch.testing.assert_close(logits(found), wanted, rtol=1e-4, atol=1e-5)

    recipe = ["check", str(TINY), "model=pretrained", f"model.weights={bases['llama']}", *more, "callbacks=export"]
    refused(trireme_here(capsys, *recipe), "callbacks.export.merge", "merged ones", "callbacks.export.merge=true")
    assert trireme_here(capsys, *recipe, "callbacks.export.merge=true").returncode == 0


def test_the_second_matrix_has_a_learning_rate_of_its_own(bases: dict[str, Path], tmp_path: Path) -> None:
    recipe = _recipe(bases["llama"], tmp_path, *SHORT, "adapter=lora_plus", "model.adapter.rank=4")
    strategy = build(recipe, build_mesh(recipe.plan)).strategy
    rates: dict[str, set[float]] = {}
    names = {id(parameter): name.rpartition(".")[2] for name, parameter in strategy.named_parameters()}
    for group in strategy.optimizer.param_groups:  # type: ignore[attr-defined]
        for parameter in group["params"]:
            rates.setdefault(names[id(parameter)], set()).add(group["initial_lr"])
    assert rates == {"lora_A": {0.004}, "lora_B": {16 * 0.004}}


def _train_odd(run_dir: Path, plan: str) -> str:
    recipe = tiny_recipe(
        run_dir,
        f"plan={plan}",
        "model=llama_tiny",
        "model.family=null",
        "model.architecture=helpers.odd_model.OddLlama",
        "~model.config.rope_theta",
        *SHORT,
    )
    try:
        train(recipe)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("plan", ["single", "ddp", "zero2", "zero3", "fsdp_full_shard"])
def test_a_trained_tensor_without_a_gradient_ends_the_run(plan: str, tmp_path: Path) -> None:
    """Every rank names the tensor, under every engine."""
    if plan.startswith("zero"):
        load_deepspeed()
    for message in kept_ranks(_train_odd, 1 if plan == "single" else 2, tmp_path, plan):
        assert "no gradient in the first step: beside.bias, beside.weight" in message
        assert "model.frozen=['beside.*']" in message


def _train_partly(run_dir: Path, plan: str, base: Path, frozen: str) -> None:
    train(_recipe(base, run_dir, *SHORT, *LORA, f"plan={plan}", f"model.frozen={frozen}"))


@pytest.mark.parametrize("frozen", ["[]", "['*.layers.0.*']"])
@pytest.mark.parametrize("plan", ["fsdp_full_shard", "zero3"])
def test_two_ranks_equal_one(plan: str, frozen: str, bases: dict[str, Path], tmp_path: Path) -> None:
    """The training lines agree, and so do the digest of the base in the checkpoint and the exported adapters."""
    if plan.startswith("zero"):
        load_deepspeed()
    _train(bases["llama"], tmp_path / "one", *LORA, f"model.frozen={frozen}")
    kept_ranks(_train_partly, 2, tmp_path / plan, plan, bases["llama"], frozen)
    parts = [load_file(export(str(tmp_path / run), str(tmp_path / f"{run}_out")) / WEIGHTS) for run in ("one", plan)]
    assert parts[0].keys() == parts[1].keys() and any(".layers.0." in name for name in parts[0])
    assert all(torch.allclose(parts[0][name], parts[1][name], atol=1e-4) for name in parts[0])
    assert worst_difference(training(tmp_path / "one"), training(tmp_path / plan)) < 1e-4
    said = [
        json.loads((checkpoints_under(tmp_path / run / "checkpoints")[0] / "model" / "base.json").read_text())
        for run in ("one", plan)
    ]
    assert said[0] == said[1]


def _stage_without(run_dir: Path) -> str:
    try:
        train(
            tiny_recipe(
                run_dir, "plan=pp_1f1b", "model=llama_tiny", *SHORT, "model.adapter.targets=[layers.0.mlp.up_proj]"
            )
        )
    except UserError as error:
        return str(error)
    return ""


def test_a_stage_without_an_adapter_is_refused(tmp_path: Path) -> None:
    for message in kept_ranks(_stage_without, 2, tmp_path):
        assert "plan.pipeline" in message and "nothing is trained" in message


def test_adapters_need_memory_for_themselves_alone() -> None:
    from trireme.models.adapter_config import AdapterConfig
    from trireme.models.build_model import build_on_meta
    from trireme.models.facts import Facts
    from trireme.models.model_config import ModelConfig
    from trireme.parallel.memory import Step, estimate, model_sizes
    from trireme.parallel.plan import Degrees, Plan

    values = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4}
    found = []
    for adapter in (None, AdapterConfig(rank=4)):
        config = ModelConfig("llama", dict(values), adapter=adapter)
        model = build_on_meta(config, "causal_lm", Facts())
        trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
        sizes = model_sizes(model, config.spec)
        memory = estimate(Plan(name="single"), Degrees(), sizes, Step(1, 32, 1))
        assert memory.optimizer == pytest.approx(8 * trained) and memory.gradients == pytest.approx(4 * trained)
        found.append(memory.optimizer)
    assert found[1] < found[0] / 10
