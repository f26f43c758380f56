"""Train from a notebook cell or a script, and work with the result: its metrics, plots and model.

::

    import trireme
    run = trireme.train("pretrain/persimmon_stdlib", {"plan": "ddp", "trainer.max_steps": 200}, nproc=2)
    run.metrics.tail()      # a pandas table
    run.plot()              # loss, learning rate, gradient norm, throughput
    run.report()            # a page with everything that the run has left
    run.model.generate(**run.tokenizer("def main(", return_tensors="pt"))

Several ranks are forked from the notebook's process (``fork.py``). A single rank is forked too if there are GPUs, since
a process that has used a GPU can no longer fork; on the CPU it trains in the notebook's own process. DeepSpeed's plans
also run with a single rank. The stop button, or Ctrl-C, ends training after a step, with everything saved; the same
call resumes.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Problem, UserError
from ..trainer.interruption import STARTED
from .elastic import environment, launched

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from .report_view import ReportView


@dataclass
class Run:
    """A trained run: its folder, metrics, model and tokenizer."""

    dir: Path
    """The run folder."""

    @cached_property
    def metrics(self) -> pandas.DataFrame:
        """One row per training line and per evaluation, as in ``metrics.jsonl``."""
        import pandas

        return pandas.DataFrame(self._lines)

    @property
    def step(self) -> int:
        """Optimizer steps that were logged."""
        return max((line["step"] for line in self._lines), default=0)

    @property
    def diverged(self) -> bool:
        """Whether a loss or weights were not finite at the end: its last lines, or its newest checkpoint, say so."""
        from ..trainer.checkpoint.layout import checkpoints_at, not_finite

        last = [
            next((line for line in reversed(self._lines) if name in line), {}).get(name, 0.0)
            for name in ("loss", "eval_loss")
        ]
        newest = checkpoints_at(self.dir)[:1]
        return not all(map(math.isfinite, last)) or any(not_finite(folder) for folder in newest)

    def plot(self) -> Figure:
        """Loss, learning rate, gradient norm and throughput against the step; a notebook shows the figure."""
        from ..trainer.callbacks.curve import curve_figure
        from .watch import show_figures

        show_figures()
        return curve_figure(self._lines, self._title)

    def report(self) -> ReportView:
        """Everything that the run has left, as one page; a notebook shows it."""
        from .report_view import ReportView

        return ReportView(str(self.dir))

    @property
    def model(self) -> Any:
        """The newest checkpoint as a ``transformers`` model, in fp32, ready to use."""
        return self._loaded[0]

    @property
    def processor(self) -> Any:
        """The processor that turns raw data into inputs (a tokenizer, an image processor, several in one); None if
        transformers has no class for it."""
        return self._loaded[1]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer in the processor; None if there is none."""
        from ..trainer.data.text_values import tokenizer_in

        return tokenizer_in(self.processor)

    @property
    def _title(self) -> str:
        """The title of the plot in the run folder; the folder's name if no recipe was saved yet."""
        from ..models.family import families
        from ..trainer.callbacks.curve import curve_title

        recipe = self._recipe
        if not recipe:
            return self.dir.name
        family = families().get(recipe["model"]["family"])
        return curve_title(self.dir.name, family.title if family else "model", recipe["plan"]["name"])

    @cached_property
    def _lines(self) -> list[dict[str, Any]]:
        from ..trainer.callbacks.metrics_file import FILE_NAME, read_metrics

        file = self.dir / FILE_NAME
        return read_metrics(file) if file.exists() else []

    @cached_property
    def _recipe(self) -> dict[str, Any]:
        """The recipe as it was saved; empty if none was yet."""
        import yaml

        from ..trainer.checkpoint.layout import RECIPE

        file = self.dir / RECIPE
        return yaml.safe_load(file.read_text()) if file.is_file() else {}

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from ..models.exported_class import exported_class
        from ..trainer.checkpoint.export.export_folder import ExportOptions, export
        from ..trainer.data.media_processor import MediaProcessor
        from ..trainer.tasks.task import head_of

        with tempfile.TemporaryDirectory(prefix="trireme_notebook_") as folder:
            exported = export(str(self.dir), f"{folder}/model", ExportOptions(merge=True))
            model = exported_class(self._recipe["model"], head_of(self._recipe["task"])).from_pretrained(exported)
            try:
                return model.eval(), MediaProcessor.from_pretrained(exported)
            except (ImportError, OSError, ValueError):  # a processor of the user's own, or none
                return model.eval(), None


