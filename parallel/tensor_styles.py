"""Turn single modules into their tensor-parallel form: column-parallel and row-parallel linear layers, token embeddings
and output layers that are split by vocabulary, and modules such as norms that every rank keeps whole.

Parameters are DTensors on the tensor axis, so FSDP2, optimizers and checkpoints know each rank's shard. The computation
runs on local tensors, because DTensor operations would take longer than small matrix products. Activations are DTensors
only where they enter and leave the split layers, where the collectives of forward and backward run. Methods are bound
to their module, so a copy of the module does not refer to the original.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard
from transformers.pytorch_utils import Conv1D

from ..models.head_loss import HeadPart
from ..models.low_rank import is_part
from .tensor_shards import split_like


class Border:
    """Collectives at the border between the split part of a block and the hidden states outside of it."""

    def __init__(self, mesh: DeviceMesh, sequence: bool) -> None:
        self.mesh = mesh
        self.sequence = sequence
        """Whether hidden states outside of the split part are now split by sequence position."""

    def enter(self, hidden: Tensor) -> Tensor:
        """Hidden states for the split part: whole sequences, whose gradient is summed over ranks."""
        if self.sequence:
            entering = self._at(hidden, Shard(hidden.ndim - 2)).redistribute(placements=[Replicate()])
        else:
            entering = self._at(hidden, Replicate())
        return entering.to_local(grad_placements=[Partial()])

    def leave(self, partial: Tensor) -> Tensor:
        """The sum of the ranks' partial results: whole, or this rank's part of the sequence."""
        target = Shard(partial.ndim - 2) if self.sequence else Replicate()
        return self._at(partial, Partial()).redistribute(placements=[target]).to_local()

    def split(self, hidden: Tensor) -> Tensor:
        """This rank's part of a whole sequence; the backward pass gathers the gradient."""
        return self._at(hidden, Replicate()).redistribute(placements=[Shard(1)]).to_local()

    def join(self, hidden: Tensor) -> Tensor:
        """The whole sequence; the backward pass gives each rank its part of the gradient, which all ranks have."""
        return self._at(hidden, Shard(1)).redistribute(placements=[Replicate()]).to_local()

    def gather_features(self, part: Tensor) -> Tensor:
        """The features of all ranks, of which each computed some; the backward pass gives each rank its part of the
        gradient, which all ranks have."""
        return self._at(part, Shard(part.ndim - 1)).redistribute(placements=[Replicate()]).to_local()

    def split_features(self, whole: Tensor) -> Tensor:
        """This rank's part of features that all ranks have; the backward pass gathers the gradient."""
        return self._at(whole, Replicate()).redistribute(placements=[Shard(whole.ndim - 1)]).to_local()

    @property
    def outside_gradient(self) -> Placement:
        """Placement of the gradients of weights outside of the split part: partial sums if the sequence is split."""
        return Partial() if self.sequence else Replicate()

    def _at(self, tensor: Tensor, placement: Placement) -> DTensor:
        return DTensor.from_local(tensor, self.mesh, [placement], run_check=False)


def distribute(module: nn.Module, name: str, mesh: DeviceMesh, placement: Placement) -> None:
    """Make the parameter ``name`` of ``module`` (on the meta device) a DTensor with this rank's shard."""
    full = module._parameters[name]
    assert full is not None
    local = split_like(full.detach(), placement, mesh.size(), mesh.get_local_rank())
    spread = DTensor.from_local(
        local, mesh, [placement], run_check=False, shape=full.shape, stride=full.contiguous().stride()
    )
    module._parameters[name] = nn.Parameter(spread, requires_grad=full.requires_grad)


def split_by_output(module: nn.Module, mesh: DeviceMesh, parts: int = 1) -> None:
    """Column style: split every parameter along the outputs; the stock forward computes this rank's outputs."""
    for name, parameter in own_parameters(module):
        dim = 1 if isinstance(module, Conv1D) and name == "weight" else 0
        distribute(module, name, mesh, split_placement(dim, parts, parameter.shape[dim], mesh))
    if isinstance(module, Conv1D):
        module.nf //= mesh.size()
    compute_locally(module)


def split_by_input(module: nn.Module, border: Border, parts: int = 1) -> None:
    """Row style: split the weight along the inputs; the ranks' products are summed, and the bias is added once."""
    dim = 0 if isinstance(module, Conv1D) else 1
    weight = module.get_parameter("weight")
    distribute(module, "weight", border.mesh, split_placement(dim, parts, weight.shape[dim], border.mesh))
    if module._parameters.get("bias") is not None:
        distribute(module, "bias", border.mesh, Replicate())

    def forward(self: Any, inputs: Tensor) -> Tensor:
        weight = _local(self.weight)
        output = border.leave(inputs @ weight if isinstance(self, Conv1D) else F.linear(inputs, weight))
        if self.bias is None:
            return output
        return output + _local(self.bias, border.outside_gradient).to(output.dtype)

    module.forward = MethodType(forward, module)


