"""Wrap a stage of a causal language model for torch's pipeline schedules, and describe the hidden states that stages
send to each other.

The schedules pass hidden states by position and all other inputs by keyword.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ...models.head_loss import HeadLoss
from ...models.noise import Noise
from ..micro_batch import MicroBatch
from ..micro_batch_noise import noise_of_stage
from ..plan import Plan
from ..precision import DTYPES, autocast

TARGET = "target_"
"""Beginning of the names under which a pipeline hands targets to its last stage."""


@dataclass(frozen=True)
class HiddenStates:
    """Size and type of the tensors [batch, length, size] that stages send to each other."""

    size: int
    dtype: torch.dtype
    latents: int | None = None
    """Most positions that go on after the first block (Perceiver AR's latents); None if all do."""

    def length(self, tokens: int) -> int:
        """Positions of the hidden states of a text of ``tokens``."""
        return tokens if self.latents is None else min(tokens, self.latents)


class Stage(nn.Module):
    """A part of a model (``cut_stage``) with the calling convention of ``torch.distributed.pipelining``.

    It is also the root module of FSDP, because the schedules control gradient reduction on the module that they call.
    """

    def __init__(
        self,
        part: PreTrainedModel,
        first: bool,
        last: bool,
        hidden: HiddenStates,
        plan: Plan,
        noise: Noise | None = None,
        head: HeadLoss | None = None,
    ) -> None:
        super().__init__()
        self.head = head
        self.noise = noise
        self.part = part
        self.first, self.last = first, last
        self.hidden, self.plan = hidden, plan

    def forward(self, received: Tensor, **inputs: Any) -> Tensor:
        """Logits or losses on the last stage; hidden states [batch, length, size] on the others.

        Args:
            received: token ids [batch, length] on the first stage, hidden states on the others.
            inputs: other inputs of the model, such as attention mask and positions, what its noise depends on, and the
                targets of its head.
        """
        name = "input_ids" if self.first else "inputs_embeds"
        asking = self._asking(inputs)
        with noise_of_stage(self.noise, inputs), autocast(self.plan, received.device), asking:
            output = self.part(**{name: received}, **inputs, use_cache=False).logits
        if self.last:
            return output
        if isinstance(output, DTensor):
            output = output.full_tensor()
        expected = (received.shape[0], self.hidden.length(received.shape[1]), self.hidden.size)
        assert tuple(output.shape) == expected, f"hidden states of {tuple(output.shape)} where {expected} are expected"
        # Receive buffers have this type. Stock code slices hidden states before the head, which gives a view, and torch
        # refuses to detach a view in place, as zero-bubble schedules do with sent tensors.
        output = output.to(self.hidden.dtype)
        return output.clone() if output._is_view() else output

    def _asking(self, inputs: dict[str, Any]) -> AbstractContextManager:
        """The context in which the head gives the losses of the task; removes the values of ``head_inputs``."""
        names = [name for name in inputs if name.startswith(TARGET)]
        targets = {name.removeprefix(TARGET): inputs.pop(name) for name in names}
        if self.head is None or not self.last or not targets:
            return nullcontext()
        return self.head.running(self.head.ask(targets, torch.is_grad_enabled()))


def head_inputs(head: HeadLoss | None, micro_batches: list[MicroBatch]) -> dict[str, Tensor]:
    """Targets of all micro-batches, one after the other, which the head of the last stage needs."""
    if head is None:
        return {}
    names = micro_batches[0].targets
    return {f"{TARGET}{name}": torch.cat([micro.targets[name] for micro in micro_batches]) for name in names}


def hidden_dtype(plan: Plan) -> torch.dtype:
    """Type in which hidden states are sent, wide enough to lose nothing.

    The residual stream is fp32 under autocast. FSDP casts whole blocks, residual stream included.
    """
    if plan.data_parallel != "fsdp":
        return torch.float32
    return DTYPES[plan.fsdp.output_dtype or plan.fsdp.param_dtype or plan.precision]
