"""Check a recipe's data before it is prepared: the methods of its sources, and files, columns and first rows where
these can be read quickly. Other functions here list the sources and what can be seen of them.

Neither torch nor datasets is imported, so that ``trireme check`` answers at once; only a collator of the user's own,
which may need torch, brings it in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ...errors import ComponentFailed, Problem, UserError
from ..component import Component
from .chat.conversation import columns_problem
from .check_rows import head_of_chats, row_problems
from .check_texts import check_texts
from .data_config import DataConfig
from .document_source import EVAL_SOURCE, SOURCE, DocumentSource
from .mixed_source import SOURCES, problem_of_source, source_key
from .preference.preference_form import columns_problem as preferences_problem
from .row_source import COLUMNS, NO_STREAM, RowSource, columns_key, unread_line


def check_data(
    config: DataConfig,
    collator: Component | None = None,
    rows: bool = False,
    wanted: Mapping[str, bool] | None = None,
) -> list[Problem]:
    """Problems of the sources, and of the documents where they can be read quickly.

    Args:
        rows: whether the task learns from rows, not from documents.
        wanted: columns of these rows (``Samples.columns``); None if they are not known.
    """
    problems = [*([NO_STREAM] if rows and config.streaming else []), *([] if rows else _without_use(config))]
    texts: dict[str, list[str] | None] = {}
    for key, component in sources_of(config).items():
        try:
            source = RowSource(component, key) if rows else DocumentSource(component, key)
            source.check(config.streaming)
            texts[key] = source.look()
            if isinstance(source, RowSource) and wanted:
                found = _of_columns(source, config, wanted) or row_problems(
                    source, config, wanted, columns_of(config, key)
                )
                problems += [one for each in found if (one := _at_own_key(each, config, key)) not in problems]
        except UserError as error:
            problems += [problem for problem in error.problems if isinstance(problem, Problem)]
        except ComponentFailed as error:
            problems.append(error.problem)
        except ValueError as error:
            problems.append(_of_argument(error, key, component))
        except Exception as error:  # the constructor of a user's own class may fail in any way
            why = f"fails when it is constructed or its first documents are read: {type(error).__name__}: {error}"
            problems.append(Problem(key, why, "correct it; --debug shows where", component.get("_target_")))
    if not problems and not rows and config.loader is None:
        problems += _check_mixed(config, texts) if config.sources else check_texts(config, texts)
    if collator is not None:
        from .open_collator import collator_problems  # imported here, since collators need torch

        problems += collator_problems(collator)
    return problems


def _of_columns(source: RowSource, config: DataConfig, wanted: Mapping[str, bool]) -> list[Problem]:
    """Problems of a source that lacks columns of the task, if its columns can be read quickly."""
    there, columns, key = source.column_names(), columns_of(config, source.key), source.key
    if there is None:
        return []
    found, names = source.column_problems(there, wanted, columns), [*source.present(there, wanted, columns)]
    if not found and "rejected" in wanted:
        return preferences_problem(names, key, "label" in wanted, there)
    return columns_problem(names, key, there) if not found and config.chat is not None else found


def unread_notes(config: DataConfig, wanted: Mapping[str, bool]) -> list[str]:
    """A line for each source of rows that has columns which the task does not read, if they can be read quickly.

    Args:
        wanted: columns by the names that the task uses.
    """
    lines = []
    for key, component in sources_of(config).items() if wanted else ():
        with suppress(Exception):  # whatever a source of the user's own raises is reported by ``check_data``
            source = RowSource(component, key)
            there = source.column_names() or ()
            if line := unread_line(key, there, source.present(there, wanted, columns_of(config, key))):
                lines.append(line)
    return lines


def heads_of_chats(config: DataConfig) -> dict[str, list[tuple[str, Any]]]:
    """The first conversations of each source that can be read quickly: key of the source -> pairs (place, row)."""
    found = {}
    for key, component in sources_of(config).items():
        with suppress(Exception):  # whatever keeps a source from being read is reported by ``check_data``
            found[key] = head_of_chats(RowSource(component, key), config, columns_of(config, key))
    return found


def sources_of(config: DataConfig) -> dict[str, Component]:
    """All sources of a recipe by their keys."""
    mixed = {source_key(name): entry.source for name, entry in (config.sources or {}).items()}
    further = {f"data.eval_sets.{name}": component for name, component in config.eval_sets.items()}
    alone = {SOURCE: config.source, EVAL_SOURCE: config.eval_source, "data.test_source": config.test_source}
    return {key: each for key, each in {**mixed, **alone, **further}.items() if each is not None}


def columns_of(config: DataConfig, key: str) -> Mapping[str, str]:
    """Names of the columns of the source at ``key``."""
    of_source = {source_key(name): entry.columns for name, entry in (config.sources or {}).items()}
    return {**config.columns, **(of_source.get(key) or {})}


def _at_own_key(problem: Problem, config: DataConfig, key: str) -> Problem:
    """``problem``, which names the columns of one source of a mixture if that source names them itself."""
    own = next((entry.columns for name, entry in (config.sources or {}).items() if source_key(name) == key), {})
    name = problem.field.removeprefix(f"{COLUMNS}.")
    return replace(problem, field=f"{columns_key(key)}.{name}") if name in own else problem


def _without_use(config: DataConfig) -> list[Problem]:
    """Problems of columns that are named for a task which learns from documents."""
    mixed = {source_key(name): entry.columns for name, entry in (config.sources or {}).items()}
    why = "names columns, and this task learns from documents"
    fix = "leave it out; the column of documents is named by text_column of the source"
    every = {SOURCE: config.columns, **mixed}
    return [Problem(columns_key(key), why, fix, dict(names)) for key, names in every.items() if names]


def _of_argument(error: ValueError, key: str, component: Component) -> Problem:
    """The problem of a constructor's error; its message begins with the argument: ``encoding=x is not known; fix``."""
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
        for problem in check_texts(part, of_it, key):
            named = problem_of_source(problem, name) if problem.field != EVAL_SOURCE else problem
            problems[str(named)] = named
    return list(problems.values())
