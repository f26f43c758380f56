"""Replace a model's linear layers by torchao's fake-quantised layers, for quantisation-aware training.

A fake-quantised layer keeps its weight in full precision and rounds it in each forward pass.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from ...errors import Problem, UserError
from ..family import ModelFamily
from .number_format import Format
from .qat_config import QatConfig
from .quantise_model import layers_of
from .torchao_numbers import GroupIntegers, RowNumbers, torchao


def use_fake_quantised_layers(model: PreTrainedModel, config: QatConfig, family: ModelFamily) -> None:
    """Replace the linear layers of ``model``, in place; parameters keep their names and stay as they are.

    Args:
        model: on the meta device.

    Raises:
        UserError: no layer is left, or one does not divide into groups.
    """
    form: Format = GroupIntegers(config.group_size) if config.method == "int4" else RowNumbers("int8")
    rounding = torchao("quantization.qat")
    options = {"group_size": config.group_size} if config.method == "int4" else {"granularity": "per_channel"}
    weights = rounding.IntxFakeQuantizeConfig(getattr(torch, config.method), **options)
    paths = layers_of(model, config.skip, family, form, "model.qat", trained=True)
    linear = [path for path in paths if type(model.get_submodule(path)) is nn.Linear]
    if not linear:
        why = f"needs nn.Linear, and {family.title} has other layers"
        raise UserError(Problem("model.qat", why, "leave model.qat out", config.method))
    library = torchao("quantization.qat.linear")
    for path in linear:
        layer = model.get_submodule(path)
        made = library.FakeQuantizedLinear.from_linear(layer, weight_config=weights)
        for name, parameter in layer.named_parameters():
            setattr(made, name, parameter)
        model.set_submodule(path, made)
