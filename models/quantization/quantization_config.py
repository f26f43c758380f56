"""The ``model.quantization`` section of a recipe: how the linear layers of a frozen base model are quantised. LoRA
adapters are then trained beside these layers (QLoRA).

The 16 values of QLoRA's NF4 format (https://arxiv.org/abs/2305.14314) are quantiles of a normal distribution, with one
scale for each group of 64 numbers. LLM.int8 (https://arxiv.org/abs/2208.07339) stores 8-bit integers with one scale
for each row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from ...errors import refuse

FOUR_BITS = ("nf4", "fp4")
STORED = "stored"
TORCHAO = "torchao_"
Method = Literal["nf4", "fp4", "int8", "torchao_int8", "torchao_int4", "torchao_fp8", "stored"]
Dtype = Literal["fp32", "bf16", "fp16"]


@dataclass
class QuantizationConfig:
    """How the linear layers of a frozen base are quantised."""

    REPLACED: ClassVar[dict[str, tuple[str, str]]] = {
        theirs: ("has another name in trireme", f"write {ours}")
        for theirs, ours in (
            ("load_in_4bit", "model.quantization.method=nf4"),
            ("load_in_8bit", "model.quantization.method=int8"),
            ("bnb_4bit_quant_type", "model.quantization.method"),
            ("bnb_4bit_use_double_quant", "model.quantization.double"),
            ("bnb_4bit_compute_dtype", "model.quantization.compute_dtype"),
            ("bnb_4bit_blocksize", "model.quantization.group_size"),
            ("blocksize", "model.quantization.group_size"),
            ("llm_int8_threshold", "model.quantization.threshold"),
            ("llm_int8_enable_fp32_cpu_offload", "model.quantization.on_cpu"),
            ("llm_int8_skip_modules", "model.quantization.skip"),
            ("modules_to_not_convert", "model.quantization.skip"),
            ("torch_dtype", "model.quantization.other_dtype"),
            ("dtype", "model.quantization.other_dtype"),
            ("quant_method", "model.quantization.method"),
        )
    }
    method: Method = "nf4"
    """``nf4`` or ``fp4``: 4 bits with a scale for each group of numbers; ``int8``: 8 bits with a scale for each row.
    The numbers are those of bitsandbytes. ``torchao_int8``, ``torchao_int4`` and ``torchao_fp8`` take torchao's
    numbers, with a scale for each row or, for ``int4``, for each group. ``stored``: as the folder of ``model.weights``
    holds them already (layouts of bitsandbytes, GPTQ, AWQ and torchao)."""
    group_size: int = 64
    """Numbers that share one scale, for methods of 4 bits."""
    double: bool = True
    """Keep the scales of 4-bit numbers in 8 bits themselves (double quantisation), which saves 0.37 bits a number."""
    threshold: float | None = None
    """For ``int8``: quantise the inputs of layers too, but for features in which a value is larger than this (LLM.int8
    takes 6). Such features are those of a micro-batch, so losses then depend on its size. Null leaves inputs as they
    are."""
    compute_dtype: Dtype | None = None
    """Type of the products of quantised layers; null takes that of their inputs, which ``plan.precision`` sets."""
    other_dtype: Dtype = "fp32"
    """Type in which the frozen parameters of all other layers are kept: embeddings, norms, heads. Half precision needs
    the same ``plan.precision``."""
    skip: list[str] = field(default_factory=list)
    """Layers that are not quantised: last parts of their names, or patterns such as ``model.layers.0.*``. Heads, tied
    layers, ``modules_to_save`` and what the architecture keeps in fp32 never are."""
    on_cpu: list[str] = field(default_factory=list)
    """Modules that stay in the memory of the CPU beside a GPU and compute there, in ``other_dtype``: last parts of
    their names, or patterns such as ``model.layers.3*``. They are not quantised, and nothing in them may be trained.
    For one process; without a GPU they are merely not quantised."""

    def __post_init__(self) -> None:
        refuse(self._flaws())

    def _flaws(self) -> Iterator[str]:
        four = self.method in FOUR_BITS
        if four and self.group_size not in SIZES:
            listed = ", ".join(map(str, SIZES))
            yield f"group_size={self.group_size} is not offered by bitsandbytes; use one of {listed}"
        if self.threshold is not None and not self.threshold > 0:
            yield f"threshold={self.threshold} must be positive; use 6, or null to leave inputs as they are"
        if self.method == "torchao_int4" and (self.group_size < 2 or self.group_size % 2):
            yield f"group_size={self.group_size} must be even and positive; use 32"
        if self.threshold is not None and self.method not in ("int8", STORED):
            yield f"threshold={self.threshold} belongs to int8; leave it out, or set method=int8"
        if self.skip and self.method == STORED:
            yield f"skip={self.skip} has no effect on weights that are quantised already; leave it out"

    @property
    def package(self) -> str:
        """The package that quantises the weights; empty if they are quantised in their file already."""
        return "" if self.method == STORED else "torchao" if self.method.startswith(TORCHAO) else "bitsandbytes"

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that, together with the weights of the base, decide its quantised numbers."""
        used = asdict(self)
        left = ["compute_dtype", "threshold", "skip", "on_cpu"]
        left += [] if self.method in FOUR_BITS else ["double"]
        left += [] if self.method in (*FOUR_BITS, "torchao_int4") else ["group_size"]
        return {name: value for name, value in used.items() if name not in left}


SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Sizes of groups that bitsandbytes has kernels for."""


def quantization_of(values: Any) -> QuantizationConfig | None:
    """The typed settings of a recipe that was read back as plain data."""
    return QuantizationConfig(**values) if isinstance(values, dict) else values
