"""Find splits of a recipe's texts that are empty, or, where texts are cut into blocks and the tokenizer is trained, too
short for one block, before any text is tokenized.

numpy is imported only if texts were read, so ``trireme check`` answers at once.
"""

from __future__ import annotations

from typing import Any

from ...errors import Problem
from .data_config import DataConfig
from .document_source import EVAL_SOURCE, SOURCE


def check_texts(config: DataConfig, found: dict[str, list[str] | None], source: str = SOURCE) -> list[Problem]:
    """Problems of empty splits, if all documents were read.

    Args:
        found: key of a source -> its documents, or None if they were not all read.
        source: key of the train source in ``found``.
    """
    if all(some is None for some in found.values()):
        return []
    from .split_corpus import no_documents, one_sided  # which need numpy

    texts = {key: [text for text in all_of_it if text] for key, all_of_it in found.items() if all_of_it is not None}
    empty = [no_documents(key, len(found[key] or []), []) for key, some in texts.items() if not some]
    if empty or source not in texts or (config.eval_source and EVAL_SOURCE not in texts):
        return empty
    train, held_out = _splits(config, texts, source)
    if not train or (not held_out and (config.held_out or config.eval_source)):
        return [one_sided(config, len(train) + len(held_out), bool(train))]
    return _check_sizes(config, train, held_out)


def _splits(config: DataConfig, texts: dict[str, list[str]], key: str) -> tuple[list[str], list[str]]:
    """Train and held-out texts, split as preparation or a stream would split them."""
    import numpy as np

    from .held_out import is_held_out, split_documents, text_hash

    source = list(dict.fromkeys(texts[key])) if config.deduplicate else texts[key]
    if config.eval_source:
        held_out = texts[EVAL_SOURCE]
        repeated = set(held_out) if config.deduplicate else set()
        return [text for text in source if text not in repeated], held_out
    hashes = np.array([text_hash(text) for text in source], np.uint64)
    if config.streaming:
        chosen: Any = is_held_out(hashes, config.held_out)
        kept, back = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    else:
        kept, back = split_documents(hashes, config.held_out)
    return [source[row] for row in kept], [source[row] for row in back]


def _check_sizes(config: DataConfig, train: list[str], held_out: list[str]) -> list[Problem]:
    """Problems of splits that cannot fill one block, even if every byte became a token and documents got two more."""
    if config.tokenizer.path is not None or config.packing in (False, "bins"):
        return []
    problems = []
    for name, texts in (("train", train), ("held-out", held_out)):
        most = sum(len(text.encode()) + 2 for text in texts)
        if texts and most < config.block_size:
            problems.append(
                Problem(
                    "data.block_size",
                    f"the {name} split has at most {most} tokens, fewer than one block",
                    "set a smaller data.block_size, or give more text",
                    config.block_size,
                )
            )
    return problems
