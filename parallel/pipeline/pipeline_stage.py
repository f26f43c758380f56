"""Wrap a stage of a causal language model for torch's pipeline schedules.

They pass hidden states by position, and other inputs by keyword.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ...models.noise import Noise
from ..micro_batch_noise import noise_of_stage
from ..plan import Plan
from ..precision import DTYPES, autocast


@dataclass(frozen=True)
class HiddenStates:
    """Size and type of the tensors [batch, length, size] that stages send to each other."""

    size: int
    dtype: torch.dtype


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
    ) -> None:
        super().__init__()
        self.noise = noise
        self.part = part
        self.first, self.last = first, last
        self.hidden, self.plan = hidden, plan

    def forward(self, received: Tensor, **inputs: Any) -> Tensor:
        """Logits on the last stage, hidden states [batch, length, size] on the others.

        Args:
            received: token ids [batch, length] on the first stage, hidden states on the others.
            inputs: other inputs of the model, such as attention mask and positions, and what its noise depends on.
        """
        name = "input_ids" if self.first else "inputs_embeds"
        with noise_of_stage(self.noise, inputs), autocast(self.plan, received.device):
            output = self.part(**{name: received}, **inputs, use_cache=False).logits
        if self.last:
            return output
        if isinstance(output, DTensor):
            output = output.full_tensor()
        expected = (*received.shape[:2], self.hidden.size)
        assert tuple(output.shape) == expected, f"hidden states of {tuple(output.shape)} where {expected} are expected"
        # Receive buffers have this type. Stock code slices hidden states before the head, which gives a view, and torch
        # refuses to detach a view in place, as zero-bubble schedules do with sent tensors.
        output = output.to(self.hidden.dtype)
        return output.clone() if output._is_view() else output


def hidden_dtype(plan: Plan) -> torch.dtype:
    """Type in which hidden states are sent, wide enough to lose nothing.

    The residual stream is fp32 under autocast. FSDP casts whole blocks, residual stream included.
    """
    if plan.data_parallel != "fsdp":
        return torch.float32
    return DTYPES[plan.fsdp.output_dtype or plan.fsdp.param_dtype or plan.precision]
