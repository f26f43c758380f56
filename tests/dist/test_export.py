"""Tests of exports: transformers loads them and computes the logits of the trained model; averaged weights, shards of
several ranks and other engines' checkpoints are exported exactly; a failed export leaves no files.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.command import refused, trireme, trireme_here
from helpers.disk import small_disk
from helpers.exported import aligned
from helpers.kept_ranks import kept_ranks
from helpers.recipes import tiny_recipe
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trireme.errors import UserError
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build, train
from trireme.trainer.checkpoint.export.export_folder import ExportOptions, export, export_source
from trireme.trainer.checkpoint.load.own_checkpoint import Checkpoint
from trireme.trainer.checkpoint.source import Progress, Source

FAMILIES = ["persimmon", "gpt_neox", "llama"]


def _logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(24).reshape(2, 12)).logits


@pytest.mark.parametrize(
    "overrides",
    [[f"model={family}_tiny"] for family in FAMILIES]
    + [["model=llama_tiny", "+model.config.tie_word_embeddings=true"]],
    ids=[*FAMILIES, "tied"],
)
def test_identical_logits(tmp_path: Path, overrides: list[str]) -> None:
    recipe = tiny_recipe(tmp_path / "run", *overrides, "trainer.max_steps=3")
    train(recipe)
    live = build(recipe, build_mesh(recipe.plan), resume="auto")
    folder = export(str(tmp_path / "run"), str(tmp_path / "out"))
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert torch.equal(_logits(aligned(loaded)), _logits(live.strategy.module))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("def f(): return 'ü'").input_ids) == "def f(): return 'ü'"
    assert loaded.generate(input_ids=torch.tensor([[5]]), max_new_tokens=4, do_sample=False).shape == (1, 5)


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_types_and_shards(
    tmp_path: Path, dtype: str, torch_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trireme.trainer.checkpoint.load.block_reader.BLOCK_BYTES", 3_000)  # several blocks to a tensor
    train(tiny_recipe(tmp_path / "run", "trainer.max_steps=2"))
    whole = AutoModelForCausalLM.from_pretrained(export(str(tmp_path / "run"), str(tmp_path / "fp32")))
    folder = export(str(tmp_path / "run"), str(tmp_path / "small"), ExportOptions(dtype, max_shard_size="100KB"))
    assert len(list(folder.glob("*.safetensors"))) > 2
    small = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert small.dtype == torch_dtype
    for name, parameter in small.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name).to(torch_dtype)), name


def test_averaged_weights(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", "trainer.max_steps=3", "+ema.decay=0.5")
    train(recipe)
    live = build(recipe, build_mesh(recipe.plan), resume="auto")
    folder = export(str(tmp_path / "run"), str(tmp_path / "ema"), ExportOptions(ema=True))
    averaged = AutoModelForCausalLM.from_pretrained(folder)
    for name, tensor in ((n.removeprefix("ema."), t) for n, t in live.ema.saved_tensors().items()):
        assert torch.equal(averaged.get_parameter(name), tensor)
        assert (
            name.endswith("bias") or "norm" in name or not torch.equal(live.strategy.module.get_parameter(name), tensor)
        )


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a complete checkpoint"):
        export(str(tmp_path), str(tmp_path / "out"))
    train(tiny_recipe(tmp_path / "run", "trainer.max_steps=1"))
    with pytest.raises(UserError, match="no averaged weights"):
        export(str(tmp_path / "run"), str(tmp_path / "out"), ExportOptions(ema=True))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        export(str(tmp_path / "run"), str(tmp_path / "out"))
    with pytest.raises(ValueError, match="max_shard_size='big' is not a size"):
        ExportOptions(max_shard_size="big")
    with pytest.raises(ValueError, match="memory='1KB' is too little"):
        ExportOptions(memory="1KB")


def test_training_goes_on_from_exported_weights(tmp_path: Path) -> None:
    """model.weights=FOLDER starts from exactly what was exported, with its tokenizer."""
    train(tiny_recipe(tmp_path / "run", "trainer.max_steps=3"))
    folder = export(str(tmp_path / "run"), str(tmp_path / "out"))
    recipe = tiny_recipe(tmp_path / "tuned", f"model.weights={folder}", f"data.tokenizer.path={folder}")
    tuned = build(recipe, build_mesh(recipe.plan))
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(_logits(aligned(loaded)), _logits(tuned.strategy.module))


def test_exports_keep_generation_settings_and_drop_quantisation(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path / "run", "trainer.max_steps=1"))
    base = export(str(tmp_path / "run"), str(tmp_path / "base"))
    said = {"eos_token_id": [0, 5, 7], "temperature": 0.6, "do_sample": True}
    (base / "generation_config.json").write_text(json.dumps(said))
    train(tiny_recipe(tmp_path / "tuned", f"model.weights={base}", "trainer.max_steps=1"))
    config = next((tmp_path / "tuned" / "checkpoints").glob("*/model/config.json"))
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": "fp8"}}))
    (config.parent / "quantize_config.json").write_text("{}")
    folder = export_source(Checkpoint(config.parents[1]), tmp_path / "out", ExportOptions(), verify=False)
    assert not (folder / "quantize_config.json").exists()
    assert json.loads((folder / "generation_config.json").read_text()) == said
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == [0, 5, 7]


def _train_spread(run_dir: Path, plan: str) -> None:
    train(tiny_recipe(run_dir, f"plan={plan}", "model=llama_tiny", "trainer.max_steps=2", "trainer.eval_at_end=false"))


@pytest.mark.parametrize(("plan", "ranks"), [("fsdp_full_shard", 2), ("tp", 2), ("3d", 8)])
def test_shards_of_any_plan_are_joined(tmp_path: Path, plan: str, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, columns and stages are joined block by block, and equal the whole tensors that torch's own reader gives."""
    monkeypatch.setattr("trireme.trainer.checkpoint.load.block_reader.BLOCK_BYTES", 3_000)
    kept_ranks(_train_spread, ranks, tmp_path / "run", plan)
    source = Checkpoint(tmp_path / "run" / "checkpoints" / "step_00000002")
    written = load_file(export_source(source, tmp_path / "out", ExportOptions()) / "model.safetensors")
    expected = {f"model.{name}": torch.empty_like(tensor) for name, tensor in written.items()}
    source.read(expected)
    assert {f"model.{name}" for name in written} == {name for name in source.shapes if name.startswith("model.")}
    for name, tensor in written.items():
        assert torch.equal(tensor, expected[f"model.{name}"]), name


