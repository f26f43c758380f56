"""Sliding-window attention over long texts, in time and memory linear in their length.

With a window, transformers passes a mask [length, length] to torch's kernel, which takes quadratic time and memory.
This file registers an attention function that replaces ``sdpa``. It cuts the queries into chunks of a quarter of the
window, and passes each chunk only the keys of the chunk itself and of the window before it. This is done if the mask
means exactly "causal, within a window". Every other mask (padding, documents, generation) is used as usual. The idea is
that of Longformer (https://arxiv.org/abs/2004.05150, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

KERNEL = "sdpa_of_windows"
"""Name in transformers' registries."""


def attend_in_windows(model: PreTrainedModel) -> None:
    """Use this kernel in ``model`` if its kernel is ``sdpa``; others keep theirs."""
    use_kernel(model, KERNEL, window_attention, window_mask, ("sdpa",))


def use_kernel(
    model: PreTrainedModel, name: str, kernel: Callable[..., Any], mask: Callable[..., Any], instead_of: Sequence[str]
) -> None:
    """Enter a kernel and its masks in transformers' registries, and use it in a model whose kernel is one of
    ``instead_of``."""
    if model.config._attn_implementation in instead_of:
        AttentionInterface.register(name, kernel)
        AttentionMaskInterface.register(name, mask)
        model.set_attn_implementation(name)


def window_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **others: Any,
) -> Tensor | None:
    """None where a mask is causal in a window of ``local_size`` that is shorter than the text; else what ``sdpa_mask``
    gives.

    Args:
        mask_function: (row, head, query, key) -> whether the query sees the key.
    """
    square = q_length == kv_length and q_offset == kv_offset == 0
    long = local_size is not None and q_length > local_size and not use_vmap
    if square and long and (attention_mask is None or bool(attention_mask.all())):
        assert local_size is not None
        if _is_window(batch_size, q_length, local_size, mask_function, device):
            return None
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        use_vmap=use_vmap,
        device=device,
        **others,
    )


def _is_window(batch: int, length: int, size: int, sees: Callable[..., Any], device: torch.device | str) -> bool:
    """Whether each token sees exactly itself and the ``size - 1`` tokens before it; tests only the window's ends."""
    row = torch.arange(batch, device=device)[:, None]
    place = torch.arange(length, device=device)[None]
    seen = [sees(row, 0, place, (place - back).clamp(min=0)) for back in (0, 1, size - 1)]
    hidden = [sees(row, 0, place[:, :-1], place[:, 1:]), sees(row, 0, place[:, size:], place[:, size:] - size)]
    return all(bool(each.all()) for each in seen) and not any(bool(each.any()) for each in hidden)


def window_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of queries, keys and values [rows, heads, length, size], as transformers' kernels have it.

    Args:
        attention_mask: None for a causal one, in the window if the text is longer.
    """
    length = query.shape[2]
    if attention_mask is not None or sliding_window is None or not sliding_window < length == key.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **others)
    size = sliding_window
    step = size // 4 if size % 4 == 0 else size
    grouped: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1], "dropout_p": dropout, "scale": scaling}
    begins = [each[:, :, :size] for each in (query, key, value)]
    first = F.scaled_dot_product_attention(begins[0], begins[1], begins[2], is_causal=True, **grouped)
    pieces = -(-(length - size) // step)
    missing = size + pieces * step - length
    padded = [F.pad(each, (0, 0, 0, missing)) for each in (query, key, value)]
    queries = padded[0][:, :, size:].unflatten(2, (pieces, step)).transpose(1, 2).flatten(0, 1)
    keys, values = (each.unfold(2, size + step, step).permute(0, 2, 1, 4, 3).flatten(0, 1) for each in padded[1:])
    place = torch.arange(size + step, device=query.device)
    back = place[size:, None] - place
    later = F.scaled_dot_product_attention(queries, keys, values, attn_mask=(back >= 0) & (back < size), **grouped)
    later = later.unflatten(0, (-1, pieces)).transpose(1, 2).flatten(2, 3)[:, :, : length - size]
    return torch.cat([first, later], 2).transpose(1, 2).contiguous(), None
