"""``trireme export``: write a checkpoint as a folder that transformers or peft loads, perhaps merged or quantised."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ...models.family import ModelFamily, families
from ..command import Command
from ..recipe_arguments import add_debug, positive

METHODS = ("nf4", "fp4", "int8", "gptq")
ROWS = 128
"""Rows of data on which GPTQ calibrates, without ``--rows``."""
EXAMPLES = """examples:
  trireme export runs/persimmon_stdlib exported
  trireme export runs/persimmon_stdlib/checkpoints/step_100 exported --dtype bf16 --memory 1GiB
  trireme export runs/lora adapter                    # adapters: a folder that peft loads
  trireme export runs/lora merged --merge --memory 1GiB
  trireme export adapter merged --merge               # the same from a folder of peft
  trireme export runs/lora small --quantize nf4       # in 4 bits, as bitsandbytes and transformers load it
  trireme export runs/lora small --quantize gptq      # calibrated on the run's own data
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a checkpoint, or a run folder (its newest checkpoint); with --merge also a folder that peft saved",
    )
    parser.add_argument("out", metavar="OUT", help="folder to write; must be empty or new")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="type of the weights (default: fp32)"
    )
    parser.add_argument("--ema", action="store_true", help="export the averaged weights")
    parser.add_argument("--max-shard-size", metavar="SIZE", help="largest weight file (default: 5GB)")
    parser.add_argument(
        "--memory", metavar="SIZE", help="most memory to use beyond that of the largest tensor (default: 1GiB)"
    )
    parser.add_argument(
        "--config", metavar="FOLDER", help="folder with config.json and tokenizer, for checkpoints that lack them"
    )
    parser.add_argument(
        "--merge", action="store_true", help="merge adapters into their base, and write the whole model"
    )
    parser.add_argument(
        "--base",
        metavar="FOLDER",
        help="folder of the adapters' base, if it is no longer where the run or peft's folder names it",
    )
    few = parser.add_argument_group("quantisation")
    few.add_argument(
        "--quantize", choices=METHODS, help="quantise linear layers to 4 or 8 bits; adapters are merged before"
    )
    few.add_argument("--bits", type=int, help="for gptq: bits of each weight, 2, 3, 4 or 8 (default: 4)")
    few.add_argument(
        "--group-size", type=int, metavar="N", help="weights that share a scale (default: 64; for gptq 128)"
    )
    few.add_argument("--by-activity", action="store_true", help="for gptq: round columns with large inputs first")
    few.add_argument(
        "--calibrate",
        metavar="RECIPE",
        help="for gptq: calibrate on the training data of this recipe (default: the run's)",
    )
    few.add_argument("--rows", type=positive, metavar="N", help="for gptq: rows of data to calibrate on (default: 128)")
    add_debug(parser)


def run(options: argparse.Namespace) -> None:
    from ...errors import UserError

    _check_options(options)  # before imports that take seconds
    _check_folders(options)
    _refuse_idle(options)
    from ...trainer.checkpoint.export.export_folder import ExportOptions, export
    from ...trainer.checkpoint.export.quantised_folder import QuantiseOptions
    from ...trainer.generate_options import generate_options

    try:
        few = (options.quantize, 4 if options.bits is None else options.bits, options.group_size, options.by_activity)
        wanted = ExportOptions(
            options.dtype,
            options.ema,
            options.max_shard_size or "5GB",
            options.memory or "1GiB",
            options.merge,
            options.base,
            QuantiseOptions(*few) if options.quantize else None,
        )
    except ValueError as error:
        raise UserError(f"--{str(error).replace('_', '-')}") from None
    calibrated = partial(_inputs, options) if options.quantize == "gptq" else None
    folder = export(options.checkpoint, options.out, wanted, options.config, inputs=calibrated)
    print(folder)
    # Only the folder goes to standard output, for scripts.
    if (folder / "adapter_config.json").is_file():
        print(f"load it: peft.PeftModel.from_pretrained(BASE, {str(folder)!r})", file=sys.stderr)
        print("the whole model: trireme export --merge", file=sys.stderr)
        return
    if options.quantize:
        weights = shlex.quote(f"model.weights={folder}")
        train = f"trireme train RECIPE quantization=stored adapter=lora {weights}"
        print(f"train adapters on it: {train}", file=sys.stderr)
    name, generates = _class_of(folder)
    print(f"load it: {_import_of(folder)}{name}.from_pretrained({str(folder)!r})", file=sys.stderr)
    if generates:
        asked = generate_options(_is_chat(Path(options.checkpoint).expanduser()), Path(folder))
        print(f"try it: trireme generate {shlex.quote(str(folder))} {asked}", file=sys.stderr)


