"""The command ``trireme``. Nothing heavy is imported before a command is known, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from ..version import __version__

HELP = """usage: trireme COMMAND ...

Train models from recipes; only the plan changes between one process and many.

commands:
  train RECIPE [key=value ...]   train a recipe; the same command resumes it
  launch RECIPE [key=value ...]  the same, or in a job of a cluster: launch=slurm launch.nodes=2
  jobs                           list jobs that were launched, with state and step
  logs RUN                       show what a run says; -f follows it, --rank N: one rank
  cancel RUN|JOB                 end a job once it has saved; --now at once
  check RECIPE [key=value ...]   say everything that is wrong with a recipe, start nothing
  recipes                        list recipes
  plans [RECIPE]                 list plans; with a recipe, compare them for it
  models                         list model families and presets
  batch-size RECIPE [key=value ...]
                                 find the largest micro-batch that fits, by trying
  evaluate RECIPE [key=value ...]
                                 print held-out metrics of a checkpoint, under any plan
  checkpoints RUN                list checkpoints; --verify checks every file
  export CHECKPOINT OUT          write a checkpoint as a transformers folder (safetensors)
  generate MODEL --prompt TEXT   let a model, checkpoint or run write
  doctor                         what this machine has, and what each plan would need of it
  completion bash|zsh|fish       print a script for tab completion

examples:
  trireme train pretrain/persimmon_stdlib
  trireme train pretrain/persimmon_stdlib plan=ddp --nproc 2 trainer.max_steps=200
  trireme launch pretrain/persimmon_stdlib plan=ddp launch=slurm launch.nodes=2 launch.gpus_per_node=1 --dry-run
  trireme check my/recipe.yaml trainer.global_batch_size=64 --nproc 8
  trireme export runs/persimmon_stdlib exported/persimmon
  trireme generate runs/persimmon_stdlib --prompt "def main("

options: -h, --help (also after a command)   --version
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (0 done, 1 failed, 2 the user can mend it, 75 left early, 130 Ctrl-C)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        print(f"trireme {__version__}")
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        return _unknown(arguments[0])
    return command(arguments[1:])


def _unknown(name: str) -> int:
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1)
    print(
        f"trireme: no command {name!r}; {f'did you mean {near[0]}?' if near else 'see: trireme --help'}",
        file=sys.stderr,
    )
    return 2


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(f"trireme {command}", description=description, allow_abbrev=False)


def _train(arguments: list[str]) -> int:
    from .train import main as train

    return train(arguments, prog="trireme train")


def _launch(arguments: list[str]) -> int:
    from .launch_command import main as launch

    return launch(arguments)


def _jobs(arguments: list[str]) -> int:
    from .error_report import guard

    _parser("jobs", "List your jobs on the cluster that trireme has submitted.").parse_args(arguments)

    def show() -> None:
        from .slurm.job_queue import show_jobs

        show_jobs()

    return guard(show)


def _logs(arguments: list[str]) -> int:
    from .error_report import guard
    from .train import count

    parser = _parser("logs", "Show what a run has said.")
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--follow", "-f", action="store_true", help="go on as it grows, until the job is over")
    parser.add_argument("--rank", type=count, metavar="N", help="of this rank (default: the job, with rank 0)")
    parser.add_argument("--lines", "-n", type=count, metavar="N", help="only the last N lines")
    options = parser.parse_args(arguments)

    def show() -> None:
        from .slurm.show_logs import show_logs

        show_logs(options.run, options.rank, options.follow, options.lines)

    return guard(show)


def _cancel(arguments: list[str]) -> int:
    from .error_report import guard

    parser = _parser("cancel", "End a job once its ranks have saved; the same `trireme launch` goes on from there.")
    parser.add_argument("target", metavar="RUN|JOB", help="run folder, or number of the job")
    parser.add_argument("--now", action="store_true", help="end it at once, nothing is saved")
    parser.add_argument("--wait", type=float, default=600.0, metavar="S", help="seconds to save in (default: 600)")
    options = parser.parse_args(arguments)

    def end() -> None:
        from .slurm.cancel import cancel

        cancel(options.target, options.now, options.wait)

    return guard(end)


def _check(arguments: list[str]) -> int:
    from .error_report import guard
    from .train import add_accelerate_argument, add_recipe_arguments

    parser = _parser("check", "Say everything that is wrong with a recipe; start nothing.")
    add_recipe_arguments(parser)
    add_accelerate_argument(parser)
    options = parser.parse_intermixed_args(arguments)

    def check() -> None:
        from .accelerate import take_choices
        from .compose import compose, runs_on
        from .listing import describe_run
        from .planning import planned
        from .slurm.submit import checked_job
        from .train import checked

        asked_for = options.nproc
        take_choices(options)
        composed = compose(options.recipe, options.overrides, options.recipe_dir)
        if runs_on(composed) == "slurm":
            options.nproc = asked_for  # how many processes follows from the machines
            recipe, shape = checked_job(composed, options)
            print(describe_run(recipe, shape.world_size))
            return
        composed = planned(composed, options.nproc)
        print(describe_run(*checked(composed, options.nproc, options.accelerate)))

    return guard(check, options.debug)


