"""A version of transformers' RecurrentGemma that runs in linear time and gives padded texts the right outputs.

The modules of transformers keep their parameters and names, and only their classes are replaced. Exported folders are
therefore loaded by the class of transformers.

- The recurrence is one scan (``linear_recurrence.py``) that leaves no autograd graph on the modules. In transformers,
  a state with its graph stays on a module after a training step, so that the model cannot be copied.
- Attention is computed only inside its sliding window (``window_attention.py``), not for all pairs of tokens.
- A text padded on the left gets the same logits as the text alone. Positions count from the first token, the
  recurrence starts there, and the convolution reads nothing before it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import (
    RecurrentGemmaModel,
    RecurrentGemmaRecurrentBlock,
    RecurrentGemmaRglru,
)

from .document_convolution import keep_documents_apart
from .families.recurrent_gemma import FAMILY
from .linear_recurrence import linear_scan
from .window_attention import attend_in_windows


class LinearRglru(RecurrentGemmaRglru):
    """The gated linear recurrent unit, with a scan."""

    def _rnn_scan(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        recurrent_gate: Tensor,
        reset: Tensor,
        recurrent_states: Tensor | None,
        acc_dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor | None]:
        """States [batch, length, width], and the last one for a text that goes on; None if none was there before."""
        if hidden_states.shape[1] == 1 and recurrent_states is not None:
            return RecurrentGemmaRglru._rnn_scan(
                self, hidden_states, recurrent_gate, reset, recurrent_states, acc_dtype
            )
        states, last = linear_scan(recurrent_gate * ~reset, hidden_states, recurrent_states)
        return states, None if recurrent_states is None else last.detach()


class LinearRecurrentBlock(RecurrentGemmaRecurrentBlock):
    """The recurrent block, whose convolution remembers nothing of other documents and of padding."""

    def forward(
        self,
        input_states: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        use_cache: bool = True,
        **others: Any,
    ) -> tuple[Tensor, None]:
        state = self.conv1d_state
        if state is not None and position_ids.shape[1] == 1 and state.shape[0] == input_states.shape[0]:
            # The remembered inputs may be padding, or of another text: stock code keeps them for a prompt of one token.
            back = torch.arange(state.shape[-1], 0, -1, device=state.device)
            inside = back <= position_ids.to(state.device)
            self.conv1d_state = torch.where(inside[:, None], state, 0)
        result = super().forward(input_states, position_ids, attention_mask, use_cache, **others)
        if self.conv1d_state is not None:
            self.conv1d_state = self.conv1d_state.detach()
        return result


def use_linear_recurrence(model: PreTrainedModel) -> None:
    """Change a RecurrentGemma, also one that ``from_pretrained`` has loaded, in place."""
    kinds = {RecurrentGemmaRglru: LinearRglru, RecurrentGemmaRecurrentBlock: LinearRecurrentBlock}
    for module in model.modules():
        if type(module) in kinds:
            module.__class__ = kinds[type(module)]
        if isinstance(module, RecurrentGemmaModel):
            module.register_forward_pre_hook(_count_positions, with_kwargs=True)
    keep_documents_apart(model, FAMILY)
    attend_in_windows(model)


def _count_positions(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Arguments with the positions of texts that are padded on the left."""
    mask, past = kwargs.get("attention_mask"), kwargs.get("past_key_values")
    if kwargs.get("position_ids") is not None or not isinstance(mask, Tensor) or mask.ndim != 2:
        return None
    if (past is not None and past.get_seq_length()) or bool(mask[:, 0].all()):
        return None
    return args, {**kwargs, "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}
