"""Fuzz test: random mutations of recipes, values, environment, data and weights give no traceback and no hang.

``trireme check`` gets each mutation, and ``trireme train`` gets some of those that the check accepts. If a mutation is
refused, the error names what was mutated; an invalid mutation must be refused. Another seed, or more mutations:
``FUZZ_SEED=3 FUZZ_TIMES=5 pytest tests/unit/test_fuzz.py``.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.mutated_files import data_mutations, recipe_mutations, weights_mutations
from helpers.mutations import Mutation, environment_mutations, value_mutations
from helpers.recipes import STDLIB, TINY
from trireme.launch.cli import main

SEED, TIMES = int(os.environ.get("FUZZ_SEED", "0")), int(os.environ.get("FUZZ_TIMES", "1"))
SECONDS = 120
"""Time limit, far more than any command takes on a busy machine."""
TRAINED = 2
"""Number of accepted mutations of each test that are also trained with, for one step."""
KINDS: dict[str, tuple[Callable[[], Iterator[Mutation]], int, int]] = {
    "values": (value_mutations, 150, 6),
    "environment": (environment_mutations, 30, 1),
    "data": (data_mutations, 50, 2),
    "weights": (weights_mutations, 35, 2),
    "recipes": (recipe_mutations, 35, 2),
}
"""Kind -> all mutations, how many are drawn, over how many tests they are spread."""


class Hang(BaseException):
    """A command that does not end."""


@contextmanager
def _time_limit() -> Iterator[None]:
    def end(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _run(
    command: str, mutation: Mutation, folder: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[object, str]:
    """The exit code, or what happened in its place, and the whole output."""
    recipe = mutation.recipe(folder) if mutation.recipe else TINY
    given = [*mutation.arrange(folder), *mutation.overrides]
    other_data = any(text.startswith("data=") and text != "data=python_stdlib" for text in given)
    roots = [] if other_data else [f"data.source.roots=[{STDLIB / 'json'}]"]
    run = [] if any(text.startswith("run.dir=") for text in given) else [f"run.dir={folder / 'run'}"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in mutation.environment.items():
            patch.setenv(name, value)
        patch.chdir(folder)  # files with relative names are written here
        capsys.readouterr()
        try:
            with _time_limit():
                code: object = main([command, str(recipe), *roots, *run, *given, *more])
        except Hang:
            code = f"no end in {SECONDS} s"
        except BaseException as error:
            code = f"raised {type(error).__name__}: {error}"
    said = capsys.readouterr()
    return code, said.out + said.err


def _fault(code: object, said: str, mutation: Mutation) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if code not in (0, 2):
        return f"exit code {code}"
    if "Traceback (most" in said:
        return "a traceback"
    if code == 0:
        return "accepted" if mutation.nonsense else ""
    return "" if any(name in said for name in mutation.named or ("recipe", ".", "fix:")) else "refused without its name"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "part"), [(kind, part) for kind, (_, _, parts) in KINDS.items() for part in range(parts)]
)
def test_no_mutation_ends_in_a_traceback_a_hang_or_silence(
    kind: str, part: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything, count, parts = KINDS[kind]
    chosen = random.Random(SEED).sample(list(everything()), count * TIMES)[part::parts]
    faults, sound = [], []
    for number, mutation in enumerate(chosen):
        folder = tmp_path / str(number)
        folder.mkdir()
        code, said = _run("check", mutation, folder, capsys)
        if fault := _fault(code, said, mutation):
            faults.append(f"{mutation.name} {mutation.overrides}: {fault}\n{said[-1500:]}")
        elif (
            code == 0
            and "large" not in mutation.name
            and not mutation.environment
            and "--nproc=2" not in mutation.overrides
        ):
            sound.append(mutation)
    for number, mutation in enumerate(sound[: TRAINED * TIMES]):
        folder = tmp_path / f"train{number}"
        folder.mkdir()
        code, said = _run("train", mutation, folder, capsys, "trainer.max_steps=1")
        if code not in (0, 2, 3) or "Traceback (most" in said:
            faults.append(f"train with {mutation.name} {mutation.overrides}: {code}\n{said[-1500:]}")
    assert not faults, f"{len(faults)} of {len(chosen)}:\n\n" + "\n\n".join(faults)