def _recipes(arguments: list[str]) -> int:
    from .error_report import guard

    parser = _parser("recipes", "List recipes: your own folders, ./recipes, and those that come with trireme.")
    parser.add_argument(
        "--recipe-dir", action="append", default=[], metavar="DIR", help="a folder with recipes of your own"
    )
    options = parser.parse_args(arguments)

    def show() -> None:
        from .listing import show_recipes

        show_recipes(options.recipe_dir)

    return guard(show)


def _models(arguments: list[str]) -> int:
    from .error_report import guard

    _parser("models", "List model families and presets.").parse_args(arguments)

    def show() -> None:
        from .listing import show_models

        show_models()

    return guard(show)


def _plans(arguments: list[str]) -> int:
    from .error_report import guard
    from .train import add_recipe_arguments

    parser = _parser("plans", "List plans; with a recipe, say what each would need for it and which plan=auto takes.")
    add_recipe_arguments(parser)
    if not arguments:
        from .listing import show_plans

        return guard(show_plans)
    options = parser.parse_intermixed_args(arguments)

    def compare() -> None:
        from .planning import compare_plans

        compare_plans(options)

    return guard(compare, options.debug)


def _batch_size(arguments: list[str]) -> int:
    from .error_report import guard
    from .train import add_recipe_arguments

    parser = _parser("batch-size", "Find the largest micro-batch of a recipe that fits into memory, by trying.")
    add_recipe_arguments(parser)
    parser.set_defaults(resume="never")
    options = parser.parse_intermixed_args(arguments)

    def find() -> None:
        from .batch_size import find_batch_size
        from .planning import fixed_overrides

        options.overrides = fixed_overrides(options, "trainer.micro_batch_size=1")
        size, accumulation = find_batch_size(options)
        print(f"trainer.micro_batch_size={size}   # {accumulation} micro-batch(es) per step")

    return guard(find, options.debug)


def _evaluate(arguments: list[str]) -> int:
    from .evaluate import main as evaluate

    return evaluate(arguments, prog="trireme evaluate")


def _checkpoints(arguments: list[str]) -> int:
    from .checkpoints import main as checkpoints

    return checkpoints(arguments)


def _export(arguments: list[str]) -> int:
    from .error_report import guard

    parser = _parser("export", "Write a checkpoint as a folder that transformers loads.")
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder (its newest checkpoint)"
    )
    parser.add_argument("out", metavar="OUT", help="folder to write; must not hold anything")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--ema", action="store_true", help="export the averaged weights")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest weight file (default: 5GB)")
    parser.add_argument(
        "--memory", default="1GiB", metavar="SIZE", help="most memory above the largest tensor (default: 1GiB)"
    )
    parser.add_argument(
        "--config", metavar="FOLDER", help="where config.json and tokenizer are, for checkpoints without them"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(arguments)

    def run() -> None:
        from ..errors import UserError
        from ..trainer.checkpoint.export.export_folder import ExportOptions, export

        try:
            wanted = ExportOptions(options.dtype, options.ema, options.max_shard_size, options.memory)
        except ValueError as error:
            raise UserError(f"--{error}") from None
        print(export(options.checkpoint, options.out, wanted, options.config))

    return guard(run, options.debug)


def _generate(arguments: list[str]) -> int:
    from .error_report import guard

    parser = _parser("generate", "Let a model write: an exported folder, a checkpoint, or a run folder.")
    parser.add_argument("model", metavar="MODEL", help="folder")
    parser.add_argument("--prompt", required=True, metavar="TEXT")
    parser.add_argument("--max-new-tokens", type=int, default=100, metavar="N")
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest token each time"
    )
    parser.add_argument(
        "--top-k", type=int, default=50, metavar="K", help="draw from the K likeliest tokens; 0: from all"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--ema", action="store_true", help="use the averaged weights of a checkpoint")
    parser.add_argument(
        "--device-map",
        choices=("auto", "balanced", "balanced_low_0", "sequential"),
        help="load piece by piece and spread the model over GPUs, CPU and disk (accelerate)",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(arguments)

    def run() -> None:
        from .generate import generate
        from .train import prepare_process

        prepare_process()
        print(
            generate(
                options.model,
                options.prompt,
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                top_k=options.top_k,
                seed=options.seed,
                ema=options.ema,
                device_map=options.device_map,
            )
        )

    return guard(run, options.debug)


def _doctor(arguments: list[str]) -> int:
    from .doctor import main as doctor

    return doctor(arguments)


def _completion(arguments: list[str]) -> int:
    from .completion import script

    parser = _parser("completion", 'Print a script for tab completion, for example: eval "$(trireme completion bash)"')
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    print(script(parser.parse_args(arguments).shell), end="")
    return 0


def _complete(arguments: list[str]) -> int:
    from .completion import complete

    print("\n".join(complete(arguments, COMMANDS)))
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "launch": _launch,
    "jobs": _jobs,
    "logs": _logs,
    "cancel": _cancel,
    "check": _check,
    "recipes": _recipes,
    "models": _models,
    "plans": _plans,
    "batch-size": _batch_size,
    "evaluate": _evaluate,
    "checkpoints": _checkpoints,
    "export": _export,
    "generate": _generate,
    "doctor": _doctor,
    "completion": _completion,
    "__complete": _complete,  # what the completion scripts call
}

if __name__ == "__main__":
    sys.exit(main())
