"""Make Hydra's composition of recipes faster, by skipping work that trireme does not need.

Hydra copies the whole configuration for the files of its run folder, which trireme never writes. It also builds a table
of all choices for every list of defaults, although only lists with an interpolation read the table.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def quick_hydra() -> Iterator[None]:
    """Context in which Hydra composes and calls a task, and does nothing else."""
    from hydra._internal import defaults_list, hydra

    table = defaults_list._create_interpolation_map

    def choices(overrides: Any, defaults: Any, self_added: bool) -> Any:
        needed = any(not entry.is_self() and entry.is_interpolation() for entry in defaults)
        return table(overrides, defaults, self_added) if needed else None

    with (
        mock.patch.object(defaults_list, "_create_interpolation_map", choices),
        mock.patch.object(hydra, "run_job", _run_job),
    ):
        yield


def _run_job(task_function: Callable[[Any], Any], config: Any, **_: Any) -> Any:
    """Call the task with the configuration without Hydra's own part, which ``${hydra:...}`` still finds."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import JobReturn, JobStatus
    from omegaconf import open_dict, read_write

    held = HydraConfig.instance()
    before = held.cfg
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = os.getcwd()
    held.set_config(config)
    try:
        with read_write(config), open_dict(config):
            del config["hydra"]
        return JobReturn(_return_value=task_function(config), status=JobStatus.COMPLETED)
    finally:
        held.cfg = before