def test_a_missing_or_damaged_file_is_noticed(tmp_path: Path) -> None:
    kept_ranks(_train_spread, 2, tmp_path / "run", "fsdp_full_shard")
    folder = tmp_path / "run" / "checkpoints" / "step_00000002"
    one = sorted((folder / "tensors").glob("shard-00002-*"))[0]
    whole = one.read_bytes()
    one.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.raises(UserError, match=f"{one.name} is damaged"):
        export(str(folder), str(tmp_path / "out"))
    one.write_bytes(whole[:60_000])
    with pytest.raises(UserError, match=f"{one.name} has 60000 bytes"):
        export(str(folder), str(tmp_path / "out"))
    with pytest.raises(UserError, match="ends too early"):
        export_source(Checkpoint(folder), tmp_path / "out", ExportOptions(), verify=False)
    one.unlink()
    with pytest.raises(UserError, match=f"{one.name} is missing"):
        export(str(folder), str(tmp_path / "out"))
    one.write_bytes(whole)
    one.with_name(one.name.replace("shard-00002", "shard-00001")).unlink()  # the other shard begins in the middle
    with pytest.raises(UserError, match="is incomplete"):
        export_source(Checkpoint(folder), tmp_path / "out", ExportOptions(), verify=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("others", "said"), [(200_000, "MiB are needed"), (0, "No space left on device")], ids=["at first", "on the way"]
)
def test_a_full_disk_leaves_nothing(tmp_path: Path, others: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has room for the export and 100 kB; another file takes 200 kB before the export begins or meanwhile."""
    train(tiny_recipe(tmp_path / "run", "trainer.max_steps=1", "trainer.eval_at_end=false"))
    whole = export(str(tmp_path / "run"), str(tmp_path / "out"))
    room = sum(file.stat().st_size for file in whole.iterdir()) + 100_000
    monkeypatch.setattr("trireme.trainer.checkpoint.load.block_reader.BLOCK_BYTES", 3_000)
    with small_disk(tmp_path / "disk", room) as disk:
        (disk / "others").write_bytes(bytes(others))
        source = Checkpoint(tmp_path / "run" / "checkpoints" / "step_00000001")
        with pytest.raises(UserError, match=said):
            export_source(
                source, disk / "out", ExportOptions(), check=lambda: (disk / "others").write_bytes(bytes(200_000))
            )
        assert [path.name for path in disk.iterdir()] == ["others"]


WITH_CTRL_C = """
import os, signal, sys
from pathlib import Path
from trireme.launch.cli import main
from trireme.trainer.checkpoint.export import weight_shards as shards

read, beside = shards.raw_bytes, Path(sys.argv[-1]).parent

def interrupted(block):
    if any(beside.glob(".out.partial/*.safetensors")):
        print("writing", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
    return read(block)

shards.raw_bytes = interrupted
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """A separate process gets the signal while its first weight file is open, so that the export cannot have ended."""
    train(tiny_recipe(tmp_path / "run", "trainer.max_steps=1", "trainer.eval_at_end=false"))
    result = subprocess.run(
        [sys.executable, "-c", WITH_CTRL_C, "export", str(tmp_path / "run"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 130 and result.stdout == "writing\n", result.stdout + result.stderr
    assert "interrupted" in result.stderr and "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


class Foreign(Source):
    """A folder as another engine may write it: no configuration, tied names twice, buffers that are computed."""

    def __init__(self, path: Path, state: dict[str, torch.Tensor]) -> None:
        super().__init__(path)
        self.state = {f"model.{name}": tensor for name, tensor in state.items()}

    def read_shapes(self):
        return {name: (tensor.shape, tensor.dtype) for name, tensor in self.state.items()}

    def read(self, tensors, distributed=False) -> None:
        for name, tensor in tensors.items():
            tensor.copy_(self.state[name])

    def progress(self) -> Progress:
        return Progress()


def test_a_checkpoint_of_another_engine_is_exported(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", "model=llama_tiny", "+model.config.tie_word_embeddings=true")
    model = build(recipe, build_mesh(recipe.plan)).strategy.module
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    assert "lm_head.weight" in state and "model.embed_tokens.weight" in state
    state["model.rotary_emb.inv_freq"] = torch.ones(4)
    with pytest.raises(UserError, match="--config FOLDER"):
        export_source(Foreign(tmp_path, state), tmp_path / "out", ExportOptions())
    model.config.save_pretrained(tmp_path / "config")
    (tmp_path / "config" / "optimizer.pt").write_bytes(b"not wanted")
    with pytest.raises(UserError, match=r"lacks 1 tensors of the model: model\.norm\.weight"):
        less = {name: tensor for name, tensor in state.items() if name != "model.norm.weight"}
        export_source(Foreign(tmp_path, less), tmp_path / "out", ExportOptions(), config=str(tmp_path / "config"))
    options = ExportOptions(max_shard_size="30KB")
    folder = export_source(Foreign(tmp_path, state), tmp_path / "out", options, config=str(tmp_path / "config"))
    assert not (folder / "optimizer.pt").exists() and (folder / "generation_config.json").exists()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {name for name, _ in model.named_parameters()}
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert loaded.dtype == torch.float32 and not report["missing_keys"] and not report["unexpected_keys"]
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, state[name].float()), name


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_recipe(tmp_path / "run", "trainer.max_steps=1", "trainer.eval_at_end=false"))
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    with pytest.raises(UserError, match=r"--config.*\n.*holds no config\.json"):
        export(run, out, config=str(tmp_path))
    refused(trireme_here(capsys, "export", run, out, "--memory", "1MB"), "--memory='1MB'", "64MiB")
    done = trireme("export", run, out, "--memory", "64MiB", "--dtype", "bf16")
    assert done.returncode == 0 and done.stdout.strip() == out
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["dtype"], written["architectures"]) == ("bfloat16", ["PersimmonForCausalLM"])
    assert (tmp_path / "out" / "generation_config.json").exists()
