"""The training jobs of the comparison with other libraries: model, batch size, length, precision and device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Shape:
    """One training job. All libraries begin with the same weights and read the same blocks in the same order."""

    about: str
    model: dict[str, Any]
    """Fields of the Llama's configuration."""
    length: int
    """Tokens of a block."""
    global_batch: int
    micro_batch: int
    """Blocks of one forward pass on one rank."""
    steps: int
    save_after: int
    """Step after which a checkpoint with the optimizer's state is written."""
    held_out: int
    """Blocks of the evaluation at the end."""
    ranks: int = 2
    device: str = "cpu"
    precision: str = "fp32"
    lora: int | None = None
    """Rank of the adapters that are trained in the place of the model."""
    recompute: bool = False
    """Whether activations are computed again in the backward pass."""
    peers: tuple[str, ...] = ()
    """Names of the libraries that are compared; empty means all that can run the job."""


def llama(hidden: int, layers: int, heads: int, vocabulary: int, inner: int, key_heads: int | None = None) -> dict:
    """Fields of a Llama's configuration."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads or heads,
        "max_position_embeddings": 8192,
    }


SMALL = Shape(
    "a Llama of 5 M parameters in fp32 on two cores",
    llama(256, 4, 4, 4096, 688),
    length=256,
    global_batch=8,
    micro_batch=4,
    steps=24,
    save_after=12,
    held_out=64,
)
ADAPTED = ("trireme", "transformers", "accelerate", "trl")
"""Libraries that train adapters."""
SHAPES = {
    "small": SMALL,
    "small_lora": replace(SMALL, about="adapters of rank 8 beside the same Llama", lora=8, peers=ADAPTED),
    "pretrain_1b": Shape(
        "pretraining of a Llama of 1.5 B parameters in bf16",
        llama(2048, 16, 32, 128256, 8192, 8),
        length=4096,
        global_batch=16,
        micro_batch=2,
        steps=40,
        save_after=20,
        held_out=64,
        ranks=1,
        device="cuda",
        precision="bf16",
    ),
    "llama3_8b_lora": Shape(
        "adapters of rank 16 beside a Llama of 8 B parameters at 4,096 tokens",
        llama(4096, 32, 32, 128256, 14336, 8),
        length=4096,
        global_batch=8,
        micro_batch=2,
        steps=24,
        save_after=12,
        held_out=32,
        ranks=1,
        device="cuda",
        precision="bf16",
        lora=16,
        recompute=True,
        peers=ADAPTED,
    ),
}
