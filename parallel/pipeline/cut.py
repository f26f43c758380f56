"""Cut a causal language model of transformers into pipeline stages.

A stage is a copy of the whole model without the blocks of other stages. Other modules that the stage does not need are
replaced by modules that do nothing. The ``forward`` of transformers runs unchanged on every stage. The first stage
takes token ids, and the others take hidden states (``inputs_embeds``). The last stage returns logits; the others return
hidden states under the name ``logits``. Parameters keep their names.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...models.family import Cut, ModelFamily
from ...models.find_blocks import block_lists


class Blocks(nn.ModuleList):
    """Blocks of one stage. They are named by their numbers in the whole model, and indexed from 0 within the stage."""

    def __init__(self, blocks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for number, block in blocks.items():
            self.add_module(number, block)

    def __getitem__(self, index: Any) -> Any:
        blocks = list(self._modules.items())
        if isinstance(index, slice):  # stock code iterates over ``layers[: config.num_hidden_layers]``
            return Blocks({number: block for number, block in blocks[index] if block is not None})
        return blocks[index][1]


class Zero(nn.Module):
    """Replaces a module whose output is added to the embeddings: gives a zero that broadcasts."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        device = next((a.device for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        return torch.zeros((), device=device)


class PassThrough(nn.Module):
    """Replaces a module that is applied to hidden states: returns its first argument."""

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden


STAND_INS: dict[str, type[nn.Module]] = {"zero": Zero, "identity": PassThrough}


def cut_stage(
    model: PreTrainedModel, family: ModelFamily, stage: int, stages: int, split: list[int]
) -> PreTrainedModel:
    """The given stage of ``model`` (on the meta device), with a configuration of its own.

    A head that is tied to the embedding becomes a parameter of its own on the last stage, under the head's name.

    Args:
        stage: number of the stage, from 0.
        split: number of blocks of each stage, first to last.
    """
    assert len(split) == stages, (split, stages)
    start = sum(split[:stage])
    part = copy.deepcopy(model)
    cut = cut_of(family)
    ((path, stack),) = block_lists(part, family)
    blocks = list(stack.children())
    kept = Blocks({str(number): blocks[number] for number in range(start, start + split[stage])})
    part.set_submodule(path, kept)
    _keep_layer_types(part.config, len(blocks), slice(start, start + split[stage]))
    if stage > 0:
        _without_entry(part, cut)
    if stage < stages - 1:
        _without_exit(part, cut)
    part.all_tied_weights_keys = {}  # embedding and head lie on different stages
    part._tied_weights_keys = {}
    part.config.use_cache = False
    return part


def tied_head(model: PreTrainedModel, family: ModelFamily) -> bool:
    """Whether head and embedding of the whole model are one parameter."""
    cut = cut_of(family)
    return getattr(model.get_submodule(cut.head), "weight", None) is model.get_submodule(cut.embedding).weight


def cut_of(family: ModelFamily) -> Cut:
    """The description of how models of ``family`` are cut; ``check_pipeline`` refuses families without one."""
    assert family.cut is not None, f"{family.title} cannot be cut into stages"
    return family.cut


def _without_entry(part: PreTrainedModel, cut: Cut) -> None:
    """Replace the embeddings by modules that pass hidden states through unchanged to the first block."""
    part.set_submodule(cut.embedding, PassThrough())
    for path, kind in cut.entry:
        owner, _, name = path.rpartition(".")
        if getattr(part.get_submodule(owner), name) is not None:  # positions may have no embedding
            part.set_submodule(path, STAND_INS[kind]())
    for path, attribute, value in cut.first_stage_only:
        _set(part, path, attribute, value)


def _without_exit(part: PreTrainedModel, cut: Cut) -> None:
    """Replace final norm and head by modules that pass hidden states through unchanged after the last block."""
    for path in (cut.final_norm, cut.head):
        owner, _, name = path.rpartition(".")
        if getattr(part.get_submodule(owner), name) is not None:  # OPT-350M has no final norm
            part.set_submodule(path, PassThrough())
    for path, attribute, value in cut.last_stage_only:
        _set(part, path, attribute, value)


def _set(part: PreTrainedModel, path: str, attribute: str, value: object) -> None:
    """Set an attribute of a module or of the configuration; a buffer becomes a plain attribute, so it is not loaded."""
    owner = reduce(getattr, path.split("."), part) if path else part
    if isinstance(owner, nn.Module) and attribute in owner._buffers:
        owner.__delattr__(attribute)
        value = torch.tensor(value, device="cpu")
    setattr(owner, attribute, value)


def _keep_layer_types(config: Any, layers: int, kept: slice) -> None:
    """Keep only the types of this stage's blocks, because stock code looks them up by a block's index in the stage."""
    for name in ("layer_types", "layers_block_type"):
        types = config.__dict__.get(name)
        if isinstance(types, list) and len(types) == layers:
            config.__dict__[name] = types[kept]
