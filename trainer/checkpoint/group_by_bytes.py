"""Divide tensors into groups of limited size: those to write to one file, or to hold in memory at the same time."""

from __future__ import annotations


def split_by_bytes(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in order, in groups of at most ``limit`` bytes; a larger tensor has a group of its own."""
    groups: list[list[str]] = []
    filled = limit + 1
    for name, size in sizes.items():
        if filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups
