"""Quantise an exported model folder: write the weights of its linear layers in 2 to 8 bits each, and all other tensors
unquantised, in a layout that ``transformers`` reads.

Weights are quantised one by one, and a file is written as soon as it is full, so memory holds at most one file and one
weight. GPTQ runs the model, so it needs the whole model in memory.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ....errors import Problem, UserError
from ....models.build_model import weight_source
from ....models.family import ModelFamily
from ....models.model_config import ModelConfig
from ....models.other_families import described
from ....models.pretrained import Matched, match_weights
from ....models.quantization.calibrate import calibrated
from ....models.quantization.gptq_numbers import GptqNumbers
from ....models.quantization.gptq_rounding import GptqRounding
from ....models.quantization.number_format import Format
from ....models.quantization.published import published, settings
from ....models.quantization.quantise_model import format_of, layers_of
from ....models.quantization.quantised_layer import KINDS, layer_sizes, oriented
from ....models.quantization.quantization_config import QuantizationConfig
from ....parallel.apply import materialise
from ....parallel.device import local_device
from ....parallel.micro_batch import map_tensors
from .expected_tensors import model_class
from .model_assets import copy_assets
from .weight_groups import write_groups

log = logging.getLogger("trireme.export")
GPTQ = "gptq"
METHODS = ("nf4", "fp4", "int8", GPTQ)
Inputs = Callable[[], Sequence[Mapping[str, Any]]]
"""Function that gives arguments of the model, on which GPTQ is calibrated."""


@dataclass(frozen=True)
class QuantiseOptions:
    """How a folder is quantised."""

    method: str
    """One of ``METHODS``."""
    bits: int = 4
    """Bits of a weight under GPTQ: 2, 3, 4 or 8."""
    group_size: int | None = None
    """Numbers that share a scale; None takes 64, or 128 for GPTQ."""
    by_activity: bool = False
    """Whether GPTQ rounds the columns with the largest inputs first."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"quantize={self.method!r} is not known; use one of {', '.join(METHODS)}")
        if self.bits not in (2, 3, 4, 8):
            raise ValueError(f"bits={self.bits} is not offered; use 2, 3, 4 or 8")
        if self.method != GPTQ and (self.bits != 4 or self.by_activity):
            named = "by_activity=True" if self.by_activity else f"bits={self.bits}"
            raise ValueError(f"{named} belongs to gptq; leave it out, or use --quantize gptq")
        if self.method != GPTQ and self.group_size is not None:
            QuantizationConfig(group_size=self.group_size)  # refuses sizes that bitsandbytes does not have
        if self.group_size is not None and self.group_size < 1 and self.group_size != -1:
            raise ValueError(f"group_size={self.group_size} must be positive; use 128, or -1 for whole columns")

    @property
    def form(self) -> Format:
        """The number format."""
        if self.method == GPTQ:
            return GptqNumbers(self.bits, self.group_size or 128)
        return format_of(QuantizationConfig(self.method, self.group_size or 64))  # type: ignore[arg-type]


def quantise_folder(
    whole: Path, folder: Path, options: QuantiseOptions, limit: int, dtype: torch.dtype, inputs: Inputs | None = None
) -> int:
    """Write the model in ``whole`` to ``folder``; returns the number of its quantised layers.

    Args:
        limit: most bytes of a file.
        dtype: type of the tensors that are not quantised.
        inputs: calibration inputs of GPTQ.

    Raises:
        UserError: the model has no layer that can be quantised.
        OSError: a file cannot be written.
    """
    model, family = model_in(whole)
    matched = match_weights(model, whole, family)
    form = options.form
    layers = [path for path in _candidates(model, family) if not form.flaw(*_sizes(model, path))]
    if not layers:
        why = "has no linear layer that can be quantised"
        raise UserError(Problem("--quantize", why, "export it without --quantize", options.method))
    if options.method == GPTQ:
        assert inputs is not None
        packed = _calibrated(model, family, layers, whole, inputs(), options)
    else:
        packed = _rounded(model, layers, matched, form)
    copy_assets(whole, folder, dtype)
    own = {f"{path}.weight" for path in layers}
    others = ((name, entry.read()) for name, entry in matched.tensors.items() if name not in own)
    plain = ({name: one.to(dtype) if one.is_floating_point() else one} for name, one in others)
    sizes = {path: _sizes(model, path) for path in layers}
    named = (published(form, path, parts, sizes[path]) for path, parts in packed)
    write_groups(folder, chain(named, plain), limit)
    values = json.loads((folder / "config.json").read_text())
    skipped = [path for path, module in model.named_modules() if type(module) in KINDS and path not in layers]
    values["quantization_config"] = settings(form, skipped, by_activity=options.by_activity)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    return len(layers)


def _candidates(model: PreTrainedModel, family: ModelFamily) -> list[str]:
    for one in model.parameters():
        one.requires_grad_(False)
    return layers_of(model, [], family, format_of(QuantizationConfig()), "--quantize")


def _sizes(model: PreTrainedModel, path: str) -> tuple[int, int]:
    return layer_sizes(model.get_submodule(path))


def model_in(whole: Path) -> tuple[PreTrainedModel, ModelFamily]:
    """The model that a folder describes, on the meta device, and its family."""
    config, built = model_class(whole)
    if built is None:
        why = "is of a class that transformers does not have"
        raise UserError(Problem("MODEL", why, "export without --quantize", str(whole)))
    with torch.device("meta"):
        model = built._from_config(config, dtype=torch.float32)
    return model, described(ModelConfig(weights=str(whole)).spec, model)


def _rounded(
    model: PreTrainedModel, layers: Sequence[str], matched: Matched, form: Format
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for path in layers:
        weight = matched.tensors[f"{path}.weight"].read().float()
        yield path, form.pack(oriented(model.get_submodule(path), weight).contiguous())


def _calibrated(
    model: PreTrainedModel,
    family: ModelFamily,
    layers: Sequence[str],
    whole: Path,
    inputs: Sequence[Mapping[str, Any]],
    options: QuantiseOptions,
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    device, form = local_device(), options.form
    assert isinstance(form, GptqNumbers)
    weights = weight_source(ModelConfig(weights=str(whole)), copy.deepcopy(model), 0, speaks=False)
    materialise(model, device, weights)
    given = [map_tensors(batch, lambda tensor: tensor.to(device)) for batch in inputs]
    search = GptqRounding(form, by_activity=options.by_activity)
    yield from calibrated(model.eval(), family, layers, given, search, log.info)
