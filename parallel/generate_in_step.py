"""Generate text while ranks hold only shards of the weights (FSDP, ZeRO-3): all ranks run equally many forward passes.

Every forward pass gathers weights from all ranks. A rank that has completed its texts therefore goes on running the
model until all ranks have. transformers has ``synced_gpus`` for this, but in 5.23 the cache of a finished rank grows
beyond its mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from ..models.hidden_size import hidden_size
from .mesh import Mesh


def generate_in_step(mesh: Mesh, model: PreTrainedModel, arguments: dict[str, Any]) -> Tensor:
    """Tokens by transformers' ``generate``; a collective call, in which ranks may have different inputs.

    An encoder runs once on every rank, before the first token, so only the passes of the whole model are counted.
    """

    def ranks_at_work(mine: int) -> int:
        """Number of ranks that are about to run the model for their own tokens; called before every forward pass."""
        return mesh.sum_integers([mine])[0]

    announce = model.register_forward_pre_hook(lambda *_: ranks_at_work(1) and None, prepend=True)
    try:
        tokens = model.generate(**arguments, synced_gpus=False)  # type: ignore[operator]
    finally:
        announce.remove()
    while ranks_at_work(0):
        model(**_any_inputs(model, mesh.device), use_cache=False)
    return tokens


def _any_inputs(model: PreTrainedModel, device: torch.device) -> dict[str, Any]:
    """Inputs of the shortest forward pass that uses the same weights as the generation of one token."""
    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    if not model.config.is_encoder_decoder:
        return {"input_ids": token}
    width = hidden_size(getattr(model.config, "encoder", model.config))
    hidden = torch.zeros(1, 1, width, dtype=model.dtype, device=device)
    return {"encoder_outputs": BaseModelOutput(last_hidden_state=hidden), "decoder_input_ids": token}  # type: ignore
