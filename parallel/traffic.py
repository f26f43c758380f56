"""Count the bytes that a rank sends to other ranks, by type of collective, computed from the sizes of the messages.

The counter intercepts torch's communication operators, so it covers DDP's reducer, FSDP2, DTensors, pipeline schedules
and DeepSpeed. It assumes ring algorithms, which send the least that is possible (Patarasu and Yuan 2009,
https://doi.org/10.1016/j.jpdc.2008.09.002). On N ranks these send: for an all-reduce 2 (N-1)/N of the message; for
reduce-scatter and all-to-all (N-1)/N of the input; for an all-gather (N-1)/N of the output; for reduce and broadcast
(N-1)/N on the average of the ranks. The bytes that gloo really transfers are not measured. On the CPU, the backward
pass runs in the thread that called it, so its collectives are counted too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

BOOKKEEPING = "bookkeeping"
FEW = 64
"""Most elements of a bookkeeping message (label counts, norms, overflow flags); integers always count as such."""
OPERATORS = {
    "all-reduce": ("allreduce_", "allreduce_coalesced_", "all_reduce", "all_reduce_", "all_reduce_coalesced_"),
    "reduce-scatter": (
        *("reduce_scatter_", "_reduce_scatter_base_", "reduce_scatter_tensor_coalesced_"),
        *("reduce_scatter_tensor", "reduce_scatter_tensor_out", "reduce_scatter_tensor_coalesced"),
    ),
    "all-gather": (
        *("allgather_", "_allgather_base_", "allgather_coalesced_", "allgather_into_tensor_coalesced_"),
        *("all_gather_into_tensor", "all_gather_into_tensor_out", "all_gather_into_tensor_coalesced"),
    ),
    "all-to-all": ("alltoall_", "alltoall_base_", "all_to_all_single", "shard_dim_alltoall"),
    "reduce": ("reduce_",),
    "broadcast": ("broadcast_", "broadcast"),
    "send": ("send", "isend"),
    "": (
        *("recv_", "recv_any_source_", "irecv", "wait_tensor", "_wrap_tensor_autograd"),
        *("barrier", "monitored_barrier_", "check_for_nan"),
    ),
}
"""Kind of collective -> operators of torch; the last kind sends nothing."""
KINDS = {operator: kind for kind, operators in OPERATORS.items() for operator in operators}
NAMESPACES = ("c10d", "_c10d_functional", "_dtensor")


class Traffic(TorchDispatchMode):
    """Bytes that this rank sends while the mode is on, by kind of collective; bookkeeping messages are counted apart.

    Args:
        strict: raise KeyError for an unknown communication operator, since its bytes are left out. If false, its name
            is kept in ``unknown``: a counter must not end a run.
    """

    def __init__(self, strict: bool = True) -> None:
        super().__init__()
        self.sent: dict[str, float] = defaultdict(float)
        self.strict, self.unknown = strict, set[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # DTensor first splits the operation; its collectives are then dispatched here
        result = function(*args, **(kwargs or {}))
        if function.namespace in NAMESPACES:
            name = function._opname
            if name not in KINDS and not self.strict:
                self.unknown.add(name)
            elif kind := KINDS[name]:
                self._count(kind, args, result)
        return result

    def _count(self, kind: str, args: Any, result: Any) -> None:
        message = _message(kind, args, result)
        numbers, size = sum(tensor.numel() for tensor in message), sum(tensor.nbytes for tensor in message)
        if kind != "send":
            ranks = _group(args).size()
            size *= (2 if kind == "all-reduce" else 1) * (ranks - 1) / ranks
        small = numbers <= FEW or not any(tensor.is_floating_point() for tensor in message)
        self.sent[BOOKKEEPING if small else kind] += size


def _message(kind: str, args: Any, result: Any) -> list[Tensor]:
    """The message of an operator: the larger of output and input for gathers and scatters, else the first argument.

    Operators of c10d write into their first argument; the functional ones give their output back.
    """
    sides = [side for side in (list(_tensors(value)) for value in (*args, result)) if side]
    if kind in ("all-gather", "reduce-scatter"):
        return max(sides, key=lambda side: sum(tensor.nbytes for tensor in side))
    return sides[0]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _group(args: Any) -> dist.ProcessGroup:
    """The process group: an object among the arguments of c10d, a name as the last one of a functional collective."""
    for argument in args:
        if isinstance(argument, torch.ScriptObject) and "ProcessGroup" in str(argument._type()):
            return dist.ProcessGroup.unbox(argument)
        if isinstance(argument, dist.ProcessGroup):
            return argument
    return dist.distributed_c10d._resolve_process_group(args[-1])
