"""The transformers configuration of Transformer-XL, with the field names of the published models."""

from __future__ import annotations

from itertools import pairwise

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..check_field_types import refuse_other_types


@strict
class TransfoXLConfig(PreTrainedConfig):
    """Sizes and options of a Transformer-XL. The defaults are those of the model published for WikiText-103."""

    model_type = "transfo-xl"
    keys_to_ignore_at_inference = ["mems", "mem_lengths", "past_key_values"]  # noqa: RUF012 (as in transformers)
    attribute_map = {  # noqa: RUF012
        "n_token": "vocab_size",
        "hidden_size": "d_model",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "head_dim": "d_head",
        "intermediate_size": "d_inner",
    }

    vocab_size: int = 267735
    cutoffs: list[int] | tuple[int, ...] = (20000, 40000, 200000)
    """Words at which a new cluster of the adaptive softmax begins; words are numbered by falling frequency."""
    d_model: int = 1024
    d_embed: int = 1024
    """Width of the embeddings of the first cluster."""
    n_head: int = 16
    d_head: int = 64
    d_inner: int = 4096
    div_val: int = 4
    """Divisor of the embedding width from each cluster to the next; 1 keeps one width for all clusters."""
    pre_lnorm: bool = False
    """Whether norms stand before attention and the feed-forward part, not after the sum."""
    n_layer: int = 18
    mem_len: int = 1600
    """Positions before a segment that each layer remembers."""
    clamp_len: int = 1000
    """Longest distance; longer ones count as this one. 0 or less means no limit."""
    same_length: bool = True
    """Whether every token sees equally many positions, ``mem_len``, itself among them."""
    proj_share_all_but_first: bool = True
    """Whether the softmax uses the projections of the embedding for all clusters but the first."""
    tie_projs: list[bool] | None = None
    """For each cluster, whether the softmax uses the embedding's projection; None: by ``proj_share_all_but_first``."""
    attn_type: int = 0
    """Kind of attention; only 0, Transformer-XL's own, is supported."""
    sample_softmax: int = -1
    """Words that a sampled softmax draws; only -1, which draws none, is supported."""
    dropout: float = 0.1
    dropatt: float = 0.0
    untie_r: bool = True
    """Whether every layer has biases of content and position of its own."""
    init: str = "normal"
    init_range: float = 0.01
    """Range of weights under ``init=uniform``."""
    proj_init_std: float = 0.01
    init_std: float = 0.02
    layer_norm_epsilon: float = 1e-5
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 0
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True

    @property
    def cluster_ends(self) -> list[int]:
        """Borders of the clusters: cluster i holds the words from the i-th to the next."""
        return [0, *self.cutoffs, self.vocab_size]

    @property
    def cluster_widths(self) -> list[int]:
        """Width of the embeddings of each cluster."""
        return [self.d_embed // self.div_val**number for number in range(len(self.cutoffs) + 1)]

    @property
    def tied_projections(self) -> list[bool]:
        """For each cluster, whether the softmax uses the embedding's projection."""
        if self.tie_projs is not None:
            return list(self.tie_projs)
        return [False, *[self.proj_share_all_but_first] * len(self.cutoffs)]

    def validate_architecture(self) -> None:
        """Check the fields' types and the clusters' sizes; the validation of ``strict`` calls this."""
        refuse_other_types(self, TransfoXLConfig)
        borders = self.cluster_ends
        if any(low >= high for low, high in pairwise(borders)):
            raise ValueError(
                f"cutoffs={list(self.cutoffs)} must rise from above 0 to below vocab_size, which is {self.vocab_size}; "
                "write rising numbers of this range, or [] for one cluster"
            )
        if self.div_val < 1 or min(self.cluster_widths) < 1:
            raise ValueError(
                f"div_val={self.div_val} must be at least 1, and leave at least one of d_embed={self.d_embed} features "
                f"for the last of {len(borders) - 1} clusters; write 1 for clusters of one width"
            )
        if len(self.tied_projections) != len(borders) - 1:
            clusters = len(borders) - 1
            raise ValueError(
                f"tie_projs={self.tie_projs} must name each of {clusters} clusters; write {clusters} values"
            )
        if self.d_model % 2:
            raise ValueError(
                f"d_model={self.d_model} must be even, since positions are pairs of a sine and a cosine; "
                f"write {self.d_model + 1}"
            )
        if self.mem_len < 0:
            raise ValueError(
                f"mem_len={self.mem_len} is a number of positions, so it must not be negative; use 0 for no memory"
            )
        if self.attn_type != 0:
            raise ValueError(f"attn_type={self.attn_type} is not supported; use 0, the attention of Transformer-XL")
        if self.sample_softmax > 0:
            raise ValueError(
                f"sample_softmax={self.sample_softmax} is not supported; use -1, which computes the full softmax"
            )
        if self.init not in ("normal", "uniform"):
            raise ValueError(f"init={self.init!r} must be normal or uniform; write one of them")
