"""Read a configuration file of ``accelerate`` into the environment variables that ``accelerate launch`` would set."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from ..errors import Problem, UserError

SECTIONS = {"deepspeed_config": "", "fsdp_config": "fsdp_", "parallelism_config": "", "dynamo_config": "dynamo_"}
"""Sections of the file -> prefix that their keys may leave out."""
HOSTS = ("deepspeed_hostfile", "deepspeed_exclusion_filter", "deepspeed_inclusion_filter")
"""Keys that only DeepSpeed's own launcher reads."""
RENAMED = {"fsdp_backward_prefetch_policy": "fsdp_backward_prefetch"}
"""Former names of options, in published files -> accelerate's current names."""
EITHER = ("downcast_bf16",)
"""Switches that accelerate also writes as yes and no in quotation marks."""
SOURCE = "accelerate's configuration"


def settings_of_file(path: str) -> tuple[dict[str, str], int]:
    """Variables that ``accelerate launch`` would set for ranks from a YAML file, and the number of processes.

    Raises:
        UserError: accelerate cannot read it.
    """
    if not os.path.isfile(path):
        raise UserError(Problem("--accelerate-config", "there is no such file", "see: accelerate config", path))
    try:
        if problems := list(_wrong_types(path)):
            raise UserError(*problems)
        arguments, read = _read(path)
        told = _variables(arguments, read)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the file may be anything, and accelerate raises anything on it
        why = f"accelerate cannot read it: {type(error).__name__}: {error}"
        raise UserError(Problem("--accelerate-config", why, "see: accelerate config", path)) from None
    return told, int(arguments.num_processes or 1)


def _wrong_types(path: str) -> Iterator[Problem]:
    """Problems of numbers and switches that are written as something else; accelerate compares them unread."""
    from accelerate.commands.config.config_args import ClusterConfig

    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    for key, hint in get_type_hints(ClusterConfig).items():
        value = content.get(key) if isinstance(content, dict) else None
        kinds = get_args(hint) or (hint,)
        kind = next((kind for kind in (int, bool) if kind in kinds), None)
        if value is None or kind is None or type(value) is kind or key in EITHER:
            continue
        example = "a whole number" if kind is int else "true or false"
        yield Problem(f"{path}: {key}", f"is not {example}", f"write {example}", value)


def _read(path: str) -> tuple[argparse.Namespace, Any]:
    """Arguments of ``accelerate launch`` that a file stands for, and the content of the file.

    Raises:
        UserError: the file has unknown keys, or a precision that has no counterpart.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    # Port 0 keeps accelerate from searching for a free port. The file's values count for all that is not given here.
    given = launch_command_parser().parse_args(["--config_file", path, "--main_process_port", "0", "train"])
    known = set(vars(given))
    arguments, read, _ = _validate_launch_command(given)
    problems = []
    for section, prefix in SECTIONS.items():
        for key in getattr(read, section) or {}:
            name = key if key.startswith(prefix) else prefix + key
            if name in RENAMED:
                setattr(arguments, RENAMED[name], (getattr(read, section) or {})[key])
            elif name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                fix = f"did you mean {near[0]}?" if near else "see: accelerate launch --help"
                problems.append(Problem(name, f"is not an option of accelerate ({path})", fix))
    if arguments.mixed_precision.lower() not in ("no", "bf16", "fp16"):  # before accelerate looks for libraries
        problems.append(unknown_precision(arguments.mixed_precision))
    if problems:
        raise UserError(*problems)
    return arguments, read


def _variables(arguments: argparse.Namespace, read: Any) -> dict[str, str]:
    """Variables that ``accelerate launch`` would set for ranks, and settings of the launcher under their own names."""
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    arguments.deepspeed_fields_from_accelerate_config = ",".join(read.deepspeed_config or ())
    machines, arguments.num_machines = int(arguments.num_machines or 1), 1
    # This argument has a default, so the reader does not replace it by the file's value.
    arguments.enable_cpu_affinity |= read.enable_cpu_affinity
    told = prepare_deepspeed_cmd_env(arguments)[1] if arguments.use_deepspeed else prepare_multi_gpu_env(arguments)
    for key, value in (read.deepspeed_config or {}).items():
        if key.endswith("nvme_path"):  # the launcher does not pass these; people set the variable by hand
            told.setdefault(f"ACCELERATE_DEEPSPEED_{key.upper()}", str(value))
        elif key in HOSTS and value:
            told[key] = str(value)
    own = {"num_machines": machines, "num_processes": arguments.num_processes or 1}
    own |= {"ACCELERATE_USE_CPU": bool(arguments.use_cpu)}
    return {**told, **{key: str(value) for key, value in own.items()}}


def unknown_precision(asked: str) -> Problem:
    return Problem("mixed_precision", f"{SOURCE} asks for it", "use no, bf16 or fp16", asked)
