"""Exporting a DeepSpeed checkpoint gives the same bytes as DeepSpeed's ``zero_to_fp32``, and transformers loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.kept_ranks import kept_ranks
from helpers.zero import load_deepspeed
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig
from trireme.parallel.zero.library import installed, quiet
from trireme.trainer.checkpoint.export.export_folder import ExportOptions, export

pytestmark = pytest.mark.skipif(not installed(), reason="DeepSpeed is not installed")


def _save(folder: Path, stage: int, tied: bool) -> None:
    """Train three steps in bf16, where DeepSpeed keeps fp32 weights of its own, and call its ``save_checkpoint``."""
    import deepspeed

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=101,  # so that a rank's piece ends within a tensor
        hidden_size=32,
        intermediate_size=50,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    model = AutoModelForCausalLM.from_config(config)
    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0, "sub_group_size": 5000},
    }
    with quiet():
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        settings["zero_allow_untested_optimizer"] = True
        engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]
        for step in range(3):
            tokens = (torch.arange(24).reshape(2, 12) * (step + 3)) % 101
            engine.backward(engine(input_ids=tokens, labels=tokens).loss)
            engine.step()
        engine.save_checkpoint(str(folder))
    if torch.distributed.get_rank() == 0:
        config.save_pretrained(folder)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("stage", "tied"),
    [
        (1, True),
        pytest.param(2, False, marks=pytest.mark.long),
        (3, True),
        pytest.param(3, False, marks=pytest.mark.long),
    ],
)
def test_as_zero_to_fp32(tmp_path: Path, stage: int, tied: bool) -> None:
    load_deepspeed()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    kept_ranks(_save, 2, tmp_path / "zero", stage, tied)
    with quiet():
        theirs = get_fp32_state_dict_from_zero_checkpoint(str(tmp_path / "zero"))
    folder = export(str(tmp_path / "zero"), str(tmp_path / "out"))
    ours = load_file(folder / "model.safetensors")
    assert set(theirs) - set(ours) == ({"lm_head.weight"} if tied else set()) and not set(ours) - set(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype == torch.float32
        assert tensor.numpy().tobytes() == theirs[name].detach().contiguous().numpy().tobytes(), name
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(loaded.lm_head.weight, theirs["lm_head.weight"])
    small = export(str(tmp_path / "zero"), str(tmp_path / "small"), ExportOptions("fp16", max_shard_size="20KB"))
    assert len(list(small.glob("*.safetensors"))) > 1
    for name, parameter in AutoModelForCausalLM.from_pretrained(small, dtype="auto").named_parameters():
        assert torch.equal(parameter, ours[name].half()), name
