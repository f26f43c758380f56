"""Attention masks that separate the documents of packed texts, for models such as OPT that do not build them.

transformers separates documents where ``position_ids`` restart, if the model passes ``position_ids`` to the function
that builds the mask. OPT does not pass them, so its documents would silently attend to each other. This file computes
the mask and passes it to OPT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

    from .family import ModelFamily


def mask_by_positions(model: nn.Module, family: ModelFamily) -> None:
    """Give the module that ``family`` names (``mask_maker``) a mask that follows from its positions."""
    if family.mask_maker:
        model.get_submodule(family.mask_maker).register_forward_pre_hook(_with_mask, with_kwargs=True)


def _with_mask(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Arguments with the mask of packed rows; a finished mask (four dimensions) is taken as it is."""
    from transformers.masking_utils import create_causal_mask

    positions = kwargs.get("position_ids")
    if positions is None or kwargs.get("attention_mask") is not None or kwargs.get("past_key_values") is not None:
        return None
    kind = next((each.dtype for each in module.parameters() if each.is_floating_point()), torch.float32)
    shaped = torch.empty(*positions.shape, 0, dtype=kind, device=positions.device)  # only its shape and type are used
    mask = create_causal_mask(
        config=module.config, inputs_embeds=shaped, attention_mask=None, past_key_values=None, position_ids=positions
    )
    return args, {**kwargs, "attention_mask": mask}
