"""Check the numbers, texts and lengths that ``trireme generate`` is given, before the model generates anything."""

from __future__ import annotations

import math
from typing import Any

from ..configs.check_characters import unreadable
from ..errors import Problem, UserError
from .notes import tell

USUAL_LENGTH = 100
"""Tokens that are written if nothing else is asked for."""
LARGEST = 2**63 - 1
"""Largest number that tensors hold."""
LARGEST_SEED = 2**32 - 1
"""Largest seed that numpy takes."""
COLDEST = 1e-6
"""Lowest temperature above 0 that scores can be divided by."""


def check_numbers(max_new_tokens: int | None, temperature: float, top_k: int, seed: int) -> None:
    """Refuse numbers that no model can write by.

    Raises:
        UserError: all that are wrong.
    """
    problems = []
    if max_new_tokens is not None and not 1 <= max_new_tokens <= LARGEST:
        why = "must be at least 1" if max_new_tokens < 1 else "is too large"
        problems.append(Problem("--max-new-tokens", why, "write 1 or more, such as 100", max_new_tokens))
    if not math.isfinite(temperature):
        fix = "0 takes the likeliest token, 0.8 is usual"
        problems.append(Problem("--temperature", "is not finite", fix, temperature))
    elif temperature < 0:
        problems.append(Problem("--temperature", "must not be negative", "0 takes the likeliest token", temperature))
    elif 0 < temperature < COLDEST:
        why = f"is too low: scores cannot be divided by less than {COLDEST:g}"
        problems.append(Problem("--temperature", why, "0 takes the likeliest token", temperature))
    if not 0 <= top_k <= LARGEST:
        why = "must not be negative" if top_k < 0 else "is too large"
        problems.append(Problem("--top-k", why, "0 draws from all tokens", top_k))
    if not 0 <= seed <= LARGEST_SEED:
        why = "must not be negative" if seed < 0 else f"is above {LARGEST_SEED}"
        problems.append(Problem("--seed", why, f"write a number from 0 to {LARGEST_SEED}", seed))
    if problems:
        raise UserError(*problems)


def check_text(option: str, text: Any) -> None:
    """Refuse a text, or a row of texts, with a byte that is not UTF-8.

    Raises:
        UserError: it has one.
    """
    found = list(unreadable(text if isinstance(text, dict | list) else {"": text}))
    if found:
        where = f" ({found[0].field})" if found[0].field else ""
        why = f"holds a NUL, or a byte that is not UTF-8{where}"
        raise UserError(Problem(option, why, "write it in UTF-8", found[0].value))


def new_tokens(model: Any, begun: int, asked: int | None) -> int:
    """How many tokens are to be written; a note tells of a text beyond the length that the model was made for.

    Args:
        begun: tokens of the prompt.
        asked: None stands for ``USUAL_LENGTH``, or fewer where the model has no positions for so many.

    Raises:
        UserError: the model has a learnt position for each place, and too few of them.
    """
    new = USUAL_LENGTH if asked is None else asked
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(most, int) or most < 1:
        return new
    # The last token that is written is never read.
    longest = max(begun, new) if model.config.is_encoder_decoder else begun + new - 1
    if longest <= most:
        return new
    if not _learns_positions(model, most):
        tell([f"the text may grow to {longest + 1} tokens; the model was made for {most}"])
        return new
    if begun > most:
        why = f"has {begun} tokens, and the model has {most} positions"
        raise UserError(Problem("--prompt", why, "give a shorter one"))
    fits = most if model.config.is_encoder_decoder else most - begun + 1
    if asked is None:
        return fits
    why = f"needs more positions than the model has: {most}, of which the prompt takes {begun}"
    raise UserError(Problem("--max-new-tokens", why, f"write {fits} or fewer, or give a shorter prompt", new))


def _learns_positions(model: Any, most: int) -> bool:
    """Whether the model has a table of positions with a row for each place."""
    from torch import nn

    tables = (name.rpartition(".")[2] for name, module in model.named_modules() if _is_table(module, nn, most))
    return any("pos" in name or name == "wpe" for name in tables)


def _is_table(module: Any, nn: Any, most: int) -> bool:
    return isinstance(module, nn.Embedding) and most <= module.num_embeddings <= most + 8  # OPT has a few rows more
