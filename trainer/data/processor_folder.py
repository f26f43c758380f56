"""Find the folder of a run's processor by its files, and check that of chats with images or audio clips.

Neither torch nor transformers is imported, because ``trireme check`` calls this too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import Problem, UserError
from ...models.hub import local_path
from ...models.json_file import object_in
from .chat.chat_config import KEY
from .chat.media import Kind, named

FILES = ("preprocessor_config.json", "processor_config.json")
"""Files of which a folder with a processor holds at least one."""
FIELD = "data.processor"
NEEDED = "name a folder or a hub id with the processor of the model"
TEMPLATE = "chat_template"
"""Key of a chat template in files of JSON, and the name of files that hold it alone."""


def found_folder(named: str | None, weights: Path | None, made: bool = True) -> Path | None:
    """Folder of the processor that the recipe names, else of the one beside the weights; None if there is neither.

    Args:
        named: ``data.processor``.
        weights: folder of the model's weights.
        made: a processor is made where there is none.

    Raises:
        UserError: the recipe names a folder without a processor.
    """
    folder = local_path(named, field=FIELD) if named else weights
    if folder is None or any((folder / file).is_file() for file in FILES):
        return folder
    if named:
        why = f"the folder has no {' and no '.join(FILES)}"
        fix = "name a folder or hub id with one" + (", or null to make one" if made else "")
        raise UserError(Problem(FIELD, why, fix, named))
    return None


def check_media_processor(
    named: str | None, weights: Path | None, kinds: Sequence[Kind], template: Any
) -> list[Problem]:
    """Problems of the processor of chats with images or audio clips, as far as files show them.

    Args:
        kinds: the kinds of media that the task reads.
        template: ``data.chat.template``.
    """
    try:
        folder = found_folder(named, weights, made=False)
    except UserError as error:
        return [problem for problem in error.problems if isinstance(problem, Problem)]
    if folder is None:
        return [no_processor(kinds)]
    if template is not None or _has_template(folder):
        return []
    settings = {name: value for file in FILES for name, value in object_in(folder / file).items()}
    tokens = {kind: str(settings[name]) for kind in kinds if settings.get(name := f"{kind.name}_token")}
    return [no_template(tokens or {kind: f"the {kind.name}_token of the processor" for kind in kinds})]


def no_processor(kinds: Sequence[Kind]) -> Problem:
    """The problem of a run without a processor for ``kinds``."""
    why = f"is needed: only a processor of the model says which tokens {named(kinds, 'or')} stand for"
    return Problem(FIELD, why, NEEDED)


def no_template(tokens: Mapping[Kind, str]) -> Problem:
    """The problem of a processor without a chat template.

    Args:
        tokens: the token that stands for an item of each kind.
    """
    every = " and ".join(f"each {kind.one} as {token}" for kind, token in tokens.items())
    why = f"is needed: the processor has no chat template, and ChatML, the usual one, shows no {named([*tokens], 'or')}"
    fix = f"write a template that shows {every}, or name a processor with a chat_template.jinja ({FIELD})"
    return Problem(f"{KEY}.template", why, fix)


def _has_template(folder: Path) -> bool:
    """Whether a folder holds a chat template in one of the places where transformers looks."""
    if (folder / f"{TEMPLATE}.jinja").is_file() or any((folder / "additional_chat_templates").glob("*.jinja")):
        return True
    files = (f"{TEMPLATE}.json", "tokenizer_config.json", *FILES)
    return any(object_in(folder / file).get(TEMPLATE) is not None for file in files)
