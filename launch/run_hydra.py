"""Let Hydra merge a recipe file with overrides, without Hydra's run folders, log files and messages.

The recipe is composed by ``hydra.main``, as it is in a program written for Hydra, so that ``--cfg``, ``--info`` and
``--multirun`` mean the same here.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import UserError
from .find_recipes import config_folders, recipe_folders
from .hydra_errors import explain
from .overrides import quoted
from .quick_hydra import quick_hydra
from .recipe_file import hides_base
from .replaced_targets import SCHEMA, components_begin_anew


def run_hydra(
    path: Path,
    recipe_dirs: Sequence[str],
    flags: Sequence[str],
    overrides: Sequence[str],
    task: Callable[[Any], Any],
    sweep_folder: str = ".",
) -> list[str]:
    """Run ``hydra.main`` on a recipe file; Hydra writes nothing but ``multirun.yaml`` into a sweep's folder.

    Returns:
        names of the merged files without suffix, such as ``callbacks/default``.
    """
    import hydra
    from omegaconf import OmegaConf

    from .searchpath import added_folders

    register_schema()
    quiet = [
        "hydra.run.dir=.",
        "hydra.output_subdir=null",
        f"hydra.job.name={quoted(path.stem)}",
        f"hydra.sweep.dir={quoted(str(sweep_folder))}",
        "hydra.sweep.subdir=.",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
    ]
    with (
        _as_yaml(path) as file,
        # A nested config name would put the recipe into a package of that name, so the name is always the bare stem.
        _arguments([f"--config-path={file.parent}", f"--config-name={file.stem}", *flags, *quiet, *overrides]),
        added_folders([path.parent, *config_folders(path, recipe_dirs)[1:], *recipe_folders(recipe_dirs)]),
        components_begin_anew(overrides) as files,
        quick_hydra(),
        warnings.catch_warnings(),
    ):
        # Without _self_ a recipe's own values come last, as its author expects, so Hydra's warning is not needed.
        warnings.filterwarnings("ignore", message=".*missing `_self_`")
        failures: list[Exception] = []

        def quiet_task(config: Any) -> Any:  # keeps exceptions from Hydra, which would print a line of its own
            OmegaConf.register_new_resolver("hydra", _hydra_value, replace=True)
            try:
                return task(config)
            except Exception as error:
                failures.append(error)

        try:
            hydra.main(version_base="1.3", config_path=None)(quiet_task)()
            if failures:
                raise failures[0]
        except UserError:
            raise
        except RecursionError as error:
            raise UserError(hides_base(path) or explain(error)) from error
        except Exception as error:
            raise UserError(explain(error)) from error
    return files


def _hydra_value(key: str) -> Any:
    """The value of ``${hydra:key}``. Hydra's own resolver gives None for a key that does not exist, and a run would go
    to ``runs/None``.

    Raises:
        KeyError: Hydra's configuration has no such key, or no value of it, as of ``job.num`` outside of a sweep.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import MissingMandatoryValue, OmegaConf

    absent = object()
    try:
        value = OmegaConf.select(HydraConfig.get(), key, default=absent, throw_on_missing=True)  # type: ignore[arg-type]
    except MissingMandatoryValue:
        raise KeyError(f"hydra has no value of {key}") from None
    if value is absent:
        raise KeyError(f"hydra has no key {key}")
    return value


@contextmanager
def _as_yaml(path: Path) -> Iterator[Path]:
    """The recipe's file under a name that ends in .yaml, the only suffix that Hydra reads."""
    if path.suffix == ".yaml":
        yield path.resolve().parent / path.name
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / f"{path.stem}.yaml"
        copy.write_bytes(path.read_bytes())
        yield copy


def register_schema() -> None:
    """Register the defaults of all typed fields with Hydra, so that ``--cfg job`` and interpolations see every key."""
    from hydra.core.config_store import ConfigStore

    from ..configs.schema import RecipeConfig
    from ..configs.validate import schema_defaults

    if f"{SCHEMA}.yaml" not in ConfigStore.instance().repo:
        ConfigStore.instance().store(name=SCHEMA, node=schema_defaults(RecipeConfig))


@contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Set ``sys.argv``, which ``hydra.main`` reads, and HYDRA_FULL_ERROR, without which it prints errors and exits."""
    before, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [sys.argv[0], *arguments], "1"
    try:
        yield
    finally:
        sys.argv = before
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
