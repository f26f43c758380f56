"""Find the random functions, such as dropout, that a module's code calls, by the names in its bytecode."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

OTHER = {
    *("rand", "randn", "rand_like", "randn_like", "bernoulli", "bernoulli_", "multinomial", "gumbel_softmax"),
    *("uniform_", "exponential_", "normal_", "randint", "randperm", "permutation", "choice"),
}
"""Names of other random functions of torch and numpy."""
FUNCTIONAL = {"functional", "F"}
DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d"}


@dataclass(frozen=True)
class RandomParts:
    """The random functions that the forward pass of a class calls."""

    dropout: bool
    """Whether it calls a functional dropout."""
    layer_drop: bool
    """Whether it leaves out whole layers."""
    other: tuple[str, ...]
    """Names of further random functions that it calls."""


@functools.cache
def random_parts(kind: type) -> RandomParts:
    """The random functions that the functions of ``kind``, and functions of its file that they call, use."""
    found = [set(code.co_names) for code in _code_of(kind)]
    return RandomParts(
        dropout=any(names & DROPOUTS and names & FUNCTIONAL for names in found),
        layer_drop=any("layerdrop" in names and names & {"rand", "random", "uniform"} for names in found),
        other=tuple(sorted({name for names in found if "layerdrop" not in names for name in names & OTHER})),
    )


def _code_of(kind: type) -> Iterator[types.CodeType]:
    seen: set[types.CodeType] = set()
    for owner in kind.__mro__:
        if owner is nn.Module or owner.__module__.split(".")[0] in ("torch", "builtins"):
            break
        if owner.__module__ in ("transformers.modeling_utils", "transformers.generation.utils"):
            continue
        for name, member in vars(owner).items():
            if not name.startswith(("__init", "_init", "init", "reset", "sample", "generate")):
                yield from _functions(member, owner.__module__, seen)


def _functions(member: object, module: str, seen: set[types.CodeType]) -> Iterator[types.CodeType]:
    """Code of a function, of those that its decorators hold, and of those of its own file that it names."""
    function = inspect.unwrap(member) if callable(member) else member
    if not isinstance(function, types.FunctionType) or function.__code__ in seen:
        return
    seen.add(function.__code__)
    for code in _nested(function.__code__):
        if "apply_spec_augment" in (*code.co_names, *code.co_consts):  # off in training: collators mask audio clips
            continue
        yield code
        for name in code.co_names:
            named = function.__globals__.get(name)
            if isinstance(named, types.FunctionType) and named.__module__ == module:
                yield from _functions(named, module, seen)


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)
