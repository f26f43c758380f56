"""``trireme export``: write a checkpoint as a folder that transformers loads."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..command import Command
from ..recipe_arguments import add_debug

EXAMPLES = """examples:
  trireme export runs/persimmon_stdlib exported
  trireme export runs/persimmon_stdlib/checkpoints/step_100 exported --dtype bf16 --memory 1GiB
  trireme export runs/lora adapter                    # adapters: a folder that peft loads
  trireme export runs/lora merged --merge --memory 1GiB
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder (its newest checkpoint)"
    )
    parser.add_argument("out", metavar="OUT", help="folder to write; must not hold anything")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="type of the weights (default: fp32)"
    )
    parser.add_argument("--ema", action="store_true", help="export the averaged weights")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest weight file (default: 5GB)")
    parser.add_argument(
        "--memory", default="1GiB", metavar="SIZE", help="most memory above the largest tensor (default: 1GiB)"
    )
    parser.add_argument(
        "--config", metavar="FOLDER", help="where config.json and tokenizer are, for checkpoints without them"
    )
    parser.add_argument(
        "--merge", action="store_true", help="merge adapters into their base, and write the whole model"
    )
    parser.add_argument(
        "--base", metavar="FOLDER", help="where the base of adapters is, if not where the recipe of the run says"
    )
    add_debug(parser)


def run(options: argparse.Namespace) -> None:
    from ...errors import UserError
    from ...trainer.checkpoint.export.export_folder import ExportOptions, export

    try:
        wanted = ExportOptions(
            options.dtype, options.ema, options.max_shard_size, options.memory, options.merge, options.base
        )
    except ValueError as error:
        raise UserError(f"--{error}") from None
    folder = export(options.checkpoint, options.out, wanted, options.config)
    print(folder)
    # Only the folder goes to standard output, for scripts.
    if (folder / "adapter_config.json").is_file():
        print(f"load it: peft.PeftModel.from_pretrained(BASE, {str(folder)!r})", file=sys.stderr)
        print("the whole model: trireme export --merge", file=sys.stderr)
        return
    name, generates = _class_of(folder)
    print(f"load it: {name}.from_pretrained({str(folder)!r})", file=sys.stderr)
    if generates:
        print(f'try it: trireme generate {folder} --prompt "..."', file=sys.stderr)


def _class_of(folder: Path) -> tuple[str, bool]:
    """Name of the class that loads the model in ``folder``, and whether it writes texts."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = json.loads((folder / "config.json").read_text()).get("architectures") or []
    if not named or named[0] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return "AutoModelForCausalLM", True
    return named[0], False


COMMAND = Command(
    "export",
    "CHECKPOINT OUT",
    "write a folder that transformers loads",
    run,
    arguments,
    description="Write a checkpoint as a folder that transformers loads.",
    examples=EXAMPLES,
)
