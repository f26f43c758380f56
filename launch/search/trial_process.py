"""The main program of a trial's process: read the recipe, train on one or several ranks, and record how it ended.

``trial_starter.py`` starts the process. The output goes into the trial's ``logs``; how the trial ended is written into
a file that the search reads.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ...errors import UserError
from ...trainer.interruption import STARTED
from ...trainer.parent_process import end_with
from ..elastic import cores_per_rank
from ..error_report import LeftEarly, RanksFailed

if TYPE_CHECKING:
    from ...configs.schema import RecipeConfig

DONE, PRUNED, SAVED, DIVERGED, REFUSED, MEMORY, KILLED, FAILED, INTERRUPTED = (
    "done", "pruned", "saved", "diverged", "refused", "out of memory", "killed", "failed", "interrupted",
)  # fmt: skip
"""How the process of a trial can end. ``saved``: it left early, and goes on when it is started again."""
NO_MEMORY = re.compile(
    r"OutOfMemoryError|MemoryError|can't allocate memory|CUDA out of memory|CUDA error: out of memory", re.IGNORECASE
)
OUTPUT = "trial.out"
CHECKPOINT_SECONDS = 60.0
"""Seconds in which a running trial must have written the checkpoint of a step that it has finished."""
SAMPLE = "TRIREME_TRIAL_SAMPLE"
"""Variable with the request by which a server warms up, as JSON."""


def main(arguments: Sequence[str]) -> NoReturn:
    """Run the trial of the request in the file ``arguments[0]``, and end this process at once: destructors of libraries
    may hang or abort after training."""
    code = 1
    try:
        request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
        end_with(request["parent"])
        run_trial(request)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def warm_up() -> None:
    """Read the recipe of the search once, which fills the tables of Hydra and its parser, and imports what its checks
    need. What fails here fails again in the trial, where it is reported. No data is looked at, since a library may
    start threads for it, which would not survive the fork."""
    from ...configs.schema import read_recipe
    from ..compose import compose
    from ..planning import planned

    request = json.loads(os.environ[SAMPLE])
    composed = compose(request["recipe"], request["overrides"], request["recipe_dirs"])
    read_recipe(planned(composed, request["nproc"], show=False).raw, lambda plan: request["nproc"] or 1)


def run_trial(request: Mapping[str, Any]) -> None:
    """Train a trial, and write how it ended as JSON (``kind``, ``text``) into ``request["result"]``."""
    _enter(request)
    try:
        kind, text = _train(request)
    except BaseException as error:
        kind, text = ending_of(error)
        traceback.print_exc()
    path = Path(request["result"])
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"kind": kind, "text": text}))
    os.replace(partial, path)


def read_trial(request: Mapping[str, Any]) -> tuple[RecipeConfig, int]:
    """The typed recipe of a trial and its number of ranks.

    Raises:
        UserError: its values do not fit together.
    """
    from ..compose import compose
    from ..planning import planned
    from ..train import checked

    composed = planned(
        compose(request["recipe"], request["overrides"], request["recipe_dirs"]), request["nproc"], show=False
    )
    composed.raw |= {"search": None, "launch": {"kind": "local"}}
    return checked(composed, request["nproc"])


def ending_of(error: BaseException) -> tuple[str, str]:
    """The kind of an ending by exception, and its reason in words."""
    text = str(error).strip()
    if isinstance(error, UserError):
        return REFUSED, text
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "before there was anything to save"
    if isinstance(error, RanksFailed) and error.signal:
        return KILLED, text
    name = type(error).__name__
    if NO_MEMORY.search(f"{name}: {text}"):
        return MEMORY, _last_line(text)
    return FAILED, _last_line(text) if isinstance(error, RanksFailed) else f"{name}: {text}"


def _enter(request: Mapping[str, Any]) -> None:
    """Take the cores and variables of this trial."""
    os.sched_setaffinity(0, request["cores"])
    os.environ.update({**request["env"], STARTED: str(time.time())})


def _train(request: Mapping[str, Any]) -> tuple[str, str]:
    from ...trainer.run_folder import open_run_folder
    from ..fork import fork_ranks

    recipe, ranks = read_trial(request)
    open_run_folder(Path(recipe.run.dir), fresh=False)
    start = _start(request["start"], Path(recipe.run.dir))
    if ranks == 1:
        return _train_here(recipe, start, request["threads"] or cores_per_rank(1))
    ended = fork_ranks(recipe, start, ranks)
    return (SAVED if isinstance(ended, LeftEarly) else DIVERGED if ended else DONE), ""


def _start(wanted: str, run_dir: Path) -> str:
    """Where a run begins: another trial's checkpoint, once its run has written it; ``auto`` from its own first one on.

    If its run has removed this checkpoint too soon, its newest one is taken.
    """
    if wanted == "auto" or any((run_dir / "checkpoints").glob("step_*")):
        return "auto"
    path, deadline = Path(wanted), time.monotonic() + CHECKPOINT_SECONDS
    while not path.is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    return str(path if path.is_dir() else path.parents[2] / path.parent.name)


def _train_here(recipe: RecipeConfig, start: str, threads: int) -> tuple[str, str]:
    import torch

    from ...trainer.build import train

    torch.set_num_threads(threads)
    result = train(recipe, resume=start)
    if result.not_finite:
        return DIVERGED, result.not_finite
    if result.pruned:
        return PRUNED, result.pruned
    return (SAVED, result.interrupted) if result.interrupted else (DONE, "")


def _last_line(text: str) -> str:
    """The last line of a traceback that names the error."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("(rank ")]
    return lines[-1].strip() if lines else text


if __name__ == "__main__":
    main(sys.argv[1:])
