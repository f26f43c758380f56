"""Divide tensors into groups of at most a given number of bytes, such as the shards of a file or a part of memory."""

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
