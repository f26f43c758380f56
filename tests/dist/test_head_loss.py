"""``model.loss=chunked`` gives the trajectory of ``plain`` under plans of every kind: losses, norms, metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.metrics import lines
from helpers.ranks import run_ranks
from helpers.recipes import TINY
from helpers.several_runs import train_all
from helpers.zero import load_deepspeed

SHORT = [
    *("trainer.max_steps=4", "trainer.eval_every=2", "trainer.log_every=1", "trainer.micro_batch_size=2"),
    *("task.label_smoothing=0.1", "task.z_loss=0.001", "optimizer=sgd", "optimizer.lr=0.1", "trainer.eval_samples=8"),
]
TIED = ["model=llama_tiny", "model.config.tie_word_embeddings=true"]
CAPPED = ["model=recurrent_gemma_tiny", "model.config.num_hidden_layers=3"]
PLANS = {
    "single": (1, [*CAPPED, "model.config.logits_soft_cap=2.0"]),
    "ddp": (2, ["model=gptj_tiny"]),  # a head with a bias
    "fsdp_full_shard": (2, TIED),
    "zero3": (2, TIED),
    "tp": (2, [*CAPPED, "model.config.logits_soft_cap=2.0"]),
    "pp_1f1b": (2, [*CAPPED, "model.config.logits_soft_cap=2.0"]),
    "pp_zero_bubble": (2, ["model=gpt_neox_tiny"]),
}


@pytest.mark.parametrize("plan", list(PLANS))
def test_the_trajectory_is_that_of_the_plain_loss(plan: str, tmp_path: Path) -> None:
    ranks, model = PLANS[plan]
    if plan == "zero3":
        load_deepspeed()
    options = [f"plan={plan}", *model, *SHORT]
    jobs = [(TINY, tmp_path / loss, [*options, f"model.loss={loss}"]) for loss in ("plain", "chunked")]
    run_ranks(train_all, ranks, jobs)
    plain, chunked = (lines(tmp_path / loss) for loss in ("plain", "chunked"))
    assert len(plain) == len(chunked) > 4
    for one, other in zip(plain, chunked, strict=True):
        for name in ("loss", "grad_norm", "eval_loss", "eval_accuracy"):
            assert (name in one) == (name in other)
            if name in one:
                assert other[name] == pytest.approx(one[name], rel=1e-6), (name, one, other)
