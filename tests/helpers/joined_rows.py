"""Join the slices of tensors that each rank saves under ZeRO into full tensors, so that tests can compare them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from trireme.parallel.mesh import Mesh
from trireme.parallel.tensor_rows import Rows


def joined_rows(mesh: Mesh, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Full tensors, joined from the slices that all ranks save. All ranks must call this, and each gets all tensors.

    Raises:
        AssertionError: an element is saved by no rank, or by several.
    """
    held = {n: (t.first, t.whole) if isinstance(t, Rows) else (0, t.shape) for n, t in saved.items()}
    parts = mesh.gather_objects({name: (*held[name], each.as_subclass(Tensor)) for name, each in saved.items()})
    whole: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    for name, (first, shape, tensor) in (item for part in parts for item in part.items()):
        if name not in whole:
            whole[name] = torch.zeros(shape, dtype=tensor.dtype)
            seen[name] = torch.zeros(shape, dtype=torch.int8)
        rows = slice(first, first + len(tensor)) if tensor.dim() else ()
        whole[name][rows] = tensor
        seen[name][rows] += 1
    assert all(bool((times == 1).all()) for times in seen.values())
    return whole