def split_vocabulary_in(module: nn.Embedding, border: Border) -> None:
    """Split the rows of the token embedding; each rank looks up its own tokens and gives zero for the others."""
    distribute(module, "weight", border.mesh, Shard(0))
    longest = -(-module.num_embeddings // border.mesh.size())
    first = longest * border.mesh.get_local_rank()

    def forward(self: Any, tokens: Tensor) -> Tensor:
        spread, given = self._parameters, self.padding_idx
        weight = _local(spread["weight"])
        here = tokens - first
        elsewhere = (here < 0) | (here >= weight.shape[0])
        self._parameters = {"weight": weight}
        self.padding_idx = given - first if given is not None and 0 <= given - first < weight.shape[0] else None
        try:  # the module's own forward, since some scale what they find
            found = type(self).forward(self, here.masked_fill(elsewhere, 0))
        finally:
            self._parameters, self.padding_idx = spread, given
        return border.leave(found.masked_fill(elsewhere.unsqueeze(-1), 0))

    module.forward = MethodType(forward, module)


def split_vocabulary_out(module: nn.Linear, border: Border) -> None:
    """Split the rows of the head; the logits stay split, as a DTensor, and are never gathered."""
    for name, _ in own_parameters(module):
        distribute(module, name, border.mesh, Shard(0))
    vocabulary = module.out_features

    def forward(self: Any, hidden: Tensor) -> DTensor:
        bias = None if self.bias is None else _local(self.bias)
        logits = F.linear(border.enter(hidden), _local(self.weight), bias)
        whole = hidden.new_empty((*hidden.shape[:-1], vocabulary), device="meta")
        split = Shard(hidden.ndim - 1)
        return DTensor.from_local(
            logits, border.mesh, [split], run_check=False, shape=whole.shape, stride=whole.stride()
        )

    module.forward = MethodType(forward, module)
    module.head_part = SplitHead(border, vocabulary)  # type: ignore[assignment]


class SplitHead(HeadPart):
    """The part of the head on this rank: the rows of some words of the vocabulary."""

    def __init__(self, border: Border, words: int) -> None:
        self.border, self.words = border, words
        self.first = -(-words // border.mesh.size()) * border.mesh.get_local_rank()
        self.group = border.mesh.get_group()

    def enter(self, hidden: Tensor) -> Tensor:
        return self.border.enter(hidden)

    def parameters(self, head: nn.Linear) -> tuple[Tensor, Tensor | None]:
        return _local(head.weight), None if head.bias is None else _local(head.bias)

    def __deepcopy__(self, memo: dict[int, Any]) -> SplitHead:
        return self  # process groups are not copied


def replicate_parameters(module: nn.Module, mesh: DeviceMesh, gradient: Callable[[], Placement] = Replicate) -> None:
    """Keep whole parameters on every rank; ``gradient`` says whether their gradients are whole or partial sums."""
    for name, _ in own_parameters(module):
        distribute(module, name, mesh, Replicate())
    compute_locally(module, gradient)


def compute_locally(module: nn.Module, gradient: Callable[[], Placement] | None = None) -> None:
    """Run the stock forward on local tensors, which replace the DTensor parameters for as long as it runs."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        spread = self._parameters
        placement = gradient() if gradient is not None else None
        self._parameters = {
            name: p if p is None or is_part(name) else _local(p, placement) for name, p in spread.items()
        }
        try:
            return type(self).forward(self, *args, **kwargs)
        finally:
            self._parameters = spread

    module.forward = MethodType(forward, module)


def own_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters of the module itself, without those of its children and those of an adapter beside it."""
    return [(name, one) for name, one in module.named_parameters(recurse=False) if not is_part(name)]


def split_placement(dim: int, parts: int, size: int, mesh: DeviceMesh) -> Placement:
    """The placement of a dimension that the ranks of ``mesh`` split, in which ``parts`` matrices follow each other.

    Raises:
        ValueError: the matrices do not divide.
    """
    if parts > 1 and size % (parts * mesh.size()):
        raise ValueError(f"{size} features in {parts} parts do not divide over {mesh.size()} tensor ranks")
    return _StridedShard(dim, split_factor=parts) if parts > 1 else Shard(dim)


def _local(parameter: Tensor, gradient: Placement | None = None) -> Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.to_local(grad_placements=None if gradient is None else [gradient])
