"""An attention function for packed sequences of texts: it computes attention only within each document.

transformers separates the documents of a packed sequence by a mask of shape [batch, 1, length, length]. So a sequence
of many documents costs as much as one long document, and on a GPU the mask rules out torch's fast kernels. This file
registers an attention function that replaces ``sdpa``. If a mask means exactly "causal, within a document", the
function receives the number of each token's document instead of the mask. Every other mask (sliding window, padding,
generation) is used as usual.

On the CPU torch's kernel is called once per document. On CUDA in 16 bits, ``varlen_attn`` (torch's flash attention for
sequences of different lengths) handles all documents in one call. ``varlen_attn`` does not support 32 bits, so there
the usual mask is built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from .window_attention import KERNEL as WINDOWS
from .window_attention import use_kernel

KERNEL = "sdpa_of_documents"
"""Name in transformers' registries."""


def attend_within_documents(model: PreTrainedModel) -> None:
    """Use this kernel in ``model`` if its kernel is ``sdpa`` (also of windows); others, with a mask, keep theirs."""
    use_kernel(model, KERNEL, document_attention, document_mask, ("sdpa", WINDOWS))


def document_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **others: Any,
) -> Tensor | None:
    """Number of each token's document, [batch, 1, 1, length] (int32), or what ``sdpa_mask`` gives.

    Args:
        mask_function: (row, head, query, key) -> whether the query sees the key.
    """
    plain = attention_mask is None and not allow_is_causal_skip and not use_vmap
    if plain and q_length == kv_length > 1 and q_offset == kv_offset == 0:
        numbers = _documents(batch_size, q_length, mask_function, device)
        if numbers is not None:
            return numbers[:, None, None]
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        use_vmap=use_vmap,
        device=device,
        **others,
    )


def _documents(batch: int, length: int, sees: Callable[..., Any], device: torch.device | str) -> Tensor | None:
    """Number of each token's document, [batch, length]; None if the mask is another one than causal within documents.

    A mask of documents is known by three lines beside its diagonal: which token sees the one before it, that no token
    sees the one after it, and that every token sees the first one of its document.
    """
    row = torch.arange(batch, device=device)[:, None]
    place = torch.arange(length, device=device)[None]
    joined = sees(row, 0, place[:, 1:], place[:, :-1]).expand(batch, -1)
    new = F.pad(~joined, (1, 0), value=True)
    first = torch.where(new, place, 0).cummax(1).values
    whole = sees(row, 0, place, first).all() & ~sees(row, 0, place[:, :-1], place[:, 1:]).any()
    return new.cumsum(1, dtype=torch.int32) if bool(whole) else None


def document_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of queries, keys and values [rows, heads, length, size], as transformers' kernels have it.

    Args:
        attention_mask: numbers of documents from ``document_mask``, or any mask of ``sdpa``.
    """
    if attention_mask is None or attention_mask.dtype is not torch.int32:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **others)
    on_gpu = query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and not dropout
    if others.get("position_bias") is not None or others.get("softcap") is not None or not (on_gpu or _on_cpu(query)):
        mask = _dense(attention_mask)
        return sdpa_attention_forward(module, query, key, value, mask, dropout, scaling, **others)
    rows, heads, length = query.shape[:3]
    lengths = document_lengths(attention_mask)
    query, key, value = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))  # [tokens, heads, size]
    if on_gpu:
        output = _by_varlen(query, key, value, lengths, scaling)
    else:
        parts = zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
        output = torch.cat([_alone(q, k, v, dropout, scaling) for q, k, v in parts])
    return output.view(rows, length, heads, -1), None


def document_lengths(numbers: Tensor) -> list[int]:
    """Lengths of the documents of all rows, one after the other; a document ends with its row.

    Args:
        numbers: [rows, 1, 1, length], of which layers get the same tensor, so that it is looked at once.
    """
    if (known := getattr(numbers, "document_lengths", None)) is not None:
        return known
    rows, length = numbers.shape[0], numbers.shape[-1]
    row = torch.arange(rows, device=numbers.device, dtype=torch.int64)[:, None] * (length + 1)
    _, counts = torch.unique_consecutive((numbers.view(rows, length) + row).flatten(), return_counts=True)
    numbers.document_lengths = counts.tolist()  # type: ignore[attr-defined]
    return numbers.document_lengths  # type: ignore[attr-defined]


def _alone(query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None) -> Tensor:
    """Causal attention of one document, [tokens, heads, size]."""
    query, key, value = (each.transpose(0, 1)[None] for each in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    output = F.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
    )
    return output[0].transpose(0, 1)


def _by_varlen(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scaling: float | None) -> Tensor:
    """Causal attention of all documents at once, [tokens, heads, size]."""
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(query.device)
    grouped, most = query.shape[1] != key.shape[1], max(lengths)
    query, key, value = (each.contiguous() for each in (query, key, value))
    found = varlen_attn(
        query, key, value, ends, ends, most, most, scale=scaling, window_size=(-1, 0), enable_gqa=grouped
    )
    assert isinstance(found, Tensor)
    return found


def _on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _dense(numbers: Tensor) -> Tensor:
    """The mask [rows, 1, length, length] of documents; true where a query sees a key."""
    length = numbers.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=numbers.device).tril()
    return causal & (numbers.transpose(-1, -2) == numbers)
