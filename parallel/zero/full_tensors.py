"""Read and write the weights and optimizer state of a DeepSpeed engine, as full tensors or as this rank's part of them.

DeepSpeed keeps fp32 weights and moments in flat buffers that hold parts of several parameters. Its public functions
gather and scatter one parameter. This file adds what these functions lack: the weights of stage 0, the range of one
rank, step counters, and optimizer state that does not exist before the first step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class EngineState:
    """Access to the weights and the optimizer state behind an engine's parameters. All calls are collective."""

    def __init__(self, engine: Any) -> None:
        from deepspeed.utils import (
            safe_get_full_fp32_param,
            safe_get_full_optimizer_state,
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        self.engine = engine
        self.stage = engine.zero_optimization_stage()
        self.wrapper = engine.optimizer
        self.base = getattr(self.wrapper, "optimizer", self.wrapper)
        self.get_weight, self.set_weight = safe_get_full_fp32_param, safe_set_full_fp32_param
        self.get_moment, self.set_moment = safe_get_full_optimizer_state, safe_set_full_optimizer_state
        self.set_part, self.set_part_of_moment = safe_set_local_fp32_param, safe_set_local_optimizer_state
        self.pieces = {id(p): flat for params, flat in self._groups() for p in params}
        self._linked = False

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """The full parameter in fp32: the optimizer's copy, or for a frozen parameter its own value."""
        if self.stage == 0:
            return self.pieces.get(id(parameter), parameter).detach().float()
        if parameter.requires_grad:
            full = self.get_weight(parameter)
            assert full is not None
            return full
        with self._gathered(parameter):
            return parameter.detach().float().clone()

    def is_split(self, parameter: nn.Parameter) -> bool:
        """Whether each rank holds a range of the fp32 weights of ``parameter`` and of their moments."""
        return self.stage > 0 and parameter.requires_grad and numel(parameter) > 0

    @property
    def swaps(self) -> bool:
        """Whether the optimizer state is swapped to a disk, so that ``part`` returns copies."""
        return bool(getattr(self.wrapper, "swap_optimizer", False))

    def held(self, parameter: Any) -> tuple[int, int]:
        """(first element, end) of this rank's range in a flattened split parameter; equal if the rank holds nothing."""
        if self.stage == 3:
            size, rank = parameter.partition_numel(), dist.get_rank(parameter.ds_process_group)
            return min(rank * size, numel(parameter)), min((rank + 1) * size, numel(parameter))
        if parameter._hp_mapping is None:
            return 0, 0
        address = parameter._hp_mapping.lp_fragment_address
        return address.start, address.start + address.numel

    def part(self, parameter: Any, key: str | None = None) -> Tensor:
        """This rank's elements of the fp32 weights of a split parameter, or of the state ``key``, flat."""
        begin, end = self.held(parameter)
        if self.stage < 3:
            fragment = parameter._hp_mapping
            found = torch.empty(0) if fragment is None else fragment.get_hp_fragment(key)
        else:  # DeepSpeed's public function would copy what is offloaded to the GPU
            found, _ = self.wrapper._get_fp32_opt_state_partition(parameter, True, key)
            if self.swaps:  # its buffer is used again for the next parameter
                found = found.clone()
        return found.detach()[: end - begin]

    def load_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set the optimizer's copy of a parameter and the model's; call ``loaded`` after the last parameter."""
        with torch.no_grad():
            if self.stage == 0 and id(parameter) in self.pieces:
                self.pieces[id(parameter)].copy_(value)
            elif self.stage > 0 and parameter.requires_grad:
                if self._is_uneven(parameter):
                    self.set_part(parameter, _own_part(parameter, value))
                else:
                    self.set_weight(parameter, value)
            if self.stage in (0, 3) or not parameter.requires_grad:
                with self._gathered(parameter, modified=True):
                    parameter.copy_(value)

    def loads_parts(self, parameter: Any) -> bool:
        """Whether ``load_part`` can set a parameter; it is the same on all ranks.

        Stage 3 gives the whole of a parameter that it has gathered, swapped to a disk, quantised, or copied for a
        second group of ranks.
        """
        if not self.is_split(parameter) or self.stage < 3:
            return self.is_split(parameter)
        part = parameter.ds_tensor
        states = parameter.ds_status.name, part.status.name
        return (
            states == ("NOT_AVAILABLE", "AVAILABLE")
            and parameter.ds_secondary_tensor is None
            and not hasattr(part, "ds_quant_scale")
        )

    def load_part(self, parameter: Any, key: str | None, values: Tensor) -> None:
        """Set this rank's elements of a parameter's weight (``key`` None) or of its state ``key``; for parameters of
        ``loads_parts``. Call ``loaded`` after the last parameter.

        Args:
            values: the elements in ``held``, flat.
        """
        with torch.no_grad():
            if self.stage < 3:
                if len(values):
                    self.part(parameter, key).copy_(values)
                return
            part = parameter.ds_tensor
            padded = F.pad(values.float(), (0, part.numel() - len(values)))
            if key is not None:
                self.set_part_of_moment(parameter, padded, key)
                return
            self.set_part(parameter, padded)
            part.data.copy_(padded)

    def loaded(self) -> None:
        """Update the model from the optimizer's copies in stages 1 and 2; the calls above set only the copies."""
        if self.stage in (1, 2):
            self.wrapper.update_lp_params()

    def counters(self, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
        """Step counters and other single numbers in the state of ``parameter``, as fp32 scalars. torch's optimizers
        keep such scalars too; DeepSpeed's keep integers."""
        for key, value in self._entries(parameter).items():
            if value is not None and not _is_moment(value):
                yield key, torch.as_tensor(value, dtype=torch.float32).clone()

    def moments(self, parameter: nn.Parameter) -> list[str]:
        """Keys of the state tensors that have the shape of ``parameter``."""
        self._link()
        return [key for key, value in self._entries(parameter).items() if _is_moment(value)]

    def moment(self, parameter: nn.Parameter, key: str) -> Tensor:
        """One of the ``moments`` of a parameter that is not split."""
        return self._entries(parameter)[key]

    def state(self, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
        """Optimizer state of ``parameter`` by key: full tensors, counters as scalars."""
        yield from self.counters(parameter)
        for key in self.moments(parameter):
            full = self.moment(parameter, key) if self.stage == 0 else self.get_moment(parameter, key)
            assert full is not None
            yield key, full

    def load_state(self, parameter: nn.Parameter, state: dict[str, Tensor]) -> None:
        """Set the optimizer state of ``parameter``, as ``state`` gives it; entries must exist (``create``)."""
        self._link()
        entries = self._entries(parameter)
        for key, value in state.items():
            present = entries.get(key)
            if isinstance(present, Tensor) and present.dim() > 0:
                with torch.no_grad():
                    if self.stage == 0:
                        present.copy_(value)
                    elif self._is_uneven(parameter):
                        self.set_part_of_moment(parameter, _own_part(parameter, value), key)
                    else:
                        self.set_moment(parameter, value, key)
            elif isinstance(present, Tensor):
                present.fill_(value.item())
            elif present is not None:
                entries[key] = type(present)(value.item())

    def create(self) -> None:
        """Create the state that optimizers otherwise create in their first step.

        This takes one step with zero gradients and a learning rate of zero, which does not change the weights.
        """
        rates = [group["lr"] for group in self.base.param_groups]
        for group in self.base.param_groups:
            group["lr"] = 0.0
        with torch.no_grad():
            if self.stage == 0:
                flats = [flat for _, flat in self._groups()]
                with contextlib.ExitStack() as stack:
                    for flat in flats:
                        stack.enter_context(_zero_gradient(flat))
                    self.base.step()
            else:
                for number, (_, flat) in enumerate(self._groups()):
                    self._step_piece(number, flat)
        for group, rate in zip(self.base.param_groups, rates, strict=True):
            group["lr"] = rate

    @property
    def exists(self) -> bool:
        return any(self.base.state.get(flat) for _, flat in self._groups())

    def clear_counters(self) -> None:
        """Reset all optimizer state to zero, as before the first step. The weights must be set again."""
        for _, flat in self._groups():
            for key, value in self.base.state.get(flat, {}).items():
                if isinstance(value, Tensor):
                    value.zero_()
                else:
                    self.base.state[flat][key] = 0

    def _is_uneven(self, parameter: Any) -> bool:
        """Whether the last part in stage 3 is padded: DeepSpeed's setter of a full tensor reads beyond its end."""
        return self.stage == 3 and parameter.ds_numel % dist.get_world_size(parameter.ds_process_group) > 0

    # -- differences between stages ---------------------------------------------------------------------------

    def _groups(self) -> list[tuple[list[nn.Parameter], Tensor]]:
        """(parameters, this rank's flat piece of their fp32 weights), in the order of the optimizer's steps."""
        wrapper = self.wrapper
        if self.stage == 3:
            return list(zip(wrapper.fp16_groups, wrapper.fp32_partitioned_groups_flat, strict=True))
        if hasattr(wrapper, "single_partition_of_fp32_groups"):
            return list(zip(wrapper.bit16_groups, wrapper.single_partition_of_fp32_groups, strict=True))
        if hasattr(wrapper, "bf16_groups"):
            return list(zip(wrapper.bf16_groups, wrapper.fp32_groups_flat_partition, strict=True))
        if hasattr(wrapper, "fp32_groups"):
            halves = zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
            return [([half], full) for pair in halves for half, full in zip(*pair, strict=True)]
        return [([p], p) for group in wrapper.param_groups for p in group["params"]]

    def _entries(self, parameter: nn.Parameter) -> dict[str, Any]:
        flat = self.pieces.get(id(parameter))
        return {} if flat is None else self.base.state.get(flat, {})

    def _link(self) -> None:
        """Link parameters to their moments in stages 1 and 2; DeepSpeed does so for the first group only."""
        if self._linked or self.stage not in (1, 2) or not self.exists:
            return
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        for params, flat in self._groups():
            lazy_init_hp_params_optimizer_state(params, flat, self.base.state)
        self._linked = True

    def _step_piece(self, number: int, flat: Tensor) -> None:
        wrapper = self.wrapper
        swapped = self.stage == 3 and wrapper._swappable_optimizer_subgroup(number)
        if swapped:
            wrapper._optimizer_states_and_gradient_swap_in(number)
        with _zero_gradient(flat):
            if hasattr(wrapper, "_optimizer_step"):
                wrapper._optimizer_step(number)
            else:
                self.base.step()  # steps only pieces that have a gradient, which is this one
        if swapped:
            wrapper._optimizer_states_and_gradient_swap_out(number)

    @contextlib.contextmanager
    def _gathered(self, parameter: nn.Parameter, modified: bool = False) -> Iterator[None]:
        if self.stage != 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if modified else None):
            yield


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """Shape of the whole parameter, since a ZeRO-3 parameter itself has an empty shape."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def numel(parameter: nn.Parameter) -> int:
    """Elements of the whole parameter."""
    return shape_of(parameter).numel()


def _is_moment(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _own_part(parameter: Any, value: Tensor) -> Tensor:
    """This rank's part of a full tensor in stage 3, with DeepSpeed's padding."""
    group, size = parameter.ds_process_group, parameter.ds_tensor.numel()
    whole = F.pad(value.flatten(), (0, size * dist.get_world_size(group) - value.numel()))
    return whole.narrow(0, size * dist.get_rank(group), size)


@contextlib.contextmanager
def _zero_gradient(flat: Tensor) -> Iterator[None]:
    """Give ``flat`` a zero gradient for a while. A gradient buffer that offload has put there stays in use."""
    kept = flat.grad
    if kept is None:
        flat.grad = torch.zeros_like(flat)
    else:
        kept.zero_()
    yield
    flat.grad = kept
