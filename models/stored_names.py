"""Functions for the tensor names in weight files: translate them to trireme's names, tell by a name whether weights are
quantised or a tensor is redundant, and list names readably in messages.

No tensor is read and torch is not imported, so ``trireme check`` can use this file too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Prefixes that torch.compile, FSDP and recomputation insert into names."""
QUANTISED = (
    (r"(^|[._])weight_scale_inv$|_scale_inv$", "FP8 with scales in blocks"),
    (r"(^|\.)(qweight|qzeros|scales|g_idx)$", "GPTQ or AWQ"),
    (r"(^|\.)(absmax|nested_absmax|quant_map|nested_quant_map)$|\.quant_state\.", "bitsandbytes, 4 bits"),
    (r"(^|\.)(SCB|weight_format)$", "bitsandbytes, 8 bits"),
    (r"(^|\.)weight_(packed|shape|g_idx)$", "compressed-tensors"),
    (r"_blocks$|_scales$", "MXFP4"),
    (r"(^|[._])(weight|input|output|activation|k|v|q|prob)_(global_)?scale(_2)?$", "FP8 or INT8"),
    (r"zero_points?$", "integers with zero points"),
    (r"(^|\.)(qscale|weight_scales?|scale_weight|bias_scale|in_scale|act_scale)$", "FP8 or INT8"),
)
"""(pattern of names that only quantised weights have, method of quantisation)."""
ADAPTER = re.compile(
    r"(^|\.)(lora_(A|B|embedding_A|embedding_B|magnitude_vector)|modules_to_save|prompt_embeddings)(\.|$)"
)
"""Tensors of adapters, as peft names them."""
COMPUTED = re.compile(
    r"(^|\.)(inv_freq|original_inv_freq|masked_bias|attn\.bias|attention\.bias|position_ids|causal_mask|sin_cached|cos_cached)$"
)
"""Buffers that older versions of transformers stored and newer ones compute; ``attn.bias`` is a causal mask."""
PARTS = {
    "score": "a classifier head",
    "classifier": "a classifier head",
    "classification_head": "a classifier head",
    "qa_outputs": "a head for question answering",
    "summary": "a classifier head",
    "v_head": "a value head",
    "value_head": "a value head",
    "reward_head": "a reward head",
    "lm_head": "a language model head",
    "embed_out": "a language model head",
    "mtp": "a head for several tokens ahead",
    "vision_tower": "a vision tower",
    "vision_model": "a vision tower",
    "visual": "a vision tower",
    "multi_modal_projector": "a projector of images",
    "audio_tower": "an audio tower",
}
"""Description of a tensor by the first or second part of its name."""


def plain(name: str) -> str:
    """``name`` without the prefixes of wrappers."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def own_names(model: Any) -> dict[str, str]:
    """For each name in the model's state dict, the name that trireme uses; tied tensors share the first of theirs."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        names[name] = first.setdefault(id(tensor), name)
    kept = model.state_dict()
    return {name: own for name, own in names.items() if name in kept}


def quantised_by(names: Iterable[str]) -> tuple[str, str] | None:
    """(method of quantisation, the first name that reveals it); None if no name does."""
    for name in names:
        for pattern, method in QUANTISED:
            if re.search(pattern, name):
                return method, name
    return None


def redundant(name: str, model: Any) -> bool:
    """Whether a stored tensor that is absent from the model can be left out without loss."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    buffers = {name for name, _ in model.named_buffers()}
    inside = {name, f"{model.base_model_prefix}.{name}", name.removeprefix(f"{model.base_model_prefix}.")}
    return bool(inside & buffers or COMPUTED.search(name) or any(re.search(pattern, name) for pattern in patterns))


def grouped(names: Iterable[str], lists: dict[str, int], most: int = 8) -> str:
    """A readable list of names, such as ``score.weight (a classifier head)``; names that differ only in numbers are
    grouped.

    Args:
        lists: path of each of the model's lists of blocks -> how many blocks it has.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    told = []
    for pattern, members in list(groups.items())[:most]:
        what = _description(members, lists)
        size = f"{len(members)} tensors" if len(members) > 1 else ""
        inside = ", ".join(part for part in (size, what) if part)
        told.append((pattern if len(members) > 1 else members[0]) + (f" ({inside})" if inside else ""))
    rest = sum(len(members) for members in list(groups.values())[most:])
    return ", ".join(told) + (f" and {rest} more" if rest else "")


def _description(members: list[str], lists: dict[str, int]) -> str:
    name = members[0]
    for path, count in lists.items():
        block = re.search(rf"(?:^|\.){re.escape(path.rpartition('.')[2])}\.(\d+)\.", name)
        if block and int(block[1]) >= count:
            return f"blocks beyond the model's {count}"
    return next((what for part in name.split(".")[:2] if (what := PARTS.get(part))), "")