def _is_chat(checkpoint: Path) -> bool:
    """Whether the recipe in a run or checkpoint trains on chats."""
    from ...trainer.checkpoint.layout import RECIPE
    from ...trainer.run_folder import saved_recipe

    data = saved_recipe(checkpoint).get("data") if (checkpoint / RECIPE).is_file() else None
    return isinstance(data, dict) and data.get("chat") is not None


def _check_options(options: argparse.Namespace) -> None:
    """Refuse options of quantisation that need another option.

    Raises:
        UserError: all of them.
    """
    from ...errors import Problem, UserError

    needs = {"bits": "gptq", "by_activity": "gptq", "calibrate": "gptq", "rows": "gptq", "group_size": ""}
    problems: list[Problem | str] = []
    for name, method in needs.items():
        value = getattr(options, name)
        if value in (None, False) or options.quantize == (method or options.quantize or "none"):
            continue
        option, wanted = f"--{name.replace('_', '-')}", f"--quantize {method or 'METHOD'}"
        shown = None if value is True else value
        problems.append(
            Problem(option, f"is an option of {wanted}, which is not given", f"add {wanted}, or leave it out", shown)
        )
    if problems:
        raise UserError(*problems)


def _check_folders(options: argparse.Namespace) -> None:
    """Refuse a checkpoint that is not there and an OUT that cannot be written.

    Raises:
        UserError: all that is wrong.
    """
    from ...errors import Problem, UserError
    from ...trainer.folders import check_new_folder

    problems: list[Problem | str] = []
    if not os.path.exists(os.path.expanduser(options.checkpoint)):
        fix = "name a run folder, or a folder such as RUN/checkpoints/step_00000100"
        problems.append(Problem("CHECKPOINT", "there is no such folder", fix, options.checkpoint))
    try:
        check_new_folder(options.out, "OUT")
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(*problems)


def _refuse_idle(options: argparse.Namespace) -> None:
    """Refuse options that have no effect: those of adapters for a whole model, and those of a whole model for adapters.

    Raises:
        UserError: all of them.
    """
    from ...errors import Problem, UserError
    from ...models.weight_sets import is_adapter
    from ...trainer.base_identity import has_base

    path = Path(options.checkpoint).expanduser()
    try:
        apart = is_adapter(path)
    except ValueError:  # several sets of weights, which the export names
        return
    adapters = apart or has_base(path)
    if apart and options.quantize == "gptq" and not options.calibrate:
        why = "is missing: gptq looks at data, which a folder of an adapter does not name"
        raise UserError(Problem("--calibrate", why, "name a recipe: --calibrate RECIPE"))
    if apart and not (options.merge or options.quantize):
        return  # the export asks for --merge
    if not adapters:
        idle, fix = ("merge", "base"), "leave it out"
        why = "is about adapters, and CHECKPOINT holds a whole model"
    elif not options.merge and not options.quantize:
        idle, fix = ("max_shard_size", "memory", "config"), "add --merge for the whole model, or leave it out"
        why = "is about a whole model, and adapters alone are written"
    else:
        return
    given = [name for name in idle if getattr(options, name) not in (None, False)]
    if given:
        values = {name: None if getattr(options, name) is True else getattr(options, name) for name in given}
        raise UserError(*(Problem(f"--{name.replace('_', '-')}", why, fix, values[name]) for name in given))


def _inputs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The inputs that GPTQ calibrates on: rows of the training data of a recipe."""
    from ...trainer.calibration import calibration_inputs
    from ..compose import compose
    from ..compose_plan import compose_plan
    from ..train import checked

    composed = compose(options.calibrate or options.checkpoint, [])
    recipe, _ = checked(replace(composed, raw={**composed.raw, "plan": compose_plan("single")}), 1)
    return calibration_inputs(recipe, ROWS if options.rows is None else options.rows)


def _class_of(folder: Path) -> tuple[str, bool]:
    """Name of the class that loads the model in ``folder``, and whether it writes texts."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )

    config = json.loads((folder / "config.json").read_text())
    named = config.get("architectures") or []
    if not named or _family_of(config) or named[0] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return "AutoModelForCausalLM", True
    return named[0], named[0] == MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.get(config.get("model_type"))


def _import_of(folder: Path) -> str:
    """The statement that makes classes of trireme known to transformers, if the model in ``folder`` has one."""
    family = _family_of(json.loads((folder / "config.json").read_text()))
    return f"import {family.classes}; " if family else ""


def _family_of(config: dict[str, Any]) -> ModelFamily | None:
    """The family of a configuration, if its classes are trireme's own."""
    return next(
        (one for one in families().values() if one.classes and one.model_type == config.get("model_type")), None
    )


COMMAND = Command(
    "export",
    "CHECKPOINT OUT",
    "write a folder that transformers loads",
    run,
    arguments,
    description="Write a checkpoint as a folder that transformers loads.",
    examples=EXAMPLES,
)
