"""The table of all ``trireme`` subcommands, grouped under the headings of ``trireme --help``."""

from __future__ import annotations

from . import (
    batch_size,
    cancel,
    check,
    checkpoints,
    completion,
    convert_args,
    data,
    doctor,
    evaluate,
    export,
    generate,
    jobs,
    keys,
    launch,
    logs,
    models,
    plans,
    predict,
    recipes,
    report,
    search,
    train,
)  # fmt: skip

HEADINGS = {
    "train a recipe": (train, search, check, data, batch_size),
    "use what was trained": (logs, report, evaluate, predict, generate, checkpoints, export),
    "look up what there is": (recipes, models, plans, keys, convert_args),
    "on a SLURM cluster": (launch, jobs, cancel),
    "this machine": (doctor, completion),
}
COMMANDS = {module.COMMAND.name: module.COMMAND for modules in HEADINGS.values() for module in modules}
