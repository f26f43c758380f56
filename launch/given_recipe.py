"""Find and check the recipe that a command line names, prepare its overrides, and let Hydra compose it.

To find where a key comes from, it is also looked up in the recipe without overrides (``as_written``), in the user's own
file alone (``own``), and in the recipe with only the files that overrides choose (``chosen``). Comparing them finds
keys that no longer apply, such as the arguments of a component that an override has replaced.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import Problem, UserError
from ..models.locate import import_from
from .composed import Composed, as_composed
from .failures import OWN_LAUNCH
from .find_recipes import (
    PACKAGE,
    config_folders,
    find_recipe,
    groups_of_base,
    may_name_components,
    recipe_folders,
)
from .hydra_errors import UNKNOWN
from .overrides import CALLBACKS, chooses, key_of, prepare, single_callbacks, value_of, without_choices
from .recipe_file import check_recipe_file, groups_chosen, hides_base, wrong_choices
from .repeated_recipes import repeated_recipes
from .replaced_targets import TARGET, left_over
from .run_hydra import run_hydra

FILES = ("plan.fsdp", "plan.deepspeed")
"""Keys that take options, or a file that holds them."""


class GivenRecipe:
    """Input of one command: a recipe's file, its folders, and overrides in the form that is passed to Hydra."""

    def __init__(self, recipe: str, overrides: Sequence[str], recipe_dirs: Sequence[str], sweeps: bool = False) -> None:
        self.path = find_recipe(recipe, recipe_dirs)
        check_recipe_file(self.path, recipe_dirs)
        beside = self.path.resolve().parent
        own = PACKAGE / "recipes" not in beside.parents
        import_from(*([beside] if own else []), Path.cwd())
        self.recipe_dirs = recipe_dirs
        self.folders = config_folders(self.path, recipe_dirs)
        self.accepted, self.problems = prepare(overrides, self.folders, sweeps)
        self.notes: list[str] = []
        self._add_groups()
        self._add_callbacks()
        self.problems += self._beside_files()

    def compose(self, overrides: Sequence[str]) -> Composed:
        """The recipe under ``overrides``."""
        found: list[Composed] = []
        try:
            self.hydra([], overrides, lambda config: found.append(self.composed(config, overrides)))
        except UserError as error:
            blamed = self._blamed(error, overrides)
            replaced = {key_of(text) for text in overrides}
            choices = [each for each in wrong_choices(self.path, self.folders) if each.field not in replaced]
            names = [("defaults", problem.value) for problem in choices]
            names += [(problem.field, problem.value) for problem in choices]
            others = [each for each in blamed if not isinstance(each, Problem) or (each.field, each.value) not in names]
            folders = [*self.folders, *recipe_folders(self.recipe_dirs)]
            repeated = [] if hides_base(self.path) else repeated_recipes(self.path, folders)
            if repeated:
                about = ("defaults", UNKNOWN, str(self.path))  # of what Hydra says about it, these name no key
                others = [each for each in others if isinstance(each, Problem) and each.field not in about]
            raise UserError(*others, *choices, *repeated) from error
        return found[0]

    def composed(self, config: Any, given: Sequence[str]) -> Composed:
        """The recipe that Hydra merged into ``config`` under the overrides ``given``."""
        return as_composed(config, self.path, given, self.folders)

    @cached_property
    def as_written(self) -> tuple[dict[str, Any], list[str]]:
        """The recipe without overrides, interpolations unresolved, and the files that it is merged from. Both are empty
        if the recipe does not compose without overrides."""
        from omegaconf import OmegaConf

        found: list[Any] = []
        searchpath = [text for text in self.accepted if key_of(text) == "hydra.searchpath"]
        try:
            files = self.hydra([], searchpath, found.append)
        except UserError:
            return {}, []
        return OmegaConf.to_container(found[0], resolve=False), files  # type: ignore[return-value]

    @cached_property
    def own(self) -> Any:
        """The values in the user's own recipe file. Empty for a packaged recipe, and for the recipe of a run, which
        holds the values of all groups too."""
        from omegaconf import OmegaConf

        if PACKAGE / "recipes" in self.path.resolve().parents:
            return {}
        written: Any = OmegaConf.to_container(OmegaConf.load(self.path), resolve=False)
        return written if "defaults" in written else {}

    @cached_property
    def chosen(self) -> dict[str, Any]:
        """The recipe with the files that overrides choose in every job, and without their values."""
        from omegaconf import OmegaConf

        texts = [text for text in without_choices(self.accepted) if chooses(text, self.folders)]
        if not texts or not any(TARGET in text for text in self.accepted):
            return self.as_written[0]
        found: list[Any] = []
        searchpath = [text for text in self.accepted if key_of(text) == "hydra.searchpath"]
        try:
            self.hydra([], [*searchpath, *texts], found.append)
        except UserError:
            return self.as_written[0]
        return OmegaConf.to_container(found[0], resolve=False)  # type: ignore[return-value]

    def void(self, raw: dict[str, Any]) -> dict[str, str]:
        """Keys of a composed recipe that the overrides made void, each with the reason."""
        if OWN_LAUNCH in os.environ:  # a rank's overrides leave them out already (``rank_arguments``)
            return {}
        if not any(map(self._may_replace, self.accepted)):
            return {}
        return left_over(raw, self.as_written[0], self.chosen, self.accepted, self.own)

    def notes_on(self, void: Mapping[str, str]) -> list[str]:
        """Notes on keys that were added or left out; one for each reason that makes keys void."""
        by_reason: dict[str, list[str]] = {}
        for key in sorted(void):
            by_reason.setdefault(void[key], []).append(key)
        return [*self.notes, *(f"left out: {', '.join(keys)} ({why})" for why, keys in by_reason.items())]

    def hydra(
        self, flags: Sequence[str], overrides: Sequence[str], task: Callable[[Any], Any], out: str = "."
    ) -> list[str]:
        """Call ``task`` with the configuration that Hydra merges; returns the names of the merged files."""
        return run_hydra(self.path, self.recipe_dirs, flags, overrides, task, out)

    def _add_groups(self) -> None:
        """A choice of a group that the recipe's defaults do not have is added to them: Hydra would not replace it."""
        for index, text in enumerate(self.accepted):
            known = key_of(text) in groups_of_base() | groups_chosen(self.path)
            if text.startswith("~") or known or not chooses(text, self.folders):
                continue
            there = {file.partition("/")[0] for file in self.as_written[1]}
            if there and key_of(text) not in there:
                self.accepted[index] = f"+{text}"

    def _add_callbacks(self) -> None:
        """Rewrite ``callbacks=export`` so that a single callback is added to the recipe's; a set replaces them."""
        for index, text in enumerate(self.accepted):
            names = single_callbacks(text, self.folders)
            if not names:
                continue
            files = [file.partition("/") for file in self.as_written[1]]
            before = [name for group, _, name in files if group == CALLBACKS]
            names = [*before, *(name for name in names if name not in before)]
            self.accepted[index] = f"{CALLBACKS}=[{','.join(names)}]"
            self.notes.append(f"{text} is added to the recipe's: {self.accepted[index]}")

    def _beside_files(self) -> Iterator[Problem]:
        """Problems of overrides that set single options of a part that is given as a file: they would replace the file
        in Hydra."""
        for key in FILES:
            texts = [text for text in self.accepted if key_of(text).startswith(f"{key}.")]
            if not texts:
                continue
            named = [value_of(text) for text in self.accepted if key_of(text) == key]
            part, _, name = key.partition(".")
            written = (self.as_written[0].get(part) or {}).get(name) if not named else named[-1]
            if isinstance(written, str) and not written.startswith("{"):
                why = f"cannot be set beside {key}={written}, since it would replace the options of this file"
                yield from (Problem(key_of(text), why, "write it into the file", value_of(text)) for text in texts)

    def _may_replace(self, text: str) -> bool:
        """Whether an override may replace a component, by its own value or by the file that it chooses."""
        if TARGET in text or not chooses(text, self.folders):
            return TARGET in text
        # A list of defaults may choose by another choice: `- /optimizer: ${model}_adamw`.
        depends = re.search(r"^\s*-[^#\n]*\$\{", self.path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        return bool(depends) or may_name_components(key_of(text), self.folders)

    def _blamed(self, error: UserError, overrides: Sequence[str]) -> Sequence[Problem | str]:
        """Problems, with the override that causes them as the field where Hydra does not tell the key."""
        problem = error.problems[0]
        if not isinstance(problem, Problem):
            return error.problems
        if problem.field == "defaults":  # a choice that cannot be resolved stands in an override, or in the file
            keys = [key_of(text) for text in overrides if problem.value and str(problem.value) in value_of(text)]
            return [replace(problem, field=keys[0])] if keys else error.problems
        if problem.field != UNKNOWN:
            return error.problems
        for text in [*overrides, None]:
            try:
                self.hydra([], [text] if text else [], lambda config: self.composed(config, []))
            except UserError:
                if text is None:
                    return [replace(problem, field=str(self.path))]
            else:
                if text is None:
                    break
                continue
            return [replace(problem, field=key_of(text), value=value_of(text) or None)]
        return [replace(problem, field=" ".join(overrides))]
