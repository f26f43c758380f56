"""What a model must know of its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import Problem


@dataclass(frozen=True)
class Vocabulary:
    """What a model must know of its tokenizer."""

    size: int
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None


def too_few_embeddings(embeddings: int, tokens: int, weights: str | None) -> Problem:
    """The refusal of a tokenizer that gives tokens which the model has no embedding for."""
    why = f"is smaller than the tokenizer's {tokens} tokens"
    fix = f"use at least {tokens}, or a tokenizer of at most {embeddings} tokens"
    if weights is not None:
        why = f"is smaller than the tokenizer's {tokens} tokens, and the weights have so many embeddings"
        fix = (
            "use the tokenizer that the weights were trained with, or enlarge them once: "
            f'python -c "from transformers import AutoModelForCausalLM as M; m = M.from_pretrained({weights!r}); '
            f"m.resize_token_embeddings({tokens}); m.save_pretrained('enlarged')\" and model.weights=enlarged"
        )
    return Problem("model.config.vocab_size", why, fix, embeddings)
