"""Make the tensors and the ``quantization_config`` of an exported quantised model, in the format that transformers
loads.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from .eight_bits import EightBits
from .four_bits import OUTER, FourBits, scale_values, values_of
from .gptq_numbers import GptqNumbers
from .number_format import Format, floats

STORAGE = {"uint8": torch.uint8, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def published(form: Format, path: str, parts: dict[str, Tensor], sizes: tuple[int, int]) -> dict[str, Tensor]:
    """The tensors of a layer in a folder, by name."""
    if isinstance(form, FourBits):
        return {f"{path}.weight{ending}": one for ending, one in _four_bits(form, parts, sizes).items()}
    if isinstance(form, EightBits):
        kept = {"weight": parts["packed"], "SCB": floats(parts["scales"])}
        return {f"{path}.{name}": one for name, one in kept.items()}
    assert isinstance(form, GptqNumbers)
    kept = {"qweight": parts["packed"], "qzeros": parts["zeros"], "g_idx": parts["groups"]}
    kept["scales"] = floats(parts["scales"], form.scale_type)
    return {f"{path}.{name}": one for name, one in kept.items()}


def settings(form: Format, skipped: list[str], damping: float = 0.01, by_activity: bool = False) -> dict[str, Any]:
    """``quantization_config`` of config.json.

    Args:
        skipped: linear layers that are not quantised.
    """
    if isinstance(form, GptqNumbers):
        return {
            "quant_method": "gptq",
            "bits": form.width,
            "group_size": form.group_size,
            "desc_act": by_activity,
            "sym": form.symmetric,
            "damp_percent": damping,
            "true_sequential": False,
            "checkpoint_format": "gptq" if form.shift else "gptq_v2",
            "lm_head": False,
        }
    four = isinstance(form, FourBits)
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": four,
        "load_in_8bit": not four,
        "bnb_4bit_quant_type": form.kind if isinstance(form, FourBits) else "fp4",
        "bnb_4bit_use_double_quant": isinstance(form, FourBits) and form.double,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_threshold": (form.threshold if isinstance(form, EightBits) else None) or 6.0,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": skipped or None,
    }


def _four_bits(form: FourBits, parts: dict[str, Tensor], sizes: tuple[int, int]) -> dict[str, Tensor]:
    said: dict[str, Any] = {"quant_type": form.kind, "blocksize": form.group_size, "dtype": "float32"}
    said["shape"] = list(sizes)
    found = {"": parts["packed"].view(-1, 1), ".quant_map": values_of(form.kind, "cpu").clone()}
    if form.double:
        offset = floats(parts["offset"]).item()
        said |= {"nested_blocksize": OUTER, "nested_dtype": "float32", "nested_offset": offset}
        found |= {".absmax": parts["scales"], ".nested_absmax": floats(parts["outer_scales"])}
        found[".nested_quant_map"] = scale_values("cpu").clone()
    else:
        found[".absmax"] = floats(parts["scales"])
    text = torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)
    return {**found, f".quant_state.bitsandbytes__{form.kind}": text}
