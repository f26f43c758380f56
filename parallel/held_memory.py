"""Count the bytes of a rank's parameters, gradients and optimizer state, on all devices.

Memory that several tensors share is counted once. Only the local shard of a DTensor is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from .strategy import Strategy
from .torch_strategy import TorchStrategy

STATES = ("parameters", "gradients", "optimizer")
Groups = tuple[list[Any], list[Any], list[Any]]
"""(parameters, gradients, optimizer state): lists of tensors, lists of tensors within, and None."""


def held_bytes(strategy: Strategy) -> dict[str, int]:
    """Bytes that this rank holds now, by kind of state."""
    counted: set[int] = set()
    held = {}
    for kind, tensors in zip(STATES, state_tensors(strategy), strict=True):
        memory = {place: size for place, size in memory_of(tensors).items() if place not in counted}
        held[kind] = sum(memory.values())
        counted |= set(memory)
    return held


def state_tensors(strategy: Strategy) -> Groups:
    """The tensors of this rank's state, by kind."""
    return _torch_states(strategy) if isinstance(strategy, TorchStrategy) else _deepspeed_states(strategy)


def memory_of(values: Iterable[Any]) -> dict[int, int]:
    """Memory address -> bytes, of the tensors in ``values`` and in lists there; of DTensors, the local shard counts."""
    found: dict[int, int] = {}
    for value in values:
        if isinstance(value, (list, tuple)):
            found |= memory_of(value)
        elif issubclass(type(value), Tensor):
            local = value._local_tensor if isinstance(value, DTensor) else value
            if local.device.type != "meta":
                storage = local.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return found


def _torch_states(strategy: TorchStrategy) -> Groups:
    parameters = [parameter for _, parameter in strategy.named_parameters()]
    state = [value for entries in strategy.optimizer.state.values() for value in entries.values()]
    return parameters, [parameter.grad for parameter in parameters], state


def _deepspeed_states(strategy: Any) -> Groups:
    """Parameters, gradients and optimizer state. A second copy of gradients, which offload makes, is left out."""
    wrapper, base = strategy.engine.optimizer, strategy.state.base
    parameters = [parameter for _, parameter in strategy.named_parameters()]
    shards = [getattr(parameter, "ds_tensor", None) for parameter in parameters]
    masters = list(strategy.state.pieces.values())
    sources = [
        [getattr(wrapper, "grad_partitions_flat_buffer", None)],
        [parameter.grad for parameter in parameters],
        list(getattr(wrapper, "averaged_gradients", {}).values()),
        [master.grad for master in masters],
    ]
    gradients = next((source for source in sources if memory_of(source)), [])
    moments = [value for entries in base.state.values() for value in entries.values()]
    return [*parameters, *shards], gradients, [*masters, *moments]
