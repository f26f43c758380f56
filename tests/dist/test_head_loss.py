"""Computing logits and loss in chunks (``model.loss=chunked``) changes no losses or metrics under DDP, FSDP, ZeRO,
tensor and pipeline plans.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.metrics import lines
from helpers.recipes import TINY
from helpers.several_runs import train_all_on_ranks
from helpers.zero import load_deepspeed

SHORT = [
    *("trainer.max_steps=4", "trainer.eval_every=2", "trainer.log_every=1", "trainer.micro_batch_size=2"),
    *("task.label_smoothing=0.1", "task.z_loss=0.001", "optimizer=sgd", "optimizer.lr=0.1", "trainer.eval_samples=8"),
]
TIED = ["model=llama_tiny", "model.config.tie_word_embeddings=true"]
CAPPED = ["model=recurrent_gemma_tiny", "model.config.num_hidden_layers=3"]
AUTO = ["model.family=auto", "+model.config.model_type=qwen3", "~model.config.rope_theta"]
PLANS = {
    "capped": (1, ["plan=single", *CAPPED, "model.config.logits_soft_cap=2.0"]),
    "ddp": (2, ["plan=ddp", "model=gptj_tiny"]),  # a head with a bias
    "ddp_auto": (2, ["plan=ddp", "model=llama_tiny", *AUTO]),  # looks for unused parameters behind the outputs
    "fsdp_tied": (2, ["plan=fsdp_full_shard", *TIED]),
    "fsdp_bf16": (2, ["plan=fsdp_full_shard", "plan.precision=bf16", "model=gpt_neox_tiny"]),
    "zero3_tied": (2, ["plan=zero3", *TIED]),
    "tp_capped": (2, ["plan=tp", *CAPPED, "model.config.logits_soft_cap=2.0"]),
    "pp_1f1b": (2, ["plan=pp_1f1b", *CAPPED, "model.config.logits_soft_cap=2.0"]),
    "pp_zero_bubble": (2, ["plan=pp_zero_bubble", "model=gpt_neox_tiny"]),
}


@pytest.mark.parametrize("name", list(PLANS))
def test_the_trajectory_is_that_of_the_plain_loss(name: str, tmp_path: Path) -> None:
    ranks, options = PLANS[name]
    if "zero3" in name:
        load_deepspeed()
    jobs = [(TINY, tmp_path / loss, [*options, *SHORT, f"model.loss={loss}"]) for loss in ("plain", "chunked")]
    train_all_on_ranks(ranks, jobs)
    plain, chunked = (lines(tmp_path / loss) for loss in ("plain", "chunked"))
    near = 1e-2 if "bf16" in name else 1e-6
    assert len(plain) == len(chunked) > 4
    for one, other in zip(plain, chunked, strict=True):
        for key in ("loss", "grad_norm", "eval_loss", "eval_accuracy"):
            assert (key in one) == (key in other)
            if key in one and not (key == "eval_accuracy" and "bf16" in name):
                assert other[key] == pytest.approx(one[key], rel=near), (key, one, other)
