"""Check, before any process starts, that a model can keep packed documents from attending to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import Problem

if TYPE_CHECKING:
    from .model_config import ModelConfig

KEY = "data.packing"
FIX = "set data.packing=true (documents see each other) or false (each document is a row)"


def check_packing(model: ModelConfig, head: str, packing: Any, micro_batch_size: int) -> list[Problem]:
    """Problems of rows whose documents must not see each other.

    Args:
        head: the output layer that the task asks for.
        packing: ``data.packing``, a value that separates documents.
    """
    if head != "causal_lm":
        why = (
            f"separates documents, which only models that predict next tokens can do, but the task has the head {head}"
        )
        return [Problem(KEY, why, FIX, packing)]
    family = model.spec
    if family.packs is False:
        return [Problem(KEY, f"is wrong for {family.title}, whose documents see each other in one row", FIX, packing)]
    if family.packs is None and not model.own and not _takes_positions(model, head):
        why = f"needs positions that restart with each document, but {family.title} takes no position_ids"
        return [Problem(KEY, why, FIX, packing)]
    if model.kernel == "flash_attention_2" and micro_batch_size > 1:
        why = "separates documents only in micro-batches of one row, but trainer.micro_batch_size is more than 1"
        fix = "set model.attention=sdpa, which uses torch's flash attention for packed rows, or micro_batch_size=1"
        return [Problem("model.attention", why, fix, model.kernel)]
    return []


def _takes_positions(model: ModelConfig, head: str) -> bool:
    from .forward_inputs import forward_inputs
    from .model_config import hf_config

    inputs = forward_inputs(hf_config(model), head)
    return inputs is None or "position_ids" in inputs
