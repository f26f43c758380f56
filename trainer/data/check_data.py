"""Check a recipe's data without preparing it: sources must keep their contract, files must exist and be readable.

Neither torch nor datasets is imported, so that ``trireme check`` answers at once.
"""

from __future__ import annotations

import re
from typing import Any

from ...errors import ComponentFailed, Problem, UserError
from ..component import Component
from .data_config import DataConfig
from .document_source import EVAL_SOURCE, SOURCE, DocumentSource
from .mixed_source import SOURCES, problem_of_source, source_key
from .row_source import RowSource


def check_data(config: DataConfig, collator: Component | None = None, rows: bool = False) -> list[Problem]:
    """Problems of the sources, and of the documents where they can be read quickly.

    Args:
        rows: whether the task learns from rows, not from documents.
    """
    problems: list[Problem] = []
    texts: dict[str, list[str] | None] = {}
    mixed = {source_key(name): entry.source for name, entry in (config.sources or {}).items()}
    further = {f"data.eval_sets.{name}": component for name, component in config.eval_sets.items()}
    alone = {SOURCE: config.source, EVAL_SOURCE: config.eval_source, "data.test_source": config.test_source}
    wanted = {**mixed, **alone, **further}
    for key, component in wanted.items():
        if component is None:
            continue
        try:
            source = RowSource(component, key) if rows else DocumentSource(component, key)
            source.check(config.streaming)
            texts[key] = source.look()
        except UserError as error:
            problems += [problem for problem in error.problems if isinstance(problem, Problem)]
        except ComponentFailed as error:
            problems.append(error.problem)
        except ValueError as error:
            problems.append(_of_argument(error, key, component))
        except Exception as error:  # the constructor of a user's own class may fail in any way
            why = f"fails when it is constructed or its first documents are read: {type(error).__name__}: {error}"
            problems.append(Problem(key, why, "correct it; --debug shows where", component.get("_target_")))
    if not problems and not rows:
        problems += _check_mixed(config, texts) if mixed else _check_texts(config, texts)
    if collator is not None:
        from .open_collator import collator_problems  # imported here, since collators need torch

        problems += collator_problems(collator)
    return problems


def _of_argument(error: ValueError, key: str, component: Component) -> Problem:
    """A constructor's message names its argument at the beginning: ``encoding=x is not known; fix``."""
    why, _, fix = str(error).partition("; ")
    argument = re.match(r"([A-Za-z_]\w*)=", why)
    where = f"{key}.{argument[1]}" if argument and argument[1] in component else key
    return Problem(where, why, fix or "correct it; --debug shows where")


def _check_mixed(config: DataConfig, found: dict[str, list[str] | None]) -> list[Problem]:
    """Problems of the sources of a mixture, each with its name."""
    problems = {}
    for name, part in config.parts().items():
        key = source_key(name)
        of_it = {where: texts for where, texts in found.items() if where == key or not where.startswith(SOURCES)}
        for problem in _check_texts(part, of_it, key):
            named = problem_of_source(problem, name) if problem.field != EVAL_SOURCE else problem
            problems[str(named)] = named
    return list(problems.values())


def _check_texts(config: DataConfig, found: dict[str, list[str] | None], source: str = SOURCE) -> list[Problem]:
    """Problems of empty splits, if all documents were read.

    Args:
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
    """Problems of splits that cannot fill one block, even if every byte became a token and documents had two marks."""
    if config.tokenizer.path is not None or not config.packing:
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
