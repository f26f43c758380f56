"""Find the blocks, embeddings and heads of a model by the paths in its family description.

This works for a whole model and for a pipeline stage of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .family import ModelFamily

if TYPE_CHECKING:
    from torch import nn


def blocks_of(model: nn.Module, family: ModelFamily) -> list[nn.Module]:
    """All blocks of all stacks, in the order in which data passes them."""
    return [block for _, stack in block_lists(model, family) for block in _members(stack)]


def block_lists(model: nn.Module, family: ModelFamily) -> list[tuple[str, nn.Module]]:
    """(path, module) of every list of blocks."""
    return [found for stack in family.stacks for found in _matches(model, stack.blocks)]


def embeddings_of(model: nn.Module, family: ModelFamily) -> list[tuple[str, nn.Module]]:
    """(path, module) of the token embeddings that ``model`` has."""
    return [found for path in family.embeddings for found in _matches(model, path)]


def heads_of(model: nn.Module, family: ModelFamily) -> list[tuple[str, nn.Module]]:
    """(path, module) of the output layers over tokens that ``model`` has."""
    return [found for _, path in family.heads for found in _matches(model, path)]


def _members(stack: nn.Module) -> Iterator[nn.Module]:
    """Blocks of a list, or of the lists that it holds for its stages, which run nothing themselves."""
    from torch import nn

    for child in stack.children():
        if isinstance(child, nn.ModuleList):
            yield from _members(child)
        else:
            yield child


def _matches(model: nn.Module, pattern: str) -> list[tuple[str, nn.Module]]:
    """Modules at ``pattern``, in which ``*`` stands for any child; none where the path does not exist."""
    found: list[tuple[str, nn.Module]] = [("", model)]
    for name in pattern.split("."):
        found = [
            (f"{path}.{child}" if path else child, module)
            for path, parent in found
            for child, module in parent.named_children()
            if name in ("*", child)
        ]
    return found