def train(
    recipe: str,
    overrides: Mapping[str, Any] | Sequence[str] | None = (),
    *,
    nproc: int | None = None,
    resume: str = "auto",
    fresh: bool = False,
    recipe_dirs: Sequence[str] = (),
) -> Run:
    """Train ``recipe``; the same call resumes it.

    Args:
        recipe: name (see ``trireme recipes``) or path of a .yaml file.
        overrides: values by dotted key, or ``key=value`` strings as on the command line.
        nproc: processes; None takes what the plan needs, or all GPUs.
        resume: ``auto``, ``never``, or a checkpoint or run folder.
        fresh: move an existing run folder aside and start over.
        recipe_dirs: folders with recipes of your own.

    Raises:
        UserError: everything that is wrong with the recipe, before anything starts.
        RanksFailed: one of several processes failed.
        KeyboardInterrupt: training was interrupted twice, or before there was anything to save.
    """
    from ..trainer.build import train as train_here
    from ..trainer.run_folder import open_run_folder
    from .compose import compose
    from .fork import fork_ranks, refuse_used_gpu
    from .planning import planned
    from .start_process import prepare_process
    from .train import checked, refuse_unusable
    from .watch import watched

    if launched():
        raise UserError(Problem("trireme.train", "starts its own processes", "call it outside of torchrun"))
    refuse_arguments(nproc, resume, recipe_dirs)
    prepare_process()
    composed = planned(compose(recipe, as_overrides(overrides), recipe_dirs), nproc)
    typed, ranks = checked(composed, nproc, fresh=fresh)
    run_dir, forks = Path(typed.run.dir), ranks > 1 or _gpu_to_leave_alone()
    if forks:
        refuse_used_gpu(ranks)
    if fresh:
        refuse_unusable(str(resume))
    open_run_folder(run_dir, fresh, str(resume))
    started = {STARTED: os.environ.get(STARTED) or str(time.time())}  # not the notebook's start, which may be days ago
    with environment(started), watched(run_dir, typed.trainer.stop_at or typed.trainer.max_steps):
        if forks:
            fork_ranks(typed, resume, ranks)
        else:
            with _own_group():
                train_here(typed, resume=resume)
    return Run(run_dir)


def as_overrides(given: Any) -> list[str]:
    """Overrides in the form of the command line, from a mapping, a list of strings, one string or None.

    Raises:
        UserError: ``given`` is something else.
    """
    if given is None:
        return []
    if isinstance(given, str):
        return [given]
    if isinstance(given, Mapping):
        wrong = [key for key in given if not isinstance(key, str)]
        texts = [f"{key}={_text(value)}" for key, value in given.items()]
    elif isinstance(given, Iterable) and not isinstance(given, bytes):
        texts = list(given)
        wrong = [text for text in texts if not isinstance(text, str)]
    else:
        texts, wrong = [], [given]
    if wrong:
        fix = 'write {"trainer.max_steps": 200} or ["trainer.max_steps=200"]'
        raise UserError(Problem("overrides", "expected values by key, or strings key=value", fix, wrong[0]))
    return texts


def refuse_arguments(nproc: Any, resume: Any, recipe_dirs: Any) -> None:
    """Refuse arguments of a wrong type, which Python itself does not check.

    Raises:
        UserError: an argument is of a wrong type.
    """
    problems = []
    if nproc is not None and (isinstance(nproc, bool) or not isinstance(nproc, int) or nproc < 1):
        problems.append(Problem("nproc", "expected a number of processes", "write nproc=2, or leave it out", nproc))
    if not isinstance(resume, str | os.PathLike):
        fix = 'write resume="auto", resume="never", or the path of a checkpoint'
        problems.append(Problem("resume", "expected a text or a path", fix, resume))
    if isinstance(recipe_dirs, str) or not all(isinstance(folder, str | os.PathLike) for folder in recipe_dirs or ()):
        problems.append(Problem("recipe_dirs", "expected a list of folders", 'write ["my/recipes"]', recipe_dirs))
    if problems:
        raise UserError(*problems)


def _gpu_to_leave_alone() -> bool:
    """Whether training here would be this process's first use of a GPU, after which it could not fork."""
    import torch

    return not torch.version.hip and not torch.cuda.is_initialized() and torch.cuda.device_count() > 0


@contextmanager
def _own_group() -> Iterator[None]:
    """Context that destroys the process group of DeepSpeed's plans afterwards, since forked ranks would inherit it."""
    import torch.distributed as dist

    from ..parallel.rendezvous import destroy_process_group

    had_one = dist.is_initialized()
    try:
        yield
    finally:
        if dist.is_initialized() and not had_one:
            destroy_process_group()


def _text(value: Any) -> str:
    """A Python value in Hydra's grammar for overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(item) for item in value) + "]"
    text = str(value)
    if not isinstance(value, str | Path) or re.fullmatch(r"[\w./+-]+", text):
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'") if "'" in text else text
    return f"'{escaped}'"
